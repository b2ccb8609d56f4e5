"""Puzzles about sets of things: how many there are, what color they have, and in which order they stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, NamedTuple

from orca_jax.queries.puzzles.base import (
    NUMBER_WORDS,
    Family,
    Pose,
    Slip,
    Solution,
    article,
    letter_of,
    lettered,
    listing,
    shuffled,
    words,
)


class Entry(NamedTuple):
    """So many things of one sort."""

    kind: str
    singular: str
    number: int

    def __str__(self) -> str:
        if self.number == 1:
            return article(self.singular)
        plural = ObjectCounting.PLURALS.get(self.singular, f"{self.singular}s")
        return f"{NUMBER_WORDS[self.number]} {plural}"


@dataclass(frozen=True)
class ObjectCounting(Family):
    """How many things of a kind are in a list of things?

    Difficulty d lists d + 1 sorts of things; from d = 2 on some may be of another kind, which does not count.
    Each step names one sort, says what it adds and gives the running total.
    """

    name, difficulties = "object_counting", range(1, 11)
    simple_words = (
        ("We count", "Let us count the"),
        (" = ", " makes "),
        ("no, still", "not one of them, so still"),
    )
    KINDS: ClassVar = {
        "fruits": "apple, banana, cherry, grape, lemon, mango, orange, peach, pear, plum, strawberry",
        "vegetables": "cabbage, carrot, cauliflower, cucumber, head of broccoli, lettuce head, onion, "
        "potato, radish, stalk of celery, yam",
        "animals": "bear, cat, chicken, cow, dog, frog, goat, mouse, owl, pig, rabbit",
        "musical instruments": "accordion, clarinet, drum, flute, guitar, harp, piano, trombone, trumpet, "
        "violin, xylophone",
        "objects": "bed, car, chair, couch, fridge, lamp, microwave, oven, stove, table, toaster",
    }
    PLURALS: ClassVar = {  # of those that take more than an s
        "cherry": "cherries", "mango": "mangoes", "peach": "peaches", "strawberry": "strawberries",
        "head of broccoli": "heads of broccoli", "potato": "potatoes", "radish": "radishes",
        "stalk of celery": "stalks of celery", "mouse": "mice", "couch": "couches",
    }  # fmt: skip

    kind: str
    entries: tuple[Entry, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> ObjectCounting:
        kind, other = rng.sample(tuple(cls.KINDS), 2)
        strangers, entries = rng.randint(0, difficulty // 2), list[Entry]()
        for listed, count in ((kind, difficulty + 1 - strangers), (other, strangers)):
            numbers = rng.choices((1, 2, 3, 4, 5), weights=(6, 2, 2, 1, 1), k=count)
            nouns = rng.sample(cls.KINDS[listed].split(", "), count)
            entries += [Entry(listed, noun, number) for noun, number in zip(nouns, numbers)]
        return cls(kind, shuffled(rng, entries))

    def pose(self) -> Pose:
        question = f"I have {listing(list(map(str, self.entries)))}. How many {self.kind} do I have?"
        return Pose(self.name, question, question)

    def solve(self, slip: Slip) -> Solution:
        steps, total = [f"We count {self.kind}: 0."], 0
        for entry in self.entries:
            counts = self.kind in ("objects", entry.kind)  # everything is an object
            if slip(counts, not counts):
                before, right = total, total + entry.number
                total = slip(right, right + 1, right - 1)
                steps.append(f"{entry}: {before} + {entry.number} = {total}.")
            else:
                steps.append(f"{entry}: no, still {total}.")
        return Solution(tuple(steps), str(total))


class Thing(NamedTuple):
    color: str
    name: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.color} {self.name}{'' if self.number == 1 else 's'}"


@dataclass(frozen=True)
class ColoredObjects(Family):
    """Colors, places in a row, and counts.

    Difficulty 1 asks for the color of one thing among two to four; 2 for the color of a thing at the end of a
    row or beside another; 3 for the thing furthest from another, or for how many things of a row are not of
    some color; 4 for how many are left when some are removed; 5 is 3 or 4 with more things. The options are
    Big-Bench Hard's fixed lists of colors and numbers. Steps number the row, or keep a running count.
    """

    name, difficulties = "reasoning_about_colored_objects", range(1, 6)
    styles = ("restate", "changes")
    simple_words = (
        ("We look for", "Let us find"),
        ("We count", "Let us count"),
        ("no, still", "not this one, so still"),
        ("is option", "goes with"),
        (", option", ", and that goes with"),
    )
    COLORS = words(
        "red orange yellow green blue brown magenta fuchsia mauve teal turquoise burgundy silver gold black "
        "grey purple pink"
    )
    NAMES = words(
        "cup mug jug plate pen pencil crayon textbook notebook booklet bracelet necklace puzzle keychain"
    )
    PLACES = ("desk", "table", "floor", "nightstand")
    NOUNS = ("item", "thing", "object")
    LEVELS: ClassVar = {  # by difficulty: kinds of question, and the least and most things
        1: (("color",), (2, 4)),
        2: (("end", "beside"), (3, 5)),
        3: (("furthest", "beyond", "neither"), (4, 5)),
        4: (("removal",), (3, 4)),
        5: (("furthest", "beyond", "neither", "removal"), (6, 7)),
    }

    kind: str
    place: str
    noun: str
    things: tuple[Thing, ...]
    focus: int  # the index of the thing asked about
    side: str  # left or right
    words: tuple[str, str]  # what goes and what is counted, one a color and one a name; else two colors

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> ColoredObjects:
        kinds, sizes = cls.LEVELS[difficulty]
        kind, count = rng.choice(kinds), rng.randint(*sizes)
        if kind == "removal":  # numbers of things of few colors and names, so that they overlap
            pairs = [
                (color, name) for color in rng.sample(cls.COLORS, 3) for name in rng.sample(cls.NAMES, 3)
            ]
            things = [Thing(color, name, rng.randint(1, 3)) for color, name in rng.sample(pairs, count)]
        else:
            names, few = rng.sample(cls.NAMES, count), rng.sample(cls.COLORS, count)
            things = [Thing(rng.choice(few), name) for name in names]
        side, place, noun = rng.choice(("left", "right")), rng.choice(cls.PLACES), rng.choice(cls.NOUNS)
        if kind == "furthest":  # a thing that is not as far from both ends
            focus = rng.choice([index for index in range(count) if 2 * index != count - 1])
        elif kind == "end":
            focus = 0 if side == "left" else count - 1
        else:  # a thing that has another beside it
            focus = rng.randrange(1, count) if side == "left" else rng.randrange(count - 1)
        first = rng.choice(things).color
        if kind == "removal":
            second = rng.choice(things).name
            if rng.random() >= 0.5:
                first, second = second, first
        else:
            second = rng.choice([color for color in cls.COLORS if color != first])
        return cls(kind, place, noun, tuple(things), focus, side, (first, second))

    def pose(self) -> Pose:
        options = NUMBER_WORDS[:17] if self.kind == "removal" else NUMBER_WORDS[:8]
        if self.kind in ("color", "end", "beside", "furthest"):
            options = self.COLORS
        if self.kind == "removal":
            heap = listing([f"{NUMBER_WORDS[thing.number]} {thing}" for thing in self.things])
            scene = f"there {'is' if self.things[0].number == 1 else 'are'} {heap}."
        else:
            scene = f"you see a set of {self.noun}s arranged in a row: "
            scene = "there is " if self.kind in ("color", "neither") else scene
            scene += f"{listing([article(str(thing)) for thing in self.things])}."
        return lettered(self.name, f"On the {self.place}, {scene} {self._question()}", options)

    def _question(self) -> str:
        noun, side, (first, second) = self.noun, self.side, self.words
        name = self.things[self.focus].name
        removed, counted = (f"{word} {noun}s" if word in self.COLORS else f"{word}s" for word in self.words)
        return {
            "color": f"What color is the {name}?",
            "end": f"What is the color of the {side}-most {noun}?",
            "beside": f"What is the color of the {noun} directly to the {side} of the {name}?",
            "furthest": f"What is the color of the {noun} furthest from the {name}?",
            "beyond": f"How many non-{first} {noun}s do you see to the {side} of the {name}?",
            "neither": f"How many {noun}s are neither {first} nor {second}?",
            "removal": f"If I remove all the {removed} from the {self.place}, "
            f"how many {counted} remain on it?",
        }[self.kind]

    def solve(self, slip: Slip) -> Solution:
        things, (first, second), leftwards = self.things, self.words, self.side == "left"
        place, last, name = self.focus + 1, len(things), things[self.focus].name
        row = f"{', '.join(f'{index} {thing}' for index, thing in enumerate(things, 1))}."
        match self.kind:
            case "color":
                found = slip(things[self.focus], *things)
                return self._named([f"We look for the {name}: {found}."], found)
            case "beyond":
                side = things[: place - 1] if leftwards else things[place:]
                steps = [row, f"The {name} is {place}."]
                return _counted(steps, side, lambda thing: thing.color != first, slip)
            case "neither":
                return _counted([], things, lambda thing: thing.color not in self.words, slip)
            case "removal":
                return _counted([], things, lambda thing: first not in thing and second in thing, slip)
            case "end":
                at = slip(place, 1, last)
                said = [f"The {self.side}-most is {at}"]
            case "beside":
                step = -1 if leftwards else 1
                at = slip(place + step, *(at for at in (place - step, place) if 1 <= at <= last))
                said = [f"The {name} is {place}, so to its {self.side} is {at}"]
            case _:
                left, right = place - 1, last - place
                at = slip(1, last) if left > right else slip(last, 1)
                distances = f"The {name} is {place}, so 1 is {left} away and {last} is {right} away."
                said = [distances, f"The furthest is {at}"]
        found = things[at - 1]
        return self._named([row, *said[:-1], f"{said[-1]}, {found}."], found)

    def _named(self, steps: Sequence[str], found: Thing) -> Solution:
        label = letter_of(found.color, self.COLORS)
        return Solution((*steps, f"{found.color} is option {label}."), label)


def _counted(
    steps: Sequence[str], things: Sequence[Thing], counts: Callable[[Thing], bool], slip: Slip
) -> Solution:
    lines, total = [*steps, "We count: 0."], 0
    for thing in things:
        label = f"{NUMBER_WORDS[thing.number]} {thing}"
        if slip(counts(thing), not counts(thing)):
            lines.append(f"{label}: {total} + {thing.number} = {total + thing.number}.")
            total += thing.number
        else:
            lines.append(f"{label}: no, still {total}.")
    option = letter_of(NUMBER_WORDS[total], NUMBER_WORDS)
    return Solution((*lines, f"{total} is {NUMBER_WORDS[total]}, option {option}."), option)


class Setting(NamedTuple):
    """A story. `low` and `high` name a rank from either end: the extreme one, then the pattern of others."""

    opening: str
    names: tuple[str, ...]
    subject: str
    verb: str
    low: tuple[str, str]
    high: tuple[str, str]
    before: str
    after: str
    middle_from_low: bool = True

    def listed(self, name: str) -> str:
        return article(self.subject.removeprefix("The ").format(name)) if self.verb == "is" else name

    def ranked(self, name: str, slot: int, count: int) -> str:
        """The rank of the object in a slot, counted from the nearer end."""
        from_high = count - 1 - slot
        near_low = slot < from_high or (slot == from_high and self.middle_from_low)
        (extreme, pattern), distance = (self.low, slot) if near_low else (self.high, from_high)
        ordinal = ("", "second", "third", "fourth")[distance]
        return f"{self.subject.format(name)} {self.verb} {pattern.format(ordinal) if ordinal else extreme}"


BIRDS = Setting(
    opening="On a branch, there are {count} birds: {names}.",
    names=words("owl robin raven falcon quail crow hawk cardinal sparrow finch"),
    subject="The {}",
    verb="is",
    low=("the leftmost", "the {} from the left"),
    high=("the rightmost", "the {} from the right"),
    before="is to the left of",
    after="is to the right of",
)


class Rank(NamedTuple):
    """A clue: an object's slot."""

    name: str
    slot: int


class Pair(NamedTuple):
    """A clue: one object comes before another; a turned clue says it the other way round."""

    before: str
    after: str
    turned: bool


@dataclass(frozen=True)
class LogicalDeduction(Family):
    """Which of several ordered objects has a given rank?

    Difficulties 1, 2: three objects; 3, 4: five; 5, 6: seven. The clues give the ranks of some objects (of
    fewer at the even difficulties) and chain the others by comparisons, so that exactly one order fits. The
    steps put the ranked objects on a line of slots, turn each comparison the same way round, join the
    comparisons into one order and fill the empty slots with it.
    """

    name, difficulties = "logical_deduction", range(1, 7)
    styles = ("restate", "changes")
    simple_words = (
        ("In order:", "One after another:"),
        ("All:", "Now the whole line:"),
        (", option", ". That is"),
    )
    SIZES: ClassVar = {1: (3, 1), 2: (3, 0), 3: (5, 3), 4: (5, 2), 5: (7, 4), 6: (7, 3)}  # objects, ranked
    EMPTY = "_"
    SETTINGS = (
        BIRDS,
        BIRDS._replace(
            opening="On a shelf, there are {count} books: {names}.",
            names=words("red orange yellow green blue purple black white brown gray"),
            subject="The {} book",
        ),
        Setting(
            opening="A fruit stand sells {count} fruits: {names}.",
            names=words("apples pears plums kiwis mangoes oranges peaches loquats lemons"),
            subject="The {}",
            verb="are",
            low=("the cheapest", "the {}-cheapest"),
            high=("the most expensive", "the {}-most expensive"),
            before="are less expensive than",
            after="are more expensive than",
            middle_from_low=False,
        ),
        Setting(
            opening="In an antique car show, there are {count} vehicles: {names}.",
            names=words("bus truck tractor sedan minivan limousine hatchback convertible tram"),
            subject="The {}",
            verb="is",
            low=("the oldest", "the {}-oldest"),
            high=("the newest", "the {}-newest"),
            before="is older than",
            after="is newer than",
            middle_from_low=False,
        ),
        Setting(
            opening="In a golf tournament, there were {count} golfers: {names}.",
            names=words("Ada Amy Ana Dan Eli Eve Joe Mel Mya Rob"),
            subject="{}",
            verb="finished",
            low=("first", "{}"),
            high=("last", "{}-to-last"),
            before="finished above",
            after="finished below",
        ),
    )

    setting: Setting
    names: tuple[str, ...]  # in the order listed
    clues: tuple[Rank | Pair, ...]
    asked: int  # a slot

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> LogicalDeduction:
        count, ranked = cls.SIZES[difficulty]
        setting = rng.choice(cls.SETTINGS)
        order = rng.sample(setting.names, count)
        slots = sorted(rng.sample(range(count), ranked))
        chain = [name for slot, name in enumerate(order) if slot not in slots]
        clues: list[Rank | Pair] = [Rank(order[slot], slot) for slot in slots]
        clues += [Pair(one, other, rng.random() < 0.5) for one, other in itertools.pairwise(chain)]
        rng.shuffle(clues)
        return cls(setting, shuffled(rng, order), tuple(clues), rng.randrange(count))

    def pose(self) -> Pose:
        setting, count = self.setting, len(self.names)
        names = listing([setting.listed(name) for name in self.names])
        stem = (
            f"The following paragraphs each describe a set of {NUMBER_WORDS[count]} objects arranged in a "
            "fixed order. The statements are logically consistent within each paragraph. "
            f"{setting.opening.format(count=NUMBER_WORDS[count], names=names)} "
            f"{' '.join(f'{self._says(clue)}.' for clue in self.clues)}"
        )
        options = [setting.ranked(name, self.asked, count) for name in self.names]
        return lettered(f"{self.name}_{NUMBER_WORDS[count]}_objects", stem, options)

    def _says(self, clue: Rank | Pair) -> str:
        if isinstance(clue, Rank):
            return self.setting.ranked(*clue, len(self.names))
        first, second = (self.setting.subject.format(name) for name in (clue.before, clue.after))
        if clue.turned:
            return f"{second} {self.setting.after} {first.replace('The ', 'the ')}"
        return f"{first} {self.setting.before} {second.replace('The ', 'the ')}"

    def solve(self, slip: Slip) -> Solution:
        # The line of slots with the ranked objects on it.
        line, steps = [self.EMPTY] * len(self.names), []
        ranks = [clue for clue in self.clues if isinstance(clue, Rank)]
        taken = {rank.slot for rank in ranks}
        for rank in ranks:
            free = [slot for slot, name in enumerate(line) if name == self.EMPTY and slot not in taken]
            line[slip(rank.slot, *free)] = rank.name
            steps.append(f"{self._says(rank)}: {', '.join(line)}.")
        # An order of the others that no pair contradicts, for pairs without a cycle.
        pairs = []
        for clue in self.clues:
            if isinstance(clue, Rank):
                continue
            pairs.append(slip((clue.before, clue.after), (clue.after, clue.before)))
            steps.append(f"{self._says(clue)}: {', '.join(pairs[-1])}.")
        left, chain = [name for name in self.names if name not in line], list[str]()
        while left:
            follows = {after for before, after in pairs if before in left}
            chain.append(next(name for name in left if name not in follows))
            left.remove(chain[-1])
        if len(pairs) > 1:
            steps.append(f"In order: {', '.join(chain)}.")
        rest = iter(chain)
        filled = [next(rest) if name == self.EMPTY else name for name in line]
        found = filled[self.asked]
        label = letter_of(found, self.names)
        said = self.setting.ranked(found, self.asked, len(filled))
        return Solution((*steps, f"All: {', '.join(filled)}.", f"{said}, option {label}."), label)
