"""From FLAN-v2's files to the queries that are asked, each step counted.

Drawn (`sampling`), each text once, near duplicates left out if wished, checked against the benchmarks
(`contamination`), and given a system message. All of it streams; what is held in memory are the index, a
hash a query, and one bucket of drawn queries.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax.files import Tally
from orca_jax.queries import contamination, flan, sampling, system_messages
from orca_jax.queries.duplicates import Exact, Near
from orca_jax.queries.system_messages import MessageSet
from orca_jax.records import Query

INDEX = "index.npz"
PARTS = "drawn"


def unwatched(stream: Iterable[Query], title: str) -> Iterable[Query]:
    """What watches a stream of queries by default: nothing."""
    return stream


@dataclasses.dataclass(frozen=True)
class Draw:
    """What is drawn, of which files.

    Attributes:
      files: kind of file (a key of `flan.READERS`) to files.
      malformed: the share of a file's rows that may be malformed.
      messages: None: the paper's 16, in the shares of its Figure 6.
      evaluated: the benchmarks' texts; None: nothing is checked.
      near_duplicates: similarity from which a query is left out; 0: not looked for.
      watch: is given every pass over queries, with a title, and passes them on.
    """

    files: Mapping[str, Sequence[str | Path]]
    quotas: sampling.Quotas
    seed: int
    malformed: float = flan.MALFORMED
    messages: MessageSet | None = None
    evaluated: contamination.Index | None = None
    near_duplicates: float = 0.0
    watch: Callable[[Iterable[Query], str], Iterable[Query]] = unwatched


@dataclasses.dataclass
class Counts:
    """What became of a draw's rows; filled while its queries are taken."""

    rows: Tally = dataclasses.field(default_factory=Tally)
    not_drawn_from: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    duplicates: int = 0
    near_duplicates: int = 0
    contamination: contamination.Report | None = None
    queries: int = 0
    expert: int = 0

    def summary(self) -> dict[str, Any]:
        """The counts, for a manifest."""
        return {
            "rows": self.rows.summary(),
            "not_drawn_from": dict(self.not_drawn_from),
            "drawn": dict(self.drawn),
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "contamination": self.contamination.summary() if self.contamination else "no benchmark was given",
            "queries": self.queries,
            "expert": self.expert,
        }


def queries(
    draw: Draw,
    folder: str | Path,
    counts: Counts,
    *,
    known: Exact,
    on_hit: Callable[[contamination.Hit], object],
) -> Iterator[Query]:
    """The queries of a draw with their system messages, in an order of their own.

    Args:
      folder: keeps the index, so that an interrupted draw reads the files once less, and drawn queries.
      known: the texts that are asked already; this draw's are added.
      on_hit: is called for every benchmark's text that a query meets.

    Raises:
      RecordError: too many rows of a file are malformed.
      MessagesError: no message is for a query.
    """
    folder = Path(folder)
    _scatter(draw, folder, counts)
    asked = _distinct(sampling.gathered(folder / PARTS, draw.seed), known, counts)
    if draw.near_duplicates:
        asked = _without_near(asked, Near(draw.near_duplicates), counts)
    if draw.evaluated:
        counts.contamination = contamination.Report()
        asked = contamination.screen(asked, draw.evaluated, counts.contamination, on_hit=on_hit)
    for query in draw.watch(_assigned(draw, folder, asked), "checking queries"):
        counts.queries += 1
        counts.expert += bool(query.extra["expert"])
        yield query


def _scatter(draw: Draw, folder: Path, counts: Counts) -> None:
    """Leaves the drawn queries in `folder`: two passes over the files."""
    if not (folder / INDEX).exists():
        rows = flan.read_all(draw.files, Tally(draw.malformed, flan.SETTING))
        sampling.index(draw.watch(rows, "indexing FLAN")).save(folder / INDEX)
    indexed = sampling.Index.load(folder / INDEX)
    plan = sampling.plan(indexed, draw.quotas, draw.seed)
    counts.rows, counts.drawn, counts.not_drawn_from = (
        Tally(draw.malformed, flan.SETTING),
        plan.summary(),
        indexed.left_out,
    )
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    rows = flan.read_all(draw.files, counts.rows)
    sampling.scatter(draw.watch(rows, "drawing queries"), plan, folder / PARTS, part="all")


def _distinct(stream: Iterable[Query], known: Exact, counts: Counts) -> Iterator[Query]:
    for query in stream:
        if known.seen(query.text):
            counts.duplicates += 1
        else:
            yield query


def _without_near(stream: Iterable[Query], near: Near, counts: Counts) -> Iterator[Query]:
    for query in stream:
        if near.seen(query.text):
            counts.near_duplicates += 1
        else:
            yield query


def _assigned(draw: Draw, folder: Path, stream: Iterable[Query]) -> Iterator[Query]:
    if draw.messages is not None:
        return system_messages.with_texts(draw.messages.assign(stream, draw.seed), draw.messages)
    measured = system_messages.measured_shares(sampling.gathered(folder / PARTS, draw.seed))
    paper = dataclasses.replace(system_messages.paper_set(), multiple_choice_shares=measured)
    return paper.assign(stream, draw.seed)
