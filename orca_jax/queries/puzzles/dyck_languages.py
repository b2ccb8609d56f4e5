"""Dyck languages: which brackets close a sequence?

Difficulty d has between 3d + 1 and 3d + 3 brackets, of four kinds, of which one to four are left open.
Each step reads one bracket and lists those still open; the last reverses the list into the answer.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution

NAME = "dyck_languages"
TASK = "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input:"
CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
MOST_OPEN = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    brackets: tuple[str, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    length = rng.randint(3 * difficulty + 1, 3 * difficulty + 3)
    while True:
        brackets, opened = _draw_brackets(rng, length, deepest=3 + difficulty)
        if 1 <= len(opened) <= MOST_OPEN:
            return Instance(tuple(brackets))


def _draw_brackets(rng: random.Random, length: int, deepest: int) -> tuple[list[str], list[str]]:
    brackets: list[str] = []
    opened: list[str] = []
    while len(brackets) < length:
        if opened and (len(opened) == deepest or rng.random() < 0.45):
            brackets.append(CLOSING[opened.pop()])
        else:
            opened.append(rng.choice(tuple(CLOSING)))
            brackets.append(opened[-1])
    return brackets, opened


def pose(instance: Instance) -> Pose:
    question = f"{TASK} {' '.join(instance.brackets)}"
    return Pose(NAME, question, question)


def solve(instance: Instance, slip: Slip) -> Solution:
    opened: tuple[str, ...] = ()
    steps = []
    for bracket in instance.brackets:
        opened = slip(*_outcomes(opened, bracket))
        steps.append(f"{bracket} leaves {' '.join(opened) or 'nothing'}")
    answer = " ".join(CLOSING[bracket] for bracket in reversed(opened)) or "nothing"
    steps.append(f"{' '.join(opened) or 'nothing'} is closed by {answer}")
    return Solution(tuple(steps), answer)


def _outcomes(opened: tuple[str, ...], bracket: str) -> list[tuple[str, ...]]:
    """The brackets open after this one, then the ways to get them wrong."""
    pushed, popped = (*opened, bracket), opened[:-1]
    if bracket in CLOSING:
        return [pushed, opened]
    return [popped] + [other for other in (opened, opened[:-2]) if other]


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 9),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(("leaves", "and now open are:"), ("is closed by", "we shut, last one first, with")),
)
