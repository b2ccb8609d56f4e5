"""What every family of puzzles shares: the puzzle, the family, the split, planned mistakes, and wording."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self, TypeVar

MISTAKES_TRIED = 4
TEST_SHARE = 10  # one content in ten is a test puzzle
T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)


def content_hash(text: str) -> str:
    """The sha256, in hex, of a text whose case and white space do not count."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


class Pose(NamedTuple):
    """How a puzzle is put to a reader.

    `content` is what the split hashes: the question without the order of its options. `choices` are
    all the answers the question admits, empty where it is open.
    """

    task: str
    question: str
    content: str
    choices: tuple[str, ...] = ()


class Solution(NamedTuple):
    """Solution steps, one line each, and the answer they lead to."""

    steps: tuple[str, ...]
    answer: str


STYLES = ("restate", "changes", "pointer")
BARE = "bare"  # the style without steps, of every family
OPTION = re.compile(r"^(\([A-Z]\)) (.*)$", re.MULTILINE)
ANSWER_SENTENCE = "So the answer is {answer}."


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


class Family(ABC):
    """A kind of puzzle; an object of it is what one puzzle is made from.

    Attributes:
      simple_words: (phrase, simpler phrase) pairs that say a step to a child.
      styles: the forms in which its steps can be written, the usual one first; see `trace`.
    """

    name: ClassVar[str]
    difficulties: ClassVar[range]
    simple_words: ClassVar[tuple[tuple[str, str], ...]] = ()
    styles: ClassVar[tuple[str, ...]] = ("restate",)

    def __init_subclass__(cls) -> None:
        if cls.solve is Family.solve and cls.trace is Family.trace:
            raise TypeError(f"{cls.__name__} defines neither solve nor trace")

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        """One of the given difficulty, from the random numbers given."""

    @abstractmethod
    def pose(self) -> Pose:
        """The question that it asks."""

    def solve(self, slip: Slip) -> Solution:
        """Its steps in the usual style and its answer, erring where the slip says.

        A family defines this, or `trace` if its steps differ by style.
        """
        return self.trace(self.styles[0], slip)

    def trace(self, style: str, slip: Slip) -> Solution:
        """`solve` in a style of `styles`.

        `restate`: each step writes out all that holds after it. `changes`: each step looks up what it needs,
        the key before its value, and writes what changes. `pointer`: from the question backwards, each step
        names what to look at next.
        """
        solution = self.solve(slip)
        return self.forward(solution) if style == "changes" else solution

    def forward(self, solution: Solution) -> Solution:
        """With all options before the last step, each text before its label.

        What follows a text is found where it was seen before; a label stands before its text in a question.
        """
        *steps, last = solution.steps
        listed = ", ".join(f"{text} {label}" for label, text in OPTION.findall(self.pose().question))
        return solution._replace(steps=(*steps, f"{listed}.", last))

    def closing(self, answer: str) -> str:
        """The line that ends a reply with the answer."""
        return ANSWER_SENTENCE.format(answer=answer)

    @classmethod
    def generate(cls, rng: random.Random, difficulty: int) -> Puzzle:
        """A random puzzle; raises ValueError for a difficulty that the family lacks."""
        if difficulty not in cls.difficulties:
            levels = f"{cls.difficulties.start} to {cls.difficulties.stop - 1}"
            raise ValueError(f"{cls.name} has difficulties {levels}, not {difficulty}")
        instance = cls.draw(rng, difficulty)
        return Puzzle(instance, difficulty, *instance.pose(), *instance.solve(Slip()))

    @classmethod
    def simple(cls, step: str) -> str:
        """A step in a child's words."""
        for phrase, simpler in cls.simple_words:
            step = step.replace(phrase, simpler)
        return step


@dataclasses.dataclass(frozen=True, slots=True)
class Puzzle:
    """One question with its true solution."""

    instance: Family = dataclasses.field(compare=False, repr=False)
    difficulty: int
    task: str
    question: str
    content: str
    choices: tuple[str, ...]
    steps: tuple[str, ...]
    target: str

    @property
    def family(self) -> str:
        return self.instance.name

    @property
    def id(self) -> str:
        return f"{self.family}-{content_hash(self.content)[:16]}"

    @property
    def is_test(self) -> bool:
        """Whether it is a test puzzle: the content's hash alone decides, whatever the seed."""
        return int(content_hash(self.content), 16) % TEST_SHARE == 0

    @property
    def chance(self) -> float:
        """The accuracy of guessing: zero where the question is open."""
        return 1 / len(self.choices) if self.choices else 0.0

    def solution(self, style: str = "", slip: Slip | None = None) -> Solution:
        """The solution in a style of `STYLES`, or `BARE`.

        Args:
          style: one that the family lacks, or none, is its usual one, so that families can be mixed.
          slip: where it errs; None: nowhere.

        Raises:
          ValueError: there is no such style.
        """
        if style not in ("", *STYLES, BARE):
            raise ValueError(f"unknown style of steps {style!r}; known: {', '.join((*STYLES, BARE))}")
        if style == BARE:
            return Solution((), self.target)
        if style not in self.instance.styles:
            style = self.instance.styles[0]
        if slip is None and style == self.instance.styles[0]:
            return Solution(self.steps, self.target)
        return self.instance.trace(style, slip or Slip())

    def mistaken(self, rng: random.Random, style: str = "") -> Solution:
        """A solution with one mistake, carried through; its answer is usually wrong.

        Mistakes that do not change the answer are passed over, as long as others are soon found.
        """
        if style == BARE:
            return Solution((), self.mistaken(rng).answer)
        counter = Slip()
        self.solution(style, counter)
        for _ in range(MISTAKES_TRIED):
            solution = self.solution(style, Slip(rng.randrange(counter.decisions), rng))
            if solution.answer != self.target:
                break
        return solution

    def guess(self, rng: random.Random) -> str:
        """An answer without a solution: any choice, or what a mistake would lead to."""
        return rng.choice(self.choices) if self.choices else self.mistaken(rng).answer


# Wording


def article(noun: str) -> str:
    """A noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listing(entries: Sequence[str]) -> str:
    """Entries in a sentence, with the serial comma that Big-Bench Hard writes before any last `and`."""
    return entries[0] if len(entries) == 1 else f"{', '.join(entries[:-1])}, and {entries[-1]}"


def letter(index: int) -> str:
    """The label of an option: (A), (B) and so on."""
    return f"({string.ascii_uppercase[index]})"


def letter_of(option: str, options: Sequence[str]) -> str:
    """The label of one of the options."""
    return letter(options.index(option))


def lettered(task: str, stem: str, options: Sequence[str]) -> Pose:
    """A question with lettered options, whose order does not count as content."""
    labels = tuple(map(letter, range(len(options))))
    lines = [f"{label} {option}" for label, option in zip(labels, options)]
    question = "\n".join([stem, "Options:", *lines])
    return Pose(task, question, "\n".join([stem, *sorted(options)]), labels)


def shuffled(rng: random.Random, entries: Sequence[T]) -> tuple[T, ...]:
    """The entries in random order."""
    return tuple(rng.sample(entries, len(entries)))
