"""Arms side by side: the figures of their table, and sentences that follow from them."""

import dataclasses
import math

import pytest

from orca_jax.records import Item, Outcome
from orca_jax.reporting import arms


def items(right, *, seed, count=40):
    """`count` items in two tasks, of which those in `right` are right."""
    return [
        Item("puzzles", ("navigate", "dyck")[i % 2], f"i{i}", seed, "robust", Outcome.OK, i in right,
             extra={"difficulty": 1 + i // 20})
        for i in range(count)
    ]  # fmt: skip


def result(**correct):
    """Arms by name; each a list of how many items are right under each seed."""
    return arms.Result(
        "As trained",
        arms.frame(
            {name: [items(range(n), seed=s) for s, n in enumerate(seeds)] for name, seeds in correct.items()}
        ),
    )


def cells(table, arm):
    """The cells of an arm's row."""
    lines = getattr(table, "markdown", lambda: table)().splitlines()
    rows = (split(line) for line in lines if line.startswith("|"))
    return next(row for row in rows if row[0] == arm)


def split(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_an_arm_stands_beside_the_baseline_with_its_seeds():
    table = arms.outcome_table(result(weak=[10, 12, 8], strong=[38, 36, 40]), "strong")
    assert cells(table, "strong")[:4] == ["strong", "40", "3", "95.0 [81.8, 97.9]"]
    assert cells(table, "strong")[4:] == ["–", "95.0 90.0 100.0", *["–"] * 4], "no tokens are known"
    weak = cells(table, "weak")
    assert weak[1:3] == ["40", "3"]
    assert weak[5:7] == ["25.0 30.0 20.0", "-70.0"]
    assert float(weak[8]) < 0.01
    assert [float(p) < 1e-5 for p in weak[9].split()] == [True] * 3
    assert table.rows[0][0] == "strong"  # the baseline is first


def test_sentences_follow_from_the_figures():
    compared = {
        entry.arm: arms.sentence(entry, "base")
        for entry in arms.compare(result(base=[20, 20], worse=[5, 6], better=[35, 36], same=[20, 21]), "base")
    }
    assert compared["worse"].startswith("worse is right less often than base (-36.2 points")
    assert compared["better"].startswith("better is right more often than base (+38.7 points")
    assert compared["same"].startswith("No significant difference between same and base")


def test_p_is_corrected_for_the_number_of_arms():
    one = arms.compare(result(base=[20, 20], other=[26, 27]), "base")[0]
    four = arms.compare(result(base=[20, 20], other=[26, 27], b=[20, 20], c=[20, 20], d=[20, 20]), "base")[0]
    assert one.corrected == one.test.p_value
    assert four.test.p_value == one.test.p_value
    assert four.corrected == pytest.approx(min(1, 4 * one.test.p_value))


def test_other_items_are_refused():
    whole = result(base=[20, 20], other=[20, 20])
    is_first = (whole.items.arm == "other") & (whole.items.run == 0) & (whole.items.id == "i0")
    short = arms.Result("x", whole.items[~is_first])
    with pytest.raises(arms.PairError, match="x: arm 'other' was evaluated on other items"):
        arms.outcome_table(short, "base")


def test_without_the_baseline_arms_are_shown_and_not_compared():
    table = arms.outcome_table(result(a=[3], b=[4]), "missing")
    assert cells(table, "a")[6:] == cells(table, "b")[6:] == ["–"] * 4
    assert arms.compare(result(a=[3], b=[4]), "missing") == []


def test_tasks_and_difficulties_have_rows_with_the_items_of_one_seed():
    table = arms.group_table(result(base=[20, 20], other=[40, 40]))
    assert cells(table, "dyck, difficulty 1")[1:] == ["10", *["100.0 [72.2, 100.0]"] * 2]
    assert cells(table, "all, difficulty 2")[1:] == ["20", "0.0 [0.0, 19.6]", "100.0 [80.4, 100.0]"]
    assert cells(table, "all")[1:3] == ["40", "50.0 ± 7.9"]


def test_the_whole_says_what_is_missing_and_who_the_teachers_are():
    facts = [{"arm": "base", "note": "so", "steps": 3, "positions": 2_500_000, "supervised": 1_000_000,
              "examples": 12.4, "by_set": {"expert": 12.4}}]  # fmt: skip
    text = arms.render("set", "Why?", "base", [], facts, note="oracles")
    assert "Nothing is finished" in text
    assert "oracles" in text
    assert cells(text, "base") == ["base", "so", "3", "2.50 M", "1.00 M", "12", "expert 12"]
    text = arms.render("set", "Why?", "base", [result(base=[20], other=[30], third=[1])], [])
    assert text.count("\n- ") == 2
    assert "\n\n- third" not in text  # points of one list


def test_rows_are_the_same_as_plain_values():
    rows = {row["arm"]: row for row in arms.rows("base", [result(base=[20, 20], other=[30, 32])])}
    assert rows["base"]["accuracy"] == 0.5
    assert "difference" not in rows["base"]
    assert rows["other"]["difference"] == pytest.approx(0.275)
    assert rows["other"]["by_seed"] == [0.75, 0.8]


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
    in_order, turned = (arms.right(arms.pair(first, side)) for side in (second, second[::-1]))
    assert in_order[1].tolist() == turned[1].tolist() == [[one.correct for one in second]]


def test_what_cannot_be_paired_is_refused(evaluated):
    first, second = evaluated
    with pytest.raises(arms.PairError, match="one evaluation only"):
        arms.pair(first, second[1:])
    with pytest.raises(arms.PairError, match="twice under one seed"):
        arms.pair([*first, first[0]], second)
    with pytest.raises(arms.PairError, match="one evaluation only"):
        arms.pair([*first, dataclasses.replace(first[0], seed=1)], second)
    with pytest.raises(arms.PairError, match="lack one of the 2 seeds"):
        arms.pair(*([*side, dataclasses.replace(side[0], seed=1)] for side in evaluated))


def test_several_seeds_are_means_of_items_and_one_test(evaluated):
    sides = [
        [*side, *(dataclasses.replace(i, seed=1, correct=i.id != "i0") for i in side)] for side in evaluated
    ]
    paired = arms.pair(sides[0], sides[1][::-1])
    table = arms.accuracy_table(paired, ("answers", "explanations")).markdown()
    last = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert last[1] == "10"
    assert last[2].startswith("55.0 [")  # 2 of 10, and 9 of 10 under the other seed
    assert last[4:6] == ["+35.0", "1 / 8"]  # the test is the first seed's
    assert "n = 10, 2 seeds, of the first" in arms.paired_sentence(
        arms.pair(*sides), ("answers", "explanations")
    )


def test_the_table_holds_accuracies_differences_and_discordant_items(evaluated):
    table = arms.accuracy_table(arms.pair(*evaluated), ("answers", "explanations")).markdown()
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
    table = arms.accuracy_table(arms.pair(*evaluated), ("answers", "explanations")).markdown()
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
    table = arms.accuracy_table(arms.pair(first, first), ("one", "other")).markdown()
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()}
    assert list(rows)[2:] == ["easy", "hard", "all"]  # no difficulty is made up
    assert "50.0 [28.3, 71.7]" in rows["all"]  # where 5 of 10 alone have 23.7 to 76.3


def test_steps_are_scored_apart_from_answers(evaluated):
    _, second = evaluated
    scores = arms.step_row(arms.frame({"second": [second]}))
    assert scores["stated"] == 1
    assert scores["correct_steps"] == 0.75
    assert scores["right_by_wrong_steps"] == pytest.approx(5 / 9)


def test_without_steps_there_is_nothing_to_score(evaluated):
    scores = arms.step_row(arms.frame({"first": evaluated[:1]}))
    assert scores["stated"] == 0
    assert math.isnan(scores["correct_steps"])


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


def with_chance(found, chance):
    found.items["chance"] = chance
    return found


def test_chance_stands_beside_the_accuracies_and_below_it_nothing_wins():
    low = with_chance(result(base=[4], other=[9]), 0.25)
    assert cells(arms.outcome_table(low, "base"), "other")[3] == "25.0"
    assert cells(arms.group_table(low), "all")[2] == "25.0"
    [entry] = arms.compare(low, "base")
    significant = entry._replace(corrected=0.01)
    assert arms.sentence(significant, "base").startswith(
        "Neither other nor base is above chance (25.0 %); other is right more often (+12.5 points"
    )
    high = with_chance(result(base=[4], other=[30]), 0.25)
    assert arms.sentence(arms.compare(high, "base")[0], "base").startswith(
        "other is right more often than base"
    )
    unknown = with_chance(result(base=[4], other=[30]), math.nan)
    assert cells(arms.outcome_table(unknown, "base"), "base")[3] == "–"


def test_chance_of_two_evaluations():
    paired = arms.pair(items(range(2), seed=0), items(range(10), seed=0))
    paired["chance"] = 0.25
    assert cells(arms.accuracy_table(paired, ("one", "other")), "all")[2] == "25.0"
    said = arms.paired_sentence(paired, ("one", "other"))
    assert said.startswith("Neither one nor other is above chance (one 5.0 %, other 25.0 %")
    paired["chance"] = 0.2
    assert arms.paired_sentence(paired, ("one", "other")).startswith("other is right more often")
