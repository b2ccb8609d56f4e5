"""Makes the queries of an experiment: puzzles and draws of FLAN-v2, without any benchmark's question.

FLAN's queries are drawn (`sampling`), each text once, near duplicates left out if wished, checked against the
benchmarks (`contamination`), and given a system message. All of it streams; what is held in memory are the
index, a hash a query, and one bucket of drawn queries. Each step is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import glob
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files, hub, plugins, storage
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import FlanConfig, Message, PuzzlesConfig
from orca_jax.files import Tally
from orca_jax.progress import progress
from orca_jax.queries import flan, puzzles, sampling, system_messages
from orca_jax.queries.contamination import Hit, Index
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.quality import Exact, Near
from orca_jax.records import Query

log = logging.getLogger(__name__)
QUERIES = "queries.jsonl"
HITS = "contamination.jsonl"
REPORTED = 1000  # queries between two reports of progress
Document = tuple[str, str, str]  # benchmark, id and text: `evaluation.benchmarks.base.Document`


def unit_hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    text = "\x00".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def assign_message(query_id: str, multiple_choice: bool, shares: Mapping[Message, float], seed: int) -> int:
    """The system message of a query: by hash, so that every teacher and every rerun sees the same.

    Raises:
      ValueError: the shares allow no message for a query without options.
    """
    allowed = {
        int(name): share
        for name, share in shares.items()
        if multiple_choice or not system_messages.get(int(name)).multiple_choice_only
    }
    if not any(allowed.values()):
        raise ValueError("puzzles.messages has only messages for multiple choice; add one for other queries")
    return system_messages.draw(allowed, query_id, seed)


def is_asked(query: Query, share: float, seed: int) -> bool:
    """Whether a teacher with this share gets a query: of FLAN's draw the marked part, of puzzles by hash."""
    if share < 1 and "expert" in query.extra:
        return bool(query.extra["expert"])
    return unit_hash("share", seed, query.id) < share


def training_puzzles(
    config: PuzzlesConfig, seed: int, evaluated: Iterable[str] = ()
) -> tuple[list[Puzzle], int]:
    """The training puzzles, without those of a benchmark file, and how many were left out for that."""
    every = (_made(family, config.difficulties, config.per_family, seed) for family in config.families)
    made = list(itertools.chain.from_iterable(every))
    kept = puzzles.without(made, evaluated)
    return kept, len(made) - len(kept)


def benchmark_digests(documents: Iterable[Document], there: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each benchmark's texts, for a manifest; one digest where `there` has it so."""
    texts = [(benchmark, text) for benchmark, _, text in documents]
    if "examined" in there:
        return {"examined": artifacts.digest([text for _, text in texts])}
    return {f"benchmarks.{name}": digest for name, digest in artifacts.digests(texts).items()}


@functools.lru_cache(maxsize=16)  # every oracle makes them again
def _made(family: str, difficulties: tuple[int, ...], count: int, seed: int) -> Sequence[Puzzle]:
    return puzzles.make_puzzles(family, difficulties=difficulties, count=count, seed=seed, split="train")


@dataclasses.dataclass
class Met:
    """The queries of a draw that meet a benchmark, each once a benchmark and once for its strongest hit."""

    queries: int = 0
    hit: int = 0
    dropped: int = 0
    by_benchmark: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_kind: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_task: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def count(self, query: Query, hits: Sequence[Hit], keep: bool) -> None:
        self.queries += 1
        if hits:
            self.hit += 1
            self.dropped += not keep
            self.by_benchmark.update({hit.benchmark for hit in hits})
            self.by_kind[hits[0].kind] += 1
            self.by_task[query.task] += 1

    def summary(self) -> dict[str, Any]:
        return {
            name: dict(sorted(value.items())) if isinstance(value, collections.Counter) else value
            for name, value in vars(self).items()
        }


@dataclasses.dataclass
class Counts:
    """What became of a draw's rows; filled while its queries are taken."""

    rows: Tally = dataclasses.field(default_factory=Tally)
    not_drawn_from: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    duplicates: int = 0
    near_duplicates: int = 0
    contamination: Met | None = None
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


def flan_inputs(draws: Iterable[FlanConfig]) -> dict[str, str]:
    """The digest of every file, by draw, kind, folder and name."""
    digests = {}
    for number, config in enumerate(draws):
        for kind, paths in source_files(config).items():
            top = os.path.commonpath([path.resolve().parent.parent for path in paths])
            for path in paths:
                name = path.resolve().relative_to(top)
                digests[f"flan[{number}].{kind}: {name}"] = artifacts.file_digest(path)
        if config.messages:
            digests[f"flan[{number}].messages"] = artifacts.file_digest(storage.local(config.messages))
    return digests


def draw_queries(
    config: FlanConfig,
    folder: Path,
    counts: Counts,
    *,
    seed: int,
    expert: float,
    documents: Sequence[Document] = (),
    known: Exact,
    on_hit: Callable[[Hit], object],
) -> Iterator[Query]:
    """The queries of a draw with their system messages, in an order of their own.

    Args:
      folder: keeps drawn queries until they are ordered.
      expert: the share that is marked for the second teacher.
      documents: the benchmarks' texts; none: nothing is checked.
      known: the texts of earlier queries; this draw's are added.
      on_hit: is called for every benchmark's text that a query meets.

    Raises:
      RecordError: too many rows of a file are malformed.
      ValueError: no message is for a query.
    """
    sources = source_files(config)
    rows = flan.read_all(sources, Tally(config.malformed, flan.SETTING))
    indexed = sampling.index(_watched(rows, "indexing FLAN"))
    plan = sampling.plan(indexed, config, expert, seed)
    counts.rows = Tally(config.malformed, flan.SETTING)
    counts.drawn, counts.not_drawn_from = plan.summary(), indexed.left_out
    shutil.rmtree(folder, ignore_errors=True)
    rows = flan.read_all(sources, counts.rows)
    sampling.scatter(_watched(rows, "drawing queries"), plan, folder)

    near = Near(config.near_duplicates) if config.near_duplicates else None

    def distinct() -> Iterator[Query]:
        for query in sampling.gathered(folder, seed):
            if known.seen(query.text):
                counts.duplicates += 1
            elif near and near.seen(query.text):
                counts.near_duplicates += 1
            else:
                yield query

    def screened(index: Index, met: Met) -> Iterator[Query]:
        keep = config.contamination == "keep"
        for query, hits in index.check(distinct()):
            met.count(query, hits, keep)
            for hit in hits:
                on_hit(hit)
            if keep or not hits:
                yield query

    kept = distinct()
    if documents:
        index = Index(documents, coverage=config.coverage, max_documents=config.max_documents)
        counts.contamination = Met()
        kept = screened(index, counts.contamination)
    if config.messages:
        messages = system_messages.read_set(storage.local(config.messages))
    else:
        measured = system_messages.measured_shares(sampling.gathered(folder, seed))
        messages = system_messages.MessageSet(system_messages.all_messages(), measured)
    for query in _watched(messages.assign(kept, seed), "checking queries"):
        counts.queries += 1
        counts.expert += bool(query.extra["expert"])
        yield query


def _watched(stream: Iterable[Query], title: str) -> Iterator[Query]:
    with progress(title, None) as report:
        for number, query in enumerate(stream, 1):
            if number % REPORTED == 0:
                report(number)
            yield query


def make_queries(config: ExperimentConfig, workdir: Path, documents: Iterable[Document]) -> dict[str, Any]:
    """Writes queries/queries.jsonl, puzzles and draws of FLAN-v2 with system messages; returns its manifest.

    Every text of a benchmark (`documents`) that a query of FLAN meets is in queries/contamination.jsonl.
    """
    directory, inputs, documents = workdir / "queries", flan_inputs(config.flan), list(documents)
    expert = min(config.asked_shares, default=1.0)
    counted = {"sources": "", "messages": "", "expert": expert}  # files count by content, see flan_inputs
    provenance = artifacts.joined(
        {"program": "queries"},
        artifacts.section(config, ("seed", "puzzles")),
        {"flan": [artifacts.joined(artifacts.section(part), counted) for part in config.flan]},
        benchmark_digests(documents, artifacts.recorded(directory)["provenance"]),
        plugins.provenance(*((plugins.PUZZLES, family) for family in config.puzzles.families)),
    )
    artifact = artifacts.Artifact(directory, provenance, inputs)
    if manifest := artifact.finished():
        return manifest
    artifact.begin()
    made, left_out = training_puzzles(config.puzzles, config.seed, [text for _, _, text in documents])
    shares, known, draws = config.puzzles.messages, Exact(), [Counts() for _ in config.flan]
    queries = [puzzles.to_query(p, assign_message(p.id, bool(p.choices), shares, config.seed)) for p in made]
    for query in queries:
        known.seen(query.text)

    def drawn() -> Iterator[Query]:
        (directory / HITS).unlink(missing_ok=True)
        with files.JsonlAppender(directory / HITS) as hits:
            for number, (flan_config, counts) in enumerate(zip(config.flan, draws)):
                yield from draw_queries(
                    flan_config,
                    directory / f"draw-{number}",
                    counts,
                    seed=config.seed,
                    expert=expert,
                    documents=documents,
                    known=known,
                    on_hit=hits.append,
                )

    every = itertools.chain(queries, drawn() if config.flan else ())
    count = files.write_jsonl(directory / QUERIES, every)
    log.info("%d queries, %d of them puzzles; %d puzzles have a benchmark's question and were left out",
             count, len(queries), left_out)  # fmt: skip
    for number, part in enumerate(draws):
        met = part.contamination
        log.info(
            "flan[%d]: %d queries, %d for a smaller share; %d duplicates and %d near duplicates left out; "
            "%s; %d malformed rows",
            number, part.queries, part.expert, part.duplicates, part.near_duplicates,
            f"{met.hit} meet a benchmark, {met.dropped} left out" if met else "no benchmark was given",
            part.rows.malformed,
        )  # fmt: skip
        shutil.rmtree(directory / f"draw-{number}")
    counts: dict[str, Any] = {"queries": count, "known_to_benchmark": left_out}
    if draws:
        counts["flan"] = [part.summary() for part in draws]
    named = [path for draw in config.flan for path in (*draw.sources.values(), draw.messages)]
    return artifact.finish(counts, hub.revisions(*named, *config.benchmark_paths.values()))
