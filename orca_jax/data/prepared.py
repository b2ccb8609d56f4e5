"""What `experiments.prepare` makes of traces in a workdir: flags, the tokenizer, one token store a data set.

A data set is a teacher's traces, or `validation`: the held-out ones of all teachers.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orca_jax import artifacts, files, hub, plugins
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import layouts, tokens, traces
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.alternatives import Collected, Source
from orca_jax.data.tokenizer import Tokenizer, TokenizerError
from orca_jax.data.traces import Candidate, PlacedTraces
from orca_jax.progress import progress
from orca_jax.queries import contamination
from orca_jax.queries.make import Document, training_puzzles, unit_hash
from orca_jax.queries.quality import WITH_PUZZLES, TraceChecker
from orca_jax.records import Outcome, Trace, half_pair
from orca_jax.teachers.collection import TRACES

log = logging.getLogger(__name__)
VALIDATION = "validation"
FLAGS, SHOTS = "flags.jsonl", "shots.npy"
TRAINING_TEXTS = 20_000  # traces that a new tokenizer is trained on


def read(workdir: Path, teacher: str) -> Iterator[Trace]:
    """A teacher's traces."""
    return files.read_jsonl(workdir / "traces" / teacher / TRACES, Trace)


def held_out(query_id: str, config: ExperimentConfig) -> bool:
    """Whether a query belongs to validation; the same for every teacher."""
    return unit_hash("validation", config.seed, query_id) < config.data.validation_fraction


@dataclasses.dataclass(frozen=True, slots=True)
class Flagged:
    """A trace's place and flags, see `queries.quality`: a line of quality/NAME/flags.jsonl."""

    id: str
    query_id: str
    offset: int
    flags: tuple[str, ...] = ()
    left_out: str | None = None


def make_flags(
    config: ExperimentConfig,
    teacher: TeacherConfig,
    workdir: Path,
    inputs: dict[str, str],
    documents: Iterable[Document],
    *,
    remake: bool = False,
) -> dict[str, Any]:
    """Writes quality/NAME/flags.jsonl; the manifest counts every flag, and what filters leave out.

    For a teacher with shots it also writes shots.npy, int64 [traces, 1 + shots]: where each trace's line
    begins, and where those of its examples do, none of which is in validation.

    Args:
      documents: the texts of the benchmarks; the traces of a file are checked against them.
    """
    directory = workdir / "quality" / teacher.name
    provenance = artifacts.joined({"program": "quality"}, artifacts.section(teacher, ("filters",)))
    if teacher.shots:
        drawn = artifacts.section(config.data, ("validation_fraction",)), artifacts.section(config, ("seed",))
        provenance = artifacts.joined(provenance, artifacts.section(teacher, ("shots",)), *drawn)
    places = {"traces": workdir / "traces" / teacher.name}
    artifact = artifacts.Artifact(directory, provenance, inputs, places)
    if manifest := artifact.finished(remake=remake):
        return manifest
    checked_against = list(documents) if teacher.kind == "file" else []
    index = contamination.Index(checked_against) if checked_against else None
    asked = (
        [] if WITH_PUZZLES.isdisjoint(teacher.filters) else training_puzzles(config.puzzles, config.seed)[0]
    )
    checker = TraceChecker(teacher.filters, index, {puzzle.question: puzzle for puzzle in asked})
    placed = files.read_placed(workdir / "traces" / teacher.name / TRACES, Trace)

    def entries() -> Iterator[Flagged]:
        for offset, trace, found in checker.stream(placed):
            report(checker.traces)
            yield Flagged(trace.id, trace.query_id, offset, tuple(found), checker.reason(found))

    with progress(f"evaluating traces of {teacher.name}", None) as report:
        files.write_jsonl(directory / FLAGS, entries())
    counts = checker.summary()
    log.info("%s: %d traces, left out: %s", teacher.name, checker.traces, counts["left_out"] or "none")
    if teacher.shots:
        candidates = []  # examples are of the training part and of what filters keep
        every = zip(flagged(workdir, teacher.name), read(workdir, teacher.name), strict=True)
        for entry, trace in every:
            good = trace.outcome is Outcome.OK and trace.messages[-1].weight > 0
            serves = entry.left_out is None and good and not held_out(entry.query_id, config)
            kind = trace.task, trace.system_message_id
            candidates.append(Candidate(entry.offset, entry.query_id, kind, serves))
        shots = traces.draw_shots(candidates, teacher.shots, config.seed)
        with artifacts.atomic_write(directory / SHOTS, "wb") as file:
            np.save(file, shots)
        counts["short_of_shots"] = int((shots == traces.NO_SHOT).any(1).sum())
    return artifact.finish(counts)


def flagged(workdir: Path, teacher: str) -> Iterator[Flagged]:
    return files.read_jsonl(workdir / "quality" / teacher / FLAGS, Flagged)


def part(config: ExperimentConfig, workdir: Path, name: str) -> PlacedTraces:
    """The traces of a data set: a teacher's, or of `validation`, the held-out ones of all teachers.

    Those that a teacher's filters leave out are in neither.
    """
    parts: dict[Path, Sequence[int] | NDArray[np.int64]] = {}
    for teacher in config.teachers:
        if name not in (teacher.name, VALIDATION):
            continue
        offsets = [
            entry.offset
            for entry in flagged(workdir, teacher.name)
            if entry.left_out is None and held_out(entry.query_id, config) == (name == VALIDATION)
        ]
        parts[path := workdir / "traces" / teacher.name / TRACES] = offsets
        if teacher.shots:
            shots: NDArray[np.int64] = np.load(workdir / "quality" / teacher.name / SHOTS)
            parts[path] = shots[np.searchsorted(shots[:, 0], offsets)]
    return PlacedTraces.of(parts)


def make_tokenizer(
    config: ExperimentConfig, workdir: Path, source: str, inputs: dict[str, str], *, remake: bool = False
) -> Tokenizer:
    """The tokenizer at `source` with the layout's control tokens, or one trained on the traces if empty.

    Raises:
      TokenizerError: it has another number of ids than the student's vocabulary.
      LayoutError: it cannot write the layout.
      ValueError: the layout is a tokenizer's own, and no tokenizer is given.
    """
    directory, size, layout = workdir / "tokenizer", config.student.vocab_size, config.data.layout
    if layout == layouts.TEMPLATE and not source:
        raise ValueError("data.layout='template' is a tokenizer's own; name one in data.tokenizer")
    controls = layouts.CONTROL_TOKENS[layout]
    unpinned = hub.unpinned(source)
    provenance = {"program": "tokenizer", "source": unpinned, "vocab_size": size, "control": controls}
    if source in ("", tokenizers.WORDS):  # what texts it is trained on
        texts = artifacts.section(config.data, ("layout", "validation_fraction"))
        provenance = artifacts.joined(
            provenance, artifacts.unrecorded(texts), plugins.provenance((plugins.LAYOUTS, layout))
        )
    places: dict[str, object] = {name: workdir / "quality" / name for name in inputs}
    if hub.reference(source):  # whose content may be another next time
        inputs, places["source"] = {**inputs, "source": tokenizers.load(source).fingerprint}, source
    artifact = artifacts.Artifact(directory, provenance, inputs, places)
    finished = artifact.finished(remake=remake)
    if finished:
        made = tokenizers.load(directory)
    elif source == tokenizers.WORDS:
        made = tokenizers.of_words(_texts(config, workdir), size, controls)
    elif source:
        made = tokenizers.load(source, controls)
        layouts.check(layout, made)
    else:
        made = tokenizers.train(_texts(config, workdir), size, controls)
    # Weights to start from may have more ids than their tokenizer uses; see students.shape.
    if made.vocab_size != size and not config.student.init:
        raise TokenizerError(
            f"the tokenizer has {made.vocab_size} ids, control tokens counted, and student.vocab_size is "
            f"{size}; set student.vocab_size={made.vocab_size}"
        )
    if not finished:
        artifact.begin()
        made.save(directory)
        artifact.finish({"vocab_size": made.vocab_size}, hub.revisions(source))
    return made


def _texts(config: ExperimentConfig, workdir: Path) -> Iterator[str]:
    """A sample of the training part of all teachers: a file's first traces may all be of one kind."""
    every = itertools.chain.from_iterable(part(config, workdir, teacher.name) for teacher in config.teachers)
    # A text that is none would end SentencePiece; its trace is left out of the store.
    texts = (trace for trace in every if not any(half_pair(message.content) for message in trace.messages))

    def key(trace: Trace) -> float:
        return unit_hash("tokenizer", config.seed, trace.teacher, trace.id)

    for trace in heapq.nsmallest(TRAINING_TEXTS, texts, key=key):
        pieces = layouts.LAYOUTS[config.data.layout or layouts.PAPER](trace.messages)
        yield "".join(piece.text for piece in pieces if not piece.control)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What gives the alternatives of a data set's tokens in the place of those of its traces.

    Attributes:
      settings: what they depend on beside `fingerprint`, that of the weights at `path`.
      open: makes it; takes what is called with the number of traces done.
    """

    settings: artifacts.Section
    fingerprint: str
    path: str
    open: Callable[[Callable[[int], None]], Source]


def make_store(
    config: ExperimentConfig,
    workdir: Path,
    name: str,
    tokenizer: Tokenizer,
    inputs: dict[str, str],
    workers: int,
    *,
    scored: Scored | None = None,
    remake: bool = False,
) -> dict[str, Any]:
    """Writes tokens/NAME, or goes on with its missing shards.

    With `data.top_logprobs` it holds the teacher's alternatives, but in validation, whose losses are of
    tokens alone: those that came with the traces, or `scored` ones, which are made in this process.
    """
    directory, supervise = workdir / "tokens" / name, config.data.supervise
    stored, top = {*config.data.STORED} - {"tokenizer"}, config.data.top_logprobs  # it is among the inputs
    if name == VALIDATION:
        stored, top = stored - {"top_logprobs"}, 0
        if supervise == "everything":
            supervise = "all"  # so that losses are of the same tokens, however the student was trained
    provenance = artifacts.joined(
        {"program": "prepare", "data set": name},
        artifacts.section(config, ("seed",)),
        artifacts.section(config.data, stored),
        {"supervise": supervise},
        plugins.provenance((plugins.LAYOUTS, config.data.layout)),
        scored.settings if scored else {},
    )
    places: dict[str, object] = {name: workdir / "quality" / name for name in inputs}
    places["tokenizer"] = workdir / "tokenizer"
    inputs = {**inputs, "tokenizer": tokenizer.fingerprint}
    if scored:
        inputs["scorer"], places["scorer"] = scored.fingerprint, scored.path
    artifact = artifacts.Artifact(directory, provenance, inputs, places)
    if manifest := artifact.finished(remake=remake):
        return manifest
    artifact.begin()
    chosen = part(config, workdir, name)
    encode = tokens.Encoder(tokenizer, config.data.layout, supervise)
    title, total = f"tokenising {name}, shards", tokens.shard_count(len(chosen))
    if scored:
        title, total = (
            f"scoring {name}, traces",
            sum(len(job) for _, job in tokens.missing_shards(directory, chosen)),
        )
    with progress(title, total) as report:
        counts = tokens.write_store(
            directory,
            chosen,
            encode,
            workers=1 if scored else workers,
            malformed=max(t.malformed for t in config.teachers if name in (t.name, VALIDATION)),
            source=scored.open(report) if scored else Collected(tokenizer, top) if top else None,
            on_shard=None if scored else lambda done, shards: report(done),
        )
    log.info("%s: %d examples, left out: %s", name, counts["examples"], counts["dropped"] or "none")
    if top:
        found = counts["alternatives"]
        log.info(
            "%s: %d alternatives of %d tokens of %d examples", name, top, found["tokens"], found["examples"]
        )
        if found["left_out"]:
            listed = ", ".join(f"{count} with {why}" for why, count in found["left_out"].items())
            log.warning("%s: examples without alternatives: %s", name, listed)
    return artifact.finish(counts, hub.revisions(scored.path) if scored else None)
