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

import dataclasses
import heapq
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from orca_jax import files
from orca_jax.config import ExperimentConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import ROLE_NAMES
from orca_jax.data.loader import RowBuilder
from orca_jax.data.prepared import flagged
from orca_jax.data.rows import Distillation
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.queries.make import unit_hash
from orca_jax.records import Trace
from orca_jax.teachers.collection import TRACES
from orca_jax.training.run import row_builder

COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which traces or rows are shown; empty fields choose all. `system` -1 is none of the 16 messages."""

    collection: str = ""
    task: str = ""
    teacher: str = ""
    system: int | None = None
    flag: str = ""
    search: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that are chosen by, with their values."""
        given = {"collection": self.collection, "task": self.task, "teacher": self.teacher}
        given = {name: value for name, value in given.items() if value}
        return given if self.system is None else {**given, "system_message_id": self.system}

    def takes(self, trace: Trace, flags: tuple[str, ...]) -> bool:
        values = {name: getattr(trace, name) for name in self.columns}
        return (
            {name: -1 if value is None else value for name, value in values.items()} == self.columns
            and (not self.flag or self.flag in flags)
            and (not self.search or any(re.search(self.search, m.content) for m in trace.messages))
        )


def show_trace(console: Console, trace: Trace, flags: tuple[str, ...], search: str = "") -> None:
    console.rule(trace.id, align="left")
    fields = {name: getattr(trace, name) for name in ("teacher", "collection", "task")}
    fields |= {"system message": trace.system_message_id, "outcome": trace.outcome}
    fields |= {"flags": ", ".join(flags), "target": trace.target}
    console.print("; ".join(f"{name} {value}" for name, value in fields.items() if value not in ("", None)))
    for message in trace.messages:
        text = Text(f"{message.role}: {message.content}", COLOURS[message.role])
        if search:
            text.highlight_regex(re.compile(search), "reverse")
        console.print(text, soft_wrap=True, highlight=False)


def chosen_rows(rows: RowBuilder, dataset: str, epoch: int, choice: Choice) -> np.ndarray:
    """The rows, int64, that hold an example of the choice.

    Raises:
      ValueError: the choice is by flag or text, which rows do not have, or takes no row.
    """
    if choice.flag or choice.search:
        raise ValueError("--flag and --find choose traces; give --traces too")
    plan, columns = rows.plan_of(dataset, epoch), rows.stores[dataset].columns
    wanted = np.ones(len(columns["task"]), bool)
    for name, value in choice.columns.items():
        wanted &= columns[name] == value
    found = np.unique(np.searchsorted(plan.offsets, np.flatnonzero(wanted[plan.examples]), side="right") - 1)
    if not len(found):
        raise ValueError(f"no row of {dataset!r} holds what {choice} chooses")
    return found


def segments(rows: RowBuilder, dataset: str, epoch: int, row: int) -> list[dict[str, Any]]:
    """The examples of a row, with `system_message_id` and `teacher` from the store's columns.

    Raises:
      ValueError: the plan has no such data set or row.
    """
    plan = rows.plan_of(dataset, epoch)
    if row >= plan.rows:
        raise ValueError(
            f"data set {dataset!r} has rows 0 to {plan.rows - 1} in epoch {epoch}; asked for {row}"
        )
    store = rows.stores[dataset]
    columns = ("teacher", "collection", "task", "system_message_id")
    return [
        {**store[index], **{name: store.columns[name][index].item() for name in columns}}
        for index in plan.row(row)
    ]


def running_text(example: dict[str, Any], tokenizer: Tokenizer) -> Text:
    """An example's tokens in their roles' colours; what carries loss is underlined."""
    text = Text()
    for token, weight, role in zip(example["tokens"], example["weights"], example["roles"], strict=True):
        style = COLOURS[ROLE_NAMES[role]] + (" underline" if weight > 0 else "")
        piece = tokenizer.token_text(int(token))  # with SentencePiece's space and newline byte
        text.append(piece.replace("▁", " ").replace("<0x0A>", "⏎\n"), style)
    return text


def token_lines(rows: RowBuilder, dataset: str, epoch: int, row: int, tokenizer: Tokenizer) -> Text:
    """The row's arrays, a position a line; in the place of each target, what the teacher holds likely."""
    arrays = rows.row(dataset, epoch, row, Distillation(1.0, 1.0) if rows.top else None)
    soft, title = arrays.soft_targets, "  teacher" if rows.top else ""
    text = Text(f"position  segment  input            target           weight{title}\n", "bold")
    for i in range(len(arrays.tokens)):
        names = [repr(tokenizer.token_text(int(ids[i])))[1:-1] for ids in (arrays.tokens, arrays.targets)]
        line = f"{arrays.positions[i]:8}  {arrays.segment_ids[i]:7}  {names[0]:15}  {names[1]:15}  "
        likely = zip(soft.ids[i], soft.weights[i]) if soft else ()
        said = [f"{tokenizer.token_text(int(one))!r} {share:.3f}" for one, share in likely if one >= 0]
        line = f"{line}{arrays.loss_weights[i]:<6g}  {', '.join(said)}".rstrip()
        text.append(f"{line}\n", "green" if arrays.loss_weights[i] else "dim")
    return text


def show_row(
    console: Console, rows: RowBuilder, tokenizer: Tokenizer, place: tuple[str, int, int], tokens: bool
) -> None:
    """Prints the row at `place` (data set, epoch, row), as text or, with `tokens`, a position a line."""
    dataset, epoch, row = place
    found, arrays = segments(rows, *place), rows.row(*place)
    console.print(
        f"row {row} of {dataset}, epoch {epoch}: {len(found)} examples, "
        f"{int(np.count_nonzero(arrays.segment_ids))} of {rows.row_length} positions filled, "
        f"{int(arrays.loss_weights.sum())} supervised"
    )
    console.print(
        "colours: ", *(Text(role, colour) for role, colour in COLOURS.items()), Text("loss", "underline")
    )
    if tokens:
        console.print(token_lines(rows, *place, tokenizer))
        return
    for number, example in enumerate(found, 1):
        title = f"segment {number}: {example['id']}, system message {example['system_message_id']}"
        console.rule(title, align="left")
        console.print(running_text(example, tokenizer), soft_wrap=True, highlight=False)


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
