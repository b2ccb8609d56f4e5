"""Procedural reasoning tasks in the question formats of Big-Bench Hard's algorithmic tasks.

A puzzle carries its difficulty, target and true solution steps. It is a test puzzle if and only if
its content hash falls in the tenth part, so the splits are disjoint whatever the seeds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from orca_jax import records
from orca_jax.queries.puzzles.base import Family, Puzzle, content_hash
from orca_jax.queries.puzzles.boolean_expressions import FAMILY as BOOLEAN_EXPRESSIONS
from orca_jax.queries.puzzles.date_understanding import FAMILY as DATE_UNDERSTANDING
from orca_jax.queries.puzzles.dyck_languages import FAMILY as DYCK_LANGUAGES
from orca_jax.queries.puzzles.logical_deduction import FAMILY as LOGICAL_DEDUCTION
from orca_jax.queries.puzzles.multistep_arithmetic_two import FAMILY as MULTISTEP_ARITHMETIC_TWO
from orca_jax.queries.puzzles.navigate import FAMILY as NAVIGATE
from orca_jax.queries.puzzles.object_counting import FAMILY as OBJECT_COUNTING
from orca_jax.queries.puzzles.reasoning_about_colored_objects import FAMILY as REASONING_ABOUT_COLORED_OBJECTS
from orca_jax.queries.puzzles.temporal_sequences import FAMILY as TEMPORAL_SEQUENCES
from orca_jax.queries.puzzles.tracking_shuffled_objects import FAMILY as TRACKING_SHUFFLED_OBJECTS
from orca_jax.queries.puzzles.web_of_lies import FAMILY as WEB_OF_LIES

COLLECTION = "puzzles"
Split = Literal["train", "test"]
_FAMILY_LIST: tuple[Family[Any], ...] = (
    WEB_OF_LIES,
    NAVIGATE,
    BOOLEAN_EXPRESSIONS,
    OBJECT_COUNTING,
    TRACKING_SHUFFLED_OBJECTS,
    MULTISTEP_ARITHMETIC_TWO,
    DYCK_LANGUAGES,
    LOGICAL_DEDUCTION,
    REASONING_ABOUT_COLORED_OBJECTS,
    TEMPORAL_SEQUENCES,
    DATE_UNDERSTANDING,
)
FAMILIES: dict[str, Family[Any]] = {family.name: family for family in _FAMILY_LIST}
_LABEL = re.compile(r"\([a-z]\) ")
_PATIENCE = 5000  # draws without a new puzzle after which a family counts as exhausted


def make_puzzles(
    family: str, *, difficulties: Sequence[int], count: int, seed: int, split: Split
) -> list[Puzzle]:
    """Puzzles of distinct contents, taking the difficulties in turn.

    The same arguments give the same puzzles, and a smaller count gives the first of them.

    Raises:
      ValueError: the family, split or a difficulty is unknown, or there are fewer such puzzles.
    """
    _check_request(family, difficulties, split)
    levels = tuple(difficulties)
    rng = random.Random(f"{family} {levels} {seed} {split}")
    made: dict[str, Puzzle] = {}
    while len(made) < count:
        difficulty = levels[len(made) % len(levels)]
        puzzle = _new_puzzle(FAMILIES[family], difficulty, rng, split, made)
        if puzzle is None:
            raise ValueError(
                f"{family} gave only {len(made)} of {count} distinct {split} puzzles before difficulty "
                f"{difficulty} ran out; ask for fewer, or for other difficulties than {list(levels)}"
            )
        made[puzzle.id] = puzzle
    return list(made.values())


def _check_request(family: str, difficulties: Sequence[int], split: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"unknown puzzle family {family!r}; known: {', '.join(FAMILIES)}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    if not difficulties:
        raise ValueError(f"{family}: name at least one difficulty")


def _new_puzzle(
    family: Family[Any], difficulty: int, rng: random.Random, split: Split, known: dict[str, Puzzle]
) -> Puzzle | None:
    for _ in range(_PATIENCE):
        puzzle = family.generate(rng, difficulty)
        if puzzle.is_test == (split == "test") and puzzle.id not in known:
            return puzzle
    return None


def to_query(puzzle: Puzzle, system_message_id: int | None) -> records.Query:
    """The puzzle as a question to ask under a system message."""
    return records.Query(
        id=puzzle.id,
        text=puzzle.question,
        collection=COLLECTION,
        task=puzzle.task,
        multiple_choice=puzzle.multiple_choice,
        system_message_id=system_message_id,
        target=puzzle.target,
        source="procedural",
        extra={"family": puzzle.family, "difficulty": puzzle.difficulty, "chance": puzzle.chance},
    )


def drop_known(puzzles: Iterable[Puzzle], texts: Iterable[str]) -> tuple[list[Puzzle], list[Puzzle]]:
    """Parts puzzles into those to keep and those whose question is among the texts.

    Neither case, white space nor the order of lettered options counts. This keeps a benchmark's own
    questions out of training.
    """
    known = {question_key(text) for text in texts}
    kept: list[Puzzle] = []
    dropped: list[Puzzle] = []
    for puzzle in puzzles:
        (dropped if question_key(puzzle.question) in known else kept).append(puzzle)
    return kept, dropped


def question_key(question: str) -> str:
    """What two spellings of one question share: `drop_known` compares by it."""
    stem, _, options = question.lower().partition("options:")
    texts = sorted(text.strip() for text in _LABEL.split(options))
    return content_hash("\n".join([stem, *texts]))
