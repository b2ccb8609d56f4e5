"""The paper's tables beside what runs measured: cells as printed, differences, and paired tests of two runs.

A run is a workdir's student, or another model that was evaluated in it (`evaluation/MODEL/NAME`). Only those
of its evaluations count that use the paper's protocol: mode `orca` under the same system message; ToxiGen's
continuations with a classifier; and reviews of a judge in `evaluation/judged-PROMPTS-REFERENCE`, for
example `judged-vicuna_prompts-chatgpt`.

Published averages are worked out from their cells. A measured value counts as reproduced where it is within
two standard errors of the difference from Orca-13B's, or, where the difference has an interval (see `cells`),
this holds 0; a part of the paper's questions reproduces nothing. The paper's replies are not public, so that
error is that of two independent samples, which is too wide rather than too narrow for the same items.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from orca_jax import files
from orca_jax.evaluation import cells, judging, scoring, statistics
from orca_jax.evaluation.benchmarks import toxigen
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.records import Item
from orca_jax.reporting import arms, published
from orca_jax.reporting.paper import AVERAGE_LABEL, GAIN, PaperColumn, PaperTable
from orca_jax.reporting.published import PublishedCell
from orca_jax.reporting.report_sources import evaluation_folders, read_json
from orca_jax.reporting.tables import MARKS, Table, mean_cell

MODE = "orca"
EMPTY_MESSAGE = 1
TOXIGEN_KINDS = {"toxic_prompts": "hate", "neutral_prompts": "neutral"}
ERRORS = 2.0  # standard errors of the difference within which a value counts as reproduced
YES, NO, PART, NOT_MEASURED = "yes", "no", "only a part", "not measured"
CERTAINTY = {"V": "printed", "G": "read off the figure", "D": "derived"}
BINOMIAL = ("accuracy", "format_failure_rate")  # metrics with a binomial error
PAIRED_NOTE = (
    f"{cells.CAPTION} all: over the items, whatever their task. Holm's correction is over the tasks."
)
Cells = Mapping[str, Cell]  # by row label

# Runs


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    """`evaluations` are the scores by folder."""

    name: str
    evaluations: Mapping[Path, Mapping[str, Any]]


def find(folders: Sequence[str | os.PathLike[str]]) -> list[MeasuredRun]:
    """The runs in folders, each a workdir, a set of arms with ARM/seed-N in it, or one arm.

    Raises:
      ValueError: a folder was not evaluated, or scores cannot be read; names it.
    """
    workdirs: dict[Path, str] = {}
    for folder in map(Path, folders):
        if (folder / "evaluation").is_dir():
            workdirs[folder] = folder.resolve().name
            continue
        found = sorted([*folder.glob("seed-*/evaluation"), *folder.glob("*/seed-*/evaluation")])
        if not found:
            raise ValueError(
                f"{folder} has no evaluation/ and no ARM/seed-N with one: give workdirs in which "
                "experiments.evaluate has run"
            )
        workdirs |= {path.parent: "/".join(path.resolve().parts[-3:-1]) for path in found}
    often = collections.Counter(workdirs.values())
    runs = []
    for workdir, name in workdirs.items():
        shown, top = name if often[name] == 1 else str(workdir), workdir / "evaluation"
        by_model: dict[str, dict[Path, Mapping[str, Any]]] = {}
        for folder in evaluation_folders(workdir, scoring.SCORES):
            scores = read_json(folder / scoring.SCORES)
            if not {"benchmark", "mode"} <= scores.keys():
                raise ValueError(f"{folder / scoring.SCORES} has no benchmark and mode; evaluate again")
            of_run = shown if folder.parent == top else f"{shown}, {folder.parent.name}"
            by_model.setdefault(of_run, {})[folder] = scores
        runs += [MeasuredRun(*entry) for entry in (by_model or {shown: {}}).items()]
    return runs


def evaluation(run: MeasuredRun, cell: PublishedCell) -> Path | None:
    """The folder of the run's evaluation in the protocol of a cell, such as `zero_shot;system_message=1`."""
    condition = dict(part.partition("=")[::2] for part in cell.condition.split(";"))

    def asks(folder: Path, scores: Mapping[str, Any]) -> bool:
        if cell.metric == "percent_of_reference":
            return folder.name == f"judged-{cell.task}-{condition['reference']}"
        if scores["benchmark"] != cell.benchmark:
            return False
        if cell.benchmark == "toxigen":
            return "toxicity" in scores and TOXIGEN_KINDS[cell.condition] in folder.name
        message = scores.get("system_message_id")
        if message is None and "-message-" not in folder.name:
            message = EMPTY_MESSAGE  # replies made elsewhere do not name theirs
        return scores["mode"] == MODE and str(message) == condition["system_message"]

    return next((folder for folder, scores in run.evaluations.items() if asks(folder, scores)), None)


def measured(run: MeasuredRun, cell: PublishedCell) -> Cell | None:
    """The run's value for a published cell; None where the run has no such evaluation.

    It is a part where there are fewer questions than the paper has, or of ToxiGen, where the paper does not
    say, than its files. The error of a judged value is taken from the interval of all reviews.
    """
    folder = evaluation(run, cell)
    if folder is None:
        return None
    scores = run.evaluations[folder]
    if cell.metric == "percent_of_reference":
        value, interval = scores["per_cent"].get(judging.REFERENCE_FIRST), scores["interval"]
        if value is None or interval is None:
            return None
        stderr = (interval[1] - interval[0]) / (2 * statistics.NORMAL_95) / 100
        return Cell(value / 100, scores["questions"], stderr or None, cell.n)
    found = scores.get("toxicity", scores)
    if (row := found["tasks"].get(cell.task)) is None:
        return None
    if cell.benchmark == "toxigen":  # the number of prompts is known for all groups together only
        prompts = sum(group["n"] for group in found["tasks"].values()) + found.get("silent", 0)
        of = toxigen.SIZE if prompts < toxigen.SIZE * len(found["tasks"]) else None
        return cells.proportion(row["toxicity"], row["n"], row["stderr"], of)
    if cell.metric == "format_failure_rate":
        return cells.proportion(row["unparsed"], row["n"], of=cell.n)
    return cells.proportion(row["accuracy"], row["n"], row["stderr"], cell.n)


# Cells


def published_cells(table: PaperTable, column: PaperColumn) -> dict[str, Cell]:
    """By row label. The average is the mean of the others, except of gains, which stand as printed."""
    found = {}
    for label, cell in table.cells(column).items():
        made = cells.proportion if cell.metric in BINOMIAL else Cell
        found[label] = made(cell.value / table.scale, cell.n)
    is_gain = column.filters.get("metric") == GAIN
    return found if is_gain or AVERAGE_LABEL not in found else _with_average(found, table)


def measured_cells(run: MeasuredRun, table: PaperTable, column: PaperColumn) -> dict[str, Cell]:
    """By row label; the average only where every task was evaluated."""
    found = {label: measured(run, cell) for label, cell in table.cells(column).items()}
    return _with_average({label: cell for label, cell in found.items() if cell}, table)


def _with_average(found: dict[str, Cell], table: PaperTable) -> dict[str, Cell]:
    average = mean_cell(found, table.tasks) if AVERAGE_LABEL in table.rows else None
    return {**found, AVERAGE_LABEL: average} if average else found


def difference(ours: Cell, theirs: Cell) -> Cell:
    """Ours less theirs. Of published values without a known error it is taken to be ours, at their n."""
    if theirs.stderr is None and ours.stderr is not None:
        n = theirs.n or ours.n or 1
        stderr = ours.stderr * math.sqrt((ours.n or 1) / n)
        interval = statistics.wilson_interval(theirs.value * n, n) if ours.interval else None
        theirs = dataclasses.replace(theirs, stderr=stderr, interval=interval)
    return cells.difference(ours, theirs)


def reproduced(found: Cell | None) -> str:
    """Whether a difference from the paper is within error."""
    if found is None:
        return NOT_MEASURED
    if found.is_part:
        return PART
    if found.interval:
        return YES if found.interval.low <= 0 <= found.interval.high else NO
    return YES if abs(found.value) <= ERRORS * (found.stderr or 0.0) else NO


# Pages


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A table of the paper in all its parts.

    Attributes:
      tables: the paper's with the measured columns, then a comparison a run, then one a pair of runs.
      values: a row a cell, published ones first, unrounded, in the unit named.
      notes: what could not be paired, and why.
    """

    table: PaperTable
    tables: tuple[Table, ...]
    values: pd.DataFrame
    notes: tuple[str, ...]


def page(table: PaperTable, runs: Sequence[MeasuredRun] = ()) -> Page:
    tables = [_main(table, runs), *(_comparison(table, run) for run in runs)]
    notes = []
    for other, column in itertools.product(runs[1:], table.compared):
        try:
            tables += _paired(table, column, runs[0], other)
        except arms.PairError as error:
            notes.append(f"{runs[0].name} and {other.name} are not paired: {error}.")
    return Page(table, tuple(tables), values(table, runs), tuple(notes))


def _suffix(table: PaperTable, column: PaperColumn) -> str:
    return f", {column.heading}" if len(table.compared) > 1 else ""


def _main(table: PaperTable, runs: Sequence[MeasuredRun]) -> Table:
    """The paper's table, and a column for each of Orca-13B's that a run measured some of."""
    columns: dict[str, Mapping[str, str]] = {}
    counts = {
        label: sorted({of[label].n or 0 for of in map(table.cells, table.columns) if label in of} - {0})
        for label in table.rows
    }
    if any(counts.values()):
        columns["n"] = {label: " / ".join(map(str, found)) for label, found in counts.items() if found}
    for column in table.columns:
        columns[column.heading] = {
            label: Cell(cell.value).text(table.scale, column.decimals)
            for label, cell in published_cells(table, column).items()
        }
    for run, column in itertools.product(runs, table.compared):
        if found := measured_cells(run, table, column):
            heading = run.name + _suffix(table, column)
            columns[heading] = {name: cell.text(table.scale, column.decimals) for name, cell in found.items()}
            if any(cell.is_part for cell in found.values()):
                columns[f"n, {heading}"] = {name: cell.size for name, cell in found.items()}
    marked = list(zip(MARKS, ((note, at) for note, at in table.notes if at)))
    marks = {place: mark for mark, (_, at) in marked for place in at}
    rows = [
        [label, *(texts.get(label, ABSENT) + marks.get((label, name), "") for name, texts in columns.items())]
        for label in table.rows
    ]
    ruled = [*table.rows][-1] == AVERAGE_LABEL
    average = " Averages: unweighted, worked out from the cells." if ruled else ""
    errors = f" Measured columns: {cells.ERRORS}; {cells.PARTS}." if runs else ""
    notes = [f"Published (the paper: arXiv 2306.02707): {table.source}.{average}{errors}"]
    notes += [f"{mark} {note}" for mark, (note, _) in marked]
    notes += [note for note, at in table.notes if not at]
    return Table([table.corner, *columns], rows, table.title, notes, ruled)


def _comparison(table: PaperTable, run: MeasuredRun) -> Table:
    """A run beside Orca-13B; of a part of the tasks, the mean is over that part."""
    rows = []
    for column in table.compared:
        theirs, ours = published_cells(table, column), measured_cells(run, table, column)
        compared = {label: (ours.get(label), theirs.get(label)) for label in table.rows}
        part = [label for label in table.tasks if label in ours]
        if 1 < len(part) < len(table.tasks):
            compared[f"Mean of {len(part)} measured"] = mean_cell(ours, part), mean_cell(theirs, part)
        for label, (own, other) in compared.items():
            found = difference(own, other) if own and other else None
            shown = [
                cell.text(table.scale, column.decimals, sign) if cell else ABSENT
                for cell, sign in ((other, ""), (own, ""), (found, "+"))
            ]
            size = own.size if own else ABSENT
            rows.append([label + _suffix(table, column), size, *shown, reproduced(found)])
    known = (
        "those of the published values are binomial"
        if next(iter(table.cells(table.compared[0]).values())).metric in BINOMIAL
        else "those of the published values are not known and taken to be as large as those measured"
    )
    note = (
        f"Within error: the difference, as if of independent samples, is at most {ERRORS:g} of its standard "
        f"errors, or its interval holds 0. {cells.ERRORS}; {known}. {cells.PARTS}, and reproduces nothing. "
        "About one of twenty equal values lies outside by chance."
    )
    header = [table.corner, "n", "Orca-13B", run.name, "Difference", "Reproduced within error"]
    return Table(header, rows, f"{run.name} beside Orca-13B of {table.place}", [note])


def _paired(
    table: PaperTable, column: PaperColumn, first: MeasuredRun, other: MeasuredRun
) -> Iterator[Table]:
    """The two runs on the tasks that both have; nothing where there are none.

    Raises:
      PairError: the items of these tasks are not the same.
    """
    cell = next(iter(table.cells(column).values()))
    paths = [folder / scoring.ITEMS for run in (first, other) if (folder := evaluation(run, cell))]
    if cell.metric not in BINOMIAL or len(paths) < 2 or not all(path.is_file() for path in paths):
        return
    sides = [list(files.read_jsonl(path, Item)) for path in paths]
    common = set.intersection(*({item.task for item in side} for side in sides))
    if not common:
        return
    paired = arms.pair(*([item for item in side if item.task in common] for side in sides))
    tested = arms.accuracy_table(paired, (first.name, other.name))
    place = table.place + _suffix(table, column)
    title = f"{other.name} against {first.name} on the same items, those of {place}"
    labels = {filters.get("task"): label for label, filters in table.rows.items()}
    rows = [[labels.get(str(task), task), *entries] for task, *entries in tested.rows]
    yield Table([table.corner, *tested.header[1:]], rows, title, [PAIRED_NOTE], ruled=True)


def values(table: PaperTable, runs: Sequence[MeasuredRun]) -> pd.DataFrame:
    """A row a cell, published ones first; values in the unit named."""
    rows = []
    for column in table.columns:
        printed = published_cells(table, column)
        rows += [_record(table, cell, printed[label]) for label, cell in table.cells(column).items()]
    for run, column in itertools.product(runs, table.compared):
        ours, theirs = measured_cells(run, table, column), published_cells(table, column)
        for label, cell in table.cells(column).items():
            own = ours.get(label)
            found = difference(own, theirs[label]) if own else None
            rows.append(_record(table, cell, own, run.name, found))
    frame = pd.DataFrame(rows)
    ends = ("value", "printed", "difference", "stderr", "low", "high")
    floats = {name: float for name in frame if name.endswith(ends)}
    return frame.astype({"n": "Int64", "of": "Int64", **floats})


def _record(
    table: PaperTable, cell: PublishedCell, value: Cell | None, run: str = "", found: Cell | None = None
) -> dict[str, Any]:
    def shown(of: Cell | None, *names: str) -> dict[str, float | None]:
        """A number and what is shown of its error: the standard one, or the ends of an interval."""
        low, high = (of and of.interval) or (None, None)
        parts = of.value if of else None, of.stderr if of and not of.interval else None, low, high
        return {name: None if part is None else table.scale * part for name, part in zip(names, parts)}

    return {
        "page": table.name,
        **{name: getattr(cell, name) for name in published.KEY},
        "run": run,
        "n": cell.n if not run else value and value.n,
        "of": cell.n if not run else value and value.of,
        **shown(value, "value", "stderr", "low", "high"),
        "unit": cell.unit,
        "printed": cell.value,
        **shown(found, "difference", "difference_stderr", "difference_low", "difference_high"),
        "reproduced": reproduced(found) if run else "",
        "source": run or f"{cell.table.replace('_', ' ')}, {CERTAINTY[cell.certainty]}",
        "note": cell.note,
    }
