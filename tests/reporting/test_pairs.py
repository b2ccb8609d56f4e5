"""Paired evaluations: pairing by item, the tables' figures, and the sentence that they give."""

import dataclasses
import math

import pytest

from orca_jax.records import Item, Outcome
from orca_jax.reporting import arms


def item(number, correct, *, difficulty=1, steps=(0, 0)):
    stated, right = steps
    extra = {"difficulty": difficulty, "steps": {"expected": 2, "stated": stated, "correct": right}}
    return Item("puzzles", "navigate", f"i{number}", 0, "robust", Outcome.OK, correct, extra=extra)


@pytest.fixture
def evaluated():
    """Ten items: the first arm is right on 2, the second on all but one of these and on 7 more."""
    first = [item(i, i < 2, difficulty=1 + i % 2) for i in range(10)]
    second = [item(i, i != 0, difficulty=1 + i % 2, steps=(2, 2 - i % 2)) for i in range(10)]
    return first, second


def test_items_are_paired_by_id_whatever_their_order(evaluated):
    first, second = evaluated
    for one, other in arms.pair(first, second[::-1]):
        assert one.id == other.id


def test_what_cannot_be_paired_is_refused(evaluated):
    first, second = evaluated
    with pytest.raises(arms.PairError, match="one evaluation only"):
        arms.pair(first, second[1:])
    with pytest.raises(arms.PairError, match="twice under one seed"):
        arms.pair([*first, first[0]], second)
    with pytest.raises(arms.PairError, match="one evaluation only"):
        arms.pair([*first, dataclasses.replace(first[0], seed=1)], second)
    with pytest.raises(arms.PairError, match="under each of 2 seeds"):
        arms.pair(*([*side, dataclasses.replace(side[0], seed=1)] for side in evaluated))


def test_several_seeds_are_means_of_items_and_one_test(evaluated):
    sides = [
        [*side, *(dataclasses.replace(i, seed=1, correct=i.id != "i0") for i in side)] for side in evaluated
    ]
    table = arms.accuracy_table(arms.pair(sides[0], sides[1][::-1]), ("answers", "explanations"))
    last = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert last[1] == "10"
    assert last[2].startswith("55.0 [")  # 2 of 10, and 9 of 10 under the other seed
    assert last[4:6] == ["+35.0", "1 / 8"]  # the test is the first seed's
    assert "n = 10, 2 seeds, of the first" in arms.paired_sentence(
        arms.pair(*sides), ("answers", "explanations")
    )


def test_the_table_holds_accuracies_differences_and_discordant_items(evaluated):
    table = arms.accuracy_table(arms.pair(*evaluated), ("answers", "explanations"))
    last = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert last[0] == "all"
    assert last[1] == "10"
    assert last[2] == "20.0 [5.7, 51.0]"
    assert last[3].startswith("90.0 [")
    assert last[4:6] == ["+70.0", "1 / 8"]
    assert float(last[6]) == pytest.approx(0.039, abs=1e-3)  # exact binomial: 1 of 9, two-sided
    assert float(last[8].split()[0]) < 70 < float(last[8].split()[2])
    assert last[7] == "-"
    assert "navigate, difficulty 2" in table


def test_tests_of_single_tasks_are_corrected_for_their_number(evaluated):
    table = arms.accuracy_table(arms.pair(*evaluated), ("answers", "explanations"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:4]]
    for name, *_, alone, corrected, _ in rows:
        assert name.startswith("navigate, difficulty")
        assert float(alone) <= float(corrected) <= min(1, 2 * float(alone) + 0.01)


def test_the_error_over_tasks_is_pooled_within_them_as_in_tables():
    def arm(right):
        return [
            dataclasses.replace(item(i, correct), task=task, id=f"{task}{i}", extra={})
            for task, rights in right.items()
            for i, correct in enumerate(rights)
        ]

    first = arm({"easy": [True] * 5, "hard": [False] * 5})
    table = arms.accuracy_table(arms.pair(first, first), ("one", "other"))
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()}
    assert list(rows)[2:] == ["easy", "hard", "all"]  # no difficulty is made up
    assert "50.0 [28.3, 71.7]" in rows["all"]  # where 5 of 10 alone have 23.7 to 76.3


def test_steps_are_scored_apart_from_answers(evaluated):
    _, second = evaluated
    scores = arms.step_row(second)
    assert scores["stated"] == 1
    assert scores["correct_steps"] == 0.75
    assert scores["right_by_wrong_steps"] == pytest.approx(5 / 9)


def test_without_steps_there_is_nothing_to_score(evaluated):
    scores = arms.step_row(evaluated[0])
    assert scores["stated"] == 0
    assert math.isnan(scores["correct_steps"])
    assert "-" in arms.paired_step_table(arms.pair(*evaluated), ("answers", "explanations"))


def test_the_sentence_follows_the_test(evaluated):
    first, second = evaluated
    names = ("answers", "explanations")
    assert arms.paired_sentence(arms.pair(first, second), names).startswith(
        "explanations is right more often"
    )
    assert arms.paired_sentence(arms.pair(second, first), names).startswith("answers is right more often")
    same = arms.paired_sentence(arms.pair(first, first), names)
    assert same.startswith("No significant difference")
    assert "n = 10" in same
