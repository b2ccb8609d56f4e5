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
def _all() -> tuple[PublishedCell, ...]:
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text("utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        values: dict[str, Any] = {
            **row,
            "n": int(row["n"]) if row["n"] else None,
            "value": float(row["value"]),
        }
        found.append(PublishedCell(**values))
    return tuple(found)


def cells(**filters: str) -> tuple[PublishedCell, ...]:
    """All cells whose columns equal the filters: `cells(table="table_11", system="gpt-4")`."""
    return tuple(c for c in _all() if all(getattr(c, name) == value for name, value in filters.items()))


def cell(**filters: str) -> PublishedCell:
    """The one cell that the filters leave.

    Raises:
      ValueError: there is none, or there are several.
    """
    found = cells(**filters)
    if len(found) != 1:
        wanted = ", ".join(f"{name}={value}" for name, value in filters.items())
        raise ValueError(
            f"{len(found)} published cells for {wanted}; one of each of {', '.join(KEY)} is unique"
        )
    return found[0]
