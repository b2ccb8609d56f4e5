"""Object counting: how many things of a kind are in a list of things?

Difficulty d lists d + 1 sorts of things; from d = 2 on some may be of another kind, which does not count.
Each step names one sort, says what it adds and gives the running total.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import NUMBER_WORDS, article, listing

NAME = "object_counting"
# kind: singulars
KINDS = {
    "fruits": "apple, banana, cherry, grape, lemon, mango, orange, peach, pear, plum, strawberry",
    "vegetables": (
        "cabbage, carrot, cauliflower, cucumber, head of broccoli, lettuce head, onion, potato, "
        "radish, stalk of celery, yam"
    ),
    "animals": "bear, cat, chicken, cow, dog, frog, goat, mouse, owl, pig, rabbit",
    "musical instruments": (
        "accordion, clarinet, drum, flute, guitar, harp, piano, trombone, trumpet, violin, xylophone"
    ),
    "objects": "bed, car, chair, couch, fridge, lamp, microwave, oven, stove, table, toaster",
}
PLURALS = {  # of those that take more than an s
    "cherry": "cherries",
    "mango": "mangoes",
    "peach": "peaches",
    "strawberry": "strawberries",
    "head of broccoli": "heads of broccoli",
    "potato": "potatoes",
    "radish": "radishes",
    "stalk of celery": "stalks of celery",
    "mouse": "mice",
    "couch": "couches",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """So many things of one sort."""

    kind: str
    singular: str
    number: int

    def __str__(self) -> str:
        if self.number == 1:
            return article(self.singular)
        return f"{NUMBER_WORDS[self.number]} {PLURALS.get(self.singular, self.singular + 's')}"


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    kind: str
    entries: tuple[Entry, ...]

    def counts(self, entry: Entry) -> bool:
        return self.kind in ("objects", entry.kind)  # everything is an object


def draw(rng: random.Random, difficulty: int) -> Instance:
    kind, other = rng.sample(tuple(KINDS), 2)
    strangers = rng.randint(0, difficulty // 2)
    entries = _draw_entries(rng, kind, difficulty + 1 - strangers) + _draw_entries(rng, other, strangers)
    return Instance(kind, tuple(rng.sample(entries, len(entries))))


def _draw_entries(rng: random.Random, kind: str, count: int) -> list[Entry]:
    numbers = rng.choices((1, 2, 3, 4, 5), weights=(6, 2, 2, 1, 1), k=count)
    return [
        Entry(kind, noun, number) for noun, number in zip(rng.sample(KINDS[kind].split(", "), count), numbers)
    ]


def pose(instance: Instance) -> Pose:
    things = listing([str(entry) for entry in instance.entries])
    question = f"I have {things}. How many {instance.kind} do I have?"
    return Pose(NAME, question, question)


def solve(instance: Instance, slip: Slip) -> Solution:
    steps, total = [f"We count {instance.kind}: 0."], 0
    for entry in instance.entries:
        if slip(instance.counts(entry), not instance.counts(entry)):
            before, right = total, total + entry.number
            total = slip(right, right + 1, right - 1)
            steps.append(f"{entry}: {before} + {entry.number} = {total}.")
        else:
            steps.append(f"{entry}: no, still {total}.")
    return Solution(tuple(steps), str(total))


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 11),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("We count", "Let us count the"),
        (" = ", " makes "),
        ("no, still", "not one of them, so still"),
    ),
)
