"""Traces to tokens: the tokenizer, and one token store a data set, with a part held out for validation."""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import launch, students
from experiments.collect import TRACES, unit_hash
from experiments.config import ExperimentConfig
from orca_jax import artifacts, record_files
from orca_jax.data import layouts, tokens
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError, TokenizerLike
from orca_jax.progress import progress
from orca_jax.records import Trace

log = logging.getLogger(__name__)
VALIDATION = "validation"
TRAINING_TEXTS = 20_000  # traces that a new tokenizer is trained on


def read(workdir: Path, teacher: str) -> Iterator[Trace]:
    return record_files.read_jsonl(workdir / "traces" / teacher / TRACES, Trace)


def held_out(trace: Trace, config: ExperimentConfig) -> bool:
    """Whether a trace's query belongs to validation; the same for every teacher."""
    return unit_hash("validation", config.seed, trace.query_id) < config.data.validation_fraction


def part(config: ExperimentConfig, workdir: Path, name: str) -> Iterator[Trace]:
    """The traces of a data set: a teacher's, or of `validation`, the held-out ones of all teachers."""
    if name != VALIDATION:
        return (trace for trace in read(workdir, name) if not held_out(trace, config))
    every = itertools.chain.from_iterable(read(workdir, teacher.name) for teacher in config.teachers)
    return (trace for trace in every if held_out(trace, config))


def make_tokenizer(config: ExperimentConfig, workdir: Path, inputs: dict[str, str]) -> TokenizerLike:
    """The configured tokenizer with the layout's control tokens, or one trained on the traces.

    Raises:
      TokenizerError: it has another number of ids than the student's vocabulary.
    """
    directory = workdir / "tokenizer"
    size, source = config.student.vocab_size, students.tokenizer_path(config)
    controls = _control_tokens(config.data.layout, source)
    made_by = {
        "program": "tokenizer",
        "source": source,
        "vocab_size": size,
        "control": controls,
    }
    if not artifacts.is_finished(directory, made_by, inputs):
        if source:
            made = tokenizers.load(source, controls)
        else:
            made = tokenizers.train(_texts(config, workdir), size, controls)
        made.save(directory)
        artifacts.finish(directory, made_by, inputs, {"vocab_size": made.vocab_size})
    loaded = tokenizers.load(directory)
    # Weights to start from may have more ids than their tokenizer uses; see students.shape.
    if loaded.vocab_size != size and not config.student.init:
        raise TokenizerError(
            f"the tokenizer has {loaded.vocab_size} ids, control tokens counted, and student.vocab_size is "
            f"{size}; set student.vocab_size={loaded.vocab_size}"
        )
    return loaded


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
    for trace in heapq.nsmallest(TRAINING_TEXTS, every, key=lambda trace: _draw(config, trace)):
        pieces = layouts.LAYOUTS[config.data.layout](trace.messages)
        yield "".join(piece.text for piece in pieces if not piece.control)


def _draw(config: ExperimentConfig, trace: Trace) -> float:
    return unit_hash("tokenizer", config.seed, trace.teacher, trace.id)


def make_store(
    config: ExperimentConfig, workdir: Path, name: str, tokenizer: TokenizerLike, inputs: dict[str, str]
) -> dict[str, Any]:
    """Writes tokens/NAME, or goes on with its missing shards."""
    directory = workdir / "tokens" / name
    made_by = {
        "program": "prepare",
        "data set": name,
        "layout": config.data.layout,
        "supervise": config.data.supervise,
        "validation_fraction": config.data.validation_fraction,
        "seed": config.seed,
    }
    inputs = {**inputs, "tokenizer": tokenizer.fingerprint}
    if artifacts.is_finished(directory, made_by, inputs):
        return artifacts.read_manifest(directory)
    artifacts.begin(directory, made_by, inputs)
    count = sum(1 for _ in part(config, workdir, name))
    encode = tokens.Encoder(tokenizer, config.data.layout, config.data.supervise)
    with progress(f"tokenising {name}", None) as report:
        counts = tokens.write_store(
            directory,
            part(config, workdir, name),
            count,
            encode,
            workers=config.data.workers,
            on_shard=lambda done, shards: report(done, f"of {shards} shards"),
        )
    log.info("%s: %d examples, left out: %s", name, counts["examples"], counts["dropped"] or "none")
    return artifacts.finish(directory, made_by, inputs, counts)


def run(config: ExperimentConfig, workdir: Path) -> None:
    inputs = {
        teacher.name: artifacts.read_manifest(workdir / "traces" / teacher.name)["fingerprint"]
        for teacher in config.teachers
    }
    tokenizer = make_tokenizer(config, workdir, inputs)
    for teacher in config.teachers:
        make_store(config, workdir, teacher.name, tokenizer, {teacher.name: inputs[teacher.name]})
    if config.data.validation_fraction > 0:
        make_store(config, workdir, VALIDATION, tokenizer, inputs)


if __name__ == "__main__":
    launch.main(run)
