"""Procedural puzzles as an evaluation: a task is a family, and items keep difficulty and step scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import check_steps

BENCHMARK = "puzzles"


def questions(puzzles: Sequence[Puzzle], *, mode: str = "robust") -> list[Question]:
    """One question a puzzle; the prompt is the puzzle's text and nothing else."""

    def label(choice: str) -> str:
        return choice.removeprefix("(").removesuffix(")")

    made = [
        Question(
            benchmark=BENCHMARK,
            task=puzzle.family,
            id=puzzle.id,
            text=puzzle.question,
            target=label(puzzle.target) if puzzle.choices else puzzle.target,
            choices=tuple(map(label, puzzle.choices)),
            chance=puzzle.chance,
            mode=mode,
            details=partial(_details, puzzle),
        )
        for puzzle in puzzles
    ]
    return base.with_majority(made)


def _details(puzzle: Puzzle, text: str) -> dict[str, Any]:
    """What items keep of a puzzle, and the step scores of a reply."""
    steps = dataclasses.asdict(check_steps(puzzle, text))
    return {"family": puzzle.family, "difficulty": puzzle.difficulty, "bbh_task": puzzle.task, "steps": steps}
