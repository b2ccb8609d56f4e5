"""Boolean expressions: the value of an expression of True, False, and, or, not and parentheses.

Difficulty d has d + 2 literals. Each step does one reduction and writes out the expression that is left.
The order is fixed: parentheses around a value, then `not`, then `and`, then `or`, leftmost first.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution

NAME = "boolean_expressions"
VALUES = ("True", "False")


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    tokens: tuple[str, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    return Instance(tuple(_draw_tokens(rng, difficulty + 2)))


def _draw_tokens(rng: random.Random, literals: int) -> list[str]:
    """An expression, possibly in parentheses or negated."""
    if literals == 1:
        tokens = [rng.choice(VALUES)]
    else:
        left = rng.randint(1, literals - 1)
        operator = rng.choice(("and", "or"))
        tokens = [*_draw_tokens(rng, left), operator, *_draw_tokens(rng, literals - left)]
    if rng.random() < (0.1 if literals == 1 else 0.3):
        tokens = ["(", *tokens, ")"]
    while rng.random() < 0.3:
        tokens = ["not", *tokens]
    return tokens


def pose(instance: Instance) -> Pose:
    question = f"{' '.join(instance.tokens)} is"
    return Pose(NAME, question, question, VALUES)


def solve(instance: Instance, slip: Slip) -> Solution:
    tokens, steps = list(instance.tokens), []
    while len(tokens) > 1:
        start, end = _next_reduction(tokens)
        reduced = tokens[start:end]
        value = _value(reduced)
        if reduced[0] != "(":
            value = slip(value, *VALUES)
        tokens[start:end] = [value]
        steps.append(f"{' '.join(reduced)} = {value}: {' '.join(tokens)}")
    return Solution(tuple(steps), tokens[0])


def _next_reduction(tokens: list[str]) -> tuple[int, int]:
    """Where the next part to reduce starts and ends."""
    return next(_candidates(tokens))


def _candidates(tokens: list[str]) -> Iterator[tuple[int, int]]:
    for start in range(len(tokens) - 2):
        if tokens[start] == "(" and tokens[start + 2] == ")":
            yield start, start + 3
    for start in range(len(tokens) - 1):
        if tokens[start] == "not" and tokens[start + 1] in VALUES:
            yield start, start + 2
    for operator in ("and", "or"):
        for start in range(len(tokens) - 2):
            if _can_join(tokens, start, operator):
                yield start, start + 3


def _can_join(tokens: list[str], start: int, operator: str) -> bool:
    left, middle, right = tokens[start : start + 3]
    if middle != operator or left not in VALUES or right not in VALUES:
        return False
    neighbours = (tokens[start - 1] if start else "", *tokens[start + 3 : start + 4])
    return operator == "and" or "and" not in neighbours


def _value(reduced: list[str]) -> str:
    match reduced:
        case ["(", value, ")"]:
            return value
        case ["not", value]:
            return str(value == "False")
        case [left, "and", right]:
            return str((left, right) == ("True", "True"))
        case [left, "or", right]:
            return str("True" in (left, right))
    raise ValueError(f"cannot reduce {' '.join(reduced)!r}")


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 8),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=((" = ", " is just "), (": ", ", so now we have: ")),
)
