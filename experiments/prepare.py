"""Traces to tokens: flags, the tokenizer, one token store a data set, and a data card.

Shards are written by a process a core; --workers gives another number, and --beam hands them to Apache Beam
with its options: --beam=--runner=DirectRunner,--direct_num_workers=4. The bytes are the same in all cases.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("prepare")  # before the imports below, which take seconds

import dataclasses
import functools
import heapq
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from orca_jax import artifacts, files
from orca_jax.config import ExperimentConfig, TeacherConfig
from orca_jax.data import beam, few_shot, layouts, tokens
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError, TokenizerLike
from orca_jax.data.traces import PlacedTraces
from orca_jax.evaluation.benchmarks import registry
from orca_jax.experiments import options
from orca_jax.experiments.collect_asking import TRACES
from orca_jax.experiments.queries import unit_hash
from orca_jax.progress import Report, progress
from orca_jax.queries import contamination
from orca_jax.queries.quality import TraceChecker
from orca_jax.records import Outcome, Trace, half_pair
from orca_jax.reporting.data_card import make_card, untrained
from orca_jax.training import students

log = logging.getLogger(__name__)
options.define("prepare")
VALIDATION = "validation"  # held out examples of all teachers, a data set of its own
FLAGS, SHOTS = "flags.jsonl", "shots.npy"
SHARDS_A_PROCESS = 4  # at least: a process starts as long as it writes a shard
TRAINING_TEXTS = 20_000  # traces that a new tokenizer is trained on


def read(workdir: Path, teacher: str) -> Iterator[Trace]:
    return files.read_jsonl(workdir / "traces" / teacher / TRACES, Trace)


def held_out(trace: Trace | Flagged, config: ExperimentConfig) -> bool:
    """Whether a trace's query belongs to validation; the same for every teacher."""
    return unit_hash("validation", config.seed, trace.query_id) < config.data.validation_fraction


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
    *,
    remake: bool = False,
) -> dict[str, Any]:
    """Writes quality/NAME/flags.jsonl; the manifest counts every flag, and what filters leave out.

    Of a teacher with shots it writes shots.npy too, int64 [traces, 1 + shots]: where each trace's line
    begins, and where those of its examples do, none of which is of validation.
    """
    directory = workdir / "quality" / teacher.name
    provenance = artifacts.joined({"program": "quality"}, artifacts.section(teacher, ("filters",)))
    if teacher.shots:
        drawn = artifacts.section(config.data, ("validation_fraction",)), artifacts.section(config, ("seed",))
        provenance = artifacts.joined(provenance, artifacts.section(teacher, ("shots",)), *drawn)
    places = {"traces": workdir / "traces" / teacher.name}
    if artifacts.is_finished(directory, provenance, inputs, places=places, remake=remake):
        return artifacts.read_manifest(directory)
    checker = TraceChecker(teacher.filters, _benchmark_index(config) if teacher.kind == "file" else None)
    placed = files.read_placed(workdir / "traces" / teacher.name / TRACES, Trace)
    with progress(f"evaluating traces of {teacher.name}", None) as report:
        files.write_jsonl(directory / FLAGS, _flagged(checker, placed, report))
    counts = checker.summary()
    log.info("%s: %d traces, left out: %s", teacher.name, checker.traces, counts["left_out"] or "none")
    if teacher.shots:
        candidates = list(_candidates(config, workdir, teacher.name))
        shots = few_shot.draw(candidates, teacher.shots, config.seed)
        with artifacts.atomic_write(directory / SHOTS, "wb") as file:
            np.save(file, np.column_stack([np.array([one.offset for one in candidates], np.int64), shots]))
        counts["short_of_shots"] = int((shots == few_shot.NO_SHOT).any(1).sum())
    return artifacts.finish(directory, provenance, inputs, counts)


def _candidates(config: ExperimentConfig, workdir: Path, teacher: str) -> Iterator[few_shot.Candidate]:
    """Every trace, in order; examples are of the training part and of what filters keep."""
    for entry, trace in zip(flagged(workdir, teacher), read(workdir, teacher), strict=True):
        good = trace.outcome is Outcome.OK and trace.messages[-1].weight > 0
        serves = entry.left_out is None and good and not held_out(entry, config)
        kind = trace.task, trace.system_message_id
        yield few_shot.Candidate(entry.offset, entry.query_id, kind, serves)


def _benchmark_index(config: ExperimentConfig) -> contamination.Index | None:
    given = config.given_benchmarks
    return contamination.Index(registry.documents(given)) if given else None


def _flagged(checker: TraceChecker, placed: Iterable[tuple[int, Trace]], report: Report) -> Iterator[Flagged]:
    for offset, trace, found in checker.stream(placed):
        report(checker.traces)
        yield Flagged(trace.id, trace.query_id, offset, tuple(found), checker.reason(found))


def flagged(workdir: Path, teacher: str) -> Iterator[Flagged]:
    return files.read_jsonl(workdir / "quality" / teacher / FLAGS, Flagged)


def part(config: ExperimentConfig, workdir: Path, name: str) -> PlacedTraces:
    """The traces of a data set: a teacher's, or of `validation`, the held-out ones of all teachers.

    Those that a teacher's filters leave out are in neither.
    """
    teachers = [teacher for teacher in config.teachers if name in (teacher.name, VALIDATION)]
    traces = PlacedTraces.of(
        {
            workdir / "traces" / teacher.name / TRACES: [
                entry.offset
                for entry in flagged(workdir, teacher.name)
                if entry.left_out is None and held_out(entry, config) == (name == VALIDATION)
            ]
            for teacher in teachers
        }
    )
    if not any(teacher.shots for teacher in teachers):
        return traces
    own = (traces.offsets[traces.file == number] for number in range(len(teachers)))
    return few_shot.FewShotTraces.over(traces, map(functools.partial(_shots, workdir), teachers, own))


def _shots(workdir: Path, teacher: TeacherConfig, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The examples of the traces at these bytes, int64 [traces, shots]."""
    if not teacher.shots:
        return np.empty((len(offsets), 0), np.int64)
    table = np.load(workdir / "quality" / teacher.name / SHOTS)
    found: NDArray[np.int64] = table[np.searchsorted(table[:, 0], offsets), 1:]
    return found


def make_tokenizer(
    config: ExperimentConfig, workdir: Path, inputs: dict[str, str], *, remake: bool = False
) -> TokenizerLike:
    """The configured tokenizer with the layout's control tokens, or one trained on the traces.

    Raises:
      TokenizerError: it has another number of ids than the student's vocabulary.
      LayoutError: it cannot write the layout.
    """
    directory = workdir / "tokenizer"
    size, source = config.student.vocab_size, students.tokenizer_path(config)
    controls = _control_tokens(config.data.layout, source)
    provenance = {
        "program": "tokenizer",
        "source": source,
        "vocab_size": size,
        "control": controls,
    }
    places = {name: workdir / "quality" / name for name in inputs}
    finished = artifacts.is_finished(directory, provenance, inputs, places=places, remake=remake)
    if finished:
        made = tokenizers.load(directory)
    elif source:
        made = tokenizers.load(source, controls)
        layouts.check(config.data.layout, made)
    else:
        made = tokenizers.train(_texts(config, workdir), size, controls)
    # Weights to start from may have more ids than their tokenizer uses; see students.shape.
    if made.vocab_size != size and not config.student.init:
        raise TokenizerError(
            f"the tokenizer has {made.vocab_size} ids, control tokens counted, and student.vocab_size is "
            f"{size}; set student.vocab_size={made.vocab_size}"
        )
    if not finished:
        artifacts.begin(directory, provenance, inputs)
        made.save(directory)
        artifacts.finish(directory, provenance, inputs, {"vocab_size": made.vocab_size})
    return tokenizers.load(directory)


def _control_tokens(layout: str, source: str) -> tuple[str, ...]:
    """The control tokens that a layout needs.

    Raises:
      ValueError: the layout is unknown, or is a tokenizer's own and no tokenizer is given.
    """
    if layout not in layouts.CONTROL_TOKENS:
        raise ValueError(f"data.layout={layout!r}; known: {', '.join(layouts.CONTROL_TOKENS)}")
    if layout == layouts.TEMPLATE and not source:
        raise ValueError("data.layout='template' is a tokenizer's own; name one in data.tokenizer")
    return layouts.CONTROL_TOKENS[layout]


def _texts(config: ExperimentConfig, workdir: Path) -> Iterator[str]:
    """A sample of the training part of all teachers: a file's first traces may all be of one kind."""
    every = itertools.chain.from_iterable(part(config, workdir, teacher.name) for teacher in config.teachers)
    # A text that is none would end SentencePiece; tokens.trainable leaves its trace out later.
    texts = (trace for trace in every if not any(half_pair(message.content) for message in trace.messages))
    for trace in heapq.nsmallest(TRAINING_TEXTS, texts, key=lambda trace: _draw(config, trace)):
        pieces = layouts.LAYOUTS[config.data.layout or layouts.PAPER](trace.messages)
        yield "".join(piece.text for piece in pieces if not piece.control)


def _draw(config: ExperimentConfig, trace: Trace) -> float:
    return unit_hash("tokenizer", config.seed, trace.teacher, trace.id)


def make_store(
    config: ExperimentConfig,
    workdir: Path,
    name: str,
    tokenizer: TokenizerLike,
    inputs: dict[str, str],
    how: tokens.Run,
    *,
    remake: bool = False,
) -> dict[str, Any]:
    """Writes tokens/NAME, or goes on with its missing shards."""
    directory, supervise = workdir / "tokens" / name, config.data.supervise
    if name == VALIDATION and supervise == "everything":
        supervise = "all"  # so that losses are of the same tokens, however the student was trained
    data = artifacts.section(config.data, ("layout", "supervise", "validation_fraction"))
    own = artifacts.section(config, ("seed",))
    provenance = artifacts.joined(
        {"program": "prepare", "data set": name}, own, data, {"supervise": supervise}
    )
    places = {name: workdir / "quality" / name for name in inputs} | {"tokenizer": workdir / "tokenizer"}
    inputs = {**inputs, "tokenizer": tokenizer.fingerprint}
    if artifacts.is_finished(directory, provenance, inputs, places=places, remake=remake):
        return artifacts.read_manifest(directory)
    artifacts.begin(directory, provenance, inputs, places=places)
    traces = part(config, workdir, name)
    encode = tokens.Encoder(tokenizer, config.data.layout, supervise)
    with progress(f"tokenising {name}, shards", tokens.shard_count(len(traces))) as report:
        counts = tokens.write_store(
            directory,
            traces,
            encode,
            run=how,
            malformed=max(t.malformed for t in config.teachers if name in (t.name, VALIDATION)),
            on_shard=lambda done, shards: report(done),
        )
    log.info("%s: %d examples, left out: %s", name, counts["examples"], counts["dropped"] or "none")
    return artifacts.finish(directory, provenance, inputs, counts)


def on_all_cores(work: Callable[[tokens.Job], int], jobs: Sequence[tokens.Job]) -> Iterator[int]:
    """Does jobs by a process a core, or fewer where their start would take longer than the jobs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tokens.in_processes(min(cores, len(jobs) // SHARDS_A_PROCESS), work, jobs)


def runner(workers: int = 0, beam_options: Sequence[str] | None = None) -> tokens.Run:
    """What writes the shards, as `--workers` and `--beam` say; by default a process a core."""
    if beam_options is not None:
        return functools.partial(beam.on_beam, beam_options)
    return functools.partial(tokens.in_processes, workers) if workers else on_all_cores


def from_flags() -> tokens.Run:
    given = flags.FLAGS
    return runner(given.workers, given.beam) if given.is_parsed() else on_all_cores


def run(
    config: ExperimentConfig, workdir: Path, *, how: tokens.Run | None = None, kept: bool = False
) -> None:
    """Writes all stores and cards; `how` does the shards' work.

    What other settings made is made again, unless it is to be `kept`, or a student was trained on it.
    """
    how, config = how or from_flags(), students.to_prepare(config)
    remake = not (kept or students.is_trained(workdir))
    collected = {
        teacher.name: artifacts.read_manifest(workdir / "traces" / teacher.name)["fingerprint"]
        for teacher in config.teachers
    }
    inputs = {
        teacher.name: make_flags(
            config, teacher, workdir, {"traces": collected[teacher.name]}, remake=remake
        )["fingerprint"]
        for teacher in config.teachers
    }
    tokenizer = make_tokenizer(config, workdir, inputs, remake=remake)
    stores = {teacher.name: {teacher.name: inputs[teacher.name]} for teacher in config.teachers}
    if config.data.validation_fraction > 0:
        stores[VALIDATION] = inputs
    for name, used in stores.items():
        make_store(config, workdir, name, tokenizer, used, how, remake=remake)
    for teacher in config.teachers:
        # A student's data card is of the rows that it was trained on.
        if remake or not (workdir / "cards" / teacher.name / artifacts.MANIFEST).exists():
            make_card(config, teacher, workdir, functools.partial(part, config, workdir, teacher.name))
        store = tokens.TokenStore(workdir / "tokens" / teacher.name)
        if said := untrained(config, teacher, workdir, store):
            log.warning("%s: %s", teacher.name, said)


if __name__ == "__main__":
    launch.main(run)
