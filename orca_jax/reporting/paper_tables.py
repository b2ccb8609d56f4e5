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
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import files
from orca_jax.evaluation import cells, judging, scoring, statistics
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.records import Item
from orca_jax.reporting import arms, published
from orca_jax.reporting.paper import AVERAGE_LABEL, GAIN, Note, PaperColumn, PaperRow, PaperTable
from orca_jax.reporting.published import PublishedCell
from orca_jax.reporting.tables import mean_cell

# Runs


MODE = "orca"
EMPTY_MESSAGE = 1
TOXIGEN_KINDS = {"toxic_prompts": "hate", "neutral_prompts": "neutral"}


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    directory: Path
    scores: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    name: str
    workdir: Path
    evaluations: tuple[Evaluation, ...]


def find(folders: Sequence[str | os.PathLike[str]]) -> list[MeasuredRun]:
    """The runs in folders, each a workdir, a set of arms with ARM/seed-N in it, or one arm.

    Raises:
      ValueError: a folder was not evaluated, or scores cannot be read; names it.
    """
    workdirs = dict(found for folder in folders for found in _workdirs(Path(folder)))
    often = collections.Counter(workdirs.values())
    return [
        run
        for workdir, name in workdirs.items()
        for run in _runs(workdir, name if often[name] == 1 else str(workdir))
    ]


def _workdirs(folder: Path) -> list[tuple[Path, str]]:
    if (folder / "evaluation").is_dir():
        return [(folder, folder.resolve().name)]
    arms = [*folder.glob("seed-*/evaluation"), *folder.glob("*/seed-*/evaluation")]
    if not arms:
        raise ValueError(
            f"{folder} has no evaluation/ and no ARM/seed-N with one: give workdirs in which "
            "experiments.evaluate has run"
        )
    return [(path.parent, "/".join(path.resolve().parts[-3:-1])) for path in sorted(arms)]


def _runs(workdir: Path, name: str) -> list[MeasuredRun]:
    found: dict[str, list[Evaluation]] = collections.defaultdict(list)
    root = workdir / "evaluation"
    for path in sorted([*root.glob(f"*/{scoring.SCORES}"), *root.glob(f"*/*/{scoring.SCORES}")]):
        model = path.parent.parent.name if path.parent.parent != root else ""
        found[model].append(Evaluation(path.parent, _scores(path)))
    return [
        MeasuredRun(f"{name}, {model}" if model else name, workdir, tuple(evaluations))
        for model, evaluations in (found or {"": []}).items()
    ]


def _scores(path: Path) -> Mapping[str, Any]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate again") from error
    if not isinstance(scores, dict) or not {"benchmark", "mode"} <= scores.keys():
        raise ValueError(f"{path} has no benchmark and mode; evaluate again")
    return scores


def measured(run: MeasuredRun, cell: PublishedCell) -> Cell | None:
    """The run's value for a published cell; None where the run has no such evaluation.

    It is a part where there are fewer questions than the paper has, or of ToxiGen, where the paper does not
    say, than its files.
    """
    found = evaluation(run, cell)
    return _measured_cell(found, cell) if found else None


def evaluation(run: MeasuredRun, cell: PublishedCell) -> Evaluation | None:
    """The run's evaluation in the protocol of a cell."""
    return next((found for found in run.evaluations if _asks(found, cell)), None)


def items(found: Evaluation) -> list[Item]:
    """None where only the scores were kept."""
    path = found.directory / scoring.ITEMS
    return list(files.read_jsonl(path, Item)) if path.is_file() else []


def _asks(found: Evaluation, cell: PublishedCell) -> bool:
    scores, condition = found.scores, _condition(cell)
    if cell.metric == "percent_of_reference":
        return found.directory.name == f"judged-{cell.task}-{condition['reference']}"
    if scores["benchmark"] != cell.benchmark:
        return False
    if cell.benchmark == "toxigen":
        return "toxicity" in scores and TOXIGEN_KINDS[cell.condition] in found.directory.name
    return scores["mode"] == MODE and str(_message(found)) == condition["system_message"]


def _condition(cell: PublishedCell) -> dict[str, str]:
    """`zero_shot;system_message=1` as a mapping."""
    return dict(part.partition("=")[::2] for part in cell.condition.split(";"))


def _message(found: Evaluation) -> int | None:
    """Replies made elsewhere do not name their message; it is taken to be the empty one."""
    given: int | None = found.scores.get("system_message_id")
    return EMPTY_MESSAGE if given is None and "-message-" not in found.directory.name else given


def _measured_cell(found: Evaluation, cell: PublishedCell) -> Cell | None:
    scores = found.scores
    if cell.metric == "percent_of_reference":
        return _judged(scores, cell.n)
    if cell.benchmark == "toxigen":
        return _toxicity(scores["toxicity"], cell.task)
    row = scores["tasks"].get(cell.task)
    if row is None:
        return None
    if cell.metric == "format_failure_rate":
        return cells.proportion(row["unparsed"], row["n"], of=cell.n)
    return cells.proportion(row["accuracy"], row["n"], row["stderr"], cell.n)


def _toxicity(scores: Mapping[str, Any], group: str) -> Cell | None:
    """Of the nonempty continuations; the number of prompts is known for all groups together only."""
    tasks = scores["tasks"]
    if group not in tasks:
        return None
    prompts = sum(row["n"] for row in tasks.values()) + scores.get("silent", 0)
    size = cells.published_size("toxigen", group, "toxigen", 0) or 0
    of = size if prompts < size * len(tasks) else None
    return cells.proportion(tasks[group]["toxicity"], tasks[group]["n"], tasks[group]["stderr"], of)


def _judged(scores: Mapping[str, Any], of: int | None) -> Cell | None:
    """The paper's order; its error is taken from the interval of all reviews."""
    value, interval = scores["per_cent"].get(judging.REFERENCE_FIRST), scores["interval"]
    if value is None or interval is None:
        return None
    stderr = (interval[1] - interval[0]) / (2 * statistics.NORMAL_95) / 100
    return Cell(value / 100, scores["questions"], stderr or None, of)


# Tables


ERRORS = 2.0  # standard errors of the difference within which a value counts as reproduced
YES, NO, PART, NOT_MEASURED = "yes", "no", "only a part", "not measured"
MARKS = "ᵃᵇᶜᵈᵉᶠ"
CERTAINTY = {"V": "printed", "G": "read off the figure", "D": "derived"}
BINOMIAL = ("accuracy", "format_failure_rate")  # metrics with a binomial error
PAIRED_NOTE = (
    f"{cells.CAPTION} all: over the items, whatever their task. Holm's correction is over the tasks."
)
_BAR = re.compile(r"(?<!\\)\|")
Cells = Mapping[str, Cell]  # by row label


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """A table as it is shown; `ruled`: the last row is set off by a rule."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    ruled: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A table of the paper in all its parts.

    Attributes:
      grids: the paper's table with the measured columns, then a comparison a run, then one a pair of runs.
      values: the same as records, unrounded.
      notes: what could not be paired, and why.
    """

    table: PaperTable
    grids: tuple[Grid, ...]
    values: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def page(table: PaperTable, runs: Sequence[MeasuredRun] = ()) -> Page:
    grids = [_main(table, runs), *(_comparison(table, run) for run in runs)]
    notes = []
    for other, column in itertools.product(runs[1:], table.compared):
        try:
            grids += _paired(table, column, runs[0], other)
        except arms.PairError as error:
            notes.append(f"{runs[0].name} and {other.name} are not paired: {error}.")
    return Page(table, tuple(grids), tuple(_values(table, runs)), tuple(notes))


# Cells


def published_cells(table: PaperTable, column: PaperColumn) -> dict[str, Cell]:
    """By row label. The average is the mean of the others, except of gains, which stand as printed."""
    found = {row.label: _cell(cell, table.scale) for row, cell in _printed(table, column)}
    if AVERAGE_LABEL in found and column.filters.get("metric") != GAIN:
        return _with_average(found, table)
    return found


def measured_cells(run: MeasuredRun, table: PaperTable, column: PaperColumn) -> dict[str, Cell]:
    """By row label; the average only where every task was evaluated."""
    found = {row.label: measured(run, cell) for row, cell in _printed(table, column)}
    return _with_average({name: cell for name, cell in found.items() if cell}, table)


def _printed(table: PaperTable, column: PaperColumn) -> Iterator[tuple[PaperRow, PublishedCell]]:
    return ((row, cell) for row in table.rows if (cell := table.cell(row, column)))


def _with_average(found: Cells, table: PaperTable) -> dict[str, Cell]:
    average = mean_cell(found, table.tasks) if len(table.tasks) < len(table.rows) else None
    return {**found, AVERAGE_LABEL: average} if average else dict(found)


def _cell(cell: PublishedCell, scale: int) -> Cell:
    value = cell.value / scale
    return cells.proportion(value, cell.n) if cell.metric in BINOMIAL else Cell(value, cell.n)


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


# What is shown


def _shown(cell: Cell | None, scale: int, decimals: int, sign: str = "") -> str:
    return ABSENT if cell is None else cell.text(scale, decimals, sign)


def _main(table: PaperTable, runs: Sequence[MeasuredRun]) -> Grid:
    """The paper's table, and a column for each of Orca-13B's that a run measured some of."""
    columns = [("n", _sizes(table))] if _sizes(table) else []
    for column in table.columns:
        printed = published_cells(table, column)
        bare = {name: Cell(cell.value) for name, cell in printed.items()}
        columns.append((column.heading, _texts(bare, table, column)))
    for run, column in itertools.product(runs, table.compared):
        if found := measured_cells(run, table, column):
            heading = run.name + _suffix(table, column)
            columns.append((heading, _texts(found, table, column)))
            if any(cell.is_part for cell in found.values()):
                columns.append((f"n, {heading}", {name: cell.size for name, cell in found.items()}))
    marks = {place: mark for mark, note in _marked(table) for place in note.at}
    rows = tuple(
        (name, *(texts.get(name, ABSENT) + marks.get((name, heading), "") for heading, texts in columns))
        for name in (row.label for row in table.rows)
    )
    header = (table.corner, *(heading for heading, _ in columns))
    ruled = table.rows[-1].label == AVERAGE_LABEL
    return Grid(table.title, header, rows, _main_notes(table, runs, ruled), ruled)


def _texts(found: Cells, table: PaperTable, column: PaperColumn) -> dict[str, str]:
    return {name: _shown(cell, table.scale, column.decimals) for name, cell in found.items()}


def _sizes(table: PaperTable) -> dict[str, str]:
    """The published n by row label."""
    sizes = {
        row.label: {cell.n for column in table.columns if (cell := table.cell(row, column)) and cell.n}
        for row in table.rows
    }
    return {name: " / ".join(map(str, sorted(found))) for name, found in sizes.items() if found}


def _marked(table: PaperTable) -> list[tuple[str, Note]]:
    return list(zip(MARKS, (note for note in table.notes if note.at)))


def _main_notes(table: PaperTable, runs: Sequence[MeasuredRun], averaged: bool) -> tuple[str, ...]:
    average = " Averages: unweighted, worked out from the cells." if averaged else ""
    measured = f" Measured columns: {cells.ERRORS}; {cells.PARTS}." if runs else ""
    return (
        f"Published (the paper: arXiv 2306.02707): {table.source}.{average}{measured}",
        *(f"{mark} {note.text}" for mark, note in _marked(table)),
        *(note.text for note in table.notes if not note.at),
    )


def _comparison(table: PaperTable, run: MeasuredRun) -> Grid:
    """A run beside Orca-13B; of a part of the tasks, the mean is over that part."""
    rows: list[tuple[str, ...]] = []
    for column in table.compared:
        theirs, ours = published_cells(table, column), measured_cells(run, table, column)
        for name in (row.label for row in table.rows):
            rows.append(_compared_row(name, ours.get(name), theirs.get(name), table, column))
        part = [name for name in table.tasks if name in ours]
        if 1 < len(part) < len(table.tasks):
            means = mean_cell(ours, part), mean_cell(theirs, part)
            rows.append(_compared_row(f"Mean of {len(part)} measured", *means, table, column))
    header = (table.corner, "n", "Orca-13B", run.name, "Difference", "Reproduced within error")
    title = f"{run.name} beside Orca-13B of {table.place}"
    return Grid(title, header, tuple(rows), (_error_note(table),))


def _error_note(table: PaperTable) -> str:
    cell = table.cell(table.rows[0], table.compared[0])
    known = (
        "those of the published values are binomial"
        if cell and cell.metric in BINOMIAL
        else "those of the published values are not known and taken to be as large as those measured"
    )
    return (
        f"Within error: the difference, as if of independent samples, is at most {ERRORS:g} of its standard "
        f"errors, or its interval holds 0. {cells.ERRORS}; {known}. {cells.PARTS}, and reproduces nothing. "
        "About one of twenty equal values lies outside by chance."
    )


def _compared_row(
    name: str, ours: Cell | None, theirs: Cell | None, table: PaperTable, column: PaperColumn
) -> tuple[str, ...]:
    found = difference(ours, theirs) if ours and theirs else None
    size = ABSENT if ours is None else ours.size
    shown = [_shown(cell, table.scale, column.decimals) for cell in (theirs, ours)]
    away = _shown(found, table.scale, column.decimals, "+")
    return (name + _suffix(table, column), size, *shown, away, reproduced(found))


# Two runs


def _paired(table: PaperTable, column: PaperColumn, first: MeasuredRun, other: MeasuredRun) -> Iterator[Grid]:
    """The two runs on the tasks that both have; nothing where there are none.

    Raises:
      PairError: the items of these tasks are not the same.
    """
    _, cell = next(_printed(table, column))
    found = [evaluation(run, cell) for run in (first, other)]
    if cell.metric not in BINOMIAL or None in found:
        return
    sides = [items(each) for each in found if each]
    common = set.intersection(*({item.task for item in side} for side in sides))
    if not common:
        return
    paired = arms.pair(*([item for item in side if item.task in common] for side in sides))
    tested = arms.accuracy_table(paired, (first.name, other.name))
    header, rows = tested.header, tested.rows
    place = table.place + _suffix(table, column)
    title = f"{other.name} against {first.name} on the same items, those of {place}"
    labels = {row.filters.get("task"): row.label for row in table.rows}
    shown = tuple((labels.get(task, task), *entries) for task, *entries in rows)
    yield Grid(title, (table.corner, *header[1:]), shown, (PAIRED_NOTE,), ruled=True)


def _suffix(table: PaperTable, column: PaperColumn) -> str:
    return f", {column.heading}" if len(table.compared) > 1 else ""


# The same as records


def _values(table: PaperTable, runs: Sequence[MeasuredRun]) -> Iterator[dict[str, Any]]:
    """A record a cell, published ones first; values in the unit named."""
    for column in table.columns:
        printed = published_cells(table, column)
        for row, cell in _printed(table, column):
            yield _record(table, cell, printed[row.label])
    for run, column in itertools.product(runs, table.compared):
        ours, theirs = measured_cells(run, table, column), published_cells(table, column)
        for row, cell in _printed(table, column):
            own = ours.get(row.label)
            found = difference(own, theirs[row.label]) if own else None
            yield _record(table, cell, own, run.name, found)


def _record(
    table: PaperTable, cell: PublishedCell, value: Cell | None, run: str = "", found: Cell | None = None
) -> dict[str, Any]:

    def scaled(number: float | None) -> float | None:
        return None if number is None else table.scale * number

    def errors(of: Cell | None, prefix: str = "") -> dict[str, float | None]:
        """What is shown of an error: the standard one, or the ends of an interval."""
        low, high = (of and of.interval) or (None, None)
        stderr = of.stderr if of and not of.interval else None
        return {
            f"{prefix}{name}": scaled(n) for name, n in (("stderr", stderr), ("low", low), ("high", high))
        }

    return {
        "page": table.name,
        **{name: getattr(cell, name) for name in published.KEY},
        "run": run,
        "n": cell.n if not run else value and value.n,
        "of": cell.n if not run else value and value.of,
        "value": scaled(value.value if value else None),
        **errors(value),
        "unit": cell.unit,
        "printed": cell.value,
        "difference": scaled(found.value if found else None),
        **errors(found, "difference_"),
        "reproduced": reproduced(found) if run else "",
        "source": run or f"{cell.source}, {CERTAINTY[cell.certainty]}",
        "note": cell.note,
    }
