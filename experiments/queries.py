"""What the teachers are asked: puzzles, draws of FLAN-v2 with system messages, no benchmark's question."""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files, storage
from orca_jax.config import ExperimentConfig, FlanConfig, PuzzlesConfig, TeacherConfig
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.files import Document
from orca_jax.progress import progress
from orca_jax.queries import contamination, draw, flan, puzzles, sampling, system_messages
from orca_jax.queries.duplicates import Exact
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Query

log = logging.getLogger(__name__)
QUERIES = "queries.jsonl"
HITS = "contamination.jsonl"
REPORTED = 1000  # queries between two reports of progress


def unit_hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    text = "\x00".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def assign_message(query_id: str, multiple_choice: bool, shares: dict[str, float], seed: int) -> int:
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
    """Whether a teacher with this share is asked: of FLAN's draw the marked part, of puzzles by hash."""
    if share < 1 and "expert" in query.extra:
        return bool(query.extra["expert"])
    return unit_hash("share", seed, query.id) < share


def asked_as(teacher: TeacherConfig) -> artifacts.Section:
    """The settings that a teacher's traces depend on, its API's apart; the others are for later."""
    return artifacts.section(teacher, without=("filters", "shots", "api", "malformed"))


def training_puzzles(
    config: PuzzlesConfig, seed: int, evaluated: Iterable[str] = ()
) -> tuple[list[Puzzle], int]:
    """The training puzzles, none of which a benchmark file asks, and how many were left out for that."""
    made = [
        puzzle
        for family in config.families
        for puzzle in puzzles.make_puzzles(
            family, difficulties=config.difficulties, count=config.per_family, seed=seed, split="train"
        )
    ]
    kept, dropped = puzzles.drop_known(made, evaluated)
    return kept, len(dropped)


def benchmark_texts(config: ExperimentConfig) -> list[str]:
    """The questions of every benchmark that the config evaluates."""
    return [document.text for document in registry.documents(config.given_benchmarks)]


def benchmark_digests(documents: Iterable[Document], there: Mapping[str, Any]) -> dict[str, str]:
    """What is evaluated, for a manifest, by benchmark; as one digest where `there` says it so."""
    documents = list(documents)
    if "examined" in there:
        return {"examined": artifacts.digest([document.text for document in documents])}
    by_name = artifacts.digests((document.benchmark, document.text) for document in documents)
    return {f"benchmarks.{name}": digest for name, digest in by_name.items()}


# FLAN-v2


def source_files(config: FlanConfig) -> dict[str, list[Path]]:
    """The files of a draw, by kind.

    Raises:
      ValueError: there is none, or a pattern matches none.
    """
    found = {kind: _matching(pattern) for kind, pattern in config.sources.items() if pattern}
    for kind, paths in found.items():
        if not paths:
            raise ValueError(
                f"flan.sources.{kind}: no file matches {config.sources[kind]!r}; mend the pattern"
            )
    if not found:
        raise ValueError(f"flan.sources names no file; known kinds: {', '.join(flan.READERS)}")
    return found


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern; a file of that very name comes before what the pattern matches."""
    path = storage.local(pattern)
    names = [path] if Path(path).is_file() else glob.glob(path, recursive=True)
    return sorted(found for found in map(Path, names) if found.is_file())


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    return artifacts.file_digest(path)


def digest(path: Path) -> str:
    """A file's sha256, computed once a process: FLAN's files are large."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def _flan_inputs(configs: Iterable[FlanConfig]) -> dict[str, str]:
    """The digest of every file, by draw, kind, folder and name."""
    inputs = {}
    for number, config in enumerate(configs):
        for kind, paths in source_files(config).items():
            top = os.path.commonpath([path.resolve().parent.parent for path in paths])
            for path in paths:
                inputs[f"flan[{number}].{kind}: {path.resolve().relative_to(top)}"] = digest(path)
        if config.messages:
            inputs[f"flan[{number}].messages"] = digest(Path(storage.local(config.messages)))
    return inputs


def _watched(stream: Iterable[Query], title: str) -> Iterator[Query]:
    with progress(title, None) as report:
        for number, query in enumerate(stream, 1):
            if number % REPORTED == 0:
                report(number)
            yield query


def make_draw(config: FlanConfig, experiment: ExperimentConfig, documents: Iterable[Document]) -> draw.Draw:
    documents = list(documents)
    met = contamination.Settings(config.coverage, config.max_documents, config.contamination)
    return draw.Draw(
        files=source_files(config),
        quotas=sampling.Quotas(
            config.cot,
            config.niv2_per_task,
            config.flan2021,
            config.t0,
            min(experiment.asked_shares, default=1.0),
        ).scaled(config.scale),
        seed=experiment.seed,
        malformed=config.malformed,
        messages=system_messages.read_set(storage.local(config.messages)) if config.messages else None,
        evaluated=contamination.Index(documents, met) if documents else None,
        near_duplicates=config.near_duplicates,
        watch=_watched,
    )


def flan_queries(
    config: ExperimentConfig,
    documents: list[Document],
    directory: Path,
    known: Exact,
    counts: list[draw.Counts],
) -> Iterator[Query]:
    """The queries of every draw; `counts` gets an entry a draw. Every hit goes to contamination.jsonl."""
    (directory / HITS).unlink(missing_ok=True)
    with files.JsonlAppender(directory / HITS) as hits:
        for number, flan_config in enumerate(config.flan):
            counts.append(draw.Counts())
            folder = directory / f"draw-{number}"
            folder.mkdir(exist_ok=True)
            drawn = make_draw(flan_config, config, documents)
            yield from draw.queries(drawn, folder, counts[-1], known=known, on_hit=hits.append)


# All of them


def puzzle_queries(config: ExperimentConfig, evaluated: Iterable[str]) -> tuple[list[Query], int]:
    """The puzzles with their system messages, and how many were left out for a benchmark's asking them."""
    made, known = training_puzzles(config.puzzles, config.seed, evaluated)
    shares = dict(config.puzzles.messages)
    queries = [
        puzzles.to_query(p, assign_message(p.id, p.multiple_choice, shares, config.seed)) for p in made
    ]
    return queries, known


def _provenance(
    config: ExperimentConfig, documents: list[Document], there: Mapping[str, Any]
) -> artifacts.Section:
    """The settings that the queries depend on; files count by content, see `_flan_inputs`."""
    untold = {"sources": "", "messages": "", "expert": min(config.asked_shares, default=1.0)}
    draws = [artifacts.joined(artifacts.section(part), untold) for part in config.flan]
    own = artifacts.section(config, ("seed", "puzzles"))
    return artifacts.joined({"program": "queries"}, own, {"flan": draws}, benchmark_digests(documents, there))


def make_queries(config: ExperimentConfig, workdir: Path) -> dict[str, Any]:
    """Writes queries/queries.jsonl: puzzles and draws of FLAN-v2, with their system messages."""
    directory, inputs = workdir / "queries", _flan_inputs(config.flan)
    documents = list(registry.documents(config.given_benchmarks))
    evaluated = [document.text for document in documents]
    provenance = _provenance(config, documents, artifacts.recorded(directory)["provenance"])
    if artifacts.is_finished(directory, provenance, inputs):
        return artifacts.read_manifest(directory)
    artifacts.begin(directory, provenance, inputs)
    queries, left_out = puzzle_queries(config, evaluated)
    known, draws = Exact(), list[draw.Counts]()
    for query in queries:
        known.seen(query.text)
    drawn = flan_queries(config, documents, directory, known, draws) if config.flan else ()
    count = files.write_jsonl(directory / QUERIES, itertools.chain(queries, drawn))
    log.info("%d queries, %d of them puzzles; %d puzzles met a benchmark's question and were left out",
             count, len(queries), left_out)  # fmt: skip
    counts: dict[str, Any] = {"queries": count, "known_to_benchmark": left_out}
    for number, part in enumerate(draws):
        log.info("flan[%d]: %s", number, _told(part))
        counts.setdefault("flan", []).append(part.summary())
        shutil.rmtree(directory / f"draw-{number}")
    return artifacts.finish(directory, provenance, inputs, counts)


def _told(counts: draw.Counts) -> str:
    """A draw's counts in a line."""
    met = counts.contamination
    parts = (
        f"{counts.queries} queries, {counts.expert} for a smaller share",
        f"{counts.duplicates} duplicates and {counts.near_duplicates} near duplicates left out",
        f"{met.hit} meet a benchmark, {met.dropped} of them left out"
        if met
        else "no benchmark to check against",
        f"{counts.rows.malformed} malformed rows",
    )
    return "; ".join(parts)
