"""Reasoning about colored objects: colors, places in a row, and counts.

Difficulty 1 asks for the color of one thing among two to four; 2 for the color of a thing at the end of a
row or beside another; 3 for the thing furthest from another, or for how many things of a row are not of
some color; 4 for how many are left when some are removed; 5 is 3 or 4 with more things. The options are
Big-Bench Hard's fixed lists of colors and numbers. Steps number the row, or keep a running count.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import NUMBER_WORDS, article, letter_of, lettered, listing, words

NAME = "reasoning_about_colored_objects"
COLORS = words(
    "red orange yellow green blue brown magenta fuchsia mauve teal turquoise burgundy silver gold black grey "
    "purple pink"
)
NAMES = words(
    "cup mug jug plate pen pencil crayon textbook notebook booklet bracelet necklace puzzle keychain"
)
PLACES = ("desk", "table", "floor", "nightstand")
NOUNS = ("item", "thing", "object")
KINDS = {
    1: ("color",),
    2: ("end", "beside"),
    3: ("furthest", "beyond", "neither"),
    4: ("removal",),
    5: ("furthest", "beyond", "neither", "removal"),
}
SIZES = {1: (2, 4), 2: (3, 5), 3: (4, 5), 4: (3, 4), 5: (6, 7)}  # difficulty: least and most things


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    color: str
    name: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.color} {self.name}" if self.number == 1 else f"{self.color} {self.name}s"


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """`focus` is the index of the thing asked about, `side` left or right; `words` as the kind needs them."""

    kind: str
    place: str
    noun: str
    things: tuple[Thing, ...]
    focus: int
    side: str
    words: tuple[str, str]


def draw(rng: random.Random, difficulty: int) -> Instance:
    kind, count = rng.choice(KINDS[difficulty]), rng.randint(*SIZES[difficulty])
    things = _draw_heap(rng, count) if kind == "removal" else _draw_row(rng, count)
    side = rng.choice(("left", "right"))
    return Instance(
        kind=kind,
        place=rng.choice(PLACES),
        noun=rng.choice(NOUNS),
        things=things,
        focus=_draw_focus(rng, kind, count, side),
        side=side,
        words=_draw_words(rng, kind, things),
    )


def _draw_row(rng: random.Random, count: int) -> tuple[Thing, ...]:
    names = rng.sample(NAMES, count)
    few = rng.sample(COLORS, count)
    return tuple(Thing(rng.choice(few), name) for name in names)


def _draw_heap(rng: random.Random, count: int) -> tuple[Thing, ...]:
    """Numbers of things of few colors and names, so that they overlap."""
    pairs = [(color, name) for color in rng.sample(COLORS, 3) for name in rng.sample(NAMES, 3)]
    return tuple(Thing(color, name, rng.randint(1, 3)) for color, name in rng.sample(pairs, count))


def _draw_focus(rng: random.Random, kind: str, count: int, side: str) -> int:
    """A thing that has another beside it, or that is not as far from both ends."""
    if kind == "furthest":
        return rng.choice([index for index in range(count) if 2 * index != count - 1])
    if kind == "end":
        return 0 if side == "left" else count - 1
    return rng.randrange(1, count) if side == "left" else rng.randrange(count - 1)


def _draw_words(rng: random.Random, kind: str, things: Sequence[Thing]) -> tuple[str, str]:
    """For a removal what goes and what is counted, one a color and one a name; else two colors."""
    if kind == "removal":
        color, name = rng.choice(things).color, rng.choice(things).name
        return (color, name) if rng.random() < 0.5 else (name, color)
    first = rng.choice(things).color
    return first, rng.choice([color for color in COLORS if color != first])


def pose(instance: Instance) -> Pose:
    options = NUMBER_WORDS[:17] if instance.kind == "removal" else NUMBER_WORDS[:8]
    if instance.kind in ("color", "end", "beside", "furthest"):
        options = COLORS
    return lettered(NAME, f"{_scene(instance)} {_question(instance)}", options)


def _scene(instance: Instance) -> str:
    noun, place = instance.noun, instance.place
    if instance.kind == "removal":
        heap = listing([f"{NUMBER_WORDS[thing.number]} {thing}" for thing in instance.things])
        return f"On the {place}, there {'is' if instance.things[0].number == 1 else 'are'} {heap}."
    row = listing([article(str(thing)) for thing in instance.things])
    if instance.kind in ("color", "neither"):
        return f"On the {place}, there is {row}."
    return f"On the {place}, you see a set of {noun}s arranged in a row: {row}."


def _question(instance: Instance) -> str:
    noun, side, place = instance.noun, instance.side, instance.place
    name = instance.things[instance.focus].name
    first, second = instance.words
    removed = f"{first} {noun}s" if first in COLORS else f"{first}s"
    counted = f"{second} {noun}s" if second in COLORS else f"{second}s"
    return {
        "color": f"What color is the {name}?",
        "end": f"What is the color of the {side}-most {noun}?",
        "beside": f"What is the color of the {noun} directly to the {side} of the {name}?",
        "furthest": f"What is the color of the {noun} furthest from the {name}?",
        "beyond": f"How many non-{first} {noun}s do you see to the {side} of the {name}?",
        "neither": f"How many {noun}s are neither {first} nor {second}?",
        "removal": f"If I remove all the {removed} from the {place}, how many {counted} remain on it?",
    }[instance.kind]


def solve(instance: Instance, slip: Slip) -> Solution:
    return SOLVERS[instance.kind](instance, slip)


def _solve_color(instance: Instance, slip: Slip) -> Solution:
    thing = slip(instance.things[instance.focus], *instance.things)
    return _name_color([f"We look for the {instance.things[instance.focus].name}: {thing}."], thing.color)


def _solve_end(instance: Instance, slip: Slip) -> Solution:
    last = len(instance.things)
    at = slip(instance.focus + 1, 1, last)
    return _pick([_row(instance)], f"The {instance.side}-most is {at}", instance, at)


def _solve_beside(instance: Instance, slip: Slip) -> Solution:
    place = instance.focus + 1
    step = -1 if instance.side == "left" else 1
    others = [at for at in (place - step, place) if 1 <= at <= len(instance.things)]
    at = slip(place + step, *others)
    said = f"The {instance.things[instance.focus].name} is {place}, so to its {instance.side} is {at}"
    return _pick([_row(instance)], said, instance, at)


def _solve_furthest(instance: Instance, slip: Slip) -> Solution:
    place, last = instance.focus + 1, len(instance.things)
    left, right = place - 1, last - place
    at = slip(1 if left > right else last, last if left > right else 1)
    name = instance.things[instance.focus].name
    distances = f"The {name} is {place}, so 1 is {left} away and {last} is {right} away."
    return _pick([_row(instance), distances], f"The furthest is {at}", instance, at)


def _solve_beyond(instance: Instance, slip: Slip) -> Solution:
    place, color = instance.focus + 1, instance.words[0]
    steps = [_row(instance), f"The {instance.things[instance.focus].name} is {place}."]
    side = range(1, place) if instance.side == "left" else range(place + 1, len(instance.things) + 1)
    things = [instance.things[at - 1] for at in side]
    return _count(steps, things, lambda thing: thing.color != color, slip)


def _solve_neither(instance: Instance, slip: Slip) -> Solution:
    return _count([], instance.things, lambda thing: thing.color not in instance.words, slip)


def _solve_removal(instance: Instance, slip: Slip) -> Solution:
    removed, counted = instance.words

    def remains(thing: Thing) -> bool:
        return removed not in (thing.color, thing.name) and counted in (thing.color, thing.name)

    return _count([], instance.things, remains, slip)


def _row(instance: Instance) -> str:
    return f"{', '.join(f'{index} {thing}' for index, thing in enumerate(instance.things, 1))}."


def _pick(steps: Sequence[str], said: str, instance: Instance, at: int) -> Solution:
    thing = instance.things[at - 1]
    return _name_color([*steps, f"{said}, {thing}."], thing.color)


def _name_color(steps: Sequence[str], color: str) -> Solution:
    label = letter_of(color, COLORS)
    return Solution((*steps, f"{color} is option {label}."), label)


def _count(
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


SOLVERS: dict[str, Callable[[Instance, Slip], Solution]] = {
    "color": _solve_color,
    "end": _solve_end,
    "beside": _solve_beside,
    "furthest": _solve_furthest,
    "beyond": _solve_beyond,
    "neither": _solve_neither,
    "removal": _solve_removal,
}
FAMILY = Family(
    name=NAME,
    difficulties=range(1, 6),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("We look for", "Let us find"),
        ("We count", "Let us count"),
        ("no, still", "not this one, so still"),
        ("is option", "goes with"),
        (", option", ", and that goes with"),
    ),
)
