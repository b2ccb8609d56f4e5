"""Reads the steps of a reply to a puzzle and holds them against the true ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from orca_jax.queries.puzzles import FAMILIES
from orca_jax.queries.puzzles.base import Puzzle

ANSWER_SENTENCE = "So the answer is {answer}."
ANSWER_FIRST = "The answer is {answer}. Here is why:"
_ANSWER_LINE = re.compile(r"(so )?the answer is\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class StepScore:
    """How many true steps there are, how many steps a reply states, and how many of those are true.

    A stated step is correct when it is a true step, in plain or simple words, in its true order.
    """

    expected: int
    stated: int
    correct: int

    @property
    def wrong(self) -> int:
        return self.stated - self.correct


def stated_steps(reply_text: str) -> list[str]:
    """The lines of a reply that state steps: neither empty nor giving the answer.

    A reply of a single line is a bare answer and states none.
    """
    lines = [" ".join(line.split()) for line in reply_text.splitlines() if line.strip()]
    return [line for line in lines if not _ANSWER_LINE.match(line)] if len(lines) > 1 else []


def check_steps(puzzle: Puzzle, reply_text: str) -> StepScore:
    """Scores the steps of a reply.

    Raises:
      KeyError: the puzzle's family is unknown.
    """
    stated = stated_steps(reply_text)
    simple = tuple(map(FAMILIES[puzzle.family].simple, puzzle.steps))
    correct = max(_common_in_order(steps, stated) for steps in (puzzle.steps, simple))
    return StepScore(expected=len(puzzle.steps), stated=len(stated), correct=correct)


def _common_in_order(true: Sequence[str], stated: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(stated) + 1)
    for step in true:
        above = row
        row = [0]
        for index, line in enumerate(stated):
            row.append(above[index] + 1 if line == step else max(above[index + 1], row[index]))
    return row[-1]
