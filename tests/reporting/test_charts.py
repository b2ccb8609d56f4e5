"""Drawings: well-formed, where the numbers say, escaped, in the page's font and colours."""

import json
import math
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orca_jax.evaluation.cells import Cell
from orca_jax.reporting import charts

names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=30)
BOX = {"whisker_low": 1, "q1": 5, "median": 10, "q3": 40, "whisker_high": 300}


def parts(chart, name):
    return list(xml.fromstring(chart.svg).iter(name))


def texts(chart):
    return [text.text for text in parts(chart, "text")]


def edges(part):
    """The least and greatest x of a path."""
    places = [float(x) for x in re.findall(r"[ML] ([\d.]+)", part.find("path").get("d"))]
    return min(places), max(places)


def with_tip(chart):
    """The parts with a tip, by its text."""
    return {group.find("title").text: group for group in parts(chart, "g") if group.find("title") is not None}


def data(chart):
    return json.loads(xml.fromstring(chart.svg).get("data-lines"))


def test_labels_of_ticks_are_short():
    assert [charts.number(value) for value in (12_000, 1.5e6, 0.001, 20)] == ["12k", "1.5M", "0.001", "20"]


def test_linear_axes_begin_at_zero():
    chart = charts.lines({"a": [(0, 3.0), (100, 10.0)]}, caption="", y="nats")
    assert [text for text in texts(chart) if text.isdigit()] == [
        "0", "20", "40", "60", "80", "100", "0", "2", "4", "6", "8", "10",
    ]  # fmt: skip


def test_small_values_have_their_digits():
    chart = charts.lines({"a": [(0, 0.0015), (10, 0.0005)]}, caption="", y="learning rate")
    assert "0.0015" in texts(chart)


def test_lines_stand_where_their_points_are_and_keep_the_values():
    chart = charts.lines({"a": [(0, 1.0), (10, 2.0)], "b": [(5, 4.0)]}, caption="Loss.", y="nats")
    (left, *first), (right, *last) = data(chart)["a"]
    ((middle, *single),) = data(chart)["b"]
    assert (first, last, single) == ([0, 1], [10, 2], [5, 4])
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert 0 < left < right <= charts.WIDTH
    assert "a: 1 at step 0, 2 at step 10." in chart.alt
    assert chart.legend == ["a", "b"]


def test_logarithmic_lines_leave_out_what_has_no_logarithm():
    points = {"a": [(1, 1.0), (2, 0.0), (3, math.nan), (4, 0.1)]}
    chart = charts.lines(points, caption="", y="", log="y")
    assert [point[1:] for point in data(chart)["a"]] == [[1, 1], [4, 0.1]]
    assert charts.lines({"a": [(2, 0.0)]}, caption="", y="", log="y") is None


def test_long_lines_are_thinned_to_their_means():
    points = [(step, step % 2) for step in range(10 * charts.MOST_POINTS)]
    drawn = data(charts.lines({"a": points}, caption="", y=""))["a"]
    assert len(drawn) == charts.MOST_POINTS
    assert {value for *_, value in drawn} == {0.5}


def test_bars_are_as_long_as_they_say():
    rows = {"navigate": {"one": Cell(0.5, 100, 0.05), "other": None}, "web": {"one": Cell(0.25, 100, 0.05)}}
    chart = charts.bars(rows, {"navigate": 0.25}, caption="Accuracy.")
    found = with_tip(chart)
    (zero, half), (_, quarter) = (edges(found[f"{task}, one: {cell} %, n = 100"]) for task, cell in (
        ("navigate", "50.0 ± 5.0"), ("web", "25.0 ± 5.0")))  # fmt: skip
    assert half - zero == pytest.approx(2 * (quarter - zero), abs=0.2)
    assert {"50.0 ± 5.0", "not measured"} <= set(texts(chart))
    (mark,) = (line for line in chart.figure.axes[0].lines if set(line.get_xdata()) == {25.0})
    assert mark.get_linestyle() == "--"


def test_bars_of_which_nothing_was_measured_say_so():
    assert "not measured" in texts(charts.bars({"navigate": {"one": None}}, {}, caption=""))
    assert charts.bars({}, {}, caption="").svg


def test_colours_and_font_are_the_pages():
    chart = charts.bars({"a": {"one": Cell(0.5, 100, 0.05)}}, {}, caption="")
    assert "fill: var(--c0)" in chart.svg
    assert "stroke: var(--ink)" in chart.svg
    assert "font-family" not in chart.svg
    assert not re.search(r"#[0-9a-f]{6}", chart.svg)


def test_a_radar_needs_three_tasks_that_every_column_has():
    full = {task: {"a": Cell(0.5, 9, 0.1), "b": Cell(1.0, 9, 0.0)} for task in ("x", "y", "z")}
    assert list(with_tip(charts.radar(full, caption=""))) == ["a", "b"]
    partial = full | {"z": {"a": Cell(0.5, 9, 0.1)}}
    assert charts.radar(partial, caption="") is None
    assert list(with_tip(charts.radar(partial, caption="", whole=False))) == ["a", "b"]
    assert charts.radar({}, caption="") is None


def test_boxes_stand_between_their_quartiles():
    chart = charts.boxes({"message 1": {"expert": BOX}}, caption="", x="tokens")
    (described,) = with_tip(chart)
    assert described.startswith("message 1, expert: whisker low 1, q1 5, median 10, q3 40")
    (box,) = chart.figure.axes[0].patches
    assert (box.get_x(), box.get_width()) == (5, 35)
    assert charts.boxes({}, caption="", x="") is None


def test_stages_follow_one_another_on_the_time_line():
    stages = {"": [("apprentice", 1, 30), ("expert", 31, 40)]}
    first, second = (edges(part) for part in with_tip(charts.timeline(stages, caption="")).values())
    assert first[1] - first[0] == pytest.approx(3 * (second[1] - second[0]), rel=0.01)
    assert second[0] == pytest.approx(first[1], abs=0.1)


@settings(max_examples=2, deadline=None)
@example(["<$_a^$>&", '"]]>', "\\_b"])
@given(st.lists(names, min_size=3, max_size=3, unique=True))
def test_any_name_leaves_a_drawing_well_formed(labels):
    row = {label: Cell(0.5, 3, 0.1) for label in labels}
    drawn = [
        charts.lines({label: [(1, 1.0), (2, 2.0)] for label in labels}, caption=labels[0], y=labels[1]),
        charts.bars(dict.fromkeys(labels, row), {}, caption=labels[0]),
        charts.radar(dict.fromkeys(labels, row), caption=labels[0]),
        charts.boxes({label: dict.fromkeys(labels, BOX) for label in labels}, caption=labels[0], x=""),
        charts.timeline({label: [(label, 1, 2)] for label in labels}, caption=labels[0]),
    ]
    for chart in drawn:
        assert xml.fromstring(chart.svg).get("role") == "img"


def test_a_chart_is_a_picture_with_its_legend_and_title(tmp_path):
    rows = {"navigate": {"empty": Cell(0.5, 10, 0.1), "steps": None}}
    seeds = {("navigate", "empty"): [0.4, 0.6]}
    charts.bars(rows, {}, caption="", seeds=seeds).save(tmp_path / "a.png", title="mini")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    charts.bars(rows, {}, caption="").save(tmp_path / "a.svg", "svg", title="mini")
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{word}<" in text for word in ("mini", "empty", "steps", "navigate"))
    names = {"$_a^$": Cell(0.5, 3, 0.1), "_b": Cell(0.4, 3, 0.1)}
    charts.bars({"navigate": names}, {}, caption="").save(tmp_path / "a.svg", "svg")
    words = [part.text.strip() for part in xml.parse(tmp_path / "a.svg").iter() if part.text]
    assert {"$_a^$", "_b"} <= {*words}
    with pytest.raises(ValueError, match="nonsense"):
        charts.bars(rows, {}, caption="").save(tmp_path / "a.nonsense")


def test_errors_of_points_are_whiskers():
    def upright(**more):
        chart = charts.lines({"a": [(1, 40), (2, 60)]}, caption="c", y="per cent", x="k", **more)
        return sum(len(part.get_segments()) for part in chart.figure.axes[0].collections)

    assert (upright(), upright(errors={"a": [3, 5]})) == (0, 2)


@pytest.mark.parametrize(("values", "drawn"), [
    ([[-10.0, 5.0], [-5.0, 30.0]], 1),
    ([[1.0, 5.0], [2.0, 30.0]], 0),
    ([[-1.0, 5.0]], 0),
])  # fmt: skip
def test_a_map_shows_differences_and_the_line_of_zero(values, drawn):
    places, tokens = [2, 5], [1e5, 2e5][: len(values)]
    chart = charts.difference_map(
        np.array(values), places, tokens, caption="c", x="k", y="positions trained on"
    )
    [axes] = chart.figure.axes
    lines = [part for part in axes.collections if part.get_paths()]
    assert len(lines) == drawn
    assert {f"{value:+.0f}" for row in values for value in row} <= set(texts(chart))
    assert f"{values[0][1]:+.1f} at k 5 and 100k positions trained on" in chart.alt
