"""Multi-step arithmetic: the value of two groups of small numbers, joined by an operator.

Difficulty 1: two sums or differences of two numbers, joined by + or -; 2: groups of three numbers;
3: groups of three with one product in each; 4: groups of four with one product in each; 5: groups of four
with any operators, joined by any, as in Big-Bench Hard (its products are too large for one-step look-ups).
Each step does one operation and writes out what is left: the first group first, in it products first, then
from left to right.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution

NAME = "multistep_arithmetic_two"
SIZES = {1: 2, 2: 3, 3: 3, 4: 4, 5: 4}  # difficulty: numbers in a group


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Numbers and the operators between them."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        words = [str(self.numbers[0])]
        for operator, number in zip(self.operators, self.numbers[1:]):
            words += [operator, str(number)]
        return f"({' '.join(words)})" if self.operators else words[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    left: Group
    operator: str
    right: Group


def draw(rng: random.Random, difficulty: int) -> Instance:
    return Instance(
        left=_draw_group(rng, difficulty),
        operator=rng.choice("+-*" if difficulty == 5 else "+-"),
        right=_draw_group(rng, difficulty),
    )


def _draw_group(rng: random.Random, difficulty: int) -> Group:
    size = SIZES[difficulty]
    operators = [rng.choice("+-*" if difficulty == 5 else "+-") for _ in range(size - 1)]
    if difficulty in (3, 4):
        operators[rng.randrange(size - 1)] = "*"
    numbers = tuple(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(size))
    return Group(numbers, tuple(operators))


def pose(instance: Instance) -> Pose:
    question = f"({instance.left} {instance.operator} {instance.right}) ="
    return Pose(NAME, question, question)


def solve(instance: Instance, slip: Slip) -> Solution:
    left, right, steps = instance.left, instance.right, []
    while left.operators:
        done, left = _reduced(left, slip)
        steps.append(f"{done}: {left} {instance.operator} {right}")
    while right.operators:
        done, right = _reduced(right, slip)
        steps.append(f"{done}: {left} {instance.operator} {right}")
    done, value = _reduced(Group(left.numbers + right.numbers, (instance.operator,)), slip)
    steps.append(done)
    return Solution(tuple(steps), str(value))


def _reduced(group: Group, slip: Slip) -> tuple[str, Group]:
    """The operation to do next, worked out, and the group after it."""
    at = group.operators.index("*") if "*" in group.operators else 0
    first, second = group.numbers[at : at + 2]
    operator = group.operators[at]
    right = _apply(first, operator, second)
    value = slip(right, *_near_misses(first, operator, second))
    numbers = (*group.numbers[:at], value, *group.numbers[at + 2 :])
    operators = group.operators[:at] + group.operators[at + 1 :]
    return f"{first} {operator} {second} = {value}", Group(numbers, operators)


def _apply(first: int, operator: str, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second}[operator]


def _near_misses(first: int, operator: str, second: int) -> tuple[int, ...]:
    """A sign overlooked, or a neighbouring fact."""
    return (
        _apply(first, operator, -second),
        _apply(first, operator, second + 1),
        _apply(first, operator, second - 1),
    )


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 6),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=((" = ", " makes "), (": ", ", so now we have: ")),
)
