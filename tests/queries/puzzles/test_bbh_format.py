"""Our questions have the skeletons of Big-Bench Hard's, and none of its questions gets into training."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from orca_jax.queries.puzzles import FAMILIES, make_puzzles, without
from orca_jax.queries.puzzles.objects import ColoredObjects

BBH = Path(__file__).resolve().parents[3] / "../shared/data/bbh"
COLOR = "|".join(ColoredObjects.COLORS)
OPTIONS = r"Options:(\n\([A-Z]\) [^\n]+)+"
# task: (difficulties, skeleton, least share of Big-Bench Hard's questions with it, where they are at hand)
SKELETONS = {
    "boolean_expressions": ((1, 2, 3), r"((True|False|and|or|not|\(|\)) )+is", 1.0),
    "object_counting": (
        (1, 3, 6),
        r"I have (an?|two|three|four|five) [a-z ]+(, (an?|two|three|four|five) [a-z ]+)*, "
        r"and (an?|two|three|four|five) [a-z ]+\. How many [a-z ]+ do I have\?",
        1.0,
    ),
    "dyck_languages": (
        (1, 4),
        r"Complete the rest of the sequence, making sure that the parentheses are closed properly\. "
        r"Input:( [][(){}<>])+",
        1.0,
    ),
    "logical_deduction_five_objects": (
        (3, 4),
        r"The following paragraphs each describe a set of five objects arranged in a fixed order\. The "
        r"statements are logically consistent within each paragraph\. [^.:]+: [^.]+\.( [^.]+\.)+\n" + OPTIONS,
        1.0,
    ),
    "logical_deduction_seven_objects": (
        (5, 6),
        r"The following paragraphs each describe a set of seven objects arranged in a fixed order\. The "
        r"statements are logically consistent within each paragraph\. [^.:]+: [^.]+\.( [^.]+\.)+\n" + OPTIONS,
        1.0,
    ),
    "reasoning_about_colored_objects": (
        (1, 2, 3, 4),
        rf"On the \w+, (I see|you see|there is|there are) [^.]*({COLOR}) [^.]+\. [^?.]+\?\n{OPTIONS}",
        0.95,
    ),
    "date_understanding": (
        (1, 2, 3, 4),
        r"[^\n]+\. What is the date [a-z0-9 ()]+ in MM/DD/YYYY\?\nOptions:(\n\([A-F]\) \d\d/\d\d/\d{4})+",
        0.9,
    ),
    "web_of_lies": (
        (1, 4),
        r"Question: \w+ (tells the truth|lies)\.( \w+ says \w+ (tells the truth|lies)\.)+ "
        r"Does \w+ tell the truth\?",
        None,
    ),
    "navigate": (
        (1, 4),
        r"If you follow these instructions, do you return to the starting point\?( Always face forward\.)?"
        r"( Turn (left|right|around)\.| Take (1 step|\d+ steps)( (left|right|forward|backward))?\.)+"
        r"\nOptions:\n- Yes\n- No",
        None,
    ),
    "multistep_arithmetic_two": (
        (4, 5),
        r"\(\(-?\d( [-+*] -?\d){3}\) [-+*] \(-?\d( [-+*] -?\d){3}\)\) =",
        None,
    ),
    "tracking_shuffled_objects_three_objects": (
        (1, 2, 3),
        r"Alice, Bob, and Claire are [^:]+: Alice [^.]+, Bob [^.]+, and Claire [^.]+\.\n[^.]+\. "
        r"First, (\w+) and (\w+) [a-z ]+\.( Then, (\w+) and (\w+) [a-z ]+\.)* "
        rf"Finally, (\w+) and (\w+) [a-z ]+\. At the end of the \w+, \w+ (is|has)[a-z ]*\n{OPTIONS}",
        None,
    ),
    "temporal_sequences": (
        (1, 3),
        r"Today, \w+ went to the [a-z ]+\. Between what times could they have gone\?\nWe know that:\n"
        r"\w+ woke up at \d+[ap]m\.\n(\w+ saw \w+ [a-z ]+ from \d+[ap]m to \d+[ap]m\.\n)+"
        r"The [a-z ]+ was closed after \d+[ap]m\.\nBetween what times could \w+ have gone to the [a-z ]+\?\n"
        r"Options:(\n\([A-D]\) \d+[ap]m to \d+[ap]m){4}",
        None,
    ),
}


REAL_TASKS = [task for task, (_, _, share) in SKELETONS.items() if share]
TARGETS = {
    "boolean_expressions": "True|False",
    "object_counting": r"\d+",
    "dyck_languages": r"[])}>]( [])}>])*",
}


def real_examples(task):
    return json.loads((BBH / f"{task}.json").read_text(encoding="utf-8"))["examples"]


def family_of(task):
    return next(name for name in FAMILIES if task.startswith(name))


@pytest.mark.parametrize("task", SKELETONS)
def test_our_questions_have_the_skeleton(task):
    difficulties, skeleton, _ = SKELETONS[task]
    for puzzle in make_puzzles(family_of(task), difficulties=difficulties, count=60, seed=0, split="train"):
        assert puzzle.task == task
        assert re.fullmatch(skeleton, puzzle.question), puzzle.question


@pytest.mark.realdata
@pytest.mark.skipif(not BBH.exists(), reason="real data absent")
@pytest.mark.parametrize("task", REAL_TASKS)
def test_real_questions_have_the_skeleton_and_are_dropped(task):
    difficulties, skeleton, share = SKELETONS[task]
    inputs = [example["input"] for example in real_examples(task)]
    fits = sum(bool(re.fullmatch(skeleton, text)) for text in inputs)
    assert fits >= share * len(inputs)
    puzzles = make_puzzles(family_of(task), difficulties=difficulties, count=100, seed=0, split="train")
    leaked = [dataclasses.replace(puzzles[0], question=text) for text in inputs]
    assert not {puzzle.question for puzzle in without([*puzzles, *leaked], inputs)} & set(inputs)


@pytest.mark.realdata
@pytest.mark.skipif(not BBH.exists(), reason="real data absent")
@pytest.mark.parametrize("task", REAL_TASKS)
def test_targets_are_printed_as_in_the_benchmark(task):
    shape = TARGETS.get(task, r"\([A-R]\)")
    assert all(re.fullmatch(shape, example["target"]) for example in real_examples(task))
    for puzzle in make_puzzles(
        family_of(task), difficulties=SKELETONS[task][0], count=30, seed=0, split="train"
    ):
        assert re.fullmatch(shape, puzzle.target)
