"""Shows packed rows as the student sees them, or traces, those of a collection, task, message or flag.

python -m experiments.inspect --config=configs/mini.py --workdir=runs/mini --dataset=expert --row=0
python -m experiments.inspect --config=configs/mini.py --workdir=runs/mini --system=8 --count=2
python -m experiments.inspect --config=configs/mini.py --workdir=runs/mini --traces --flag=refusal

Rows are shown with roles in colour and supervised tokens underlined, or with --tokens by position.
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__,
    *cli.EXPERIMENT,
    cli.Option("dataset", "", "A teacher's name, or `validation`; empty: the curriculum's first."),
    cli.Option("epoch", 0, "Which epoch's packing plan.", lower_bound=0),
    cli.Option("row", 0, "Which row of the plan.", lower_bound=0),
    cli.Option("tokens", False, "One token a line, with its arrays, instead of running text."),
    cli.Option("traces", False, "Traces, those left out too, instead of rows."),
    cli.Option("collection", "", "Only of this collection."),
    cli.Option("task", "", "Only of this task."),
    cli.Option("teacher", "", "Only of this teacher."),
    cli.Option("system", "", "Only under this system message, by id; -1: none of the 16."),
    cli.Option("flag", "", "Only traces with this flag, see orca_jax/queries/quality.py."),
    cli.Option("find", "", "Only traces in which this regular expression is found."),
    cli.Option("count", 1, "How many traces or rows are drawn of those.", lower_bound=1),
    cli.Option("seed", 0, "Of the draw."),
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import heapq
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from orca_jax import files
from orca_jax.config import ExperimentConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.inspection import Choice, chosen_rows, show_row, show_trace
from orca_jax.data.prepared import flagged
from orca_jax.queries.make import unit_hash
from orca_jax.records import Trace
from orca_jax.teachers.collection import TRACES
from orca_jax.training.run import row_builder


def chosen_traces(
    config: ExperimentConfig, workdir: Path, dataset: str, choice: Choice
) -> Iterator[tuple[Trace, tuple[str, ...]]]:
    """The chosen traces of a teacher, or with an empty `dataset` of all, with their flags."""
    for name in [dataset] if dataset else [teacher.name for teacher in config.teachers]:
        traces = files.read_jsonl(workdir / "traces" / name / TRACES, Trace)
        for trace, entry in zip(traces, flagged(workdir, name), strict=True):
            if choice.takes(trace, entry.flags):
                yield trace, entry.flags


def run(given: cli.Options, console: Console | None = None) -> None:
    """Prints the rows, or the traces that are drawn of those that are chosen.

    Raises:
      ValueError: no trace is chosen, or `system` is no id.
    """
    if not re.fullmatch(r"|-1|\d+", given.system):
        raise ValueError(
            f"--system={given.system!r} must be an id of the 16 messages, or -1 for none of them"
        )
    message = int(given.system) if given.system else None
    console = console or Console()
    choice = Choice(given.collection, given.task, given.teacher, message, given.flag, given.find)
    if given.traces:
        found = chosen_traces(given.config, given.workdir, given.dataset, choice)
        drawn = heapq.nsmallest(
            given.count, found, lambda one: (unit_hash("inspect", given.seed, one[0].id), one[0].id)
        )
        if not drawn:
            raise ValueError(f"no trace is chosen by {choice}")
        for trace, flags in drawn:
            show_trace(console, trace, flags, choice.search)
        return
    rows, tokenizer = row_builder(given.config, given.workdir), tokenizers.load(given.workdir / "tokenizer")
    dataset = given.dataset or next(iter(given.config.curriculum[0].datasets))
    numbers = [given.row]
    if choice != Choice():
        rows_of = chosen_rows(rows, dataset, given.epoch, choice)
        numbers = np.random.default_rng(given.seed).permutation(rows_of)[: given.count].tolist()
    for number in numbers:
        show_row(console, rows, tokenizer, (dataset, given.epoch, number), given.tokens)


def main() -> None:
    PROGRAM.main(run)


if __name__ == "__main__":
    main()
