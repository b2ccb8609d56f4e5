"""Puzzles with what checks a reply to them, as plain rows for any codebase of reinforcement learning.

A row says how its puzzle is drawn, so `verdict` needs the row and the reply alone. `puzzle_taskset` makes an
environment of Prime Intellect's `verifiers` of them.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import puzzles as benchmark
from orca_jax.queries import system_messages
from orca_jax.queries.puzzles import FAMILIES
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import check_steps, right_lines, wanted_style
from orca_jax.records import Message, Outcome, Reply, to_json

CHECKER = f"{__name__}:verdict"
PATIENCE = 5000  # draws without a new puzzle after which a family counts as exhausted


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply is worth: its answer, and its steps against the true ones.

    Attributes:
      correct: whether the answer is right, as evaluations of puzzles read it.
      answer: the answer that was read; None: there is none.
      steps_right: stated steps that are true ones in their order, of `steps_stated`; there are
        `steps_expected`.
      right_lines: lines before the first wrong one.
      whole: whether every line is right, and none is missing.
    """

    correct: bool
    answer: str | None
    steps_right: int
    steps_stated: int
    steps_expected: int
    right_lines: int
    whole: bool


def rows(
    families: Sequence[str],
    difficulties: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
    message: int = 7,
) -> Iterator[dict[str, Any]]:
    """`count` distinct puzzles of each family, the difficulties in turn, as JSON values.

    `prompt` is a list of messages, `answer` the right one, `draw` what `puzzle_of` makes the puzzle from, and
    `checker` the name of `verdict`. Test puzzles are those that no training sees, see `queries.puzzles`.

    Raises:
      ValueError: a family or difficulty is not known, or there are fewer puzzles.
    """
    text = system_messages.get(message).text
    system = [Message("system", text)] if text else []
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"unknown puzzle family {family!r}; known: {', '.join(FAMILIES)}")
        known, number, last = set[str](), 0, 0
        while len(known) < count:
            difficulty = difficulties[len(known) % len(difficulties)]
            draw, number = f"{seed}-{number}", number + 1
            puzzle = _drawn(family, difficulty, draw)
            if puzzle.id in known or puzzle.is_test != (split == "test"):
                if number - last > PATIENCE:
                    found = f"{len(known)} of {count} {split} puzzles"
                    raise ValueError(f"{family} has only {found}; ask for fewer")
                continue
            known.add(puzzle.id)
            last = number
            yield {
                "id": puzzle.id,
                "prompt": to_json((*system, Message("user", puzzle.question))),
                "answer": puzzle.target,
                "choices": list(puzzle.choices),
                "family": family,
                "difficulty": difficulty,
                "split": split,
                "draw": draw,
                "checker": CHECKER,
            }


@functools.lru_cache(maxsize=4096)  # the replies of a group are to one puzzle
def _drawn(family: str, difficulty: int, draw: str) -> Puzzle:
    return FAMILIES[family].generate(random.Random(f"{family} {difficulty} {draw}"), difficulty)


def puzzle_of(row: Mapping[str, Any]) -> Puzzle:
    """The puzzle of a row.

    Raises:
      ValueError: it is another one by now: the row was written by another version.
    """
    puzzle = _drawn(row["family"], row["difficulty"], row["draw"])
    if puzzle.id != row["id"]:
        raise ValueError(f"row {row['id']} is drawn as {puzzle.id} by this version; write the rows again")
    return puzzle


def verdict(row: Mapping[str, Any], text: str) -> Verdict:
    """Checks a reply to a row's puzzle: its answer in any wording, its steps in those of the oracles.

    Raises:
      ValueError: see `puzzle_of`.
    """
    puzzle = puzzle_of(row)
    question, reply = benchmark.questions([puzzle]), Reply(Outcome.OK, text)
    (item,) = scoring.score(question, [reply], seed=0, mode="robust", system_message_id=None)
    style = wanted_style([Message(**message) for message in row["prompt"]])
    steps, lines = check_steps(puzzle, text), right_lines(puzzle, style, text)
    return Verdict(
        correct=item.correct,
        answer=item.answer,
        steps_right=steps.correct,
        steps_stated=steps.stated,
        steps_expected=steps.expected,
        right_lines=lines.kept,
        whole=lines.whole,
    )


def reward(row: Mapping[str, Any], text: str) -> float:
    """1 for a right answer, else 0."""
    return float(verdict(row, text).correct)
