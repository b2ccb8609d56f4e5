"""What every family of puzzles shares: the puzzle, the family, the split and the planned mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

MISTAKES_TRIED = 4
TEST_SHARE = 10  # one content in ten is a test puzzle
Instance = TypeVar("Instance")
T = TypeVar("T")


def content_hash(text: str) -> str:
    """The sha256, in hex, of a text whose case and white space do not count."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def is_test(content: str) -> bool:
    """Whether a puzzle of this content is a test puzzle: the hash alone decides, whatever the seed."""
    return int(content_hash(content), 16) % TEST_SHARE == 0


@dataclasses.dataclass(frozen=True, slots=True)
class Pose:
    """How an instance is put to a reader.

    `content` is what the split hashes: the question without the order of its options. `choices` are
    all the answers the question admits, empty where it is open.
    """

    task: str
    question: str
    content: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Solution:
    """Solution steps, one line each, and the answer they lead to."""

    steps: tuple[str, ...]
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class Puzzle:
    """One question with its true solution. `instance` is what its family made it from."""

    family: str
    task: str
    difficulty: int
    question: str
    content: str
    target: str
    steps: tuple[str, ...]
    choices: tuple[str, ...] = ()
    instance: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.family}-{content_hash(self.content)[:16]}"

    @property
    def is_test(self) -> bool:
        return is_test(self.content)

    @property
    def multiple_choice(self) -> bool:
        return bool(self.choices)

    @property
    def chance(self) -> float:
        """The accuracy of guessing: zero where the question is open."""
        return 1 / len(self.choices) if self.choices else 0.0


class Slip:
    """Decides each fallible point of a solution: rightly, but for decision number `at`, if any.

    A solver calls it wherever a person could err, and goes on from what it returns, so a mistake is
    carried through to the answer.
    """

    def __init__(self, at: int | None = None, rng: random.Random | None = None):
        self.decisions = 0
        self._at = at
        self._rng = rng or random.Random(0)

    def __call__(self, right: T, *wrong: T) -> T:
        errs = self.decisions == self._at
        self.decisions += 1
        alternatives = [value for value in wrong if value != right] if errs else []
        return self._rng.choice(alternatives) if alternatives else right


@dataclasses.dataclass(frozen=True)
class Family(Generic[Instance]):
    """A kind of puzzle.

    Attributes:
      draw: an instance of the given difficulty, from the random numbers given.
      pose: the question that an instance asks.
      solve: the steps and answer of an instance, erring where the slip says.
      simple_words: (phrase, simpler phrase) pairs that say a step to a child.
    """

    name: str
    difficulties: range
    draw: Callable[[random.Random, int], Instance]
    pose: Callable[[Instance], Pose]
    solve: Callable[[Instance, Slip], Solution]
    simple_words: tuple[tuple[str, str], ...]

    def generate(self, rng: random.Random, difficulty: int) -> Puzzle:
        """A random puzzle.

        Raises:
          ValueError: the family has no such difficulty.
        """
        if difficulty not in self.difficulties:
            levels = f"{self.difficulties.start} to {self.difficulties.stop - 1}"
            raise ValueError(f"{self.name} has difficulties {levels}, not {difficulty}")
        instance = self.draw(rng, difficulty)
        pose, solution = self.pose(instance), self.solve(instance, Slip())
        return Puzzle(
            family=self.name,
            task=pose.task,
            difficulty=difficulty,
            question=pose.question,
            content=pose.content,
            target=solution.answer,
            steps=solution.steps,
            choices=pose.choices,
            instance=instance,
        )

    def mistaken(self, puzzle: Puzzle, rng: random.Random) -> Solution:
        """A solution with one mistake, carried through; its answer is usually wrong.

        Mistakes that do not change the answer are passed over, as long as others are soon found.
        """
        counter = Slip()
        self.solve(puzzle.instance, counter)
        for _ in range(MISTAKES_TRIED):
            solution = self.solve(puzzle.instance, Slip(rng.randrange(counter.decisions), rng))
            if solution.answer != puzzle.target:
                break
        return solution

    def guess(self, puzzle: Puzzle, rng: random.Random) -> str:
        """An answer without a solution: any choice, or what a mistake would lead to."""
        return rng.choice(puzzle.choices) if puzzle.choices else self.mistaken(puzzle, rng).answer

    def simple(self, step: str) -> str:
        """A step in a child's words."""
        for phrase, simpler in self.simple_words:
            step = step.replace(phrase, simpler)
        return step
