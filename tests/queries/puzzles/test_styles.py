"""The styles in which steps are written, and the steps of teachers that explain nothing."""

from __future__ import annotations

import asyncio
import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.queries.puzzles import BBH_FAMILIES, FAMILIES, SERIAL_FAMILIES, make_puzzles
from orca_jax.queries.puzzles.base import BARE, Slip
from orca_jax.queries.puzzles.oracles import EXPERT, OracleTeacher, check_steps
from orca_jax.records import Message, Sampling

STYLES = [(name, style) for name, family in FAMILIES.items() for style in family.styles]
EVERY_STYLE = pytest.mark.parametrize(("name", "style"), STYLES)
SEEDS = st.integers(0, 2**32)


def replies(puzzles, seed=0, **knobs):
    """What an oracle with these knobs says under the seventh message."""
    import dataclasses

    teacher = OracleTeacher("teacher", puzzles, dataclasses.replace(EXPERT, **knobs), seed)
    asked = ([Message("system", "Think step by step."), Message("user", one.question)] for one in puzzles)
    return [asyncio.run(teacher.reply(messages, Sampling())).text for messages in asked]


def drawn(name, seed, pick):
    levels = FAMILIES[name].difficulties
    return FAMILIES[name].generate(random.Random(seed), levels[pick % len(levels)])


@EVERY_STYLE
@settings(max_examples=25)
@given(seed=SEEDS, pick=st.integers(0, 1000))
def test_the_checker_accepts_an_oracles_steps_and_refuses_every_planned_slip(name, style, seed, pick):
    puzzle, slip = drawn(name, seed, pick), Slip()
    right = puzzle.solution(style, slip)
    assert right.answer == puzzle.target
    (text,) = replies([puzzle], style=style)
    assert text == "\n".join([*right.steps, puzzle.instance.closing(puzzle.target)])
    score = check_steps(puzzle, text)
    assert score.expected == score.stated == score.correct == len(right.steps)
    for at in range(slip.decisions):
        wrong = puzzle.solution(style, Slip(at, random.Random(seed)))
        if wrong == right:  # a decision without an alternative
            continue
        score = check_steps(puzzle, "\n".join([*wrong.steps, puzzle.instance.closing(wrong.answer)]))
        assert score.correct < max(score.expected, score.stated)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bare_trace_has_the_answer_alone(name):
    puzzles = make_puzzles(name, difficulties=(1, 2), count=8, seed=0, split="train")
    for puzzle, text in zip(puzzles, replies(puzzles, style=BARE)):
        assert text == puzzle.instance.closing(puzzle.target)
        assert check_steps(puzzle, text).stated == 0
    assert not any("\n" in text for text in replies(puzzles, style=BARE, error_rate=1.0))


def test_a_style_that_a_family_lacks_is_its_usual_one_and_an_unknown_one_is_named():
    puzzle = drawn("pointer_chasing", 0, 3)
    assert puzzle.solution("pointer") == puzzle.solution()
    with pytest.raises(
        ValueError, match="unknown style of steps 'points'; known: restate, changes, pointer, bare"
    ):
        puzzle.solution("points")


@pytest.mark.parametrize(
    "name", [name for name, style in STYLES if style == "changes" and name in BBH_FAMILIES]
)
def test_options_are_restated_forward(name):
    for seed in range(10):
        puzzle = drawn(name, seed, seed)
        *_, options, last = puzzle.solution("changes").steps
        assert last == puzzle.steps[-1]
        for line in puzzle.question.partition("Options:\n")[2].splitlines():
            label, _, text = line.partition(" ")
            assert f"{text} {label}" in options


@EVERY_STYLE
def test_a_placebo_has_another_puzzles_steps_and_the_right_answer(name, style):
    puzzles = make_puzzles(name, difficulties=(2, 3), count=12, seed=0, split="train")
    same = 0
    for puzzle, text in zip(puzzles, replies(puzzles, style=style, steps="placebo")):
        *steps, closing = text.split("\n")
        assert closing == puzzle.instance.closing(puzzle.target)
        same += tuple(steps) == puzzle.solution(style).steps
    assert same <= 1  # of few possible puzzles another may be the same


@EVERY_STYLE
def test_a_filler_has_as_many_words_as_the_explanation_and_the_right_answer(name, style):
    puzzles = make_puzzles(name, difficulties=(2, 3), count=12, seed=0, split="train")
    own, fillers = (replies(puzzles, style=style, steps=steps) for steps in ("own", "filler"))
    for puzzle, explained, filled in zip(puzzles, own, fillers):
        *dots, closing = filled.split("\n")
        assert closing == puzzle.instance.closing(puzzle.target)
        assert set(" ".join(dots)) <= {".", " "}
        assert [len(line.split()) for line in filled.split("\n")] == [
            len(line.split()) for line in explained.split("\n")
        ]


@pytest.mark.parametrize("name", SERIAL_FAMILIES)
@pytest.mark.parametrize("k", [1, 5, 12])
def test_answers_of_serial_families_are_balanced(name, k):
    puzzles = [FAMILIES[name].generate(random.Random(seed), k) for seed in range(600)]
    share = 1 / len(puzzles[0].choices)
    places = collections.Counter(puzzle.choices.index(puzzle.target) for puzzle in puzzles)
    for place in range(len(puzzles[0].choices)):
        assert places[place] / 600 == pytest.approx(share, abs=0.07)
