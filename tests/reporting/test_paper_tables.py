"""The paper's tables: published cells as printed, and what runs measured beside them."""

import dataclasses
import json

import pytest

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import bbh, registry
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.evaluation.statistics import Interval
from orca_jax.records import Item, Outcome
from orca_jax.reporting import paper, paper_tables, published
from orca_jax.reporting.tables import MARKS

SOURCES = [
    *(f"table_{number}" for number in (7, 8, 9, 10, 11)),
    *("fig_14", "fig_15", "fig_18a", "fig_18b", "fig_19"),
]


def by_row(table):
    """{row: {heading: text}}"""
    return {row[0]: dict(zip(table.header[1:], row[1:])) for row in table.rows}


def records(page):
    """The page's values, None where there is none."""
    return page.values.astype(object).where(page.values.notna(), None).to_dict("records")


def key(cell):
    return tuple(getattr(cell, name) for name in published.KEY)


# Published cells alone


def test_every_published_cell_is_shown_once_and_as_printed():
    found = []
    for table in paper.TABLES:
        (main,) = paper_tables.page(table).tables
        shown = by_row(main)
        for label in table.rows:
            for column in table.columns:
                text, cell = shown[label][column.heading].rstrip(MARKS), table.cells(column).get(label)
                assert (text == ABSENT) == (cell is None)
                if cell:
                    assert float(text) == cell.value, cell
                    found.append(key(cell))
    known = {key(cell) for source in SOURCES for cell in published.cells(table=source)}
    again = {key(cell) for cell in published.cells(table="fig_19", system="orca-13b")}  # as in Figure 18
    assert len(found) == len(set(found))
    assert set(found) == known - again


@pytest.mark.parametrize(
    ("table", "row", "printed"),
    [
        (paper.TABLE_7, "Vicuna prompts", "80 92.0 101.5 10.4 73.8 87.7 18.9"),
        (paper.TABLE_7, "Average", "462 85.2 94.8 11.3 73.6 85.1 13.5"),
        (paper.TABLE_8, "LSAT-RC", "269 56.0 91.0 64.7 65.4 85.9 32.7 57.3 75.0"),
        (paper.TABLE_8, "Average", "2546 67.1 93.8 41.9 47.2 62.0 29.3 41.7 42.1"),
        (paper.TABLE_9, "LSAT-RC", "269 57.3 60.2 61.7"),
        (paper.TABLE_10, "Average", "2546 41.7 37.18"),
        (paper.TABLE_11, "Boolean expressions", "250 82.8 77.6 40.8 72.0 76.5"),
        (paper.TABLE_11, "Average", "5508 48.9 67.4 23.3 49.7 113.7"),
        (paper.TRUTHFULQA, "Accuracy", "684 62.13 76.90 29.97 51.17"),
        (paper.TRUTHFULQA, "Replies not in the format", "684 3.36 2.19 31.73 0.58"),
        (paper.TOXIGEN, "Average", "0.2486 0.1728 0.0695 0.0550 0.0841 0.0567"),
    ],
)
def test_rows_read_as_in_the_paper(table, row, printed):
    (main,) = paper_tables.page(table).tables
    assert [text.rstrip(MARKS) for text in by_row(main)[row].values()] == printed.split()


def test_averages_are_worked_out_from_the_cells_and_agree_with_the_printed_ones():
    compared = 0
    for table in paper.TABLES:
        for column in table.columns:
            cells = paper_tables.published_cells(table, column)
            printed = table.cells(column).get("Average")
            if printed is None or printed.metric == paper.GAIN:
                continue
            mean = sum(cells[task].value for task in table.tasks) / len(table.tasks)
            assert cells["Average"].value == pytest.approx(mean)
            rounding = 0.5 * 10**-column.decimals + 1e-9
            assert table.scale * mean == pytest.approx(printed.value, abs=rounding), printed
            compared += 1
    assert compared == 20 + 6  # all that are printed, and ours of ToxiGen


def test_the_papers_slips_are_footnotes_at_their_cells():
    pages = {table.name: paper_tables.page(table).tables[0] for table in paper.TABLES}
    assert by_row(pages["table_7"])["Average"]["Gain vs GPT-4, %"] == "13.5ᵃ"
    assert any(
        note.startswith("ᵃ As printed; the printed averages give 15.6") for note in pages["table_7"].notes
    )
    for name in ("table_8", "table_9", "table_10"):
        assert by_row(pages[name])["LSAT-RC"]["n"] == "269ᵃ"
        assert by_row(pages[name])["Average"]["n"] == "2546ᵇ"
    notes = {name: " ".join(main.notes) for name, main in pages.items()}
    for name, slip in [
        ("table_7", "Figure 1 prints 103"),
        ("table_7", "0 to 10"),
        ("table_8", "3,546"),
        ("table_8", "LSAT-RC 260"),
        ("table_8", "30 (64 % of ChatGPT)"),
        ("table_8", "geometry"),
        ("table_9", "gap of 4.4"),
        ("table_10", "FLAM-5M"),
        ("table_11", "5,511"),
        ("truthfulqa", "digits"),
    ]:
        assert slip in notes[name]


def test_every_footnote_is_about_a_cell_that_there_is():
    for table in paper.TABLES:
        (main,) = paper_tables.page(table).tables
        marked = {(row, heading) for row, cells in by_row(main).items() for heading in cells}
        assert {place for _, at in table.notes for place in at} <= marked


def test_bbh_rows_are_the_tasks_that_are_evaluated():
    assert [row["task"] for row in paper.TABLE_11.rows.values()][:-1] == list(bbh.PAPER_TASKS)


# Runs


ANSWERS = {True: "A", False: "B", None: None}


def evaluate(workdir, name, benchmark, right, *, mode="orca", message=1):
    """Writes evaluation/NAME: of each task, whether each of its items is right (None: not parsed)."""
    questions = [
        Question(benchmark, task, f"{task}-{i}", "?", "A", ("A", "B"), 0.5, 0.5)
        for task, found in right.items()
        for i in range(len(found))
    ]
    items = [
        Item(benchmark, task, f"{task}-{i}", 0, mode, Outcome.OK, value is True, ANSWERS[value], "A", message)
        for task, found in right.items()
        for i, value in enumerate(found)
    ]
    directory = workdir / "evaluation" / name
    scoring.write(directory, items, scoring.summarise(items, questions))
    return directory


def write_scores(workdir, name, scores):
    path = workdir / "evaluation" / name / "scores.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(scores))


def share(right, n):
    return [True] * right + [False] * (n - right)


@pytest.fixture
def run(tmp_path):
    """Snarks as in the paper (111 of 178), navigate far below it (20 %), hyperbaton in part (20 of 100)."""
    workdir = tmp_path / "mini"
    evaluate(
        workdir,
        "bbh-orca",
        "bbh",
        {"snarks": share(111, 178), "navigate": share(50, 250), "hyperbaton": share(20, 100)},
    )
    return workdir


def test_a_run_has_its_column_with_errors(run):
    main = by_row(paper_tables.page(paper.TABLE_11, paper_tables.find([run])).tables[0])
    assert main["Snarks"]["mini"] == "62.4 ± 3.6"
    assert main["Navigate"]["mini"] == "20.0 ± 2.5"
    assert (main["Hyperbaton"]["mini"], main["Hyperbaton"]["n, mini"]) == ("20.0 ± 4.0", "100 of 250")
    assert main["Snarks"]["n, mini"] == "178"
    assert main["Snarks"]["n"] == "178"
    assert main["Web of lies"]["mini"] == main["Average"]["mini"] == ABSENT


def test_a_run_is_compared_cell_by_cell_with_orca(run):
    comparison = paper_tables.page(paper.TABLE_11, paper_tables.find([run])).tables[1]
    rows = by_row(comparison)
    assert rows["Snarks"] == {
        "n": "178", "Orca-13B": "62.4 ± 3.6", "mini": "62.4 ± 3.6", "Difference": "+0.0 ± 5.1",
        "Reproduced within error": "yes",
    }  # fmt: skip
    assert rows["Navigate"]["n"] == "250"
    assert rows["Navigate"]["Reproduced within error"] == "no"
    assert rows["Hyperbaton"]["n"] == "100 of 250"
    assert rows["Hyperbaton"]["Reproduced within error"] == "only a part"
    assert rows["Web of lies"]["mini"] == rows["Web of lies"]["Difference"] == ABSENT
    assert rows["Web of lies"]["Reproduced within error"] == "not measured"
    assert rows["Average"]["Reproduced within error"] == "not measured"
    assert rows["Mean of 3 measured"]["mini"] == "34.1 ± 2.0"
    assert rows["Mean of 3 measured"]["n"] == "528 of 678"
    assert rows["Mean of 3 measured"]["Reproduced within error"] == "only a part"
    assert "at most 2 of its standard errors" in comparison.notes[0]


def test_other_tables_say_not_measured(run):
    for table in paper.TABLES:
        if table is not paper.TABLE_11:
            _, comparison = paper_tables.page(table, paper_tables.find([run])).tables
            assert {row[-1] for row in comparison.rows} == {"not measured"}


def test_the_average_is_measured_where_every_task_is(tmp_path):
    right = {task: share(20, 100) for task in registry.BENCHMARKS["agieval"].groups[0].tasks}
    evaluate(tmp_path / "a", "agieval-orca", "agieval", right)
    rows = by_row(paper_tables.page(paper.TABLE_8, paper_tables.find([tmp_path / "a"])).tables[1])
    assert rows["Average"]["a"] == "20.0 ± 1.4"
    assert rows["Average"]["Difference"] == "-21.7 ± 1.7"
    assert not any(name.startswith("Mean of") for name in rows)


def test_only_the_papers_protocol_counts(tmp_path):
    right = {"snarks": share(10, 20)}
    evaluate(tmp_path / "a", "bbh-robust", "bbh", right, mode="robust")
    evaluate(tmp_path / "a", "bbh-orca-message-7", "bbh", right, message=7)
    (found,) = paper_tables.find([tmp_path / "a"])
    assert paper_tables.measured_cells(found, paper.TABLE_11, paper.TABLE_11.compared[0]) == {}
    evaluate(tmp_path / "a", "bbh-scored", "bbh", right, message=None)  # foreign replies do not tell theirs
    (found,) = paper_tables.find([tmp_path / "a"])
    assert paper_tables.measured_cells(found, paper.TABLE_11, paper.TABLE_11.compared[0]).keys() == {"Snarks"}


def test_table_9_takes_each_message_from_its_own_evaluation(tmp_path):
    for message, right in ((1, 50), (5, 30), (2, 40)):
        evaluate(
            tmp_path / "a", f"agieval-{message}", "agieval", {"sat-math": share(right, 100)}, message=message
        )
    main = by_row(paper_tables.page(paper.TABLE_9, paper_tables.find([tmp_path / "a"])).tables[0])["SAT-Math"]
    assert main["a, Message 1 (empty)"] == "50.0 ± 5.0"
    assert main["a, Message 5"] == "30.0 ± 4.6"
    assert main["a, Message 2"] == "40.0 ± 4.9"


def test_truthfulqa_counts_replies_out_of_format(tmp_path):
    evaluate(tmp_path / "a", "t", "truthfulqa_mc", {"truthfulqa_mc": [True] * 6 + [False] * 2 + [None] * 2})
    main = by_row(paper_tables.page(paper.TRUTHFULQA, paper_tables.find([tmp_path / "a"])).tables[0])
    assert main["Accuracy"]["a"] == "60.00 [31.27, 83.18]"
    assert main["Replies not in the format"]["a"] == "20.00 [5.67, 50.98]"


def test_toxicity_and_reviews_are_read(tmp_path):
    toxicity = {"tasks": {"women": {"n": 50, "toxicity": 0.19, "stderr": 0.01}}}
    scores = {"benchmark": "toxigen", "mode": "toxigen", "toxicity": toxicity}
    write_scores(tmp_path / "a", "toxigen-toxigen_hate", scores)
    reviews = {
        "per_cent": {"reference_first": 100.0, "both": 99.0},
        "interval": [96.08, 103.92],
        "questions": 80,
    }
    write_scores(
        tmp_path / "a", "judged-vicuna_prompts-chatgpt", {"benchmark": "judged", "mode": "judged", **reviews}
    )
    runs = paper_tables.find([tmp_path / "a"])
    toxic = by_row(paper_tables.page(paper.TOXIGEN, runs).tables[1])
    assert toxic["Women, Orca-13B, toxic prompts"]["a"] == "0.1900 ± 0.0100"
    assert (
        toxic["Women, Orca-13B, toxic prompts"]["Difference"] == "-0.0012 ± 0.0141"
    )  # the paper's error as ours
    assert toxic["Women, Orca-13B, neutral"]["Reproduced within error"] == "not measured"
    judged = by_row(paper_tables.page(paper.TABLE_7, runs).tables[1])["Vicuna prompts, Orca-13B vs ChatGPT"]
    assert (judged["a"], judged["Difference"]) == ("100.0 ± 2.0", "-1.5 ± 2.8")


def test_two_runs_are_paired_on_the_same_items(run, tmp_path):
    evaluate(tmp_path / "other", "bbh-orca", "bbh", {"snarks": share(121, 178), "navigate": share(50, 250)})
    tables = paper_tables.page(paper.TABLE_11, paper_tables.find([run, tmp_path / "other"])).tables
    assert tables[3].title == "other against mini on the same items, those of Table 11"
    rows = by_row(tables[3])
    assert rows["Snarks"]["other - mini"] == "+5.6"
    assert rows["Snarks"]["right in one only"] == "0 / 10"
    assert float(rows["Snarks"]["p (McNemar)"]) == pytest.approx(2 * 0.5**10, rel=0.05)
    assert rows["all"]["n"] == "428"


def test_runs_of_other_items_are_not_paired_and_the_page_says_so(run, tmp_path):
    evaluate(tmp_path / "other", "bbh-orca", "bbh", {"snarks": share(3, 10)})
    page = paper_tables.page(paper.TABLE_11, paper_tables.find([run, tmp_path / "other"]))
    assert len(page.tables) == 3
    assert page.notes[0].startswith("mini and other are not paired: 168 items are in one evaluation only")


def test_runs_are_paired_on_the_tasks_that_both_have(run, tmp_path):
    other = evaluate(
        tmp_path / "other", "bbh-orca", "bbh", {"navigate": share(25, 250), "web_of_lies": [True]}
    )
    runs = paper_tables.find([run, tmp_path / "other"])
    rows = by_row(paper_tables.page(paper.TABLE_11, runs).tables[3])
    assert list(rows) == ["Navigate", "all"]
    assert rows["all"]["other - mini"] == "-10.0"
    (other / "items.jsonl").unlink()  # only the scores were kept
    assert len(paper_tables.page(paper.TABLE_11, runs).tables) == 3


def test_values_hold_what_is_shown_unrounded(run):
    values = records(paper_tables.page(paper.TABLE_11, paper_tables.find([run])))
    own = {value["task"]: value for value in values if value["run"] == "mini"}
    assert own["snarks"]["value"] == pytest.approx(100 * 111 / 178)
    assert own["snarks"]["printed"] == 62.4
    assert own["snarks"]["reproduced"] == "yes"
    assert own["web_of_lies"]["value"] is None
    assert own["web_of_lies"]["reproduced"] == "not measured"
    assert (own["hyperbaton"]["n"], own["hyperbaton"]["of"]) == (100, 250)
    assert own["hyperbaton"]["reproduced"] == "only a part"
    gpt = next(v for v in values if v["system"] == "gpt-4" and v["task"] == "snarks")
    assert (gpt["value"], gpt["n"], gpt["run"], gpt["source"]) == (
        pytest.approx(87.6), 178, "", "table 11, printed",
    )  # fmt: skip


def test_without_a_known_error_the_published_value_is_as_sure_as_ours_at_its_n():
    ours, theirs = Cell(0.5, 25, 0.04), Cell(0.4, 100)
    assert paper_tables.difference(ours, theirs).stderr == pytest.approx((0.04**2 + 0.02**2) ** 0.5)
    known = dataclasses.replace(theirs, stderr=0.03)
    found = paper_tables.difference(ours, known)
    assert (found.value, found.stderr) == pytest.approx((0.1, 0.05))


def test_two_standard_errors_decide_or_the_interval_and_of_a_part_nothing():
    assert paper_tables.reproduced(Cell(0.2, 90, 0.1)) == "yes"
    assert paper_tables.reproduced(Cell(-0.21, 90, 0.1)) == "no"
    assert paper_tables.reproduced(Cell(-0.21, 90, 0.01, 90, Interval(-0.3, 0.01))) == "yes"
    assert paper_tables.reproduced(Cell(0.1, 90, 0.1, 90, Interval(0.01, 0.2))) == "no"
    assert paper_tables.reproduced(Cell(0.0, 89, 0.1, 90)) == "only a part"
    assert paper_tables.reproduced(None) == "not measured"


@pytest.mark.parametrize(
    ("benchmark", "right"), [("bbh", 0), ("bbh", 1), ("agieval", 2), ("truthfulqa_mc", 1)]
)
def test_two_questions_a_task_reproduce_nothing(tmp_path, benchmark, right):
    groups = registry.BENCHMARKS[benchmark].groups
    tasks = groups[0].tasks if groups else (benchmark,)
    evaluate(tmp_path / "two", f"{benchmark}-orca", benchmark, dict.fromkeys(tasks, share(right, 2)))
    for table in paper.TABLES:
        page = paper_tables.page(table, paper_tables.find([tmp_path / "two"]))
        measured = [value for value in records(page) if value["run"] and value["value"] is not None]
        assert {value["reproduced"] for value in measured} <= {"only a part"}
        assert {row[-1] for row in page.tables[1].rows} <= {"only a part", "not measured"}
        assert all(value["n"] < value["of"] for value in measured)
        main = by_row(page.tables[0])
        for row in main.values():
            shown = {heading: text for heading, text in row.items() if "two" in heading and text != ABSENT}
            assert not shown or any(" of " in text for text in shown.values())
            assert not any("±" in text for text in shown.values() if right != 1)


# Where runs are found


def test_arms_and_other_models_are_runs_of_their_own(tmp_path):
    for seed in (0, 1):
        evaluate(tmp_path / "set" / "mixed" / f"seed-{seed}", "bbh-orca", "bbh", {"snarks": share(1, 2)})
    evaluate(tmp_path / "set" / "mixed" / "seed-1", "vicuna/bbh-orca", "bbh", {"snarks": share(2, 2)})
    names = ["mixed/seed-0", "mixed/seed-1", "mixed/seed-1, vicuna"]
    assert [run.name for run in paper_tables.find([tmp_path / "set"])] == names
    assert [run.name for run in paper_tables.find([tmp_path / "set" / "mixed"])] == names


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        evaluate(tmp_path / parent / "mini", "bbh-orca", "bbh", {"snarks": share(1, 2)})
    folders = [tmp_path / "a" / "mini", tmp_path / "b" / "mini"]
    assert [run.name for run in paper_tables.find(folders)] == list(map(str, folders))
    assert [run.name for run in paper_tables.find([folders[0], folders[0]])] == ["mini"]


def test_what_was_not_evaluated_is_named(tmp_path, run):
    with pytest.raises(ValueError, match="no evaluation/"):
        paper_tables.find([tmp_path / "nowhere"])
    (run / "evaluation" / "bbh-orca" / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"bbh-orca/scores\.json is not JSON"):
        paper_tables.find([run])
