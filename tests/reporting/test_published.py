import collections

import pytest
import scipy.stats

from orca_jax.evaluation.benchmarks import bbh
from orca_jax.reporting import published
from orca_jax.reporting.tables import mean_cell, published_column


def test_a_cell_is_typed():
    cell = published.cell(table="table_11", task="snarks", system="gpt-4", metric="accuracy")
    assert (cell.n, cell.value, cell.unit, cell.certainty) == (178, 87.6, "percent", "V")


def test_a_cell_must_be_one():
    assert published.cell(table="table_12") is None
    with pytest.raises(ValueError, match="24 published cells"):
        published.cell(table="table_11", system="gpt-4")


def test_every_cell_is_there_once():
    keys = collections.Counter(tuple(getattr(c, name) for name in published.KEY) for c in published.cells())
    assert set(keys.values()) == {1}


def averages(*, metric):
    """Printed averages, each with the cells of its own table, system and condition."""
    for average in published.cells(task=published.AVERAGE, metric=metric):
        parts = [
            cell.value
            for cell in published.cells(
                table=average.table, benchmark=average.benchmark, system=average.system,
                condition=average.condition, metric=metric,
            )
            if cell.task != published.AVERAGE
        ]  # fmt: skip
        if parts and average.table.startswith("table_"):
            yield average, sum(parts) / len(parts)


@pytest.mark.parametrize(("metric", "count"), [("accuracy", 16), ("percent_of_reference", 4)])
def test_every_printed_average_follows_from_its_cells(metric, count):
    found = list(averages(metric=metric))
    assert len(found) == count
    for average, recomputed in found:
        assert recomputed == pytest.approx(average.value, abs=0.0501), average


def test_table_11_has_the_papers_tasks_with_the_sizes_that_are_scored():
    tasks = collections.Counter(cell.task for cell in published.cells(table="table_11", metric="accuracy"))
    assert tasks == dict.fromkeys([*bbh.PAPER_TASKS, published.AVERAGE], 4)
    for name in bbh.PAPER_TASKS:
        sizes = {cell.n for cell in published.cells(table="table_11", task=name)}
        assert sizes == {bbh.TASKS[name].size - len(bbh.UNSCORED.get(name, ()))}


def test_sampling_errors_of_the_macro_averages():
    for benchmark, table, error in (("bbh", "table_11", 0.0064), ("agieval", "table_8", 0.010)):
        column = published_column("orca-13b", table=table, benchmark=benchmark)
        assert mean_cell(column, column).stderr == pytest.approx(error, abs=0.0006)


def test_printed_accuracies_are_whole_numbers_of_items():
    for cell in published.cells(table="table_11", metric="accuracy"):
        if cell.task != published.AVERAGE:
            right = round(cell.value / 100 * cell.n)
            assert 100 * right / cell.n == pytest.approx(cell.value, abs=0.056), cell


def test_lsat_ar_is_at_chance_for_orca_and_not_for_gpt_4():
    chance = published.cell(table="derived", task="lsat-ar", system="random_guess").value / 100
    p_values = []
    for system in ("orca-13b", "gpt-4"):
        cell = published.cell(table="table_8", task="lsat-ar", system=system, metric="accuracy")
        right = round(cell.value / 100 * cell.n)
        p_values.append(scipy.stats.binomtest(right, cell.n, chance, alternative="greater").pvalue)
    assert p_values[0] > 0.2
    assert p_values[1] < 1e-6
