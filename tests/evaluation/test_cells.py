"""One rule for the error that stands beside a number, whichever table shows it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import cells
from orca_jax.evaluation.cells import Cell
from orca_jax.records import Item, Outcome
from orca_jax.reporting import published

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("right", "n", "shown"),
    [
        (0, 2, "0.0 [0.0, 65.8]"),
        (2, 2, "100.0 [34.2, 100.0]"),
        (1, 1, "100.0 [20.7, 100.0]"),
        (100, 100, "100.0 [96.3, 100.0]"),
        (246, 250, "98.4 [96.0, 99.4]"),
        (20, 39, "51.3 [36.2, 66.1]"),
        (20, 40, "50.0 ± 7.9"),
        (5, 250, "2.0 ± 0.9"),
        (145, 150, "96.7 ± 1.5"),
        (111, 178, "62.4 ± 3.6"),
    ],
)
def test_few_questions_and_the_ends_have_wilsons_interval(right, n, shown):
    assert str(cells.proportion(right / n, n)) == shown


@settings(max_examples=60, deadline=None)
@given(st.lists(counts, min_size=1, max_size=6), st.booleans())
def test_no_number_is_shown_as_certain_and_every_interval_holds_its_value(tasks, weighted):
    found = [cells.proportion(right / n, n, of=n + 1) for right, n in tasks]
    mean = cells.mean(found, [n for _, n in tasks] if weighted else None)
    for cell in (*found, mean, cells.difference(mean, found[0])):
        assert cell.is_part
        assert "± 0.0" not in str(cell) or cell.stderr > 0
        assert not re.search(r"-0\.0\b", cell.text(sign="+"))
        low, high = cell.span
        assert low < high
        assert low - 1e-9 <= cell.value <= high + 1e-9
    if mean.interval:
        assert 0 <= mean.interval.low <= mean.interval.high <= 1 + 1e-9


def test_a_mean_over_tasks_of_unlike_sizes_is_no_surer_than_its_smallest():
    found = cells.mean([cells.proportion(1.0, 2), cells.proportion(1.0, 1000)])
    assert str(found) == "100.0 [67.1, 100.0]"
    assert str(cells.mean([cells.proportion(p, 100) for p in (0.74, 0.9, 0.81, 1.0)])) == "86.3 ± 1.7"
    assert str(cells.mean([cells.proportion(0.0, 50), cells.proportion(1.0, 50)])) == "50.0 [46.4, 53.6]"


def test_a_mean_with_a_number_of_unknown_error_has_none():
    assert str(cells.mean([Cell(0.5), cells.proportion(0.5, 100)])) == "50.0"


def test_items_of_a_part_of_a_benchmark_say_so():
    def items(task, n, benchmark="bbh"):
        return [Item(benchmark, task, str(i), 0, "orca", Outcome.OK, i % 2 == 0) for i in range(n)]

    assert cells.of_items(items("snarks", 178)).size == "178"
    assert cells.of_items([*items("snarks", 178), *items("navigate", 20)]).size == "198 of 428"
    assert cells.of_items(items("navigate", 20, "puzzles")).size == "20"
    assert cells.of_items(items("navigate", 20, "puzzles"), 30).size == "20 of 30"


def test_sizes_are_those_that_the_paper_scored():
    for table in ("table_8", "table_11", "fig_14", "derived"):
        for cell in published.cells(table=table, metric="accuracy"):
            if cell.task != published.AVERAGE and cell.n:
                assert cells.published_size(cell.benchmark, cell.task, "orca", 2) == cell.n, cell


@pytest.mark.parametrize(
    ("benchmark", "task", "mode", "n", "size"),
    [
        ("bbh", "word_sorting", "answer_is", 3, 250),
        ("bbh", "ruin_names", "robust", 248, 248),
        ("truthfulqa_mc", "truthfulqa_mc", "orca", 664, 664),  # of January 2025
        ("truthfulqa_mc", "truthfulqa_mc", "orca", 685, 690),
        ("gsm8k", "gsm8k", "orca_cot", 20, 1319),
        ("gsm8k", "gsm8k", "orca_cot", 1495, 7473),
        ("gpt4_judge", "awesome_prompts", "open_ended", 163, 163),
        ("bbh", "a task of one's own", "orca", 2, None),
        ("puzzles", "navigate", "robust", 2, None),
    ],
)
def test_of_a_file_with_versions_it_is_the_one_that_fits(benchmark, task, mode, n, size):
    assert cells.published_size(benchmark, task, mode, n) == size
