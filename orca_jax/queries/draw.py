"""From FLAN-v2's files to queries, each step counted.

Queries are drawn (`sampling`), each text once, near duplicates left out if wished, checked against the
benchmarks (`contamination`), and given a system message. All of it streams; what is held in memory are the
index, a hash a query, and one bucket of drawn queries.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import artifacts, storage
from orca_jax.config import FlanConfig
from orca_jax.files import Tally
from orca_jax.progress import progress
from orca_jax.queries import contamination, flan, sampling, system_messages
from orca_jax.queries.duplicates import Exact, Near
from orca_jax.records import Query

INDEX = "index.npz"
BUCKETS = "drawn"
REPORTED = 1000  # queries between two reports of progress


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
        met = self.contamination.summary() if self.contamination else "no benchmark was given"
        return {**vars(self), "rows": self.rows.summary(), "contamination": met}


def source_files(config: FlanConfig) -> dict[str, list[Path]]:
    """The files of a draw, by kind.

    Raises:
      ValueError: there is none, or a pattern matches none.
    """
    found: dict[str, list[Path]] = {}
    for kind, pattern in config.sources.items():
        if not pattern:
            continue
        path = storage.local(pattern)
        # A file of that very name comes before what the pattern matches.
        names = [path] if Path(path).is_file() else glob.glob(path, recursive=True)
        found[kind] = sorted(each for each in map(Path, names) if each.is_file())
        if not found[kind]:
            raise ValueError(f"flan.sources.{kind}: no file matches {pattern!r}; correct the pattern")
    if not found:
        raise ValueError(f"flan.sources names no file; known kinds: {', '.join(flan.READERS)}")
    return found


def inputs(configs: Iterable[FlanConfig]) -> dict[str, str]:
    """The digest of every file, by draw, kind, folder and name."""
    digests = {}
    for number, config in enumerate(configs):
        for kind, paths in source_files(config).items():
            top = os.path.commonpath([path.resolve().parent.parent for path in paths])
            for path in paths:
                name, status = path.resolve().relative_to(top), path.stat()
                digest = _digest(path, status.st_size, status.st_mtime_ns)
                digests[f"flan[{number}].{kind}: {name}"] = digest
        if config.messages:
            digests[f"flan[{number}].messages"] = artifacts.file_digest(storage.local(config.messages))
    return digests


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    """A file's sha256, computed once a process while the file stays as it is: FLAN's files are large."""
    return artifacts.file_digest(path)


def queries(
    config: FlanConfig,
    folder: str | Path,
    counts: Counts,
    *,
    seed: int,
    expert: float,
    documents: Sequence[tuple[str, str, str]] = (),
    known: Exact,
    on_hit: Callable[[contamination.Hit], object],
) -> Iterator[Query]:
    """The queries of a draw with their system messages, in an order of their own.

    Args:
      folder: keeps the index, so that an interrupted draw reads the files once less, and drawn queries.
      expert: the share that is marked for the second teacher.
      documents: (benchmark, id, text) of the benchmarks' texts; none: nothing is checked.
      known: the texts of earlier queries; this draw's are added.
      on_hit: is called for every benchmark's text that a query meets.

    Raises:
      RecordError: too many rows of a file are malformed.
      MessagesError: no message is for a query.
    """
    folder, files = Path(folder), source_files(config)
    if not (folder / INDEX).exists():
        rows = flan.read_all(files, Tally(config.malformed, flan.SETTING))
        sampling.index(_watched(rows, "indexing FLAN")).save(folder / INDEX)
    indexed = sampling.Index.load(folder / INDEX)
    whole = sampling.Quotas(config.cot, config.niv2_per_task, config.flan2021, config.t0, expert)
    plan = sampling.plan(indexed, whole.scaled(config.scale), seed)
    counts.rows = Tally(config.malformed, flan.SETTING)
    counts.drawn, counts.not_drawn_from = plan.summary(), indexed.left_out
    shutil.rmtree(folder / BUCKETS, ignore_errors=True)
    rows = flan.read_all(files, counts.rows)
    sampling.scatter(_watched(rows, "drawing queries"), plan, folder / BUCKETS)

    near = Near(config.near_duplicates) if config.near_duplicates else None

    def distinct() -> Iterator[Query]:
        for query in sampling.gathered(folder / BUCKETS, seed):
            if known.seen(query.text):
                counts.duplicates += 1
            elif near and near.seen(query.text):
                counts.near_duplicates += 1
            else:
                yield query

    kept = distinct()
    if documents:
        met = contamination.Settings(config.coverage, config.max_documents, config.contamination)
        counts.contamination = contamination.Report()
        kept = contamination.screen(
            kept, contamination.Index(documents, met), counts.contamination, on_hit=on_hit
        )
    if config.messages:
        own = system_messages.read_set(storage.local(config.messages))
        assigned = system_messages.with_texts(own.assign(kept, seed), own)
    else:
        measured = system_messages.measured_shares(sampling.gathered(folder / BUCKETS, seed))
        paper = dataclasses.replace(system_messages.paper_set(), multiple_choice_shares=measured)
        assigned = paper.assign(kept, seed)
    for query in _watched(assigned, "checking queries"):
        counts.queries += 1
        counts.expert += bool(query.extra["expert"])
        yield query


def _watched(stream: Iterable[Query], title: str) -> Iterator[Query]:
    with progress(title, None) as report:
        for number, query in enumerate(stream, 1):
            if number % REPORTED == 0:
                report(number)
            yield query
