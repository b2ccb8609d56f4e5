"""Tracking shuffled objects: who holds what after a number of swaps?

Difficulties 1, 2, 3: three persons and 2, 3, 4 swaps; 4: five persons, 5 swaps; 5: seven persons, 7 swaps.
Difficulties 2, 4 and 5 are Big-Bench Hard's. Each step repeats a swap and lists what everybody holds.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution
from orca_jax.queries.puzzles.wording import NUMBER_WORDS, letter_of, lettered, listing, shuffled

NAME = "tracking_shuffled_objects"
PERSONS = ("Alice", "Bob", "Claire", "Dave", "Eve", "Fred", "Gertrude")
SIZES = {1: (3, 2), 2: (3, 3), 3: (3, 4), 4: (5, 5), 5: (7, 7)}  # difficulty: (persons, swaps)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown")


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A story: its opening, what a person has, how two swap, and the question's opening.

    `holding` and `ending` are followed by a thing; `thing` completes it for the options.
    """

    opening: str
    holding: str
    middle: str
    swap: str
    ending: str
    thing: str
    things: tuple[str, ...]


SETTINGS = {
    "dance": Setting(
        "are dancers at a square dance. At the start of a song, they each have a partner:",
        "is dancing with",
        "Throughout the song, the dancers often trade partners.",
        "switch partners",
        "At the end of the dance, {person} is dancing with",
        "{}",
        ("Lola", "Rodrigo", "Patrick", "Melissa", "Jamie", "Sam", "Karl", "Ophelia", "Izzi", "Helga"),
    ),
    "gift": Setting(
        "are holding a white elephant gift exchange. At the start of the event, "
        "they are each holding a present of a different color:",
        "has a",
        "As the event progresses, pairs of people swap gifts.",
        "swap their gifts",
        "At the end of the event, {person} has the",
        "{} present",
        COLORS,
    ),
    "ball": Setting(
        "are playing a game. At the start of the game, they are each holding a ball:",
        "has a",
        "As the game progresses, pairs of players trade balls.",
        "swap balls",
        "At the end of the game, {person} has the",
        "{} ball",
        COLORS,
    ),
    "book": Setting(
        "are friends and avid readers who occasionally trade books. At the start of the semester, "
        "they each buy one new book:",
        "gets",
        "As the semester proceeds, they start trading around the new books.",
        "swap books",
        "At the end of the semester, {person} has",
        "{}",
        ("Emma", "Dracula", "Ulysses", "Hamlet", "Walden", "Candide", "Middlemarch", "Persuasion",
         "Kim", "Ivanhoe"),
    ),
    "position": Setting(
        "are on the same team in a soccer match. At the start of the match, "
        "they are each assigned to a position:",
        "is playing",
        "As the game progresses, pairs of players occasionally swap positions.",
        "trade positions",
        "At the end of the match, {person} is playing",
        "{}",
        ("goalkeeper", "striker", "fullback", "benchwarmer", "left winger", "right winger", "left midfielder",
         "right midfielder", "center midfielder", "cheerleader"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """`swaps` are pairs of persons' indices; `asked` is the index of the person asked about."""

    setting: str
    held: tuple[str, ...]
    swaps: tuple[tuple[int, int], ...]
    asked: int
    options: tuple[str, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    persons, swaps = SIZES[difficulty]
    setting = rng.choice(tuple(SETTINGS))
    held = tuple(rng.sample(SETTINGS[setting].things, persons))
    pairs = [tuple(rng.sample(range(persons), 2)) for _ in range(swaps)]
    return Instance(
        setting=setting,
        held=held,
        swaps=tuple((first, second) for first, second in pairs),
        asked=rng.randrange(persons),
        options=shuffled(rng, held),
    )


def pose(instance: Instance) -> Pose:
    setting, count = SETTINGS[instance.setting], len(instance.held)
    things = [setting.thing.format(held) for held in instance.held]
    start = listing([f"{person} {setting.holding} {thing}" for person, thing in zip(PERSONS, things)])
    ending = setting.ending.format(person=PERSONS[instance.asked])
    stem = (
        f"{listing(PERSONS[:count])} {setting.opening} {start}.\n"
        f"{setting.middle} {_swap_sentences(instance)} {ending}"
    )
    task = f"{NAME}_{NUMBER_WORDS[count]}_objects"
    return lettered(task, stem, [setting.thing.format(option) for option in instance.options])


def _swap_sentences(instance: Instance) -> str:
    adverbs = ["First", *["Then"] * (len(instance.swaps) - 2), "Finally"]
    swap = SETTINGS[instance.setting].swap
    sentences = [
        f"{adverb}, {PERSONS[first]} and {PERSONS[second]} {swap}."
        for adverb, (first, second) in zip(adverbs, instance.swaps)
    ]
    return " ".join(sentences)


def solve(instance: Instance, slip: Slip) -> Solution:
    held = list(instance.held)
    steps = [f"Start: {_state(held)}"]
    for first, second in instance.swaps:
        held = list(slip(*_outcomes(held, first, second)))
        steps.append(f"{PERSONS[first]} and {PERSONS[second]} swap: {_state(held)}")
    label = letter_of(held[instance.asked], instance.options)
    steps.append(f"{PERSONS[instance.asked]} has {held[instance.asked]}, option {label}.")
    return Solution(tuple(steps), label)


def _outcomes(held: list[str], first: int, second: int) -> list[tuple[str, ...]]:
    """What is held after the swap, then after each wrong one: a neglected swap or another pair's."""
    pairs = [(first, second), (first, first)]
    pairs += [
        (one, other) for one in (first, second) for other in range(len(held)) if other not in (first, second)
    ]
    return [_swapped(held, one, other) for one, other in pairs]


def _swapped(held: list[str], first: int, second: int) -> tuple[str, ...]:
    after = list(held)
    after[first], after[second] = held[second], held[first]
    return tuple(after)


def _state(held: list[str]) -> str:
    return f"{', '.join(f'{person} {thing}' for person, thing in zip(PERSONS, held))}."


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 6),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("Start:", "At first:"),
        (" swap:", " change places, so now:"),
        (", option", ", and that is"),
    ),
)
