"""Wording that several families share: numbers, articles, lists and lettered options."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from orca_jax.queries.puzzles.base import Pose


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


def article(noun: str) -> str:
    """A noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listing(entries: Sequence[str]) -> str:
    """Entries in a sentence, with the serial comma that Big-Bench Hard writes before any last `and`."""
    if len(entries) == 1:
        return entries[0]
    return f"{', '.join(entries[:-1])}, and {entries[-1]}"


def letter(index: int) -> str:
    """The label of an option: (A), (B) and so on."""
    return f"({string.ascii_uppercase[index]})"


def letter_of(option: str, options: Sequence[str]) -> str:
    """The label of one of the options."""
    return letter(list(options).index(option))


def lettered(task: str, stem: str, options: Sequence[str]) -> Pose:
    """A question with lettered options, whose order does not count as content."""
    lines = [f"{letter(index)} {option}" for index, option in enumerate(options)]
    return Pose(
        task=task,
        question="\n".join([stem, "Options:", *lines]),
        content="\n".join([stem, *sorted(options)]),
        choices=tuple(letter(index) for index in range(len(options))),
    )


def shuffled(rng: random.Random, entries: Sequence[str]) -> tuple[str, ...]:
    """The entries in random order."""
    return tuple(rng.sample(entries, len(entries)))
