"""Temporal sequences: when could a person, seen elsewhere at other times, have gone to a place?

Difficulty d has d + 2 sightings; they and the only free time fill the hours between waking up and closing.
Each step repeats a sighting and since when the person was free; the steps end when a free time is found.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import letter, letter_of, lettered, shuffled, words

NAME = "temporal_sequences"
FIRST_HOUR, LAST_HOUR = 5, 22
OPTIONS = 4
NAMES = words(
    "Anna Betty David Emily Hannah James Jason Jennifer Jessica John Kevin Laura Linda Maria Mark Mary Nancy "
    "Peter Richard Sarah Sean Steven Susan Thomas William"
)
PLACES = ("museum", "coffee shop", "beach", "bakery", "swimming pool", "art show", "market", "bookstore")
ACTIVITIES = (
    "reading at the library",
    "working at the office",
    "watching a movie at the theater",
    "buying clothes at the mall",
    "waiting at the airport",
    "playing tennis at the court",
    "walking in the garden",
    "fixing a computer at the shop",
    "sitting on a rooftop",
    "attending class at the school",
)
Window = tuple[int, int]  # start and end, in hours of the day


@dataclasses.dataclass(frozen=True, slots=True)
class Sighting:
    witness: str
    activity: str
    window: Window


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    person: str
    place: str
    woke: int
    sightings: tuple[Sighting, ...]
    closed: int
    options: tuple[str, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    seen = difficulty + 2
    hours = sorted(rng.sample(range(FIRST_HOUR, LAST_HOUR + 1), seen + 2))
    windows = list(itertools.pairwise(hours))
    free = windows.pop(rng.randrange(seen + 1))
    person, *witnesses = rng.sample(NAMES, seen + 1)
    activities = rng.sample(ACTIVITIES, seen)
    others = rng.sample(windows, OPTIONS - 1)
    return Instance(
        person=person,
        place=rng.choice(PLACES),
        woke=hours[0],
        sightings=tuple(map(Sighting, witnesses, activities, windows)),
        closed=hours[-1],
        options=shuffled(rng, [_says(window) for window in (free, *others)]),
    )


def clock(hour: int) -> str:
    """An hour of the day (0 to 23) as in 9am or 12pm."""
    return f"{(hour - 1) % 12 + 1}{'am' if hour < 12 else 'pm'}"


def _says(window: Window) -> str:
    return f"{clock(window[0])} to {clock(window[1])}"


def pose(instance: Instance) -> Pose:
    person, place = instance.person, instance.place
    lines = [
        f"Today, {person} went to the {place}. Between what times could they have gone?",
        "We know that:",
        f"{person} woke up at {clock(instance.woke)}.",
        *(f"{s.witness} saw {person} {s.activity} from {_says(s.window)}." for s in instance.sightings),
        f"The {place} was closed after {clock(instance.closed)}.",
        f"Between what times could {person} have gone to the {place}?",
    ]
    return lettered(NAME, "\n".join(lines), instance.options)


def solve(instance: Instance, slip: Slip) -> Solution:
    since = instance.woke
    steps = [f"Woke up at {clock(since)}."]
    busy = [(sighting.window, f"Seen from {_says(sighting.window)}") for sighting in instance.sightings]
    closing = (instance.closed, LAST_HOUR + 1)
    for window, what in [*busy, (closing, f"Closed after {clock(instance.closed)}")]:
        is_free = slip(since < window[0], since >= window[0])
        gap = (since, window[0]) if since < window[0] else window
        verdict = f"{_says(gap)} is free." if is_free else "not free."
        steps.append(f"{what}, free since {clock(since)}: {verdict}")
        if is_free and _says(gap) in instance.options:
            label = letter_of(_says(gap), instance.options)
            return Solution((*steps, f"{_says(gap)} is option {label}."), label)
        since = window[1]
    return Solution((*steps, f"No time is free, perhaps option {letter(0)}."), letter(0))


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 7),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("Woke up", "Got out of bed"),
        ("Seen", "Busy"),
        (", free since", ". Had time since"),
        ("is option", "goes with"),
    ),
)
