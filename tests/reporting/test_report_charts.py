"""Drawings: well-formed, where the numbers say, and escaped."""

import math
import xml.etree.ElementTree as xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation.cells import Cell
from orca_jax.reporting import report_charts
from orca_jax.reporting.report_charts import Scale

names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=30)
BOX = {"whisker_low": 1, "q1": 5, "median": 10, "q3": 40, "whisker_high": 300}


def parts(chart, name):
    return list(xml.fromstring(chart.svg).iter(name))


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans())
def test_a_scale_keeps_ends_and_order_and_its_ticks_lie_within(low, factor, log):
    scale = Scale.fit([low, low * factor], 50, 500, log=log)
    assert 50 <= scale(low) <= scale(low * factor) <= 500
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert all(50 <= scale(tick) <= 500.1 for tick in ticks)
    assert len(ticks) <= 16


def test_linear_scales_begin_at_zero():
    scale = Scale.fit([3.0, 10.0], 0, 100)
    assert (scale(0), scale(10)) == (0, 100)
    assert scale.ticks() == [0, 2, 4, 6, 8, 10]


def test_labels_of_ticks_are_short():
    assert [report_charts.number(value) for value in (12_000, 1.5e6, 0.001, 20)] == [
        "12k",
        "1.5M",
        "0.001",
        "20",
    ]


def test_lines_stand_where_their_points_are_and_keep_the_values():
    chart = report_charts.lines({"a": [(0, 1.0), (10, 2.0)], "b": [(5, 4.0)]}, caption="Loss.", y="nats")
    first, second = parts(chart, "polyline")
    places = [tuple(map(float, point.split(","))) for point in first.get("points").split()]
    bottom = report_charts.TOP + report_charts.PLOT_HEIGHT
    assert places[0] == (report_charts.LEFT, bottom - report_charts.PLOT_HEIGHT / 4)
    assert places[1] == (report_charts.WIDTH - report_charts.RIGHT, bottom - report_charts.PLOT_HEIGHT / 2)
    assert first.get("data-values") == "[[0.0,1.0],[10.0,2.0]]"
    assert second.get("data-name") == "b"
    assert len(parts(chart, "circle")) == 1  # a single point is no line
    assert chart.legend == ((0, "a"), (1, "b"))


def test_logarithmic_lines_leave_out_what_has_no_logarithm():
    chart = report_charts.lines(
        {"a": [(1, 1.0), (2, 0.0), (3, math.nan), (4, 0.1)]}, caption="", y="", log=True
    )
    assert parts(chart, "polyline")[0].get("data-values") == "[[1.0,1.0],[4.0,0.1]]"
    assert report_charts.lines({"a": [(2, 0.0)]}, caption="", y="", log=True) is None


def test_long_lines_are_thinned_to_their_means():
    points = [(step, step % 2) for step in range(10 * report_charts.MOST_POINTS)]
    chart = report_charts.lines({"a": points}, caption="", y="")
    drawn = parts(chart, "polyline")[0].get("points").split()
    assert len(drawn) == report_charts.MOST_POINTS
    assert len({point.split(",")[1] for point in drawn}) == 1


def test_bars_are_as_long_as_they_say():
    rows = {"navigate": {"one": Cell(0.5, 100, 0.05), "other": None}}
    chart = report_charts.bars(rows, {"navigate": 0.25}, caption="Accuracy.")
    (bar,) = parts(chart, "rect")
    grid = [line for line in parts(chart, "line") if line.get("class") == "grid"]
    zero, whole = float(grid[0].get("x1")), float(grid[-1].get("x1"))
    assert float(bar.get("width")) == pytest.approx((whole - zero) / 2, abs=0.2)
    (mark,) = (line for line in parts(chart, "line") if line.get("class") == "mark")
    assert float(mark.get("x1")) == pytest.approx(zero + (whole - zero) / 4, abs=0.2)
    texts = [text.text for text in parts(chart, "text")]
    assert "50.0 ± 5.0" in texts
    assert "not measured" in texts
    assert parts(chart, "title")[0].text == "navigate, one: 50.0 ± 5.0 %, n = 100"


def test_a_radar_needs_three_tasks_that_every_column_has():
    full = {task: {"a": Cell(0.5, 9, 0.1), "b": Cell(1.0, 9, 0.0)} for task in ("x", "y", "z")}
    areas = [p for p in parts(report_charts.radar(full, caption=""), "polygon") if "area" in p.get("class")]
    assert [len(area.get("points").split()) for area in areas] == [3, 3]
    assert report_charts.radar(full | {"z": {"a": Cell(0.5, 9, 0.1)}}, caption="") is None
    assert report_charts.radar({}, caption="") is None


def test_boxes_stand_between_their_quartiles():
    chart = report_charts.boxes({"message 1": {"expert": BOX}}, caption="", x="tokens")
    (box,) = parts(chart, "rect")
    median = next(line for line in parts(chart, "line") if line.get("class") == "median")
    start, end = float(box.get("x")), float(box.get("x")) + float(box.get("width"))
    share = (float(median.get("x1")) - start) / (end - start)
    assert share == pytest.approx(math.log(10 / 5) / math.log(40 / 5), abs=0.01)
    assert report_charts.boxes({}, caption="", x="") is None


def test_stages_follow_one_another_on_the_time_line():
    chart = report_charts.timeline({"": [("apprentice", 1, 30), ("expert", 31, 40)]}, caption="")
    first, second = parts(chart, "rect")
    assert float(first.get("width")) == pytest.approx(3 * float(second.get("width")), rel=0.03)
    assert float(second.get("x")) == pytest.approx(
        float(first.get("x")) + float(first.get("width")) + 1, abs=0.3
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_every_artifact_stands_below_what_it_was_made_of(pairs):
    nodes = {f"n{index}": (f"name {index}", "abc") for index in range(10)}
    edges = [(f"n{min(pair)}", f"n{max(pair)}") for pair in pairs]
    chart = report_charts.graph(nodes, edges, caption="")
    height = {
        link.get("href").removeprefix("#"): float(link.find("rect").get("y")) for link in parts(chart, "a")
    }
    assert height.keys() == nodes.keys()
    assert all(height[before] < height[after] for before, after in edges if before != after)


@settings(max_examples=30, deadline=None)
@given(st.lists(names, min_size=3, max_size=5, unique=True))
def test_any_name_leaves_a_drawing_well_formed(labels):
    row = {label: Cell(0.5, 3, 0.1) for label in labels}
    drawn = [
        report_charts.lines(
            {label: [(1, 1.0), (2, 2.0)] for label in labels}, caption=labels[0], y=labels[1]
        ),
        report_charts.bars(dict.fromkeys(labels, row), {}, caption=labels[0]),
        report_charts.radar(dict.fromkeys(labels, row), caption=labels[0]),
        report_charts.boxes({label: dict.fromkeys(labels, BOX) for label in labels}, caption=labels[0], x=""),
        report_charts.timeline({label: [(label, 1, 2)] for label in labels}, caption=labels[0]),
        report_charts.graph({label: (label, label) for label in labels}, [], caption=labels[0]),
    ]
    for chart in drawn:
        assert xml.fromstring(chart.svg).get("role") == "img"
