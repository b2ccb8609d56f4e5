"""Makes the queries of an experiment: puzzles and draws of FLAN-v2, without any benchmark's question."""

from __future__ import annotations

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
from orca_jax.config import ExperimentConfig, FlanConfig, PuzzlesConfig
from orca_jax.progress import progress
from orca_jax.queries import contamination, draw, flan, puzzles, sampling, system_messages
from orca_jax.queries.duplicates import Exact
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Query

Document = tuple[str, str, str]  # benchmark, id and text: `evaluation.benchmarks.files.Document`
log = logging.getLogger(__name__)
QUERIES = "queries.jsonl"
HITS = "contamination.jsonl"
REPORTED = 1000  # queries between two reports of progress
_DIGESTS: dict[tuple[Path, int, int], str] = {}


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


def benchmark_digests(documents: Iterable[Document], there: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each benchmark's texts, for a manifest; one digest where `there` has it so."""
    texts = [(benchmark, text) for benchmark, _, text in documents]
    if "examined" in there:
        return {"examined": artifacts.digest([text for _, text in texts])}
    return {f"benchmarks.{name}": digest for name, digest in artifacts.digests(texts).items()}


# FLAN-v2


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


def _file_digest(path: Path) -> str:
    """A file's sha256, computed once a process: FLAN's files are large."""
    status = path.stat()
    key = path, status.st_size, status.st_mtime_ns
    if key not in _DIGESTS:
        _DIGESTS[key] = artifacts.file_digest(path)
    return _DIGESTS[key]


def _flan_inputs(configs: Iterable[FlanConfig]) -> dict[str, str]:
    """The digest of every file, by draw, kind, folder and name."""
    inputs = {}
    for number, config in enumerate(configs):
        for kind, paths in source_files(config).items():
            top = os.path.commonpath([path.resolve().parent.parent for path in paths])
            for path in paths:
                inputs[f"flan[{number}].{kind}: {path.resolve().relative_to(top)}"] = _file_digest(path)
        if config.messages:
            inputs[f"flan[{number}].messages"] = _file_digest(Path(storage.local(config.messages)))
    return inputs


def _watched(stream: Iterable[Query], title: str) -> Iterator[Query]:
    with progress(title, None) as report:
        for number, query in enumerate(stream, 1):
            if number % REPORTED == 0:
                report(number)
            yield query


def _flan_queries(
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
            messages = flan_config.messages
            met = contamination.Settings(
                flan_config.coverage, flan_config.max_documents, flan_config.contamination
            )
            drawn = draw.Draw(
                files=source_files(flan_config),
                quotas=sampling.Quotas(
                    flan_config.cot,
                    flan_config.niv2_per_task,
                    flan_config.flan2021,
                    flan_config.t0,
                    min(config.asked_shares, default=1.0),
                ).scaled(flan_config.scale),
                seed=config.seed,
                malformed=flan_config.malformed,
                messages=system_messages.read_set(storage.local(messages)) if messages else None,
                evaluated=contamination.Index(documents, met) if documents else None,
                near_duplicates=flan_config.near_duplicates,
                watch=_watched,
            )
            counts.append(draw.Counts())
            folder = directory / f"draw-{number}"
            folder.mkdir(exist_ok=True)
            yield from draw.queries(drawn, folder, counts[-1], known=known, on_hit=hits.append)


# All of them


def _provenance(
    config: ExperimentConfig, documents: list[Document], there: Mapping[str, Any]
) -> artifacts.Section:
    """The settings that the queries depend on; files count by content, see `_flan_inputs`."""
    untold = {"sources": "", "messages": "", "expert": min(config.asked_shares, default=1.0)}
    draws = [artifacts.joined(artifacts.section(part), untold) for part in config.flan]
    own = artifacts.section(config, ("seed", "puzzles"))
    return artifacts.joined({"program": "queries"}, own, {"flan": draws}, benchmark_digests(documents, there))


def make_queries(config: ExperimentConfig, workdir: Path, documents: Iterable[Document]) -> dict[str, Any]:
    """Writes queries/queries.jsonl: puzzles and draws of FLAN-v2, with their system messages.

    Args:
      documents: the texts of the benchmarks, none of which becomes a query.

    Returns:
      The manifest of queries/.
    """
    directory, inputs, documents = workdir / "queries", _flan_inputs(config.flan), list(documents)
    provenance = _provenance(config, documents, artifacts.recorded(directory)["provenance"])
    if artifacts.is_finished(directory, provenance, inputs):
        return artifacts.read_manifest(directory)
    artifacts.begin(directory, provenance, inputs)
    made, left_out = training_puzzles(config.puzzles, config.seed, [text for _, _, text in documents])
    shares = {str(id): share for id, share in config.puzzles.messages.items()}
    queries = [
        puzzles.to_query(p, assign_message(p.id, p.multiple_choice, shares, config.seed)) for p in made
    ]
    known, draws = Exact(), list[draw.Counts]()
    for query in queries:
        known.seen(query.text)
    drawn = _flan_queries(config, documents, directory, known, draws) if config.flan else ()
    count = files.write_jsonl(directory / QUERIES, itertools.chain(queries, drawn))
    log.info("%d queries, %d of them puzzles; %d puzzles have a benchmark's question and were left out",
             count, len(queries), left_out)  # fmt: skip
    counts: dict[str, Any] = {"queries": count, "known_to_benchmark": left_out}
    for number, part in enumerate(draws):
        met = part.contamination
        log.info(
            "flan[%d]: %d queries, %d for a smaller share; %d duplicates and %d near duplicates left out; "
            "%s; %d malformed rows",
            number, part.queries, part.expert, part.duplicates, part.near_duplicates,
            f"{met.hit} meet a benchmark, {met.dropped} left out" if met else "no benchmark was given",
            part.rows.malformed,
        )  # fmt: skip
        counts.setdefault("flan", []).append(part.summary())
        shutil.rmtree(directory / f"draw-{number}")
    return artifacts.finish(directory, provenance, inputs, counts)
