"""Traces to tokens: flags, the tokenizer, one token store a data set, and a data card."""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__, *cli.EXPERIMENT, cli.WORKERS, made=("{workdir}/tokens", "{workdir}/cards"), then="train {same}"
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import functools
import logging
from pathlib import Path

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig
from orca_jax.data import prepared, tokens
from orca_jax.data.prepared import VALIDATION
from orca_jax.evaluation.benchmarks import registry
from orca_jax.reporting.data_card import make_card, untrained
from orca_jax.training import rescoring, students

log = logging.getLogger(__name__)


def run(config: ExperimentConfig, workdir: Path, *, workers: int = 0, kept: bool = False) -> None:
    """Writes all stores and cards, the shards in so many processes (0: one a core).

    What other settings made is made again, unless it is to be `kept`, or a student was trained on it.
    """
    config = students.to_prepare(config)
    remake = not (kept or students.is_trained(workdir))
    traces = [artifacts.read_manifest(workdir / "traces" / teacher.name) for teacher in config.teachers]
    inputs = {}
    for teacher, manifest in zip(config.teachers, traces):
        documents = registry.documents(config.given_benchmarks)
        used = {"traces": manifest["fingerprint"]}
        flags = prepared.make_flags(config, teacher, workdir, used, documents, remake=remake)
        inputs[teacher.name] = flags["fingerprint"]
    source = students.tokenizer_path(config)
    tokenizer = prepared.make_tokenizer(config, workdir, source, inputs, remake=remake)
    store = functools.partial(prepared.make_store, config, workdir, remake=remake)
    for teacher in config.teachers:
        scored = rescoring.scored(config, teacher, tokenizer)
        used = {teacher.name: inputs[teacher.name]}
        store(teacher.name, tokenizer, used, workers, scored=scored)
    if config.data.validation_fraction > 0:
        store(VALIDATION, tokenizer, inputs, workers)
    trained = {name for stage in config.curriculum for name in stage.names}
    for teacher in config.teachers:
        if kept and teacher.name not in trained:  # its card is made by an arm that it trains
            continue
        # A student's data card is of the rows that it was trained on.
        if remake or not (workdir / "cards" / teacher.name / artifacts.MANIFEST).exists():
            part = functools.partial(prepared.part, config, workdir, teacher.name)
            make_card(config, teacher, workdir, part)
        rows = tokens.TokenStore(workdir / "tokens" / teacher.name)
        if said := untrained(config, teacher, workdir, rows):
            log.warning("%s: %s", teacher.name, said)


def main() -> None:
    PROGRAM.main(lambda given: run(given.config, given.workdir, workers=given.workers))


if __name__ == "__main__":
    main()
