"""The paper's own numbers, and what follows from them: typed access to `published.csv`.

One row per printed (certainty V, or G where it is read off a graph), derived (D) or successor's (S) number;
(table, benchmark, task, system, condition, metric) is unique. The same score stands in several of the
paper's tables, so always filter by `table`. Values keep the printed unit (per cent for accuracies); `n` is
the number of scored items as the data files give it, where the paper's own count is wrong as well.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import io
from typing import Any

KEY = ("table", "benchmark", "task", "system", "condition", "metric")
AVERAGE = "average"


class PublishedError(ValueError):
    """`published.csv` is damaged, or has not exactly one cell for some filters."""


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedCell:
    table: str
    benchmark: str
    task: str
    n: int | None
    system: str
    condition: str
    metric: str
    value: float
    unit: str
    certainty: str
    note: str

    @property
    def source(self) -> str:
        """Where the number stands, in words."""
        return "derived from the data files" if self.table == "derived" else self.table.replace("_", " ")


def parse(text: str) -> tuple[PublishedCell, ...]:
    """The cells of a CSV file in the form of `published.csv`.

    Raises:
      PublishedError: a column is missing, a value is not a number or a key occurs twice; names the line.
    """
    reader = csv.DictReader(io.StringIO(text))
    cells: dict[tuple[str, ...], PublishedCell] = {}
    for row in reader:
        cell = _cell(row, reader.line_num)
        key = tuple(getattr(cell, name) for name in KEY)
        if key in cells:
            raise PublishedError(f"published.csv, line {reader.line_num}: a second row for {', '.join(key)}")
        cells[key] = cell
    return tuple(cells.values())


def _cell(row: dict[str, str], line: int) -> PublishedCell:
    try:
        values: dict[str, Any] = {field.name: row[field.name] for field in dataclasses.fields(PublishedCell)}
        values |= {"n": int(row["n"]) if row["n"] else None, "value": float(row["value"])}
    except (KeyError, TypeError, ValueError) as error:
        raise PublishedError(f"published.csv, line {line}: {error!r}; restore the file") from error
    return PublishedCell(**values)


@functools.cache
def _all() -> tuple[PublishedCell, ...]:
    return parse(importlib.resources.files("orca_jax.reporting").joinpath("published.csv").read_text("utf-8"))


def cells(**filters: str) -> tuple[PublishedCell, ...]:
    """All cells whose columns equal the filters: `cells(table="table_11", system="gpt-4")`.

    Raises:
      PublishedError: a filter is not a key column.
    """
    unknown = filters.keys() - set(KEY)
    if unknown:
        raise PublishedError(f"cannot filter by {', '.join(sorted(unknown))}; columns: {', '.join(KEY)}")
    return tuple(c for c in _all() if all(getattr(c, name) == value for name, value in filters.items()))


def cell(**filters: str) -> PublishedCell:
    """The one cell that the filters leave.

    Raises:
      PublishedError: there is none, or there are several.
    """
    found = cells(**filters)
    if len(found) != 1:
        wanted = ", ".join(f"{name}={value}" for name, value in filters.items())
        raise PublishedError(
            f"{len(found)} published cells for {wanted}; a filter of each of {', '.join(KEY)} leaves one"
        )
    return found[0]
