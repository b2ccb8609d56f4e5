"""The paper's tables beside what runs measured: cells as printed, differences, and paired tests of two runs.

Published averages are worked out from their cells. A measured value counts as reproduced where it is within
two standard errors of the difference from Orca-13B's. The paper's replies are not public, so that error is
that of two independent samples, which is too wide rather than too narrow for the same items.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from orca_jax.evaluation import statistics
from orca_jax.evaluation.statistics import Estimate
from orca_jax.reporting import pairs, paper_runs, published
from orca_jax.reporting.paper import AVERAGE_LABEL, GAIN, Column, Note, Row, Table
from orca_jax.reporting.paper_runs import Run
from orca_jax.reporting.published import PublishedCell
from orca_jax.reporting.tables import ABSENT, Cell, mean_cell

ERRORS = 2.0  # standard errors of the difference within which a value counts as reproduced
YES, NO, NOT_MEASURED = "yes", "no", "not measured"
MARKS = "ᵃᵇᶜᵈᵉᶠ"
CERTAINTY = {"V": "printed", "G": "read off the figure", "D": "derived"}
BINOMIAL = ("accuracy", "format_failure_rate")  # metrics whose sampling error n tells
PAIRED_NOTE = (
    "Accuracies in per cent, ± one standard error; all: over the items, whatever their task. "
    "Holm's correction is over the tasks."
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

    table: Table
    grids: tuple[Grid, ...]
    values: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def page(table: Table, runs: Sequence[Run] = ()) -> Page:
    grids = [_main(table, runs), *(_comparison(table, run) for run in runs)]
    notes = []
    for other, column in itertools.product(runs[1:], table.compared):
        try:
            grids += _paired(table, column, runs[0], other)
        except pairs.PairError as error:
            notes.append(f"{runs[0].name} and {other.name} are not paired: {error}.")
    return Page(table, tuple(grids), tuple(_values(table, runs)), tuple(notes))


# Cells


def published_cells(table: Table, column: Column) -> dict[str, Cell]:
    """By row label. The average is the mean of the others, except of gains, which stand as printed."""
    found = {row.label: _cell(cell, table.scale) for row, cell in _printed(table, column)}
    if AVERAGE_LABEL in found and column.filters.get("metric") != GAIN:
        return _with_average(found, table)
    return found


def measured_cells(run: Run, table: Table, column: Column) -> dict[str, Cell]:
    """By row label; the average only where every task was examined."""
    found = {row.label: paper_runs.measured(run, cell) for row, cell in _printed(table, column)}
    return _with_average({name: cell for name, cell in found.items() if cell}, table)


def _printed(table: Table, column: Column) -> Iterator[tuple[Row, PublishedCell]]:
    return ((row, cell) for row in table.rows if (cell := table.cell(row, column)))


def _with_average(cells: Cells, table: Table) -> dict[str, Cell]:
    average = mean_cell(cells, table.tasks) if len(table.tasks) < len(table.rows) else None
    return {**cells, AVERAGE_LABEL: average} if average else dict(cells)


def _cell(cell: PublishedCell, scale: int) -> Cell:
    value = cell.value / scale
    stderr = statistics.binomial_standard_error(value, cell.n) if cell.n and cell.metric in BINOMIAL else None
    return Cell(value, cell.n, stderr, cell.source)


def difference(ours: Cell, theirs: Cell) -> Estimate:
    """Ours less theirs. Of published values without a known error it is taken to be ours, at their n."""
    assert ours.stderr is not None
    other = theirs.stderr
    if other is None:
        other = ours.stderr * math.sqrt((ours.n or 1) / (theirs.n or ours.n or 1))
    return Estimate(ours.value - theirs.value, math.hypot(ours.stderr, other))


def reproduced(found: Estimate | None) -> str:
    if found is None:
        return NOT_MEASURED
    return YES if abs(found.value) <= ERRORS * found.stderr else NO


# What is shown


def _shown(cell: Cell | Estimate | None, scale: int, decimals: int, sign: str = "") -> str:
    if cell is None:
        return ABSENT
    error = "" if cell.stderr is None else f" ± {_rounded(scale * cell.stderr, decimals)}"
    return f"{_rounded(scale * cell.value, decimals):{sign}z}{error}"


def _rounded(value: float, decimals: int) -> Decimal:
    """A half goes up, as in the paper: its 41.6 (Table 9) is a mean of 41.55."""
    exact = Decimal(repr(round(value, 9)))  # without the noise of binary fractions
    return exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def _main(table: Table, runs: Sequence[Run]) -> Grid:
    """The paper's table, and a column for each of Orca-13B's that a run measured some of."""
    columns = [("n", _sizes(table))] if _sizes(table) else []
    for column in table.columns:
        cells = published_cells(table, column)
        bare = {name: dataclasses.replace(cell, stderr=None) for name, cell in cells.items()}
        columns.append((column.heading, _texts(bare, table, column)))
    for run, column in itertools.product(runs, table.compared):
        if found := measured_cells(run, table, column):
            columns.append((run.name + _suffix(table, column), _texts(found, table, column)))
    marks = {place: mark for mark, note in _marked(table) for place in note.at}
    rows = tuple(
        (name, *(cells.get(name, ABSENT) + marks.get((name, heading), "") for heading, cells in columns))
        for name in (row.label for row in table.rows)
    )
    header = (table.corner, *(heading for heading, _ in columns))
    ruled = table.rows[-1].label == AVERAGE_LABEL
    return Grid(table.title, header, rows, _main_notes(table, runs, ruled), ruled)


def _texts(cells: Cells, table: Table, column: Column) -> dict[str, str]:
    return {name: _shown(cell, table.scale, column.decimals) for name, cell in cells.items()}


def _sizes(table: Table) -> dict[str, str]:
    """The published n by row label."""
    sizes = {
        row.label: {cell.n for column in table.columns if (cell := table.cell(row, column)) and cell.n}
        for row in table.rows
    }
    return {name: " / ".join(map(str, sorted(found))) for name, found in sizes.items() if found}


def _marked(table: Table) -> list[tuple[str, Note]]:
    return list(zip(MARKS, (note for note in table.notes if note.at)))


def _main_notes(table: Table, runs: Sequence[Run], averaged: bool) -> tuple[str, ...]:
    average = " Averages: unweighted, worked out from the cells." if averaged else ""
    measured = " Measured columns: ± one standard error." if runs else ""
    return (
        f"Published (the paper: arXiv 2306.02707): {table.source}.{average}{measured}",
        *(f"{mark} {note.text}" for mark, note in _marked(table)),
        *(note.text for note in table.notes if not note.at),
    )


def _comparison(table: Table, run: Run) -> Grid:
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


def _error_note(table: Table) -> str:
    cell = table.cell(table.rows[0], table.compared[0])
    known = (
        "those of the published values are binomial"
        if cell and cell.metric in BINOMIAL
        else "those of the published values are not known and taken to be as large as those measured"
    )
    return (
        f"Within error: the difference is at most {ERRORS:g} of its standard errors, as if of independent "
        f"samples; ± are standard errors, {known}. About one of twenty equal values lies outside by chance; "
        "of few items, “yes” says little."
    )


def _compared_row(
    name: str, ours: Cell | None, theirs: Cell | None, table: Table, column: Column
) -> tuple[str, ...]:
    found = difference(ours, theirs) if ours and theirs else None
    size = ABSENT if ours is None else str(ours.n)
    if ours and theirs and theirs.n not in (None, ours.n):
        size = f"{ours.n} of {theirs.n}"
    shown = [_shown(cell, table.scale, column.decimals) for cell in (theirs, ours)]
    away = _shown(found, table.scale, column.decimals, "+")
    return (name + _suffix(table, column), size, *shown, away, reproduced(found))


# Two runs


def _paired(table: Table, column: Column, first: Run, other: Run) -> Iterator[Grid]:
    """The two runs on the tasks that both were asked; nothing where there are none.

    Raises:
      PairError: the items of these tasks are not the same.
    """
    _, cell = next(_printed(table, column))
    found = [paper_runs.examination(run, cell) for run in (first, other)]
    if cell.metric not in BINOMIAL or None in found:
        return
    sides = [paper_runs.items(each) for each in found if each]
    common = set.intersection(*({item.task for item in side} for side in sides))
    if not common:
        return
    paired = pairs.pair(*([item for item in side if item.task in common] for side in sides))
    text = pairs.accuracy_table(paired, (first.name, other.name))
    header, _, *rows = ([entry.strip() for entry in _BAR.split(line)[1:-1]] for line in text.splitlines())
    place = table.place + _suffix(table, column)
    title = f"{other.name} against {first.name} on the same items, those of {place}"
    labels = {row.filters.get("task"): row.label for row in table.rows}
    shown = tuple((labels.get(task, task), *entries) for task, *entries in rows)
    yield Grid(title, (table.corner, *header[1:]), shown, (PAIRED_NOTE,), ruled=True)


def _suffix(table: Table, column: Column) -> str:
    return f", {column.heading}" if len(table.compared) > 1 else ""


# The same as records


def _values(table: Table, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A record a cell, published ones first; values in the unit named."""
    for column in table.columns:
        cells = published_cells(table, column)
        for row, cell in _printed(table, column):
            yield _record(table, cell, cells[row.label])
    for run, column in itertools.product(runs, table.compared):
        ours, theirs = measured_cells(run, table, column), published_cells(table, column)
        for row, cell in _printed(table, column):
            own = ours.get(row.label)
            found = difference(own, theirs[row.label]) if own else None
            yield _record(table, cell, own, run.name, found)


def _record(
    table: Table, cell: PublishedCell, value: Cell | None, run: str = "", found: Estimate | None = None
) -> dict[str, Any]:

    def scaled(number: float | None) -> float | None:
        return None if number is None else table.scale * number

    return {
        "page": table.name,
        **{name: getattr(cell, name) for name in published.KEY},
        "run": run,
        "n": cell.n if not run else value and value.n,
        "value": scaled(value.value if value else None),
        "stderr": scaled(value.stderr if value else None),
        "unit": cell.unit,
        "printed": cell.value,
        "difference": scaled(found.value if found else None),
        "difference_stderr": scaled(found.stderr if found else None),
        "reproduced": reproduced(found) if run else "",
        "source": run or f"{cell.source}, {CERTAINTY[cell.certainty]}",
        "note": cell.note,
    }
