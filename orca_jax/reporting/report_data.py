"""The data of a report: counts and lengths of the token stores, and the data cards."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orca_jax.reporting import data_card, report_charts, report_markdown
from orca_jax.reporting.report_charts import Chart
from orca_jax.reporting.report_markdown import Block, Table
from orca_jax.reporting.report_sources import Run
from orca_jax.reporting.tables import UNNAMED, message_label

COLUMNS = {"collection": "collection", "task": "task", "system_message_id": "system message"}
MOST_ROWS = 40  # of a table of counts


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """One data set: its examples' lengths in tokens, int [examples], and columns, arrays [examples]."""

    name: str
    lengths: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]


def stores(runs: Iterable[Run]) -> list[Store]:
    """The token stores of some runs; those that are unfinished are left out."""
    found = []
    for name, path in _named_apart(runs, "tokens/*/columns.npz"):
        with np.load(path) as columns:
            lengths = np.load(path.with_name("lengths.npy"))
            found.append(Store(name, lengths, {column: columns[column] for column in columns.files}))
    return found


def cards(runs: Iterable[Run]) -> dict[str, list[Block]]:
    """The data cards of some runs by their name, less the title."""
    return {
        name: list(report_markdown.blocks(path.read_text(encoding="utf-8")))[1:]
        for name, path in _named_apart(runs, f"cards/*/{data_card.README}")
    }


def _named_apart(runs: Iterable[Run], pattern: str) -> Iterator[tuple[str, Path]]:
    """Files by their folders' names, those that runs share once; of one name, those of later runs by arm."""
    known: set[Path] = set()
    names: set[str] = set()
    for run in runs:
        for path in sorted(run.directory.glob(pattern)):
            if path.resolve() not in known:
                name = path.parent.name
                yield (f"{name} ({run.arm})" if name in names else name), path
                known.add(path.resolve())
                names.add(name)


def tables(found: list[Store], purposes: Mapping[int, str]) -> Iterator[Table]:
    """Sizes, then examples by collection, task and message, a column a data set."""
    rows = [
        [store.name, *(f"{int(n):,}" for n in (len(store.lengths), store.lengths.sum(), supervised.sum()))]
        for store, supervised in ((store, store.columns["supervised"]) for store in found)
    ]
    yield Table("Data sets", ["data set", "examples", "tokens", "supervised tokens"], rows)
    for column, title in COLUMNS.items():
        counts = {store.name: collections.Counter(store.columns[column].tolist()) for store in found}
        totals = sum(counts.values(), collections.Counter())
        kept = [value for value, _ in totals.most_common(MOST_ROWS)]
        yield Table(
            f"Examples by {title}",
            [title, *counts],
            [
                [_named(column, value, purposes), *(f"{count[value]:,}" for count in counts.values())]
                for value in kept
            ],
            f"The {MOST_ROWS} most frequent of {len(totals)}." if len(totals) > MOST_ROWS else "",
        )


def _named(column: str, value: object, purposes: Mapping[int, str]) -> str:
    if isinstance(value, int):
        return message_label(value, purposes)
    return data_card.collection_label(str(value)) if column == "collection" else str(value) or UNNAMED


def lengths(found: list[Store]) -> Chart | None:
    """Boxes of the answers' lengths by system message, a box a data set."""
    boxes: dict[str, dict[str, Mapping[str, float]]] = {}
    ids = sorted(set(itertools.chain.from_iterable(s.columns["system_message_id"].tolist() for s in found)))
    for id, store in itertools.product(ids, found):
        own = store.columns["supervised"][store.columns["system_message_id"] == id]
        if len(own):
            boxes.setdefault(f"message {id}" if id >= 0 else "other", {})[store.name] = data_card.box(own)
    caption = (
        "Tokens of the answers by system message (other: a text not among the 16): quartiles, and whiskers "
        "to the extremes."
    )
    return report_charts.boxes(boxes, caption=caption, x="supervised tokens (log)")
