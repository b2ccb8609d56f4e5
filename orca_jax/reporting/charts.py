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
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from orca_jax.evaluation.cells import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOX = ("whisker_low", "q1", "median", "q3", "whisker_high")
WIDTH = 440  # of a drawing, in points; a point is a pixel of the page where the drawing is shown at full size
ROW = 16  # height of a bar or a box
LETTER = 7.8  # width of one at the axes, about
TICKS, XLABEL = 24, 18  # heights of the x axis' labels and of its name
MOST_POINTS = 300  # of a line; longer ones are thinned to means
CARD, INK, SOFT, LINE = "#fefefe", "#1d2127", "#5b6470", "#dfe2e6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a84d84", "#b98500", "#3f8fc4", "#6a4fb5", "#6b7280")
_VARIABLES = {CARD: "--card", INK: "--ink", SOFT: "--soft", LINE: "--line"}
_VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(SERIES)}
SMALL: dict[str, Any] = {"fontsize": 12, "color": SOFT}  # of titles and values
BESIDE = "The table beside gives every value."
Point = tuple[float, float]


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

    def tip(self, artist: Any, text: str) -> None:
        artist.set_gid(f"tip-{len(self.tips)}")
        self.tips[artist.get_gid()] = text

    @property
    def svg(self) -> Markup:
        """The drawing as an element of the page, without its legend."""
        import matplotlib

        file = io.StringIO()
        options: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": self.alt}
        with matplotlib.rc_context(options), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # missing in matplotlib's font, not in the page's
            self.figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
        text = text[text.index("<g id=") : text.rindex("</svg>")]
        text = re.sub(r' clip-path="[^"]*"|<clipPath.*?</clipPath>', "", text, flags=re.DOTALL)
        text = re.sub(r"font-family: [^;\"]*(; )?", "", text)  # the page's is in its style sheet
        text = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
        text = text.replace("xlink:href", "href").replace("\n", " ")
        for found, name in _VARIABLES.items():
            text = text.replace(found, f"var({name})")
        for gid, tip in self.tips.items():
            text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(tip)}</title>")
        text = re.sub(r'<g id="[^"]*">', "<g>", text)
        width, height = (72 * inches for inches in self.figure.get_size_inches())
        kind, data = "wide" if width > WIDTH else "", ""
        if self.lines:
            kind = "lines"
            place = self.figure.axes[0].transData.transform

            def shown(x: float, y: float) -> list[float]:
                return [round(float(place((x, y))[0]), 1), float(f"{x:.6g}"), float(f"{y:.4g}")]

            every = {name: [shown(*point) for point in points] for name, points in self.lines.items()}
            data = f' data-lines="{escape(json.dumps(every, separators=(",", ":")))}"'
        return Markup(
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(self.alt)}" '
            f'class="{kind}"{data}>{text}</svg>'
        )

    def save(self, file: str | os.PathLike[str] | IO[bytes], suffix: str = "", title: str = "") -> None:
        """The drawing as a picture, with its legend; the file's suffix is its format unless one is named."""
        import matplotlib
        from matplotlib.patches import Patch

        if not self.figure.legends and len(self.legend) > 1:
            # matplotlib leaves out what begins with `_`.
            labels = [re.sub("^_", " _", _text(name)) for name in self.legend]
            handles = [Patch(color=colour(number), label=label) for number, label in enumerate(labels)]
            self.figure.legend(
                handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False
            )
        if title:
            self.figure.text(0.5, 1, textwrap.fill(_text(title), 64), ha="center", va="bottom", fontsize=12)
        self.figure.patch.set_visible(True)
        # Text stays text, and equal figures make equal files.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.alt}):
            more: dict[str, Any] = {"metadata": {"Date": None}} if suffix == "svg" else {}
            self.figure.savefig(
                file, format=suffix or None, dpi=140, facecolor="white", bbox_inches="tight", **more
            )


def number(value: float, _: object = None) -> str:
    """A tick's label: 12k, 1.5M, 0.001."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _axes(height: float, width: float = WIDTH, **more: Any) -> Any:
    """Axes in a figure of their own, [height, width] in points: no frame, no marks at the ticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_subplot(**more)
    for hidden in (figure.patch, axes.patch, *axes.spines.values()):
        hidden.set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=13, labelcolor=INK, pad=6)
    return axes


def _place(
    axes: Any, x: str = "", y: str = "", *, top: float = 4, pad: float = 8,
    beside: Iterable[tuple[float, str]] = (),
) -> None:  # fmt: skip
    """Names the axes, and leaves margins, in points, for that and the ticks' labels.

    Args:
      beside: (x, text) of what is written to the right of an x, so that the axes must end earlier.
    """
    axes.set_title(_text(y), loc="left", pad=pad, **SMALL)
    axes.set_xlabel(_text(x), loc="right", **SMALL)
    bottom = TICKS + (XLABEL if x else 0)
    left = 10 + LETTER * max(map(len, _labels(axes.yaxis)))
    right = 2 + LETTER * len(_labels(axes.xaxis)[-1]) / 2
    width, height = (72 * inches for inches in axes.figure.get_size_inches())
    share = (axes.transScale + axes.transLimits).transform
    ends = [(share((x, 1))[0], width - left - 10 - 0.88 * LETTER * len(text)) for x, text in beside]
    wide = min([width - left - right, *(room / at for at, room in ends if at > 0)])
    axes.set_position((left / width, bottom / height, wide / width, 1 - (bottom + top) / height))


def _labels(axis: Any) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    shown = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
    return axis.get_major_formatter().format_ticks(shown) or [""]


def _in_rows(
    rows: Mapping[str, Mapping[str, Any]], gap: float, bottom: float
) -> tuple[Any, dict[tuple[str, str], float]]:
    """Axes with named rows from top to bottom, and the middles of bars of height `ROW` by row and series."""
    places: dict[tuple[str, str], float] = {}
    middles, top = [], 0.0
    for label, row in rows.items():
        places |= {(label, name): top + gap / 2 + ROW * (at + 0.5) for at, name in enumerate(row)}
        middles.append(top + (gap + ROW * len(row)) / 2)
        top += gap + ROW * len(row)
    axes = _axes(4 + top + bottom)
    axes.set_yticks(middles, [_text(name if len(name) < 25 else f"{name[:23]}…") for name in rows])
    axes.set_ylim(top or 1, 0)
    axes.grid(axis="x", color=LINE)
    return axes, places


def _scale(axes: Any, which: str, values: Iterable[float], *, log: bool) -> None:
    """One axis over all values: from 0 where they are positive, or between them if logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    known = [*values]
    low, high = min(known), max(known)
    ticks: Any = MaxNLocator(5, steps=[1, 2, 5, 10])
    if log:
        low, high = low / 1.1, high * 1.1
        decades = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=20)
        if sum(low <= tick <= high for tick in decades.tick_values(low, high)) > 1:
            ticks = decades
    else:
        low = min(low, 0.0)
        high = high if high > low else low + 1.0
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(number))


def _text(text: str) -> str:
    """A name without what matplotlib would read as mathematics, or SVG cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


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
    dashed: Collection[str] = (),
    starts: Mapping[str, float] | None = None,
    errors: Mapping[str, Sequence[float]] | None = None,
    ticks: Sequence[float] = (),
) -> Chart | None:
    """A line a series; None where no series has a point.

    Args:
      log: the logarithmic axes, of `x` and `y`; values that they cannot show are left out.
      marks: a mark at each point.
      dashed: the series that are drawn so.
      starts: stage to the step at which it begins, drawn as upright lines.
      errors: of the points of a series, drawn as whiskers to both sides.
      ticks: of the x axis, which then spans them alone.
    """
    kept: dict[str, list[Point]] = {}
    for name, points in series.items():
        shown = [(a, b) for a, b in points if math.isfinite(b) and (b > 0 or "y" not in log)]
        if len(shown) > MOST_POINTS:
            shown = [tuple(np.mean(part, axis=0).tolist()) for part in np.array_split(shown, MOST_POINTS)]
        kept[name] = shown
    if not (every := [*itertools.chain(*kept.values())]):
        return None
    axes = _axes(260)
    for at, (name, points) in enumerate(kept.items()):
        marker = "o" if marks or len(points) == 1 else ""
        style: Any = {"marker": marker, "color": colour(at), "ls": "--" if name in dashed else "-"}
        axes.plot(*np.reshape(points, (-1, 2)).T, **style, lw=1.8, clip_on=False)
        for (place, value), error in zip(points, (errors or {}).get(name, ())):
            axes.vlines(place, value - error, value + error, color=style["color"], lw=1.2, clip_on=False)
    _scale(axes, "x", (a for a, _ in every), log="x" in log)
    if ticks:
        beyond = 0.04 * (max(ticks) - min(ticks)) or 1.0
        axes.set_xlim(min(ticks) - beyond, max(ticks) + beyond)
        axes.set_xticks(ticks, [number(tick) for tick in ticks])
    widest = max(itertools.chain(*(errors or {}).values()), default=0.0)
    _scale(axes, "y", (b + widest for _, b in every), log="y" in log)
    axes.grid(axis="y", color=LINE)
    for stage, step in (starts or {}).items():
        axes.axvline(step, color=SOFT, lw=1, ls=(0, (3, 3)))
        axes.annotate(_text(stage), (step, 1), (4, 3), axes.get_xaxis_transform(), "offset points", **SMALL)
    beside = ((step, stage) for stage, step in (starts or {}).items())
    _place(axes, x, y, top=36 if starts else 24, pad=20 if starts else 8, beside=beside)
    at_x = "step" if x == "training step" else x
    ends = (
        f"{name}: {points[0][1]:.4g} at {at_x} {points[0][0]:g}, "
        f"{points[-1][1]:.4g} at {at_x} {points[-1][0]:g}."
        for name, points in kept.items()
        if points
    )
    return Chart(axes.figure, caption, f"{caption} {' '.join(ends)}", [*kept], lines=kept)


def difference_map(
    values: np.ndarray, columns: Sequence[float], rows: Sequence[float], *, caption: str, x: str, y: str
) -> Chart:
    """Differences in points as colours, float [rows, columns], with the line where they are zero.

    Args:
      columns, rows: places on the axes `x` and `y`; the cells are drawn equally wide and high.
    """
    axes = _axes(120 + 26 * len(rows))
    across, up = np.arange(len(columns)), np.arange(len(rows))
    most = max(1.0, float(np.max(np.abs(values))))
    axes.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        shade = CARD if abs(value) > 0.6 * most else INK
        axes.text(column, row, f"{value:+z.0f}", ha="center", va="center", color=shade, fontsize=12)
    if min(values.shape) > 1 and values.min() < 0 < values.max():
        axes.contour(across, up, values, levels=[0], colors=INK, linewidths=2)
    axes.set_xticks(across, [number(value) for value in columns])
    axes.set_yticks(up, [number(value) for value in rows])
    _place(axes, x, y, top=24)
    cells = (
        f"{value:+z.1f} at {x} {columns[column]:g} and {number(rows[row])} {y}"
        for (row, column), value in np.ndenumerate(values)
    )
    return Chart(axes.figure, caption, f"{caption} {'; '.join(cells)}.")


def bars(
    rows: Mapping[str, Mapping[str, Cell | None]],
    chance: Mapping[str, float | None],
    *,
    caption: str,
    decimals: int = 1,
    seeds: Mapping[tuple[str, str], Sequence[float]] | None = None,
) -> Chart:
    """Per cent: a row a task, a bar for each of its series, whiskers of their errors, chance marked.

    Args:
      rows: None where nothing was measured.
      seeds: values under single seeds by row and series, drawn as dots.
    """
    names = _series(rows)
    axes, places = _in_rows(rows, 14, TICKS)
    chart = Chart(axes.figure, caption, f"{caption} {BESIDE}", names)
    beside, whiskers = [], []
    for (task, name), middle in places.items():
        cell = rows[task][name]
        if cell is None:
            axes.text(1.5, middle, "not measured", va="center", **SMALL)
            continue
        value, low, high = (100 * max(number, 0) for number in (cell.value, *cell.span))
        bar = axes.barh(middle, max(value, 0.3), ROW - 3, color=colour(names.index(name)))[0]
        chart.tip(bar, f"{task}, {name}: {cell} %, n = {cell.size}")
        whiskers.append((middle, low, high))
        dots = [100 * dot for dot in (seeds or {}).get((task, name), ())]
        axes.plot(dots, [middle] * len(dots), "o", color=CARD, mec=INK, ms=4)
        end, text = max(high, value, *dots), cell.text(decimals=decimals)
        axes.annotate(text, (end, middle), (6, 0), textcoords="offset points", va="center", **SMALL)
        beside.append((end, text))
    if whiskers:
        axes.hlines(*zip(*whiskers), color=INK, lw=1.2)
    for task, row in rows.items():
        guess, around = chance.get(task), [places[task, name] for name in row]
        if guess is not None and around:
            ends = [around[0] - ROW / 2 - 4, around[-1] + ROW / 2 + 4]
            axes.plot([100 * guess] * 2, ends, color=INK, lw=1, ls=(0, (3, 2)))
    axes.set_xlim(0, max(100, *(high for *_, high in whiskers), 0))
    axes.set_xticks([0, 25, 50, 75, 100])
    _place(axes, beside=beside)
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
      whole: only tasks that all series have, and areas; else a ring has gaps.
    """
    names = _series(rows)
    every = {task: [row.get(name) for name in names] for task, row in rows.items()}
    spokes = [task for task, found in every.items() if not whole or None not in found]
    if len(spokes) < 3 or not names:
        return None
    many = len(spokes) > 11
    axes = _axes(*((400, 620) if many else (280, WIDTH)), projection="polar")
    axes.set_position((0.26, 0.12, 0.48, 0.76))
    chart = Chart(axes.figure, caption, f"{caption} {BESIDE}", names)
    angles = np.linspace(0, 2 * np.pi, len(spokes) + 1)

    def ring(values: Sequence[float], **style: Any) -> Any:
        return axes.plot(angles, [*values, values[0]], **style)[0]

    for share in (25, 50, 75, 100):
        ring([share] * len(spokes), color=LINE, lw=1)
    for share in (50, 100):
        axes.annotate(str(share), (0, share), (3, -12), textcoords="offset points", **SMALL)
    axes.vlines(angles, 0, 100, color=LINE, lw=1)
    for at, name in enumerate(names):
        values = [100 * cell.value if (cell := every[task][at]) else math.nan for task in spokes]
        chart.tip(ring(values, color=colour(at), lw=2, marker="" if whole else ".", label=name), name)
        if whole:
            axes.fill(angles[:-1], values, color=colour(at), alpha=0.14, lw=0)
    if chance:
        ring([100 * chance[task] for task in spokes], color=INK, lw=1, ls=":", label="random guess")
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set(ylim=(0, 100), xticks=[], yticks=[])
    for angle, task in zip(angles, spokes):
        across, up = math.sin(angle), math.cos(angle)
        align = {
            "ha": "center" if abs(across) < 0.05 else "left" if across > 0 else "right",
            "va": "center" if abs(up) < 0.95 else "bottom" if up > 0 else "top",
        }
        label = textwrap.fill(_text(task).replace("_", "_ "), 24 if many else 17).replace("_ ", "_")
        axes.text(angle, 106, label, color=INK, fontsize=10 if many else 13, **align)
    return chart


def boxes(rows: Mapping[str, Mapping[str, Mapping[str, float]]], *, caption: str, x: str) -> Chart | None:
    """Boxes on a logarithmic axis: a row a group, a box with the values of `BOX` for each of its series."""
    if not (names := _series(rows)):
        return None
    axes, places = _in_rows(rows, 12, TICKS + XLABEL)
    found = [(label, name, box) for label, row in rows.items() for name, box in row.items()]
    medians = (f"{label}, {name}: median {box['median']:g}." for label, name, box in found)
    chart = Chart(axes.figure, caption, f"{caption} {' '.join(medians)}", names)
    for label, name, box in found:
        low, first, median, third, high = (max(box[value], 1.0) for value in BOX)
        middle, wide = places[label, name], max(third - first, 0.03 * first)
        axes.hlines(middle, low, high, color=INK, lw=1.2, zorder=0.9)
        bar = axes.barh(middle, wide, ROW - 3, left=first, color=colour(names.index(name)))[0]
        axes.vlines(median, middle - 6, middle + 6, color=CARD, lw=2.5)
        values = ", ".join(f"{what.replace('_', ' ')} {box[what]:g}" for what in BOX)
        chart.tip(bar, f"{label}, {name}: {values}")
    _scale(axes, "x", [max(box[value], 1.0) for *_, box in found for value in BOX], log=True)
    _place(axes, x)
    return chart


def timeline(rows: Mapping[str, Sequence[tuple[str, int, int]]], *, caption: str) -> Chart | None:
    """Stages as bars over steps: a row a run, with (stage, first step, last step)."""
    if not (spans := [(label, *span) for label, found in rows.items() for span in found]):
        return None
    stages = list(dict.fromkeys(stage for _, stage, *_ in spans))
    axes, places = _in_rows({label: {"": None} for label in rows}, 14, TICKS + XLABEL)
    axes.grid(False)
    described = "; ".join(f"{label}: {stage} from {first} to {last}" for label, stage, first, last in spans)
    chart = Chart(axes.figure, caption, f"{caption} {described}.", stages)
    end = max(last for *_, last in spans)
    for label, stage, first, last in spans:
        wide, middle = last - first + 1, places[label, ""]
        style = {"color": colour(stages.index(stage)), "edgecolor": CARD}
        bar = axes.barh(middle, wide, 22, left=first - 1, **style)[0]
        chart.tip(bar, f"{stage}: steps {first} to {last}")
        if len(stage) * LETTER < 300 * wide / end:
            at = (first - 1 + wide / 2, middle)
            axes.text(*at, _text(stage), ha="center", va="center", color=CARD, weight="bold", fontsize=13)
    _scale(axes, "x", [end], log=False)
    _place(axes, "training step")
    return chart
