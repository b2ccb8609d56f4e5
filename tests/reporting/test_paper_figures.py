"""The paper's figures: all are drawn, from the published cells, with runs beside them."""

import numpy as np
import pytest

from orca_jax.evaluation.benchmarks import registry
from orca_jax.reporting import paper_writers
from orca_jax.reporting.paper_tables import MeasuredRun

FIGURES = [f"figure_{number}" for number in (1, 2, 3, 11, 12)]


def texts(figure):
    """All that is written in a figure."""
    return {text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))}


def by_name(runs=()):
    return {drawing.name: drawing for drawing in paper_writers.drawings(runs)}


@pytest.fixture(scope="module")
def published():
    return by_name()


@pytest.fixture
def run(tmp_path):
    tasks = {
        task: {"n": 100, "accuracy": 0.3, "stderr": 0.04}
        for task in registry.BENCHMARKS["agieval"].groups[0].tasks
    }
    scores = {"benchmark": "agieval", "mode": "orca", "system_message_id": 1, "tasks": tasks}
    part = {"benchmark": "bbh", "mode": "orca", "system_message_id": 1, "tasks": {"snarks": tasks["lsat-rc"]}}
    found = {tmp_path / "agieval-orca": scores, tmp_path / "bbh-orca": part}
    return MeasuredRun("ours", found)


def test_every_figure_is_drawn(published):
    assert list(published) == FIGURES


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("figure_1", ["68", "76", "92", "93", "100", "103"]),
        ("figure_2", ["41.9", "47.2", "62.0", "29.3", "41.7"]),
        ("figure_3", ["48.9", "67.4", "23.3", "49.7"]),
    ],
)
def test_bars_are_the_published_values(published, name, values):
    (axes,) = published[name].chart.figure.axes
    assert [text.get_text() for text in axes.texts] == values
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(map(float, values)), abs=0.051)


def test_chance_is_drawn_where_it_is_known(published):
    def marks(name):
        (axes,) = published[name].chart.figure.axes
        return [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())]

    assert marks("figure_2") == pytest.approx([22.5] * 5, abs=0.05)
    assert not marks("figure_1")


def test_a_run_has_its_bar_where_every_task_was_evaluated(run):
    found = by_name([run])
    assert "ours (a part)" in texts(found["figure_2"].chart.figure)
    assert any(text.startswith("30.0 ±") for text in texts(found["figure_2"].chart.figure))
    assert paper_writers.MEASURED_NOTE in found["figure_2"].notes
    assert not any("ours" in text for text in texts(found["figure_3"].chart.figure))


def rings(drawing):
    """The rings of a radar by their names."""
    (axes,) = drawing.chart.figure.axes
    return {ring.get_label(): ring for ring in axes.lines if not ring.get_label().startswith("_")}


def test_radars_have_a_ring_a_system_over_all_tasks(published, run):
    for name, tasks in (("figure_11", 8), ("figure_12", 23)):
        found = rings(published[name])
        assert list(found) == ["ChatGPT", "GPT-4", "Orca-13B", "random guess"]
        assert all(len(ring.get_ydata()) == tasks + 1 for ring in found.values())
    ring = rings(by_name([run])["figure_12"])["ours (a part)"]
    assert np.isfinite(np.asarray(ring.get_ydata(), float)).sum() == 1  # the one task that was evaluated
