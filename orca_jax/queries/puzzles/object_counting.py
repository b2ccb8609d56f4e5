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
# kind: {singular: plural}
KINDS = {
    "fruits": {
        "apple": "apples",
        "banana": "bananas",
        "cherry": "cherries",
        "grape": "grapes",
        "lemon": "lemons",
        "mango": "mangoes",
        "orange": "oranges",
        "peach": "peaches",
        "pear": "pears",
        "plum": "plums",
        "strawberry": "strawberries",
    },
    "vegetables": {
        "cabbage": "cabbages",
        "carrot": "carrots",
        "cauliflower": "cauliflowers",
        "cucumber": "cucumbers",
        "head of broccoli": "heads of broccoli",
        "lettuce head": "lettuce heads",
        "onion": "onions",
        "potato": "potatoes",
        "radish": "radishes",
        "stalk of celery": "stalks of celery",
        "yam": "yams",
    },
    "animals": {
        "bear": "bears",
        "cat": "cats",
        "chicken": "chickens",
        "cow": "cows",
        "dog": "dogs",
        "frog": "frogs",
        "goat": "goats",
        "mouse": "mice",
        "owl": "owls",
        "pig": "pigs",
        "rabbit": "rabbits",
    },
    "musical instruments": {
        "accordion": "accordions",
        "clarinet": "clarinets",
        "drum": "drums",
        "flute": "flutes",
        "guitar": "guitars",
        "harp": "harps",
        "piano": "pianos",
        "trombone": "trombones",
        "trumpet": "trumpets",
        "violin": "violins",
        "xylophone": "xylophones",
    },
    "objects": {
        "bed": "beds",
        "car": "cars",
        "chair": "chairs",
        "couch": "couches",
        "fridge": "fridges",
        "lamp": "lamps",
        "microwave": "microwaves",
        "oven": "ovens",
        "stove": "stoves",
        "table": "tables",
        "toaster": "toasters",
    },
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
        return f"{NUMBER_WORDS[self.number]} {KINDS[self.kind][self.singular]}"


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
    return [Entry(kind, noun, number) for noun, number in zip(rng.sample(tuple(KINDS[kind]), count), numbers)]


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
