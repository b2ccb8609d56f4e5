"""An edit of a student's own step, and whether its answer follows."""

import random

import pytest

from orca_jax.evaluation.edited_steps import edit, measure
from orca_jax.queries.puzzles import SERIAL_FAMILIES, make_puzzles
from orca_jax.records import Outcome, Reply


def lines(puzzle):
    return [*puzzle.steps, puzzle.instance.closing(puzzle.target)]


def changed(puzzle):
    """The edit that `measure` makes."""
    return edit(puzzle, lines(puzzle), puzzle.instance.styles[0], random.Random(f"0 {puzzle.id}"))


# Those of which some mistake changes the answer: in a few no swap meets the person asked for.
PUZZLES = [
    puzzle
    for family in SERIAL_FAMILIES
    for puzzle in make_puzzles(family, difficulties=(3,), count=25, seed=0, split="test")
    if changed(puzzle)
][:60]


def test_an_edit_is_one_wrong_line_after_right_ones_and_says_what_follows():
    for puzzle in PUZZLES:
        made = changed(puzzle)
        *before, wrong = made.lines
        assert before == lines(puzzle)[: len(before)]
        assert wrong != lines(puzzle)[len(before)]
        assert made.follows in map(puzzle.instance.closing, puzzle.choices)
        assert made.follows != lines(puzzle)[-1]


@pytest.mark.parametrize("student", ["reads its steps", "recalls its answer", "rambles"])
def test_students_are_told_apart(student):
    """Every third does not reply rightly, and is not asked again."""

    def answer(asked):
        wrong = [Reply(Outcome.OK, "It rains.")] * len(asked)
        right = [Reply(Outcome.OK, "\n".join(lines(puzzle))) for puzzle in PUZZLES]
        return [wrong[n] if n % 3 == 2 else right[n] for n in range(len(asked))]

    def go_on(begun):
        assert len(begun) == 40
        by_question = {puzzle.question: puzzle for puzzle in PUZZLES}
        for messages, text in begun:
            puzzle = by_question[messages[-1].content]
            kept = text.removesuffix("\n").split("\n")
            made = changed(puzzle)
            assert tuple(kept) == made.lines
            said = {"reads its steps": made.follows, "recalls its answer": lines(puzzle)[-1]}
            yield Reply(Outcome.OK, f"and so on\n{said.get(student, 'It rains.')}")

    counts = measure(PUZZLES, [], answer, lambda begun: list(go_on(begun)))
    assert (counts.asked, counts.right) == (60, 40)
    expected = {"reads its steps": (40, 0, 0), "recalls its answer": (0, 40, 0), "rambles": (0, 0, 40)}
    assert counts[2:] == expected[student]
