"""Figures of measured scores, drawn without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

Scores = Mapping[str, Any]
COLOURS = ("#9aa5b1", "#1f77b4", "#e07b39", "#3c9d5d")


def accuracy_bars(
    scores_by_message: Mapping[str, Scores], path: str | os.PathLike[str], *, title: str
) -> None:
    """Accuracy in per cent by task, a bar for each system message, with standard errors and chance.

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
        rows = [scores["tasks"].get(task) for task in tasks]
        places = np.arange(len(tasks)) + (index - (len(scores_by_message) - 1) / 2) * width
        axes.bar(
            places,
            [100 * row["accuracy"] if row else 0 for row in rows],
            width,
            yerr=[100 * row["stderr"] if row else 0 for row in rows],
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
