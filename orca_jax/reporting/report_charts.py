"""Charts as inline SVG: their colours come from the page's style sheet, so that they follow dark mode."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from orca_jax.evaluation.cells import Cell
from orca_jax.reporting.data_card import BOX

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 52, 14, 30, 40
PLOT_HEIGHT = 190
LETTER = 7.4  # width of one, about
VALUE = 128  # space right of a bar for its value and error
ROW = 16  # height of a bar or a box
COLOURS = 8  # in the style sheet, c0 to c7
MOST_POINTS = 300  # of a line; longer ones are thinned to means
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, what it shows in words, and its legend: (colour, name) in the order drawn."""

    svg: Markup
    caption: str
    legend: tuple[tuple[int, str], ...] = ()


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; all but Markup is escaped. `class_` stands for class, `text_anchor` for text-anchor."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{Markup('').join(map(escape, content))}</{name}>")


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def fit(cls, values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
        """A scale over all values: from 0 where they are positive, or between them if logarithmic."""
        known = list(values) or [1.0]
        low, high = min(known), max(known)
        if log:
            return cls(low / 1.1, high * 1.1, start, end, log)
        low = min(low, 0.0)
        return cls(low, high if high > low else low + 1.0, start, end)

    def __call__(self, value: float) -> float:
        low, high, at = map(self._place, (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def _place(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        """Decades where the scale is logarithmic and shows two of them; else even steps."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1,) if last - first > 3 else (1, 2, 5)
            decades = self._within(s * 10.0**power for power in range(first, last + 1) for s in steps)
            if len(decades) > 1:
                return decades
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
        first, last = math.floor(self.low / step), math.ceil(self.high / step)
        return self._within(step * n for n in range(first, last + 1))

    def _within(self, ticks: Iterable[float]) -> list[float]:
        return [tick for tick in ticks if self.low <= tick <= self.high * (1 + 1e-9)]


def number(value: float) -> str:
    """A tick's label: 12k, 1.5M, 0.001."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _svg(height: float, alt: str, *content: object, width: float = WIDTH, **attributes: object) -> Markup:
    return tag("svg", *content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=alt, **attributes)


def _text(x: float, y: float, content: object, **attributes: object) -> Markup:
    return tag("text", content, x=x, y=y, **attributes)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _colour(index: int) -> str:
    return f"c{index % COLOURS}"


def _legend(names: Iterable[str]) -> tuple[tuple[int, str], ...]:
    return tuple((index % COLOURS, name) for index, name in enumerate(names))


def lines(
    series: Mapping[str, Sequence[Point]],
    *,
    caption: str,
    y: str,
    log: bool = False,
    marks: bool = False,
    starts: Mapping[str, float] | None = None,
) -> Chart | None:
    """One line a series over training steps; None where no series has a point.

    Args:
      log: a logarithmic vertical axis; values that it cannot show are left out.
      marks: a mark at each point.
      starts: stage to the step at which it begins, drawn as upright lines.
    """
    kept = {name: _shown_points(points, log) for name, points in series.items()}
    every = list(itertools.chain.from_iterable(kept.values()))
    if not every:
        return None
    across = Scale.fit((x for x, _ in every), LEFT, WIDTH - RIGHT)
    up = Scale.fit((value for _, value in every), TOP + PLOT_HEIGHT, TOP, log=log)
    drawn = [_axes(across, up, y), *_starts(across, starts or {})]
    for index, (name, points) in enumerate(kept.items()):
        drawn.append(_polyline(name, points, across, up, _colour(index), marks or len(points) == 1))
    alt = f"{caption} {_ends(kept)}"
    return Chart(_svg(TOP + PLOT_HEIGHT + BOTTOM, alt, *drawn, class_="lines"), caption, _legend(kept))


def _shown_points(points: Sequence[Point], log: bool) -> list[Point]:
    """Those that the axis can show, thinned to means where they are many."""
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    if len(points) <= MOST_POINTS:
        return points
    return [tuple(np.mean(part, axis=0).tolist()) for part in np.array_split(points, MOST_POINTS)]


def _ends(series: Mapping[str, Sequence[Point]]) -> str:
    """The first and last values as text, for screen readers."""
    described = (
        f"{name}: {points[0][1]:.4g} at step {points[0][0]:g}, {points[-1][1]:.4g} at step {points[-1][0]:g}."
        for name, points in series.items()
        if points
    )
    return " ".join(described)


def _axes(across: Scale, up: Scale, y: str) -> Markup:
    bottom = TOP + PLOT_HEIGHT
    rows = [
        _line(LEFT, up(tick), WIDTH - RIGHT, up(tick), "grid")
        + _text(LEFT - 6, up(tick) + 4, number(tick), text_anchor="end")
        for tick in up.ticks()
    ]
    columns = [
        _text(across(tick), bottom + 17, number(tick), text_anchor="middle") for tick in across.ticks()
    ]
    titles = [
        _text(WIDTH - RIGHT, bottom + 34, "training step", text_anchor="end", class_="title"),
        _text(4, 12, y, class_="title"),
    ]
    return Markup("").join([*rows, *columns, *titles])


def _starts(across: Scale, starts: Mapping[str, float]) -> list[Markup]:
    return [
        _line(across(step), TOP, across(step), TOP + PLOT_HEIGHT, "start")
        + _text(across(step) + 4, TOP - 3, name, class_="title")
        for name, step in starts.items()
    ]


def _polyline(
    name: str, points: Sequence[Point], across: Scale, up: Scale, colour: str, marks: bool
) -> Markup:
    places = [(across(x), up(y)) for x, y in points]
    values = json.dumps([[float(f"{x:.6g}"), float(f"{y:.4g}")] for x, y in points], separators=(",", ":"))
    line = tag(
        "polyline",
        points=" ".join(f"{x:g},{y:g}" for x, y in places),
        class_=f"line {colour}",
        data_name=name,
        data_values=values,
    )
    dots = [tag("circle", cx=x, cy=y, r=3, class_=f"fill {colour}") for x, y in places if marks]
    return line + Markup("").join(dots)


def bars(
    rows: Mapping[str, Mapping[str, Cell | None]], chance: Mapping[str, float | None], *, caption: str
) -> Chart:
    """Accuracies in per cent: a row a task, a bar a column, whiskers of their errors, chance marked.

    A cell is None where nothing was measured.
    """
    names = _columns(rows)
    left, top = _label_width(rows), 6
    across = Scale(0.0, 1.0, left, WIDTH - VALUE)
    height = ROW * len(names) + 14
    drawn = [
        _line(across(tick), top, across(tick), top + height * len(rows), "grid")
        + _text(across(tick), top + height * len(rows) + 16, f"{100 * tick:g}", text_anchor="middle")
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    for index, (task, row) in enumerate(rows.items()):
        base = top + index * height + 7
        drawn.append(_row_label(task, left, base + ROW * len(names) / 2))
        drawn += [_bar(task, name, row.get(name), across, base, at) for at, name in enumerate(names)]
        at_chance = chance.get(task)
        if at_chance is not None:
            drawn.append(
                _line(across(at_chance), base - 4, across(at_chance), base + ROW * len(names) + 3, "mark")
            )
    alt = f"{caption} The table beside gives every value."
    return Chart(_svg(top + height * len(rows) + 24, alt, *drawn), caption, _legend(names))


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row))


def _label_width(names: Iterable[str]) -> float:
    return min(170, 16 + LETTER * max((len(name) for name in names), default=0))


def _row_label(name: str, left: float, middle: float) -> Markup:
    return _text(left - 8, middle + 4, _short(name, int(left / LETTER)), text_anchor="end")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _bar(task: str, name: str, bar: Cell | None, across: Scale, base: float, at: int) -> Markup:
    top, zero = base + at * ROW, across(0)
    if bar is None:
        return _text(zero + 6, top + 11, "not measured", class_="title")
    low, high = (min(max(end, 0), 1) for end in bar.span)
    shape = tag(
        "rect",
        x=zero,
        y=top + 1,
        width=max(across(bar.value) - zero, 1),
        height=ROW - 3,
        class_=f"fill {_colour(at)}",
    )
    whisker = _line(across(low), top + ROW / 2 - 0.5, across(high), top + ROW / 2 - 0.5, "whisker")
    value = _text(across(max(high, bar.value)) + 6, top + 11, str(bar), class_="value")
    return tag("g", tag("title", f"{task}, {name}: {bar} %, n = {bar.size}"), shape, whisker, value)


def radar(rows: Mapping[str, Mapping[str, Cell | None]], *, caption: str) -> Chart | None:
    """The same accuracies with a spoke a task; None for fewer than three tasks that all columns have."""
    names = _columns(rows)
    spokes = {
        task: values
        for task, row in rows.items()
        if None not in (values := [row.get(name) for name in names])
    }
    if len(spokes) < 3 or not names:
        return None
    middle, centre, radius = WIDTH / 2, 140.0, 105.0
    angles = [2 * math.pi * index / len(spokes) - math.pi / 2 for index in range(len(spokes))]

    def place(angle: float, share: float) -> Point:
        reach = radius * share
        return round(middle + reach * math.cos(angle), 1), round(centre + reach * math.sin(angle), 1)

    def polygon(shares: Sequence[float], class_: str, name: str = "") -> Markup:
        corners = " ".join("{:g},{:g}".format(*place(*corner)) for corner in zip(angles, shares))
        return tag("polygon", tag("title", name), points=corners, class_=class_)

    drawn = [polygon([ring] * len(angles), "ring") for ring in (0.25, 0.5, 0.75, 1.0)]
    drawn += [
        _text(middle + 3, centre - radius * ring + 12, f"{100 * ring:g}", class_="title") for ring in (0.5, 1)
    ]
    for task, angle in zip(spokes, angles):
        x, y = place(angle, 1.08)
        side = "middle" if abs(x - middle) < 20 else "start" if x > middle else "end"
        drawn.append(_line(middle, centre, *place(angle, 1), "grid"))
        drawn.append(_text(x, y + 4, _short(task, 24), text_anchor=side))
    for index, name in enumerate(names):
        found = (values[index] for values in spokes.values())
        shares = [cell.value for cell in found if cell]
        drawn.append(polygon(shares, f"area {_colour(index)}", name))
    alt = f"{caption} The table beside gives every value."
    return Chart(_svg(2 * centre, alt, *drawn), caption, _legend(names))


def boxes(rows: Mapping[str, Mapping[str, Mapping[str, float]]], *, caption: str, x: str) -> Chart | None:
    """Boxes on a logarithmic axis: a row a group, a box a column, each with the values of `data_card.BOX`."""
    names = _columns(rows)
    values = [max(box[name], 1.0) for row in rows.values() for box in row.values() for name in BOX]
    if not values:
        return None
    left, top = _label_width(rows), 6
    across = Scale.fit(values, left, WIDTH - RIGHT, log=True)
    height = ROW * len(names) + 12
    bottom = top + height * len(rows)
    drawn = [
        _line(across(tick), top, across(tick), bottom, "grid")
        + _text(across(tick), bottom + 16, number(tick), text_anchor="middle")
        for tick in across.ticks()
    ]
    for index, (label, row) in enumerate(rows.items()):
        base = top + index * height + 6
        drawn.append(_row_label(label, left, base + ROW * len(names) / 2))
        drawn += [
            _box(label, name, row[name], across, base, at) for at, name in enumerate(names) if name in row
        ]
    drawn.append(_text(WIDTH - RIGHT, bottom + 33, x, text_anchor="end", class_="title"))
    described = (
        f"{label}, {name}: median {box['median']:g}."
        for label, row in rows.items()
        for name, box in row.items()
    )
    alt = f"{caption} {' '.join(described)}"
    return Chart(_svg(bottom + 40, alt, *drawn), caption, _legend(names))


def _box(label: str, name: str, box: Mapping[str, float], across: Scale, base: float, at: int) -> Markup:
    low, first, median, third, high = (across(max(box[value], 1.0)) for value in BOX)
    top = base + at * ROW
    middle = top + ROW / 2 - 0.5
    described = ", ".join(f"{what.replace('_', ' ')} {box[what]:g}" for what in BOX)
    shape = tag(
        "rect", x=first, y=top + 1, width=max(third - first, 4), height=ROW - 3, class_=f"fill {_colour(at)}"
    )
    whiskers = _line(low, middle, high, middle, "whisker")
    mark = _line(median, top + 1, median, top + ROW - 2, "median")
    return tag("g", tag("title", f"{label}, {name}: {described}"), whiskers, shape, mark)


def timeline(rows: Mapping[str, Sequence[tuple[str, int, int]]], *, caption: str) -> Chart | None:
    """Stages as bars over steps: a row a run, with (stage, first step, last step)."""
    stages = list(dict.fromkeys(stage for spans in rows.values() for stage, _, _ in spans))
    if not stages:
        return None
    left, top, height = (_label_width(rows) if len(rows) > 1 else 16.0), 6, 30
    across = Scale.fit((last for spans in rows.values() for _, _, last in spans), left, WIDTH - RIGHT)
    bottom = top + height * len(rows)
    drawn = [_text(across(tick), bottom + 16, number(tick), text_anchor="middle") for tick in across.ticks()]
    for index, (label, spans) in enumerate(rows.items()):
        base = top + index * height
        if len(rows) > 1:
            drawn.append(_row_label(label, left, base + height / 2))
        drawn += [_span(span, across, base, height, stages.index(span[0])) for span in spans]
    drawn.append(_text(WIDTH - RIGHT, bottom + 33, "training step", text_anchor="end", class_="title"))
    described = (
        f"{label}: " + ", ".join(f"{s} from {a} to {b}" for s, a, b in spans) for label, spans in rows.items()
    )
    return Chart(_svg(bottom + 40, f"{caption} {'; '.join(described)}.", *drawn), caption, _legend(stages))


def _span(span: tuple[str, int, int], across: Scale, base: float, height: float, index: int) -> Markup:
    stage, first, last = span
    start, width = across(first - 1), across(last) - across(first - 1)
    shape = tag(
        "rect", x=start, y=base + 4, width=max(round(width - 1, 1), 1), height=height - 8, rx=3,
        class_=f"fill {_colour(index)}",
    )  # fmt: skip
    fits = len(stage) * LETTER < width
    label = (
        _text(start + width / 2, base + height / 2 + 4, stage, text_anchor="middle", class_="inside")
        if fits
        else ""
    )
    return tag("g", tag("title", f"{stage}: steps {first} to {last}"), shape, label)


def graph(
    nodes: Mapping[str, tuple[str, str]], edges: Iterable[tuple[str, str]], *, caption: str
) -> Chart | None:
    """A graph of artifacts and their inputs, from top to bottom.

    Args:
      nodes: id, which is also the anchor in the page, to the node's two lines.
      edges: (made of, what was made) by ids.
    """
    if not nodes:
        return None
    linked = [(a, b) for a, b in edges if a in nodes and b in nodes and a != b]
    layers = _layers(nodes, linked)
    wide, high, gap = 150, 38, 40
    width = max(WIDTH, max(map(len, layers)) * (wide + 16))
    places = {
        node: (width * (at + 0.5) / len(layer), 6 + depth * (high + gap))
        for depth, layer in enumerate(layers)
        for at, node in enumerate(layer)
    }
    drawn = [_edge(places[a], places[b], high) for a, b in linked]
    drawn += [_node(node, *nodes[node], *places[node], wide, high) for node in nodes]
    alt = f"{caption} The list below says the same in words."
    return Chart(
        _svg(len(layers) * (high + gap) - gap + 12, alt, *drawn, width=width, class_="graph"), caption
    )


def _layers(nodes: Iterable[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Nodes by the longest path to them; a cycle, which manifests cannot make, is cut off."""
    depth = dict.fromkeys(nodes, 0)
    for _ in depth:
        for before, after in edges:
            depth[after] = max(depth[after], min(depth[before] + 1, len(depth)))
    return [[node for node in depth if depth[node] == level] for level in sorted(set(depth.values()))]


def _edge(start: Point, end: Point, high: float) -> Markup:
    (x1, y1), (x2, y2) = (start[0], start[1] + high), end
    bend = (y1 + y2) / 2
    return tag(
        "path",
        d=f"M{x1:.0f},{y1:.0f} C{x1:.0f},{bend:.0f} {x2:.0f},{bend:.0f} {x2:.0f},{y2:.0f}",
        class_="edge",
    )


def _node(id: str, name: str, about: str, x: float, y: float, wide: float, high: float) -> Markup:
    shape = tag("rect", x=x - wide / 2, y=y, width=wide, height=high, rx=5, class_="node")
    first = _text(x, y + 16, name if len(name) < 21 else f"…{name[-19:]}", text_anchor="middle")
    second = _text(x, y + 31, about, text_anchor="middle", class_="title")
    return tag("a", tag("title", name), shape, first, second, href=f"#{id}")
