"""Logical deduction: which of several ordered objects has a given rank?

Difficulties 1, 2: three objects; 3, 4: five; 5, 6: seven. The clues give the ranks of some objects (of
fewer at the even difficulties) and chain the others by comparisons, so that exactly one order fits. The
steps put the ranked objects on a line of slots, turn each comparison the same way round, join the
comparisons into one order and fill the empty slots with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import (
    NUMBER_WORDS,
    ORDINALS,
    article,
    letter_of,
    lettered,
    listing,
    shuffled,
)

NAME = "logical_deduction"
SIZES = {1: (3, 1), 2: (3, 0), 3: (5, 3), 4: (5, 2), 5: (7, 4), 6: (7, 3)}  # difficulty: (objects, ranked)
EMPTY = "_"


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A story. `low` and `high` name a rank from either end: the extreme one, then the pattern of others."""

    opening: str
    names: tuple[str, ...]
    entry: str  # how an object is listed; "" for its indefinite article
    subject: str
    verb: str
    low: tuple[str, str]
    high: tuple[str, str]
    before: str
    after: str
    middle_from_low: bool = True

    def rank(self, slot: int, count: int) -> str:
        """What is said of the object in a slot, counted from the nearer end."""
        from_high = count - 1 - slot
        near_low = slot < from_high or (slot == from_high and self.middle_from_low)
        (extreme, pattern), distance = (self.low, slot) if near_low else (self.high, from_high)
        return extreme if distance == 0 else pattern.format(ORDINALS[distance])

    def says_rank(self, name: str, slot: int, count: int) -> str:
        return f"{self.subject.format(name)} {self.verb} {self.rank(slot, count)}"

    def says_pair(self, before: str, after: str, turned: bool) -> str:
        first, second = (after, before) if turned else (before, after)
        relation = self.after if turned else self.before
        return f"{self.subject.format(first)} {relation} {_inside(self.subject.format(second))}"

    def lists(self, name: str) -> str:
        return self.entry.format(name) if self.entry else article(name)


def _inside(subject: str) -> str:
    """A subject within a sentence."""
    return subject.replace("The ", "the ")


_LEFT = ("the leftmost", "the {} from the left")
_RIGHT = ("the rightmost", "the {} from the right")
SETTINGS = {
    "birds": Setting(
        opening="On a branch, there are {count} birds: {names}.",
        names=("owl", "robin", "raven", "falcon", "quail", "crow", "hawk", "cardinal", "sparrow", "finch"),
        entry="",
        subject="The {}",
        verb="is",
        low=_LEFT,
        high=_RIGHT,
        before="is to the left of",
        after="is to the right of",
    ),
    "books": Setting(
        opening="On a shelf, there are {count} books: {names}.",
        names=("red", "orange", "yellow", "green", "blue", "purple", "black", "white", "brown", "gray"),
        entry="",
        subject="The {} book",
        verb="is",
        low=_LEFT,
        high=_RIGHT,
        before="is to the left of",
        after="is to the right of",
    ),
    "fruits": Setting(
        opening="A fruit stand sells {count} fruits: {names}.",
        names=("apples", "pears", "plums", "kiwis", "mangoes", "oranges", "peaches", "loquats", "lemons"),
        entry="{}",
        subject="The {}",
        verb="are",
        low=("the cheapest", "the {}-cheapest"),
        high=("the most expensive", "the {}-most expensive"),
        before="are less expensive than",
        after="are more expensive than",
        middle_from_low=False,
    ),
    "vehicles": Setting(
        opening="In an antique car show, there are {count} vehicles: {names}.",
        names=(
            "bus",
            "truck",
            "tractor",
            "sedan",
            "minivan",
            "limousine",
            "hatchback",
            "convertible",
            "tram",
        ),
        entry="",
        subject="The {}",
        verb="is",
        low=("the oldest", "the {}-oldest"),
        high=("the newest", "the {}-newest"),
        before="is older than",
        after="is newer than",
        middle_from_low=False,
    ),
    "golfers": Setting(
        opening="In a golf tournament, there were {count} golfers: {names}.",
        names=("Ada", "Amy", "Ana", "Dan", "Eli", "Eve", "Joe", "Mel", "Mya", "Rob"),
        entry="{}",
        subject="{}",
        verb="finished",
        low=("first", "{}"),
        high=("last", "{}-to-last"),
        before="finished above",
        after="finished below",
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Rank:
    """A clue: an object's slot."""

    name: str
    slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A clue: one object comes before another; a turned clue says it the other way round."""

    before: str
    after: str
    turned: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """`names` are in the order listed, `asked` is a slot."""

    setting: str
    names: tuple[str, ...]
    clues: tuple[Rank | Pair, ...]
    asked: int


def draw(rng: random.Random, difficulty: int) -> Instance:
    count, ranked = SIZES[difficulty]
    setting = rng.choice(tuple(SETTINGS))
    order = rng.sample(SETTINGS[setting].names, count)
    slots = sorted(rng.sample(range(count), ranked))
    chain = [name for slot, name in enumerate(order) if slot not in slots]
    clues: list[Rank | Pair] = [Rank(order[slot], slot) for slot in slots]
    clues += [Pair(one, other, rng.random() < 0.5) for one, other in itertools.pairwise(chain)]
    rng.shuffle(clues)
    return Instance(setting, shuffled(rng, order), tuple(clues), rng.randrange(count))


def pose(instance: Instance) -> Pose:
    setting, count = SETTINGS[instance.setting], len(instance.names)
    nouns = [_listed(instance.setting, name) for name in instance.names]
    clues = " ".join(f"{_says(instance, clue)}." for clue in instance.clues)
    stem = (
        f"The following paragraphs each describe a set of {NUMBER_WORDS[count]} objects arranged in a fixed "
        "order. The statements are logically consistent within each paragraph. "
        f"{setting.opening.format(count=NUMBER_WORDS[count], names=listing(nouns))} {clues}"
    )
    options = [setting.says_rank(name, instance.asked, count) for name in instance.names]
    return lettered(f"{NAME}_{NUMBER_WORDS[count]}_objects", stem, options)


def _listed(setting: str, name: str) -> str:
    return SETTINGS[setting].lists(f"{name} book" if setting == "books" else name)


def _says(instance: Instance, clue: Rank | Pair) -> str:
    setting = SETTINGS[instance.setting]
    if isinstance(clue, Rank):
        return setting.says_rank(clue.name, clue.slot, len(instance.names))
    return setting.says_pair(clue.before, clue.after, clue.turned)


def solve(instance: Instance, slip: Slip) -> Solution:
    line, steps = _place_ranked(instance, slip)
    pairs, more_steps = _read_pairs(instance, slip)
    chain = _joined(pairs, [name for name in instance.names if name not in line])
    if len(pairs) > 1:
        more_steps.append(f"In order: {', '.join(chain)}.")
    rest = iter(chain)
    filled = [next(rest) if name == EMPTY else name for name in line]
    more_steps.append(f"All: {', '.join(filled)}.")
    found = filled[instance.asked]
    label = letter_of(found, instance.names)
    said = SETTINGS[instance.setting].says_rank(found, instance.asked, len(filled))
    return Solution((*steps, *more_steps, f"{said}, option {label}."), label)


def _place_ranked(instance: Instance, slip: Slip) -> tuple[list[str], list[str]]:
    """The line of slots with the ranked objects on it, and the steps that put them there."""
    line, steps = [EMPTY] * len(instance.names), []
    ranks = [clue for clue in instance.clues if isinstance(clue, Rank)]
    taken = {clue.slot for clue in ranks}
    for clue in ranks:
        free = [slot for slot, name in enumerate(line) if name == EMPTY and slot not in taken]
        line[slip(clue.slot, *free)] = clue.name
        steps.append(f"{_says(instance, clue)}: {', '.join(line)}.")
    return line, steps


def _read_pairs(instance: Instance, slip: Slip) -> tuple[list[tuple[str, str]], list[str]]:
    pairs, steps = [], []
    for clue in instance.clues:
        if isinstance(clue, Pair):
            pair = slip((clue.before, clue.after), (clue.after, clue.before))
            pairs.append(pair)
            steps.append(f"{_says(instance, clue)}: {', '.join(pair)}.")
    return pairs, steps


def _joined(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[str]:
    """An order of the names that no pair contradicts, for pairs without a cycle."""
    chain: list[str] = []
    left = list(names)
    while left:
        follows = {after for before, after in pairs if before in left}
        chain.append(next(name for name in left if name not in follows))
        left.remove(chain[-1])
    return chain


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 7),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("In order:", "One after another:"),
        ("All:", "Now the whole line:"),
        (", option", ". That is"),
    ),
)
