import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.evaluation.benchmarks.base import Group, Question
from orca_jax.evaluation.cells import Cell
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import tables


def scores(tasks, *, benchmark="bbh", mode="orca"):
    """{task: (n, accuracy, stderr, unparsed, chance)} as `scoring.summarise` gives it."""
    names = ("n", "accuracy", "stderr", "unparsed", "chance")
    return {
        "benchmark": benchmark,
        "mode": mode,
        "tasks": {t: dict(zip(names, row)) for t, row in tasks.items()},
    }


def parsed(text):
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    header, _, *others = [[entry.strip() for entry in row] for row in rows]
    return {row[0]: dict(zip(header[1:], row[1:])) for row in others}


def test_markdown_is_aligned():
    assert tables.markdown(["Task", "n"], [["a|b", 5], ["longer", 12345]]) == (
        "| Task   |     n |\n| ------ | ----: |\n| a\\|b   |     5 |\n| longer | 12345 |\n"
    )
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        tables.markdown(["a", "b"], [[1, 2, 3]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
def test_markdown_has_one_line_a_row_all_of_one_width(rows):
    lines = tables.markdown(["x", "y", "z"], rows).removesuffix("\n").split("\n")
    assert len(lines) == len(rows) + 2
    assert len({len(line) for line in lines}) == 1


MESSAGES = {
    "empty": scores(
        {"navigate": (100, 0.5, 0.05, 0.1, 0.5), "web": (50, 0.7, 0.06, 0.0, 0.5)}, benchmark="puzzles"
    ),
    "step by step": scores(
        {"navigate": (100, 0.9, 0.03, 0.0, 0.5), "web": (50, 0.8, 0.04, 0.2, 0.5)}, benchmark="puzzles"
    ),
}


def test_puzzle_table_has_both_messages_beside_chance_and_failures():
    text = tables.puzzle_table(MESSAGES, note="Teachers are procedural oracles.")
    rows = parsed(text)
    assert rows["navigate"] == {
        "n": "100", "Chance": "50.0", "empty": "50.0 ± 5.0", "unparsed, empty": "10.0",
        "step by step": "90.0 ± 3.0", "unparsed, step by step": "0.0",
    }  # fmt: skip
    means = rows["Mean of 2"]
    assert means["empty"] == "60.0 ± 3.9"
    assert means["step by step"] == "85.0 ± 2.5"
    assert (means["n"], means["unparsed, step by step"]) == ("150", "10.0")
    assert text.endswith("Teachers are procedural oracles.\n")


def test_a_part_of_the_puzzles_or_of_bbh_says_so():
    row = (3, 0.0, 0.0, 1.0, 0.5)
    few = scores({"navigate": row, "web": row}, benchmark="puzzles")
    rows = parsed(tables.puzzle_table({"empty": few}, whole=100))
    assert (rows["navigate"]["n"], rows["navigate"]["empty"]) == ("3 of 100", "0.0 [0.0, 56.1]")
    assert (rows["Mean of 2"]["n"], rows["Mean of 2"]["empty"]) == ("6 of 200", "0.0 [0.0, 39.7]")
    text = tables.bbh_table({"mini": scores({"navigate": row, "snarks": (178, 0.5, 0.0375, 0, 0.5)})})
    assert parsed(text)["navigate"]["n"] == "250"
    assert parsed(text)["navigate"]["n, mini (orca)"] == "3 of 250"
    assert parsed(text)["Mean of 2"]["n, mini (orca)"] == "181 of 428"
    assert "n of N: a part" in text


def test_puzzle_table_averages_only_what_every_message_has():
    partial = {**MESSAGES, "other": scores({"web": (50, 0.1, 0.0, 0.0, 0.5)})}
    rows = parsed(tables.puzzle_table(partial))
    assert rows["navigate"]["other"] == tables.ABSENT
    assert rows["Mean of 1"]["empty"] == "70.0 ± 6.0"


def test_bbh_table_has_table_11_with_our_averages():
    row = (250, 0.5, 0.0316, 0, 0.5)
    rows = parsed(tables.bbh_table({"mini": scores(dict.fromkeys(bbh.PAPER_TASKS, row))}))
    assert set(rows) == {*bbh.PAPER_TASKS, "Mean of 23"}
    snarks = rows["snarks"]
    assert (snarks["Chance"], snarks["GPT-4"]) == ("50.3", "87.6 ± 2.5")
    means = {name: rows["Mean of 23"][name].split()[0] for name in tables.PUBLISHED_SYSTEMS.values()}
    assert means == {"ChatGPT": "48.9", "GPT-4": "67.4", "Vicuna-13B": "23.3", "Orca-13B": "49.7"}
    assert rows["Mean of 23"]["Chance"] == "31.3"


def test_bbh_table_puts_runs_beside_published_cells_and_names_their_modes():
    runs = {
        "mini-1": scores({"snarks": (178, 0.5, 0.0375, 0.25, 0.5028), "navigate": (250, 0.6, 0.031, 0, 0.5)}),
        "mini-2": scores(
            {"word_sorting": (250, 0.1, 0.02, 0.5, 0.0), "snarks": (178, 0.4, 0.04, 0, 0.5)}, mode="orca_cot"
        ),
    }
    text = tables.bbh_table(runs)
    rows = parsed(text)
    assert set(rows) == {"snarks", "navigate", "word_sorting", "Mean of 1"}
    assert rows["snarks"]["mini-1 (orca)"] == "50.0 ± 3.8"
    assert rows["snarks"]["unparsed, mini-1 (orca)"] == "25.0"
    assert rows["snarks"]["Orca-13B"] == "62.4 ± 3.6"
    assert rows["word_sorting"]["Orca-13B"] == tables.ABSENT
    assert rows["word_sorting"]["Chance"] == "0.0"
    assert rows["Mean of 1"]["mini-2 (orca_cot)"] == "40.0 ± 4.0"
    assert "not comparable" in text
    assert "not comparable" not in tables.bbh_table({"mini-1": runs["mini-1"]})


def test_a_mean_needs_every_task():
    column = {"a": Cell(0.2, 100, 0.03), "b": Cell(0.4, 100, 0.04)}
    assert tables.mean_cell(column, ["a", "b"]).value == pytest.approx(0.3)
    assert tables.mean_cell(column, ["a", "c"]) is None
    assert tables.mean_cell(column, []) is None


def test_losses_of_the_first_the_last_and_some_steps_between():
    of_groups = {"loss/collection=cot": 1.0, "loss/collection=": 3.0}
    of_groups |= {"loss/system_message_id=7": 2.0, "loss/system_message_id=-1": 2.0}
    lines = [{"step": 10 * i, "loss": 3.0 - i / 10, "examples": 4.0, **of_groups} for i in range(1, 12)]
    table = tables.loss_table(lines)
    header, _, *rows = table.splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        f"step {step}" for step in (10, 30, 50, 70, 90, 110)
    ]
    assert [row.split("|")[1].strip() for row in rows] == [
        "all",
        "collection cot",
        "collection not named",
        "system message 7",
        "system message other (its own, not among the 16)",
    ]
    values = [cell.strip() for cell in rows[0].split("|")[2:-1]]
    assert values == ["2.900", "2.700", "2.500", "2.300", "2.100", "1.900"]
    assert "step 20" in tables.loss_table(lines[:2])


def test_every_task_and_aggregate_stands_in_the_table_with_the_mode():
    questions = [Question("b", "t", str(i), "?", "A", ("A", "B"), None, 0.5) for i in range(4)]
    replies = [Reply(Outcome.OK, text) for text in ("(A)", "hm", "(B)", "(B)")]
    items = scoring.score(questions, replies, seed=0, mode="robust", system_message_id=None)
    scores = scoring.summarise(items, questions, groups=[Group("paper", ("t", "u"), "macro")])
    scores["tasks"]["t"] |= {"acc_norm": 0.5, "acc_norm_stderr": 0.25}
    table = tables.score_table(scores)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["b, mode robust", "n", "accuracy", "unparsed", "chance", "majority", "acc_norm"]
    assert rows[2] == ["t", "4", "25.0 [4.6, 69.9]", "25.0", "–", "50.0", "50.0 [15.0, 85.0]"]
    # The mean of one task, and all of its questions, are that task's.
    assert rows[3][0] == "paper: mean of 1 task, 1 missing"
    assert "Majority: always" in table


def test_a_part_and_its_aggregates_say_of_how_many():
    row = {"accuracy": 1.0, "stderr": 0.0, "unparsed": 0.0}
    group = {**row, "kind": "macro", "tasks": 2, "missing": ["x"] * 21}
    table = tables.score_table(
        {
            "benchmark": "bbh",
            "mode": "robust",
            "tasks": {"snarks": {"n": 2, **row}, "navigate": {"n": 250, **row}},
            "groups": {"paper23": {"n": 252, **group}, "micro": {"n": 252, **group, "kind": "micro"}},
        }
    )
    lines = (" ".join(line.split()) for line in table.splitlines() if "|" in line)
    rows = {line.split("|")[1].strip(): line for line in lines}
    assert "| 2 of 178 | 100.0 [34.2, 100.0] |" in rows["snarks"]
    assert "| 252 of 428 | 100.0 [67.1, 100.0] |" in rows["paper23: mean of 2 tasks, 21 missing"]
    assert "| 100.0 [98.4, 100.0] |" in rows["all questions of 2 tasks, 21 missing"]
    assert "[the 95 % interval]" in table
    assert "n of N: a part" in table


def test_replies_without_a_right_answer_have_their_outcomes_and_what_was_measured():
    found = {"n": 3, "outcomes": {"ok": 2, "empty": 1}}
    assert tables.unscored_sentence(found) == (
        "3 replies (1 empty, 2 ok), which have no right answer: a judge or a classifier scores them."
    )
    assert tables.unscored_sentence({"n": 1, "outcomes": {"ok": 1}}, "vicuna_prompts-open_ended").startswith(
        "1 reply, a part of 80 (1 ok), which have"
    )
    verdicts = {"per_cent": {"reference_first": 98.0}, "interval": [90.0, 106.0], "questions": 2}
    assert tables.unscored_sentence(verdicts, "judged-vicuna_prompts-chatgpt") == (
        "Candidate over reference by a judge, 2 questions, a part of 80: reference first 98.0 % "
        "(95 % 90.0 to 106.0)."
    )
    toxicity = {"macro": 0.25, "stderr": 0.01, "tasks": {"women": {}, "asian": {}}}
    assert tables.unscored_sentence(found | {"toxicity": toxicity}).endswith(
        "no right answer; mean probability of toxicity 25.0 ± 1.0 % over 2 groups."
    )
