"""Arms side by side: the figures of their table, and sentences that follow from them."""

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
        {name: [items(range(n), seed=s) for s, n in enumerate(seeds)] for name, seeds in correct.items()},
    )


def cells(table, arm):
    """The cells of an arm's row."""
    rows = (split(line) for line in table.splitlines() if line.startswith("|"))
    return next(row for row in rows if row[0] == arm)


def split(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_an_arm_stands_beside_the_baseline_with_its_seeds():
    table = arms.outcome_table(result(weak=[10, 12, 8], strong=[38, 36, 40]), "strong")
    assert cells(table, "strong")[:5] == ["strong", "40", "3", "95.0 [81.8, 97.9]", "95.0 90.0 100.0"]
    assert cells(table, "strong")[5:] == ["–"] * 4
    weak = cells(table, "weak")
    assert weak[1:3] == ["40", "3"]
    assert weak[4:6] == ["25.0 30.0 20.0", "-70.0"]
    assert float(weak[7]) < 0.01
    assert [float(p) < 1e-5 for p in weak[8].split()] == [True] * 3
    assert table.splitlines()[2].startswith("| strong")  # the baseline is first


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
    short = arms.Result("x", {**whole.items, "other": [whole.items["other"][0][1:], whole.items["other"][1]]})
    with pytest.raises(arms.ArmError, match="arm 'other' was evaluated on other items"):
        arms.outcome_table(short, "base")


def test_without_the_baseline_arms_are_shown_and_not_compared():
    table = arms.outcome_table(result(a=[3], b=[4]), "missing")
    assert cells(table, "a")[5:] == cells(table, "b")[5:] == ["–"] * 4
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
