"""The paper's figures of scores, system messages and lengths, redrawn, with runs beside them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orca_jax.evaluation import cells
from orca_jax.evaluation.cells import Cell
from orca_jax.queries import system_messages
from orca_jax.reporting import data_card, paper, published
from orca_jax.reporting.data_card import COLLECTIONS
from orca_jax.reporting.figures import COLOURS, whiskers
from orca_jax.reporting.paper import AVERAGE_LABEL, PaperColumn, PaperTable
from orca_jax.reporting.paper_tables import Cells, MeasuredRun, measured, measured_cells, published_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shares = Mapping[str, Mapping[int, float]]  # sub-collection to message to share
Lengths = Mapping[str, Mapping[int, NDArray[Any]]]  # trace set to message to tokens of its answers
OTHERS, ORCA, *RUNS = (*COLOURS, "#8256a8", "#c44e52")
SYSTEMS = {
    "llama-13b": "LLaMA-13B",
    "alpaca-13b": "Alpaca-13B",
    "vicuna-13b": "Vicuna-13B",
    "bard": "Bard",
    "chatgpt": "ChatGPT",
    "orca-13b": "Orca-13B",
}
TEACHERS = {"chatgpt": "ChatGPT", "gpt-4": "GPT-4"}


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    name: str
    title: str
    figure: Figure
    notes: tuple[str, ...] = ()


def message_shares() -> dict[str, dict[int, float]]:
    """Sub-collection to system message to its share of the queries."""
    messages = system_messages.all_messages().values()
    return {name: {m.id: m.shares[name] for m in messages} for name in system_messages.COLLECTIONS}


def answer_lengths(runs: Sequence[MeasuredRun]) -> dict[str, dict[int, NDArray[Any]]]:
    """Trace set to system message to the lengths of its answers, of the first run that has any."""
    for run in runs:
        found = sorted((run.workdir / "tokens").glob("*/columns.npz"))
        if sets := {path.parent.name: path for path in found if path.parent.name != "validation"}:
            return {f"{name} ({run.name})": _by_message(path) for name, path in sets.items()}
    return {}


def _by_message(path: Path) -> dict[int, NDArray[Any]]:
    with np.load(path) as columns:
        ids, lengths = columns["system_message_id"], columns["supervised"]
    return {int(id): lengths[ids == id] for id in np.unique(ids)}


def drawings(runs: Sequence[MeasuredRun], shares: Shares, lengths: Lengths) -> list[Drawing]:
    """Figures 1-3, 6, 9, 11 and 12.

    Args:
      shares: of the system messages in each sub-collection.
      lengths: tokens of answers, int [answers], to stand beside Figure 9; may be empty.
    """
    return [
        _figure_1(runs),
        _averages("figure_2", "Figure 2: AGIEval, mean of 8 tasks", paper.TABLE_8, runs, FIGURE_2_NOTE),
        _averages("figure_3", "Figure 3: Big-Bench Hard, mean of 23 tasks", paper.TABLE_11, runs),
        _figure_6(shares),
        _figure_9(lengths),
        _radar("figure_11", "Figure 11: AGIEval by task", paper.TABLE_8, runs),
        _radar("figure_12", "Figure 12: Big-Bench Hard by task", paper.TABLE_11, runs),
    ]


FIGURE_2_NOTE = "The paper's figure has Vicuna-13B at 30; the cells of Table 8 give 29.3."
MEASURED_NOTE = f"Runs: {cells.ERRORS}; {cells.PARTS}."
GUESS = "random guess"


# Bars


def _figure_1(runs: Sequence[MeasuredRun]) -> Drawing:
    printed = {cell.system: cell for cell in published.cells(table="fig_1")}
    bars = {name: Cell(printed[system].value / 100) for system, name in SYSTEMS.items()}
    own = {_named(run, [cell]): cell for run in runs if (cell := measured(run, printed["orca-13b"]))}
    figure = _bars(bars, own, "candidate's total in per cent of ChatGPT's", decimals=0)
    note = "Orca-13B is at 103 in the paper's figure and at 101.5 in its Table 7."
    title = "Figure 1: GPT-4's scores on the Vicuna prompts"
    return Drawing("figure_1", title, figure, (note, *_if_measured(own)))


def _averages(name: str, title: str, table: PaperTable, runs: Sequence[MeasuredRun], *notes: str) -> Drawing:
    bars = {column.heading: published_cells(table, column)[AVERAGE_LABEL] for column in _systems(table)}
    averages = [(run, measured_cells(run, table, table.compared[0]).get(AVERAGE_LABEL)) for run in runs]
    own = {_named(run, [cell]): cell for run, cell in averages if cell}
    figure = _bars(bars, own, "accuracy, per cent", chance=math.fsum(_chance(table)) / len(table.tasks))
    source = f"From the cells of {table.place}."
    return Drawing(name, title, figure, (source, *notes, *_if_measured(own)))


def _named(run: MeasuredRun, found: Iterable[Cell]) -> str:
    """A run's name in a legend, marked if a cell is of a part of the questions."""
    return f"{run.name} (a part)" if any(cell.is_part for cell in found) else run.name


def _if_measured(own: Cells) -> tuple[str, ...]:
    return (MEASURED_NOTE,) if own else ()


def _systems(table: PaperTable) -> list[PaperColumn]:
    """The columns of models."""
    return [
        column
        for column in table.columns
        if column.filters["system"] != "human" and column.filters["metric"] != paper.GAIN
    ]


def _chance(table: PaperTable) -> list[float]:
    """Accuracy of a random guess by row, without the average."""
    tasks = [table.rows[label]["task"] for label in table.tasks]
    found = published.cells(table="derived", system="random_guess")
    by_task = {cell.task: cell.value for cell in found}
    return [by_task[task] for task in tasks]


def _bars(bars: Cells, own: Cells, label: str, *, decimals: int = 1, chance: float | None = None) -> Figure:
    """A bar a system, downwards, with its value; `own` are the runs', with errors."""
    from matplotlib.figure import Figure

    rows = [(name, cell, (0.0, 0.0), ORCA if name == "Orca-13B" else OTHERS) for name, cell in bars.items()]
    rows += [(name, cell, whiskers(cell.value, cell.span), RUNS[0]) for name, cell in own.items()]
    figure = Figure(figsize=(6.4, 0.36 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, (_, cell, error, colour) in enumerate(rows):
        drawn = np.transpose([error]) if any(error) else None
        axes.barh(place, 100 * cell.value, 0.7, xerr=drawn, capsize=3, color=colour)
        value = f"{100 * cell.value:.{decimals}f}"
        axes.text(100 * cell.value + error[1] + 1, place, value, va="center", fontsize=9)
    if chance is not None:
        axes.axvline(chance, color="black", linestyle=":", linewidth=1, label=GUESS)
        figure.legend(loc="outside lower right", frameon=False, fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# Radar charts


def _radar(name: str, title: str, table: PaperTable, runs: Sequence[MeasuredRun]) -> Drawing:
    from matplotlib.figure import Figure

    shown = [column for column in _systems(table) if column.heading in ("GPT-4", "ChatGPT", "Orca-13B")]
    series: dict[str, Cells] = {column.heading: published_cells(table, column) for column in shown}
    own = [(run, measured_cells(run, table, table.compared[0])) for run in runs]
    series |= {_named(run, found.values()): found for run, found in own if found}
    figure = Figure(figsize=(7.6, 7.0), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    styles = {"GPT-4": ("#555555", "-"), "ChatGPT": (OTHERS, "-"), "Orca-13B": (ORCA, "-")}
    for number, (system, found) in enumerate(series.items()):
        colour, line = styles.get(system, (RUNS[(number - len(styles)) % len(RUNS)], "--"))
        values = [100 * found[task].value if task in found else math.nan for task in table.tasks]
        _ring(axes, values, color=colour, linestyle=line, label=system, marker=".", linewidth=1.8)
    _ring(axes, _chance(table), color="black", linestyle=":", linewidth=1, label=GUESS)
    _label_spokes(axes, table.tasks)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    notes = (f"Accuracy in per cent, from the cells of {table.place}.",)
    return Drawing(name, title, figure, notes)


def _ring(axes: Any, values: Sequence[float], **style: Any) -> None:
    angles = np.linspace(0, 2 * np.pi, len(values) + 1)
    axes.plot(angles, [*values, values[0]], **style)


def _label_spokes(axes: Any, labels: Sequence[str]) -> None:
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80], ["20", "40", "60", "80"], fontsize=7, color="#555555")
    axes.set_xticks(angles, [])
    axes.grid(color="#dddddd")
    axes.spines["polar"].set_color("#dddddd")
    for angle, text in zip(angles, labels):
        side = math.sin(angle)
        align = "center" if abs(side) < 0.05 else "left" if side > 0 else "right"
        wrapped = textwrap.fill(text.replace(" objects)", "\xa0objects)"), 22)
        axes.text(angle, 104, wrapped, ha=align, va="center", fontsize=8)


# System messages and lengths


def _figure_6(shares: Shares) -> Drawing:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (collection, name) in zip(panels.flat, COLLECTIONS.items()):
        found = {id: 100 * share for id, share in shares[collection].items() if share}
        axes.bar(found.keys(), found.values(), 0.75, color=ORCA)
        for id, share in found.items():
            axes.text(id, share, f"{share:.1f}", ha="center", va="bottom", fontsize=7)
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(1, 17))
        axes.set_ylim(0, 1.18 * max(found.values()))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("system message", fontsize=9)
    figure.supylabel("share of the queries, per cent", fontsize=9)
    notes = (
        "Read off the bars of the paper's Figure 6.",
        "Section 3.1.2 of the paper gives Flan 2021 a pool of 28.9M queries, then of 85.7M, which is T0's.",
    )
    return Drawing("figure_6", "Figure 6: system messages by sub-collection", figure, notes)


def _figure_9(lengths: Lengths) -> Drawing:
    """Boxes of each teacher's answers by message; a run's trace sets beside them."""
    from matplotlib.figure import Figure

    read = data_card.paper_lengths()
    ids = sorted({id for id, _ in read})
    series = {name: {id: read[id, teacher] for id in ids} for teacher, name in TEACHERS.items()}
    for name, by_message in lengths.items():
        series[name] = {id: data_card.box(own) for id, own in by_message.items() if id in ids and len(own)}
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(series)
    for number, ((name, boxes), colour) in enumerate(
        zip(series.items(), itertools.cycle((OTHERS, ORCA, *RUNS)))
    ):
        if boxes:
            drawn = axes.bxp(
                [data_card.matplotlib_box(values) for values in boxes.values()],
                positions=[id + (number - (len(series) - 1) / 2) * width for id in boxes],
                widths=0.85 * width, showfliers=False, patch_artist=True,
                boxprops={"facecolor": colour, "linewidth": 0.6}, medianprops={"color": "black"},
                whiskerprops={"linewidth": 0.6}, capprops={"linewidth": 0.6},
            )  # fmt: skip
            drawn["boxes"][0].set_label(name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(ids, [str(id) for id in ids])
    axes.set_xlim(0.4, max(ids) + 0.6)
    axes.set_xlabel("system message")
    axes.set_ylabel("tokens of the answer")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    notes = (
        "The paper's boxes are read off its Figure 9, whose unit is not labelled; whiskers are extremes.",
    )
    return Drawing("figure_9", "Figure 9: lengths of the teachers' answers by system message", figure, notes)
