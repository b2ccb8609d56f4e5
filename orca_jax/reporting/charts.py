"""Charts, drawn by matplotlib without a display: pictures, or parts of the report's page.

In the page a chart is inline SVG: its text is text in the page's font, and its colours are those of the
page's style sheet, so that they follow dark mode.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from orca_jax.evaluation.cells import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOX = ("whisker_low", "q1", "median", "q3", "whisker_high")
WIDTH = 440  # of a drawing, in points; a point is a pixel of the page where the drawing is shown at full size
ROW = 16  # height of a bar or a box
LETTER = 7.4  # width of one, about
MOST_POINTS = 300  # of a line; longer ones are thinned to means
CARD, INK, SOFT, LINE, FAINT = "#fefefe", "#1d2127", "#5b6470", "#dfe2e6", "#eef0f2"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a84d84", "#b98500", "#3f8fc4", "#6a4fb5", "#6b7280")
_VARIABLES = {CARD: "--card", INK: "--ink", SOFT: "--soft", LINE: "--line", FAINT: "--faint"}
_VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(SERIES)}
Point = tuple[float, float]
Boxes = Mapping[str, Mapping[str, Mapping[str, float]]]  # row to series to the values of `BOX`


def colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


@dataclasses.dataclass(slots=True)
class Chart:
    """A drawing, and what it shows in words.

    Attributes:
      legend: names of the series, in their colours.
      tips: what a pointer over a part says, by the part's `gid`.
      lines: points of lines by series, each (x, y) in data.
    """

    figure: Figure
    caption: str
    alt: str
    legend: Sequence[str] = ()
    tips: dict[str, str] = dataclasses.field(default_factory=dict)
    lines: Mapping[str, Sequence[Point]] = dataclasses.field(default_factory=dict)
    kind: str = ""

    def tip(self, artist: Any, text: str) -> None:
        artist.set_gid(f"tip-{len(self.tips)}")
        self.tips[artist.get_gid()] = text

    @property
    def svg(self) -> Markup:
        """The drawing as an element of the page, without its legend."""
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.alt}), io.StringIO() as file:
            self.figure.savefig(file, format="svg", metadata={"Date": None})
            text = file.getvalue()
        text = text[text.index("<g id=") : text.rindex("</svg>")]
        text = re.sub(r' clip-path="[^"]*"|<clipPath.*?</clipPath>', "", text, flags=re.DOTALL)
        text = re.sub(r"font: ([^;\"']*?)([\d.]+px)[^;\"]*", r"font-size: \2", text)
        text = re.sub(r"(\d\.\d)\d+", r"\1", text).replace("xlink:href", "href").replace("\n", " ")
        for found, name in _VARIABLES.items():
            text = text.replace(found, f"var({name})")
        for gid, tip in self.tips.items():
            text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(tip)}</title>")
        text = re.sub(r'<g id="[^"]*">', "<g>", text)
        width, height = (72 * inches for inches in self.figure.get_size_inches())
        data = ""
        if self.lines:
            place = self.figure.axes[0].transData.transform
            shown = {
                name: [
                    [round(float(place((x, y))[0]), 1), float(f"{x:.6g}"), float(f"{y:.4g}")]
                    for x, y in points
                ]
                for name, points in self.lines.items()
            }
            data = f' data-lines="{escape(json.dumps(shown, separators=(",", ":")))}"'
        return Markup(
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(self.alt)}" '
            f'class="{self.kind}"{data}>{text}</svg>'
        )

    def save(self, file: str | os.PathLike[str] | IO[bytes], suffix: str = "", title: str = "") -> None:
        """The drawing as a picture, with its legend; the file's suffix is its format unless one is named."""
        import matplotlib
        from matplotlib.patches import Patch

        if not self.figure.legends and len(self.legend) > 1:
            handles = [Patch(color=colour(number), label=name) for number, name in enumerate(self.legend)]
            self.figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        if title:
            self.figure.suptitle(textwrap.fill(_clean(title), 64), fontsize=12)
        # Text stays text, and equal figures make equal files.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.alt}):
            more = {"metadata": {"Date": None}} if suffix == "svg" else {}
            self.figure.savefig(
                file, format=suffix or None, dpi=140, facecolor="white", bbox_inches="tight", **more
            )


def number(value: float, _: object = None) -> str:
    """A tick's label: 12k, 1.5M, 0.001."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _axes(height: float, **more: Any) -> Any:
    """Axes in a figure of their own: no frame, no marks at the ticks, a faint grid behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    axes = figure.add_subplot(**more)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=13, labelcolor=INK, pad=6)
    return axes


def _scale(axes: Any, values: Iterable[float], *, log: bool, which: str) -> None:
    """One axis over all values: from 0 where they are positive, or between them if logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    known = [*values] or [1.0]
    low, high = min(known), max(known)
    axis = getattr(axes, f"{which}axis")
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10])
    if log:
        low, high = low / 1.1, high * 1.1
        getattr(axes, f"set_{which}scale")("log")
        subs = (1, 2, 5) if math.log10(high / low) <= 3 else (1,)
        decades = LogLocator(subs=subs, numticks=20)
        if sum(low <= tick <= high for tick in decades.tick_values(low, high)) > 1:
            ticks = decades
    else:
        low = min(low, 0.0)
        high = high if high > low else low + 1.0
    getattr(axes, f"set_{which}lim")(low, high)
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(number))


def _clean(text: str) -> str:
    """A name without what matplotlib would read as mathematics, or SVG cannot hold."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.replace("$", r"\$")


def _rows(axes: Any, names: Sequence[str], places: Sequence[float]) -> None:
    """Names of rows, from top to bottom."""
    axes.set_yticks(
        places, [_clean(textwrap.shorten(name, 24, placeholder="…") or name[:23]) for name in names]
    )
    axes.invert_yaxis()


def _series(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row))


def lines(
    series: Mapping[str, Sequence[Point]],
    *,
    caption: str,
    y: str,
    x: str = "training step",
    log: str = "",
    marks: bool = False,
    starts: Mapping[str, float] | None = None,
) -> Chart | None:
    """A line a series; None where no series has a point.

    Args:
      log: the logarithmic axes, of `x` and `y`; values that they cannot show are left out.
      marks: a mark at each point.
      starts: stage to the step at which it begins, drawn as upright lines.
    """
    kept = {}
    for name, points in series.items():
        shown = [(a, b) for a, b in points if math.isfinite(b) and (b > 0 or "y" not in log)]
        if len(shown) > MOST_POINTS:
            shown = [tuple(np.mean(part, axis=0).tolist()) for part in np.array_split(shown, MOST_POINTS)]
        kept[name] = shown
    every = list(itertools.chain.from_iterable(kept.values()))
    if not every:
        return None
    axes = _axes(260)
    for at, points in enumerate(kept.values()):
        if points:
            marker = "o" if marks or len(points) == 1 else ""
            axes.plot(
                *zip(*points), color=colour(at), linewidth=1.8, marker=marker, markersize=6, clip_on=False
            )
    _scale(axes, (a for a, _ in every), log="x" in log, which="x")
    _scale(axes, (b for _, b in every), log="y" in log, which="y")
    axes.grid(axis="y", color=LINE)
    for stage, step in (starts or {}).items():
        axes.axvline(step, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        top = axes.get_xaxis_transform()
        axes.annotate(_clean(stage), (step, 1), (4, 3), top, "offset points", color=SOFT, fontsize=12)
    axes.set_title(y, loc="left", fontsize=12, color=SOFT, pad=20 if starts else 8)
    axes.set_xlabel(x, loc="right", fontsize=12, color=SOFT)
    ends = (
        f"{name}: {points[0][1]:.4g} at step {points[0][0]:g}, {points[-1][1]:.4g} at step {points[-1][0]:g}."
        for name, points in kept.items()
        if points
    )
    return Chart(axes.figure, caption, f"{caption} {' '.join(ends)}", [*kept], lines=kept, kind="lines")


def bars(
    rows: Mapping[str, Mapping[str, Cell | None]],
    chance: Mapping[str, float | None],
    *,
    caption: str,
    decimals: int = 1,
    seeds: Mapping[tuple[str, str], Sequence[float]] | None = None,
) -> Chart:
    """Per cent: a row a task, a bar a series, whiskers of their errors, chance marked.

    A row has a bar for each of its own series; a cell is None where nothing was measured.

    Args:
      seeds: values under single seeds by row and series, drawn as dots.
    """
    names = _series(rows)
    axes = _axes(30 + sum(ROW * len(row) + 14 for row in rows.values()))
    chart = Chart(axes.figure, caption, f"{caption} The table beside gives every value.", names)
    top, middles = 0.0, []
    for task, row in rows.items():
        top += 7
        middles.append(top + ROW * len(row) / 2)
        for at, (name, cell) in enumerate(row.items()):
            middle = top + ROW * (at + 0.5)
            if cell is None:
                axes.text(1.5, middle, "not measured", va="center", fontsize=12, color=SOFT)
                continue
            low, high = (100 * max(end, 0) for end in cell.span)
            bar = axes.barh(middle, max(100 * cell.value, 0.3), ROW - 3, color=colour(names.index(name)))[0]
            chart.tip(bar, f"{task}, {name}: {cell} %, n = {cell.size}")
            if high > low:
                axes.hlines(middle, low, high, color=INK, linewidth=1.2)
            dots = [100 * value for value in (seeds or {}).get((task, name), ())]
            axes.plot(dots, [middle] * len(dots), "o", color=LINE, markeredgecolor=INK, markersize=4)
            axes.annotate(cell.text(decimals=decimals), (max(high, 100 * cell.value), middle), (6, 0),
                          textcoords="offset points", va="center", fontsize=12, color=SOFT)  # fmt: skip
        bottom = top + ROW * len(row)
        guess = chance.get(task)
        if guess is not None:
            axes.plot([100 * guess] * 2, [top - 4, bottom + 4], color=INK, linewidth=1, linestyle=(0, (3, 2)))
        top = bottom + 7
    axes.grid(axis="x", color=LINE)
    axes.set_xlim(
        0, max(100, *(100 * cell.span[1] for row in rows.values() for cell in row.values() if cell), 0)
    )
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_ylim(0, top or 1)
    _rows(axes, [*rows], middles)
    return chart


def radar(
    rows: Mapping[str, Mapping[str, Cell | None]],
    *,
    caption: str,
    chance: Mapping[str, float] | None = None,
    whole: bool = True,
) -> Chart | None:
    """The same with a spoke a task; None for fewer than three spokes.

    Args:
      whole: only tasks that all series have; else a ring has gaps.
    """
    names = _series(rows)
    spokes = [
        task for task, row in rows.items() if not whole or all(row.get(name) is not None for name in names)
    ]
    if len(spokes) < 3 or not names:
        return None
    axes = _axes(280 if len(spokes) < 12 else 400, projection="polar")
    chart = Chart(axes.figure, caption, f"{caption} The table beside gives every value.", names)
    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    around = [*angles, angles[0]]
    for ring in (25, 50, 75, 100):
        axes.plot(around, [ring] * len(around), color=LINE, linewidth=1)
    axes.vlines(angles, 0, 100, color=LINE, linewidth=1)
    for at, name in enumerate(names):
        found = [rows[task].get(name) for task in spokes]
        values = [100 * cell.value if cell else math.nan for cell in found]
        (ring,) = axes.plot(
            around,
            [*values, values[0]],
            color=colour(at),
            linewidth=2,
            marker="" if whole else ".",
            label=name,
        )
        chart.tip(ring, name)
        if whole:
            axes.fill(angles, values, color=colour(at), alpha=0.14, linewidth=0)
    if chance:
        values = [100 * chance[task] for task in spokes]
        axes.plot(around, [*values, values[0]], color=INK, linewidth=1, linestyle=":", label="chance")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 100)
    axes.set(xticks=[], yticks=[])
    for ring in (50, 100):
        axes.annotate(str(ring), (0, ring), (3, -12), textcoords="offset points", fontsize=12, color=SOFT)
    axes.grid(False)
    for angle, task in zip(angles, spokes):
        side = math.sin(angle)
        align = "center" if abs(side) < 0.2 else "left" if side > 0 else "right"
        axes.text(angle, 110, _clean(textwrap.fill(task, 22) or task), ha=align, va="center", color=INK,
                  fontsize=13 if len(spokes) < 12 else 9)  # fmt: skip
    return chart


def boxes(rows: Boxes, *, caption: str, x: str) -> Chart | None:
    """Boxes on a logarithmic axis: a row a group, a box a series."""
    names = _series(rows)
    values = [max(box[name], 1.0) for row in rows.values() for box in row.values() for name in BOX]
    if not values:
        return None
    height = ROW * len(names) + 12
    axes = _axes(46 + height * len(rows))
    described = (
        f"{label}, {name}: median {box['median']:g}."
        for label, row in rows.items()
        for name, box in row.items()
    )
    chart = Chart(axes.figure, caption, f"{caption} {' '.join(described)}", names)
    for index, (label, row) in enumerate(rows.items()):
        for name, box in row.items():
            low, first, median, third, high = (max(box[value], 1.0) for value in BOX)
            middle = index * height + 6 + ROW * (names.index(name) + 0.5)
            axes.hlines(middle, low, high, color=INK, linewidth=1.2, zorder=0.9)
            bar = axes.barh(
                middle,
                max(third / first, 1.03) * first - first,
                ROW - 3,
                left=first,
                color=colour(names.index(name)),
            )[0]
            axes.plot([median] * 2, [middle - 6, middle + 6], color=CARD, linewidth=2.5)
            chart.tip(
                bar,
                f"{label}, {name}: " + ", ".join(f"{what.replace('_', ' ')} {box[what]:g}" for what in BOX),
            )
    _scale(axes, values, log=True, which="x")
    axes.grid(axis="x", color=LINE)
    axes.set_ylim(0, height * len(rows))
    _rows(axes, [*rows], [height * (at + 0.5) for at in range(len(rows))])
    axes.set_xlabel(x, loc="right", fontsize=12, color=SOFT)
    return chart


def timeline(rows: Mapping[str, Sequence[tuple[str, int, int]]], *, caption: str) -> Chart | None:
    """Stages as bars over steps: a row a run, with (stage, first step, last step)."""
    stages = list(dict.fromkeys(stage for spans in rows.values() for stage, _, _ in spans))
    if not stages:
        return None
    axes = _axes(46 + 30 * len(rows))
    end = max(last for spans in rows.values() for _, _, last in spans)
    described = (
        f"{label}: " + ", ".join(f"{s} from {a} to {b}" for s, a, b in spans) for label, spans in rows.items()
    )
    chart = Chart(axes.figure, caption, f"{caption} {'; '.join(described)}.", stages)
    for row, (stage, first, last) in (
        (row, span) for row, spans in enumerate(rows.values()) for span in spans
    ):
        bar = axes.barh(
            row, last - first + 1, 0.72, left=first - 1, color=colour(stages.index(stage)), edgecolor=CARD
        )[0]
        chart.tip(bar, f"{stage}: steps {first} to {last}")
        if len(stage) * LETTER < 300 * (last - first + 1) / end:
            axes.text(
                (first - 1 + last) / 2,
                row,
                _clean(stage),
                ha="center",
                va="center",
                color=CARD,
                weight=700,
                fontsize=13,
            )
    _scale(axes, [end], log=False, which="x")
    axes.set_ylim(-0.5, len(rows) - 0.5)
    _rows(axes, [*rows], range(len(rows)))
    axes.set_xlabel("training step", loc="right", fontsize=12, color=SOFT)
    return chart


def graph(
    nodes: Mapping[str, tuple[str, str]], edges: Iterable[tuple[str, str]], *, caption: str
) -> Chart | None:
    """A graph of artifacts and their inputs, from top to bottom.

    Args:
      nodes: id, which is also the anchor in the page, to the node's two lines.
      edges: (made of, what was made) by ids.
    """
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    if not nodes:
        return None
    linked = [(a, b) for a, b in edges if a in nodes and b in nodes and a != b]
    depth = dict.fromkeys(
        nodes, 0
    )  # the longest path to a node; a cycle, which manifests cannot make, is cut
    for _ in depth:
        for before, after in linked:
            depth[after] = max(depth[after], min(depth[before] + 1, len(depth)))
    layers = [[node for node in depth if depth[node] == level] for level in sorted(set(depth.values()))]
    wide, high, gap = 150, 38, 40
    width, height = max(WIDTH, max(map(len, layers)) * (wide + 16)), len(layers) * (high + gap) - gap + 12
    axes = _axes(height)
    axes.figure.set_size_inches(width / 72, height / 72)
    axes.figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    chart = Chart(axes.figure, caption, f"{caption} The list below says the same in words.", kind="graph")
    places = {
        node: (width * (at + 0.5) / len(layer), 6 + level * (high + gap))
        for level, layer in enumerate(layers)
        for at, node in enumerate(layer)
    }
    for (x1, y1), (x2, y2) in ((places[a], places[b]) for a, b in linked):
        bend = (y1 + high + y2) / 2
        curve = Path([(x1, y1 + high), (x1, bend), (x2, bend), (x2, y2)], [Path.MOVETO, *[Path.CURVE4] * 3])
        axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=SOFT))
    for node, (name, about) in nodes.items():
        x, y = places[node]
        box = FancyBboxPatch(
            (x - wide / 2 + 5, y + 5), wide - 10, high - 10, "round,pad=5", facecolor=FAINT, edgecolor=LINE
        )
        box.set_url(f"#{node}")
        chart.tip(box, name)
        axes.add_patch(box)
        shown = name if len(name) < 21 else f"…{name[-19:]}"
        for text, down, size, ink in ((shown, 12, 13, INK), (about, 27, 12, SOFT)):
            axes.text(
                x, y + down, _clean(text), ha="center", va="center", fontsize=size, color=ink, url=f"#{node}"
            )
    return chart
