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
from typing import Any

KEY = ("table", "benchmark", "task", "system", "condition", "metric")
AVERAGE = "average"


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


@functools.cache
def rows(file: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this package, by its header."""
    text = importlib.resources.files(__package__).joinpath(file).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


@functools.cache
def _all() -> tuple[PublishedCell, ...]:
    found: list[dict[str, Any]] = [*rows("published.csv")]
    return tuple(
        PublishedCell(**{**row, "n": int(row["n"]) if row["n"] else None, "value": float(row["value"])})
        for row in found
    )


def cells(**filters: str) -> tuple[PublishedCell, ...]:
    """All cells whose columns equal the filters: `cells(table="table_11", system="gpt-4")`."""
    return tuple(c for c in _all() if all(getattr(c, name) == value for name, value in filters.items()))


@functools.cache
def cell(**filters: str) -> PublishedCell | None:
    """The one cell that the filters leave; None where the paper has none.

    Raises:
      ValueError: there are several.
    """
    found = cells(**filters)
    if len(found) > 1:
        wanted = ", ".join(f"{name}={value}" for name, value in filters.items())
        raise ValueError(
            f"{len(found)} published cells for {wanted}; one of each of {', '.join(KEY)} is unique"
        )
    return found[0] if found else None
