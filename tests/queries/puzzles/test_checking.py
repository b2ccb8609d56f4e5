from __future__ import annotations

import random

import pytest

from orca_jax.queries.puzzles import FAMILIES
from orca_jax.queries.puzzles.base import ANSWER_SENTENCE
from orca_jax.queries.puzzles.oracles import check_steps

PUZZLE = FAMILIES["object_counting"].generate(random.Random(1), 3)


def score(lines):
    result = check_steps(PUZZLE, "\n".join([*lines, ANSWER_SENTENCE.format(answer=PUZZLE.target)]))
    return result.expected, result.stated, result.correct, result.wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_true_steps_score_fully_in_plain_and_simple_words(name):
    puzzle = FAMILIES[name].generate(random.Random(2), 2)
    for say in (str, FAMILIES[name].simple):
        reply = "\n".join(["The answer is 1. Here is why:", *map(say, puzzle.steps)])
        result = check_steps(puzzle, reply)
        assert result.expected == result.stated == result.correct == len(puzzle.steps)


def test_left_out_step_is_missing_not_wrong():
    assert score(PUZZLE.steps[1:]) == (5, 4, 4, 0)


def test_changed_step_is_wrong():
    assert score([*PUZZLE.steps[:2], "a yam: 1 + 1 = 3.", *PUZZLE.steps[3:]]) == (5, 5, 4, 1)


def test_steps_out_of_order_do_not_count():
    assert score(PUZZLE.steps[::-1]) == (5, 5, 1, 4)


def test_white_space_and_empty_lines_do_not_count():
    assert score([f"  {step} \n" for step in PUZZLE.steps]) == (5, 5, 5, 0)


@pytest.mark.parametrize("reply", ["7", "", "The answer is 7.", "(B)"])
def test_bare_answer_states_no_steps(reply):
    result = check_steps(PUZZLE, reply)
    assert (result.stated, result.correct) == (0, 0)
