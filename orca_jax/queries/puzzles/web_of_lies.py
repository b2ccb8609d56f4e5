"""Web of lies: a chain of persons, each saying of the one before that they lie or tell the truth.

Difficulty d has d + 1 persons, so d = 4 is Big-Bench Hard's size. Each step repeats a claim and what is
known of the person it is about, then says what follows.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import words

NAME = "web_of_lies"
NAMES = words(
    "Ada Amir Bela Bruno Celia Cyrus Dina Dorian Edith Emil Farah Felix Greta Hugo Inez Ivor Jonas Karin "
    "Leona Magnus Nadia Otto Petra Quentin Rosa Silas Tamar Ulric Vera Wanda Xenia Yusuf Zelda"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """`claims[i]` is whether person i + 1 says that person i tells the truth."""

    names: tuple[str, ...]
    first_is_honest: bool
    claims: tuple[bool, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    return Instance(
        names=tuple(rng.sample(NAMES, difficulty + 1)),
        first_is_honest=rng.random() < 0.5,
        claims=tuple(rng.random() < 0.5 for _ in range(difficulty)),
    )


def pose(instance: Instance) -> Pose:
    names = instance.names
    sentences = [_verdict(names[0], instance.first_is_honest)]
    for speaker, subject, claim in zip(names[1:], names, instance.claims):
        sentences.append(f"{speaker} says {_verdict(subject, claim)}")
    question = f"Question: {' '.join(sentences)} Does {names[-1]} tell the truth?"
    return Pose(NAME, question, question, ("Yes", "No"))


def solve(instance: Instance, slip: Slip) -> Solution:
    names, honest = instance.names, instance.first_is_honest
    steps = [_verdict(names[0], honest)]
    for speaker, subject, claim in zip(names[1:], names, instance.claims):
        premises = f"{speaker} says {_verdict(subject, claim)} {_verdict(subject, honest)}"
        honest = slip(claim == honest, claim != honest)
        steps.append(f"{premises} So {_verdict(speaker, honest)}")
    return Solution(tuple(steps), "Yes" if honest else "No")


def _verdict(name: str, honest: bool) -> str:
    return f"{name} tells the truth." if honest else f"{name} lies."


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 8),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(("tells the truth", "is honest"), ("lies", "fibs"), ("So ", "That means ")),
)
