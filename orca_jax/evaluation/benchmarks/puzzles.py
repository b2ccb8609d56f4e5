"""Procedural puzzles as an evaluation: a task is a family, and items keep difficulty and step scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import check_steps
from orca_jax.records import Reply

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
            extra={"family": puzzle.family, "difficulty": puzzle.difficulty, "bbh_task": puzzle.task},
        )
        for puzzle in puzzles
    ]
    return base.with_majority(made)


def details(puzzles: Iterable[Puzzle]) -> Callable[[Question, Reply], dict[str, Any]]:
    """What `scoring.score` adds to a puzzle's items: family, difficulty and the reply's step scores."""
    by_id = {puzzle.id: puzzle for puzzle in puzzles}

    def of_reply(question: Question, reply: Reply) -> dict[str, Any]:
        steps = check_steps(by_id[question.id], reply.text)
        return {**question.extra, "steps": dataclasses.asdict(steps)}

    return of_reply
