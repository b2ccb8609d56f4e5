"""Procedural reasoning tasks: those of Big-Bench Hard in its question formats, and serial ones in few words.

A puzzle carries its difficulty, target and true solution steps. It is a test puzzle if and only if
its content hash falls in the tenth part, so the splits are disjoint whatever the seeds.
"""

from __future__ import annotations

import random
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from orca_jax import plugins, records
from orca_jax.queries.puzzles.base import Family, Puzzle, content_hash
from orca_jax.queries.puzzles.expressions import BooleanExpressions, DyckLanguages, MultistepArithmetic
from orca_jax.queries.puzzles.objects import ColoredObjects, LogicalDeduction, ObjectCounting
from orca_jax.queries.puzzles.persons import Navigate, TrackingShuffledObjects, WebOfLies
from orca_jax.queries.puzzles.serial import NestedBooleans, PointerChasing, Tracking
from orca_jax.queries.puzzles.times import DateUnderstanding, TemporalSequences

COLLECTION = "puzzles"
BBH_FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        *(WebOfLies, Navigate, BooleanExpressions, ObjectCounting, TrackingShuffledObjects),
        *(MultistepArithmetic, DyckLanguages, LogicalDeduction, ColoredObjects),
        *(TemporalSequences, DateUnderstanding),
    )
}
SERIAL_FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (Tracking, PointerChasing, NestedBooleans)
}
FAMILIES: Mapping[str, type[Family]] = ChainMap(plugins.PUZZLES.entries, BBH_FAMILIES | SERIAL_FAMILIES)
plugins.PUZZLES.beside(*BBH_FAMILIES, *SERIAL_FAMILIES)
_LABEL = re.compile(r"\([a-z]\) ")
_PATIENCE = 5000  # draws without a new puzzle after which a family counts as exhausted


def make_puzzles(
    family: str,
    *,
    difficulties: Sequence[int],
    count: int,
    seed: int,
    split: Literal["train", "test"],
    keep: Callable[[Puzzle], bool] = lambda puzzle: True,
) -> list[Puzzle]:
    """Puzzles of distinct contents, those to `keep`, taking the difficulties in turn.

    The same arguments give the same puzzles, and a smaller count gives the first of them.

    Raises:
      ValueError: the family or a difficulty is unknown, or there are fewer such puzzles.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown puzzle family {family!r}; known: {', '.join(FAMILIES)}")
    if not difficulties:
        raise ValueError(f"{family}: name at least one difficulty")
    levels = tuple(difficulties)
    rng = random.Random(f"{family} {levels} {seed} {split}")
    made: dict[str, Puzzle] = {}
    while len(made) < count:
        difficulty = levels[len(made) % len(levels)]
        for _ in range(_PATIENCE):
            puzzle = FAMILIES[family].generate(rng, difficulty)
            if puzzle.is_test == (split == "test") and puzzle.id not in made and keep(puzzle):
                break
        else:
            raise ValueError(
                f"{family} gave only {len(made)} of {count} distinct {split} puzzles before difficulty "
                f"{difficulty} ran out; ask for fewer, or for other difficulties than {list(levels)}"
            )
        made[puzzle.id] = puzzle
    return list(made.values())


def to_query(puzzle: Puzzle, system_message_id: int | None) -> records.Query:
    """The puzzle as a question to ask under a system message."""
    return records.Query(
        id=puzzle.id,
        text=puzzle.question,
        collection=COLLECTION,
        task=puzzle.task,
        multiple_choice=bool(puzzle.choices),
        system_message_id=system_message_id,
        target=puzzle.target,
        source="procedural",
        extra={"family": puzzle.family, "difficulty": puzzle.difficulty, "chance": puzzle.chance},
    )


def without(puzzles: Iterable[Puzzle], texts: Iterable[str]) -> list[Puzzle]:
    """The puzzles whose question is none of the texts: so a benchmark's own are kept out of training.

    Neither case, white space nor the order of lettered options counts.
    """
    known = set(map(question_key, texts))
    return [puzzle for puzzle in puzzles if question_key(puzzle.question) not in known]


def question_key(question: str) -> str:
    """What two spellings of one question share: `without` compares by it."""
    stem, _, options = question.lower().partition("options:")
    texts = sorted(text.strip() for text in _LABEL.split(options))
    return content_hash("\n".join([stem, *texts]))
