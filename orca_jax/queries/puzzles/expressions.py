"""Puzzles whose steps rewrite an expression: boolean values, sums and products, and brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import ClassVar, NamedTuple

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution


@dataclass(frozen=True)
class BooleanExpressions(Family):
    """The value of an expression of True, False, and, or, not and parentheses.

    Difficulty d has d + 2 literals. Each step does one reduction and writes out the expression that is left.
    The order is fixed: parentheses around a value, then `not`, then `and`, then `or`, leftmost first.
    """

    name, difficulties = "boolean_expressions", range(1, 8)
    simple_words = ((" = ", " is just "), (": ", ", so now we have: "))
    VALUES = ("True", "False")
    REDUCTIONS = tuple(
        re.compile(pattern.replace("V", "(True|False)"))
        for pattern in (r"\( V \)", r"not V", r"V and V", r"(?<!and )V or V(?! and)")
    )

    text: str

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> BooleanExpressions:
        return cls(" ".join(cls._tokens(rng, difficulty + 2)))

    @classmethod
    def _tokens(cls, rng: Random, literals: int) -> list[str]:
        """An expression, possibly in parentheses or negated."""
        if literals == 1:
            tokens = [rng.choice(cls.VALUES)]
        else:
            left = rng.randint(1, literals - 1)
            operator = rng.choice(("and", "or"))
            tokens = [*cls._tokens(rng, left), operator, *cls._tokens(rng, literals - left)]
        if rng.random() < (0.1 if literals == 1 else 0.3):
            tokens = ["(", *tokens, ")"]
        while rng.random() < 0.3:
            tokens = ["not", *tokens]
        return tokens

    def pose(self) -> Pose:
        return Pose(self.name, f"{self.text} is", f"{self.text} is", self.VALUES)

    def solve(self, slip: Slip) -> Solution:
        text, steps = self.text, []
        while text not in self.VALUES:
            found = next(filter(None, (reduction.search(text) for reduction in self.REDUCTIONS)))
            values = [value == "True" for value in found.groups()]
            if "not" in found[0]:
                value = str(not values[0])
            else:
                value = str(any(values) if "or" in found[0] else all(values))
            if "(" not in found[0]:
                value = slip(value, *self.VALUES)
            text = text[: found.start()] + value + text[found.end() :]
            steps.append(f"{found[0]} = {value}: {text}")
        return Solution(tuple(steps), text)


class Group(NamedTuple):
    """Numbers and the operators between them."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        rest = "".join(f" {operator} {number}" for operator, number in zip(self.operators, self.numbers[1:]))
        return f"({self.numbers[0]}{rest})" if rest else str(self.numbers[0])

    def reduced(self, slip: Slip) -> tuple[str, Group]:
        """The operation to do next, worked out, and the group after it."""
        at = self.operators.index("*") if "*" in self.operators else 0
        (first, second), operator = self.numbers[at : at + 2], self.operators[at]
        # The right value, and those with a sign overlooked or of a neighbouring fact.
        value = slip(*(_apply(first, operator, n) for n in (second, -second, second + 1, second - 1)))
        numbers = (*self.numbers[:at], value, *self.numbers[at + 2 :])
        left = Group(numbers, self.operators[:at] + self.operators[at + 1 :])
        return f"{first} {operator} {second} = {value}", left


def _apply(first: int, operator: str, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second}[operator]


@dataclass(frozen=True)
class MultistepArithmetic(Family):
    """The value of two groups of small numbers, joined by an operator.

    Difficulty 1: two sums or differences of two numbers, joined by + or -; 2: groups of three numbers;
    3: groups of three with one product in each; 4: groups of four with one product in each; 5: groups of
    four with any operators, joined by any, as in Big-Bench Hard (its products are too large for one-step
    look-ups). Each step does one operation and writes out what is left: the first group first, in it products
    first, then from left to right.
    """

    name, difficulties = "multistep_arithmetic_two", range(1, 6)
    simple_words = ((" = ", " makes "), (": ", ", so now we have: "))
    SIZES = (2, 3, 3, 4, 4)  # numbers in a group, by difficulty

    left: Group
    operator: str
    right: Group

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> MultistepArithmetic:
        joining, size = "+-*" if difficulty == 5 else "+-", cls.SIZES[difficulty - 1]

        def group() -> Group:
            operators = [rng.choice(joining) for _ in range(size - 1)]
            if difficulty in (3, 4):
                operators[rng.randrange(size - 1)] = "*"
            numbers = tuple(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(size))
            return Group(numbers, tuple(operators))

        return cls(group(), rng.choice(joining), group())

    def pose(self) -> Pose:
        question = f"({self.left} {self.operator} {self.right}) ="
        return Pose(self.name, question, question)

    def solve(self, slip: Slip) -> Solution:
        groups, steps = [self.left, self.right], []
        for place in range(2):
            while groups[place].operators:
                done, groups[place] = groups[place].reduced(slip)
                steps.append(f"{done}: {groups[0]} {self.operator} {groups[1]}")
        done, value = Group(groups[0].numbers + groups[1].numbers, (self.operator,)).reduced(slip)
        return Solution((*steps, done), str(value))


@dataclass(frozen=True)
class DyckLanguages(Family):
    """Which brackets close a sequence?

    Difficulty d has between 3d + 1 and 3d + 3 brackets, of four kinds, of which one to four are left open.
    Each step reads one bracket and lists those still open; the last reverses the list into the answer.
    """

    name, difficulties = "dyck_languages", range(1, 9)
    simple_words = (("leaves", "and now open are:"), ("is closed by", "we shut, last one first, with"))
    TASK = "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input:"
    CLOSING: ClassVar = {"(": ")", "[": "]", "{": "}", "<": ">"}
    MOST_OPEN = 4

    brackets: tuple[str, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> DyckLanguages:
        length, deepest = rng.randint(3 * difficulty + 1, 3 * difficulty + 3), 3 + difficulty
        while True:
            brackets, opened = list[str](), list[str]()
            while len(brackets) < length:
                if opened and (len(opened) == deepest or rng.random() < 0.45):
                    brackets.append(cls.CLOSING[opened.pop()])
                else:
                    opened.append(rng.choice(tuple(cls.CLOSING)))
                    brackets.append(opened[-1])
            if 1 <= len(opened) <= cls.MOST_OPEN:
                return cls(tuple(brackets))

    def pose(self) -> Pose:
        question = f"{self.TASK} {' '.join(self.brackets)}"
        return Pose(self.name, question, question)

    def solve(self, slip: Slip) -> Solution:
        opened, steps = tuple[str, ...](), []
        for bracket in self.brackets:
            if bracket in self.CLOSING:
                opened = slip((*opened, bracket), opened)
            else:
                opened = slip(opened[:-1], *filter(None, (opened, opened[:-2])))
            steps.append(f"{bracket} leaves {' '.join(opened) or 'nothing'}")
        answer = " ".join(self.CLOSING[bracket] for bracket in reversed(opened)) or "nothing"
        steps.append(f"{' '.join(opened) or 'nothing'} is closed by {answer}")
        return Solution(tuple(steps), answer)
