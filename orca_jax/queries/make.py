"""Makes the queries of an experiment: puzzles and draws of FLAN-v2, without any benchmark's question."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.config import ExperimentConfig, PuzzlesConfig
from orca_jax.queries import draw, puzzles, system_messages
from orca_jax.queries.duplicates import Exact
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Query

log = logging.getLogger(__name__)
QUERIES = "queries.jsonl"
HITS = "contamination.jsonl"
Document = tuple[str, str, str]  # benchmark, id and text: `evaluation.benchmarks.base.Document`


def unit_hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    text = "\x00".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def assign_message(query_id: str, multiple_choice: bool, shares: Mapping[str, float], seed: int) -> int:
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


def make_queries(config: ExperimentConfig, workdir: Path, documents: Iterable[Document]) -> dict[str, Any]:
    """Writes queries/queries.jsonl: puzzles and draws of FLAN-v2, with their system messages.

    Every text of a benchmark that a query of FLAN meets is listed in queries/contamination.jsonl.

    Args:
      documents: the texts of the benchmarks, none of which becomes a query.

    Returns:
      The manifest of queries/.
    """
    directory, inputs, documents = workdir / "queries", draw.inputs(config.flan), list(documents)
    expert = min(config.asked_shares, default=1.0)
    counted = {"sources": "", "messages": "", "expert": expert}  # files count by content, see draw.inputs
    provenance = artifacts.joined(
        {"program": "queries"},
        artifacts.section(config, ("seed", "puzzles")),
        {"flan": [artifacts.joined(artifacts.section(part), counted) for part in config.flan]},
        benchmark_digests(documents, artifacts.recorded(directory)["provenance"]),
    )
    if artifacts.is_finished(directory, provenance, inputs):
        return artifacts.read_manifest(directory)
    artifacts.begin(directory, provenance, inputs)
    made, left_out = training_puzzles(config.puzzles, config.seed, [text for _, _, text in documents])
    shares = {str(id): share for id, share in config.puzzles.messages.items()}
    queries = [puzzles.to_query(p, assign_message(p.id, bool(p.choices), shares, config.seed)) for p in made]
    known, draws = Exact(), [draw.Counts() for _ in config.flan]
    for query in queries:
        known.seen(query.text)

    def drawn() -> Iterator[Query]:
        (directory / HITS).unlink(missing_ok=True)
        with files.JsonlAppender(directory / HITS) as hits:
            for number, (flan_config, counts) in enumerate(zip(config.flan, draws)):
                folder = directory / f"draw-{number}"
                folder.mkdir(exist_ok=True)
                yield from draw.queries(
                    flan_config,
                    folder,
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
    return artifacts.finish(directory, provenance, inputs, counts)
