"""The training of a report: the curriculum's time line, losses, learning rate, throughput and goodput."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from orca_jax.reporting import report_charts
from orca_jax.reporting.cells import ABSENT
from orca_jax.reporting.report_charts import Chart, Point
from orca_jax.reporting.report_markdown import Table
from orca_jax.reporting.tables import UNNAMED

WAITS = {"data_wait": "waiting for data", "save_wait": "saving checkpoints"}
BY_TEACHER = "loss/teacher="
Row = Mapping[str, Any]
Series = Mapping[str, Sequence[Point]]


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """The metrics of one run, in the order of its steps."""

    name: str
    train: Sequence[Row]
    validations: Sequence[Row]

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> History:
        kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation")}
        return cls(name, kinds["train"], kinds["validation"])

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """(stage, first step, last step), as far as what was logged tells: a stage ends with a validation."""
        logged: dict[str, list[int]] = {}
        for row in self.train:
            logged.setdefault(row["stage"], []).append(row["step"])
        nexts = [steps[0] for steps in logged.values()][1:] + [math.inf]
        spans, before = [], 0
        for (stage, steps), begun in zip(logged.items(), nexts):
            last = max([steps[-1], *(row["step"] for row in self.validations if row["step"] < begun)])
            spans.append((stage, before + 1, last))
            before = last
        return spans

    def rows_of(self, span: tuple[str, int, int]) -> list[Row]:
        return [row for row in self.train if span[1] <= row["step"] <= span[2]]


def points(rows: Sequence[Row], key: str) -> list[Point]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def goodput(row: Row) -> float | None:
    """The share of the time that was not waited, in per cent; None where no wait was measured."""
    waits = [row[key] for key in WAITS if key in row]
    return 100 * (1 - sum(waits)) if waits else None


def charts(histories: Sequence[History]) -> list[Chart]:
    """Of one run by stage and teacher; of several one line each."""
    if len(histories) == 1:
        return [chart for chart in _of_one(histories[0]) if chart]
    return [chart for chart in _of_several(histories) if chart]


def _of_one(history: History) -> Iterator[Chart | None]:
    stages = {span[0]: history.rows_of(span) for span in history.spans}
    starts = {stage: first for stage, first, _ in history.spans[1:]}
    by_teacher = {
        key.removeprefix(BY_TEACHER) or UNNAMED: points(history.validations, key)
        for key in dict.fromkeys(itertools.chain.from_iterable(history.validations))
        if key.startswith(BY_TEACHER)
    }
    every = {"all teachers": points(history.validations, "loss")}
    yield report_charts.timeline({"": history.spans}, caption="The curriculum: stages over training steps.")
    yield report_charts.lines(
        {stage: points(rows, "loss") for stage, rows in stages.items()},
        caption="Training loss by stage.", y="nats a supervised token (log)", log=True, starts=starts,
    )  # fmt: skip
    yield report_charts.lines(
        by_teacher | every,
        caption="Validation loss on held-out traces, by teacher.",
        y="nats a supervised token (log)", log=True, marks=True, starts=starts,
    )  # fmt: skip
    yield report_charts.lines(
        {stage: points(rows, "learning_rate") for stage, rows in stages.items()},
        caption="Learning rate.", y="learning rate", starts=starts,
    )  # fmt: skip
    yield _throughput({stage: points(rows, "tokens_per_second") for stage, rows in stages.items()})
    yield _waits(history.train)


def _goodputs(rows: Sequence[Row]) -> list[Point]:
    return [(row["step"], share) for row in rows if (share := goodput(row)) is not None]


def _throughput(series: Series) -> Chart | None:
    return report_charts.lines(series, caption="Throughput, padding not counted.", y="tokens a second")


def _waits(rows: Sequence[Row]) -> Chart | None:
    shares = {"goodput": _goodputs(rows)} | {
        name: [(x, 100 * y) for x, y in points(rows, key)] for key, name in WAITS.items()
    }
    caption = "Where the time of training steps goes: goodput is what is not waited."
    return report_charts.lines(
        {name: found for name, found in shares.items() if found}, caption=caption, y="per cent"
    )


def _of_several(histories: Sequence[History]) -> Iterator[Chart | None]:
    spans = {history.name: history.spans for history in histories}
    yield report_charts.timeline(spans, caption="The curricula: stages over training steps.")
    for key, caption, y, log in (
        ("loss", "Training loss.", "nats a supervised token (log)", True),
        ("learning_rate", "Learning rate.", "learning rate", False),
    ):
        series = {history.name: points(history.train, key) for history in histories}
        yield report_charts.lines(series, caption=caption, y=y, log=log)
    yield report_charts.lines(
        {history.name: points(history.validations, "loss") for history in histories},
        caption="Validation loss on the held-out traces of all teachers.",
        y="nats a supervised token (log)", log=True, marks=True,
    )  # fmt: skip
    yield _throughput({history.name: points(history.train, "tokens_per_second") for history in histories})
    yield report_charts.lines(
        {history.name: _goodputs(history.train) for history in histories},
        caption="Goodput: the share of the time of training steps that is not waited.", y="per cent",
    )  # fmt: skip


def table(histories: Sequence[History]) -> Table:
    """A row a stage of one run, or a row each of several runs."""
    alone = len(histories) == 1
    rows = [
        _summary(span[0] if alone else history.name, history, span[1], span[2])
        for history in histories
        for span in (history.spans if alone else [("", 1, history.train[-1]["step"])])
    ]
    header = ["stage" if alone else "run", "last step", "training loss", "validation loss"]
    header += ["tokens a second", "goodput"]
    note = "Losses are the last ones. Throughput is the median of the logged steps, goodput their mean."
    return Table("What training came to", header, rows, note)


def _summary(name: str, history: History, first: int, last: int) -> list[object]:
    train = history.rows_of((name, first, last))
    losses = [loss for step, loss in points(history.validations, "loss") if first <= step <= last]
    validation = f"{losses[-1]:.4f}" if losses else ABSENT
    return [name, f"{last:,}", f"{train[-1]['loss']:.4f}", validation, _rate(train), _goodput(train)]


def _rate(rows: Sequence[Row]) -> str:
    rates = [rate for _, rate in points(rows, "tokens_per_second")]
    return f"{np.median(rates):,.0f}" if rates else ABSENT


def _goodput(rows: Sequence[Row]) -> str:
    shares = [share for _, share in _goodputs(rows)]
    return f"{np.mean(shares):.1f} %" if shares else ABSENT
