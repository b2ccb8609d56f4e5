"""Figures of measured scores, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orca_jax.evaluation.cells import Cell
from orca_jax.reporting.tables import measured_column

Scores = Mapping[str, Any]
COLOURS = ("#9aa5b1", "#1f77b4", "#e07b39", "#3c9d5d")


def accuracy_bars(
    scores_by_message: Mapping[str, Scores], path: str | os.PathLike[str], *, title: str
) -> None:
    """Accuracy in per cent by task, a bar for each system message, with errors as in `cells` and chance.

    Args:
      scores_by_message: as for `tables.puzzle_table`.
      path: the picture's file; its suffix is its format.
    """
    from matplotlib.figure import Figure

    tasks = sorted({task for scores in scores_by_message.values() for task in scores["tasks"]})
    figure = Figure(figsize=(1.7 * len(tasks) + 1.5, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(scores_by_message))
    for index, (name, scores) in enumerate(scores_by_message.items()):
        column = measured_column(scores)
        found = [column.get(task, Cell(0)) for task in tasks]
        places = np.arange(len(tasks)) + (index - (len(scores_by_message) - 1) / 2) * width
        axes.bar(
            places,
            [100 * cell.value for cell in found],
            width,
            yerr=np.transpose([whiskers(cell.value, cell.span) for cell in found]),
            capsize=3,
            label=name,
            color=COLOURS[index % len(COLOURS)],
        )
    _mark_chance(axes, tasks, scores_by_message)
    axes.set_xticks(
        range(len(tasks)), [task.replace("_", "\n", 1).replace("_", " ") for task in tasks], fontsize=8
    )
    axes.set_ylim(0, 105)
    axes.set_ylabel("accuracy, per cent")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(scores_by_message) + 1, frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def whiskers(value: float, span: Sequence[float]) -> tuple[float, float]:
    """Distances of the ends of a span from a value, in per cent."""
    low, high = span
    return 100 * max(value - low, 0), 100 * max(high - value, 0)


def _mark_chance(axes: Any, tasks: list[str], scores_by_message: Mapping[str, Scores]) -> None:
    chances = [
        next(
            scores["tasks"][task]["chance"]
            for scores in scores_by_message.values()
            if task in scores["tasks"]
        )
        for task in tasks
    ]
    places = np.arange(len(tasks))
    axes.hlines(
        [100 * chance for chance in chances],
        places - 0.45,
        places + 0.45,
        colors="black",
        linestyles=":",
        label="chance",
    )


def arm_dots(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, baseline: str, title: str
) -> None:
    """The accuracy of every arm of a set, a panel for each result: mean with its error, and every seed.

    Args:
      rows: as `arms.rows` gives them.
      path: the picture's file; its suffix is its format.
    """
    from matplotlib.figure import Figure

    results, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("result", "arm"))
    size = (3.1 * len(results) + 1, 0.34 * len(arms) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        for row in (row for row in rows if row["result"] == result):
            is_baseline = row["arm"] == baseline
            place, colour = arms.index(row["arm"]), COLOURS[2 if is_baseline else 1]
            mean, seeds = (100 * np.asarray(row[key]) for key in ("accuracy", "by_seed"))
            error = np.transpose([whiskers(row["accuracy"], _cell(row).span)])
            axes.plot(seeds, np.full(len(seeds), place), ".", color=COLOURS[0], markersize=5)
            axes.errorbar(mean, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=6)
            if is_baseline:
                axes.axvline(100 * row["accuracy"], color=COLOURS[2], linestyle=":", linewidth=1)
            axes.set_title(f"{result} (n = {_cell(row).size})", fontsize=9)
        axes.set_xlabel("accuracy, per cent", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(row["accuracy"], row["n"], row["stderr"], row.get("of"), row.get("interval"))
