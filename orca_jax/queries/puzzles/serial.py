"""Puzzles in few words that need one step after another, the difficulty being the number of steps.

Composing swaps of five things and following pointers are serial: a transformer of fixed depth does them for
any number of steps only if it may write them (arXiv 2402.12875). Every name is one word, so that a tokenizer
of whole words gives it one id, and a reply ends with a key and the answer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from random import Random

from orca_jax.queries.puzzles.base import NUMBER_WORDS, Family, Pose, Slip, Solution, shuffled, words
from orca_jax.queries.puzzles.persons import COLORS, TrackingShuffledObjects, tracked

VALUE = "value"


@dataclass(frozen=True)
class Tracking(Family):
    """Which color does one of five persons hold after a number of swaps? Difficulty k has k swaps."""

    name, difficulties = "tracking", range(1, 17)
    styles = ("changes", "restate", "pointer")
    PERSONS = TrackingShuffledObjects.PERSONS[:5]

    held: tuple[str, ...]
    swaps: tuple[tuple[int, int], ...]  # pairs of persons' indices
    asked: int  # the person's index

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> Tracking:
        count = len(cls.PERSONS)
        pairs = (rng.sample(range(count), 2) for _ in range(difficulty))
        swaps = tuple((first, second) for first, second in pairs)
        return cls(tuple(rng.sample(COLORS, count)), swaps, rng.randrange(count))

    def pose(self) -> Pose:
        start = " ".join(f"{person} {thing}" for person, thing in zip(self.PERSONS, self.held))
        swaps = " ".join(self.PERSONS[one] for swap in self.swaps for one in swap)
        question = f"{start}\n{swaps} ? {self.PERSONS[self.asked]}"
        return Pose(self.name, question, question, self.held)

    def trace(self, style: str, slip: Slip) -> Solution:
        steps, found = tracked(style, self.PERSONS, self.held, self.swaps, self.asked, slip)
        bare = (step.replace(",", "").replace(".", "").replace(":", " :") for step in steps)
        return Solution(tuple(bare), found)

    def closing(self, answer: str) -> str:
        return f"{self.PERSONS[self.asked]} {answer}"


@dataclass(frozen=True)
class PointerChasing(Family):
    """To which node do k pointers lead from a given one? Difficulty k has k hops.

    There are ten nodes, k + 1 where that is more, and each points to another. The nodes on the way are
    distinct, and the others point anywhere, so that no way back from the answer is shorter.
    """

    name, difficulties = "pointer_chasing", range(1, 16)
    styles = ("changes", "restate")
    NODES = words("ant bee cat dog elk fox goat hen ibis jay kiwi lion mole newt owl pig")
    SIZE = 10

    pointers: tuple[tuple[str, str], ...]  # from and to, in the order listed
    start: str
    hops: int

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> PointerChasing:
        nodes = rng.sample(cls.NODES, max(cls.SIZE, difficulty + 1))
        to = dict(itertools.pairwise(nodes[: difficulty + 1]))
        for node in nodes[difficulty:]:
            to[node] = rng.choice([other for other in nodes if other != node])
        return cls(shuffled(rng, tuple(to.items())), nodes[0], difficulty)

    def pose(self) -> Pose:
        listed = " ".join(f"{one} {other}" for one, other in self.pointers)
        question = f"{listed} ? {self.start} {NUMBER_WORDS[self.hops]}"
        return Pose(self.name, question, question, tuple(sorted(dict(self.pointers))))

    def trace(self, style: str, slip: Slip) -> Solution:
        to, way, steps = dict(self.pointers), [self.start], list[str]()
        for _ in range(self.hops):
            right = to[way[-1]]
            way.append(slip(right, *(node for node in to if node != right)))
            steps.append(" ".join(way if style == "restate" else way[-2:]))
        return Solution(tuple(steps), way[-1])

    def closing(self, answer: str) -> str:
        return f"{VALUE} {answer}"


@dataclass(frozen=True)
class NestedBooleans(Family):
    """The value of a formula of nested brackets over variables whose values are given.

    Difficulty k has k operators, each around all before it. The other operand of `and` is True and that of
    `or` False, so that no bracket decides the answer without what is inside it; half of the operators are
    `xor`. Both answers are as likely.
    """

    name, difficulties = "nested_booleans", range(1, 16)
    styles = ("changes", "restate")
    VARIABLES = words("p q r s t u v w x y z g h k m n")
    OPERATORS = words("and or xor xor")
    VALUES = words("True False")

    values: tuple[tuple[str, bool], ...]  # of the variables, in the order listed
    variables: tuple[str, ...]  # from the innermost bracket outwards
    operators: tuple[str, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> NestedBooleans:
        variables = tuple(rng.sample(cls.VARIABLES, difficulty + 1))
        operators = tuple(rng.choice(cls.OPERATORS) for _ in range(difficulty))
        neutral = {"and": True, "or": False}
        values = [neutral.get(operator, rng.random() < 0.5) for operator in ("xor", *operators)]
        return cls(shuffled(rng, tuple(zip(variables, values))), variables, operators)

    def pose(self) -> Pose:
        listed = " ".join(f"{name} {value}" for name, value in self.values)
        question = f"{listed}\n{self._formula(0, self.variables[0])} ?"
        return Pose(self.name, question, question, self.VALUES)

    def _formula(self, done: int, inside: str) -> str:
        """The formula whose first `done` operators are worked out to `inside`."""
        text = inside
        for operator, name in zip(self.operators[done:], self.variables[done + 1 :]):
            text = f"( {text} {operator} {name} )"
        return text

    def trace(self, style: str, slip: Slip) -> Solution:
        values = dict(self.values)

        def looked_up(name: str) -> bool:
            return slip(values[name], not values[name])

        value = looked_up(self.variables[0])
        steps = [f"{self.variables[0]} {value}"]
        for done, (operator, name) in enumerate(zip(self.operators, self.variables[1:]), 1):
            before, other = value, looked_up(name)
            right = {"and": before and other, "or": before or other, "xor": before != other}[operator]
            value = slip(right, not right)
            if style == "restate":
                said = f"{before} {operator} {name} {other} : {self._formula(done, str(value))}"
            else:
                said = f"{operator} {name} {other} : {value}"
            steps.append(said)
        return Solution(tuple(steps), str(value))

    def closing(self, answer: str) -> str:
        return f"{VALUE} {answer}"
