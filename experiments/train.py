"""Trains a student on tokens: runs the curriculum, or goes on with it.

python -m experiments.train --config=configs/mini.py --workdir=runs/mini
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(__doc__, *cli.EXPERIMENT, *cli.TRAIN, parts=("tokenizer", "tokens", "training", "logs"))
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from orca_jax import artifacts, storage
from orca_jax.config import ExperimentConfig, LlamaConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.loader import RowBuilder
from orca_jax.data.prepared import VALIDATION
from orca_jax.data.tokens import TokenStore, warning
from orca_jax.planning import chips
from orca_jax.student import sharding
from orca_jax.training import hosts, students
from orca_jax.training.curriculum import Curriculum
from orca_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


class RunOptions(NamedTuple):
    """What the flags say: `hosts` as in training.hosts.join, TFLOP/s of a device, steps to trace."""

    hosts: str = ""
    peak_tflops: float = 0.0
    profile: tuple[int, int] | None = None


def run_options(options: cli.Options) -> RunOptions:
    """What the options of cli.TRAIN say."""
    return RunOptions(options.hosts, options.peak_tflops, profiled(options.profile_steps))


def profiled(steps: str) -> tuple[int, int] | None:
    """`FIRST:LAST` as two numbers; empty: none.

    Raises:
      ValueError: it is neither.
    """
    if not steps:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", steps)
    if not found:
        raise ValueError(f"--profile_steps={steps!r} must be FIRST:LAST, for example 20:22")
    return int(found[1]), int(found[2])


def peak_flops(options: RunOptions, device_kind: str, compute_dtype: str) -> float:
    """FLOP/s of one device: as the flag says, or of planning's table, which is for bfloat16; 0: not known."""
    chip = chips.of_device(device_kind) if compute_dtype == "bfloat16" else None
    return options.peak_tflops * 1e12 or (chip.peak if chip else 0.0)


def provenance(config: ExperimentConfig, student: LlamaConfig) -> artifacts.Section:
    """Everything of the config that the trained parameters depend on."""
    return artifacts.joined(
        {"program": "train", "student": artifacts.section(student)},
        artifacts.section(config.data, ("layout",)),
        artifacts.section(config, ("seed", "curriculum", "optimizer", "compiler_options")),
        {
            "data": artifacts.section(config.data, ("row_length", "max_segments", "overlong", "segments")),
            "train": artifacts.section(config.train, ("batch_rows", "accumulation", "compute_dtype")),
        },
    )


def stores(config: ExperimentConfig, workdir: Path) -> dict[str, TokenStore]:
    """The token stores of the curriculum's data sets, and of validation where there is one."""
    names = {name for stage in config.curriculum for name in stage.names}
    found = {name: TokenStore(workdir / "tokens" / name) for name in sorted(names)}
    validation = workdir / "tokens" / VALIDATION
    if config.data.validation_fraction > 0 and len(held := TokenStore(validation)):
        found[VALIDATION] = held
    return found


def row_builder(config: ExperimentConfig, workdir: Path) -> RowBuilder:
    return RowBuilder(
        stores(config, workdir),
        row_length=config.data.row_length,
        max_segments=config.data.max_segments,
        overlong=config.data.overlong,
        pad_id=tokenizers.load(workdir / "tokenizer").pad_id,
        seed=config.seed,
        leaking=[t.name for t in config.teachers] if config.data.segments == "leaking" else (),
    )


def describe(rows: RowBuilder, overlong: str) -> dict[str, dict[str, float]]:
    """What packing makes of every data set's first epoch: the figures to look at before training."""
    described = {}
    for name, store in rows.stores.items():
        plan = rows.plan_of(name, 0)
        fates = store.fates(rows.row_length, overlong)
        described[name] = {
            **fates,
            "rows": plan.rows,
            "examples_per_row": round(plan.packing_factor, 3),
            "fill": round(plan.fill, 5),
            "supervised_share": round(
                float(store.columns["supervised"].sum() / max(1, store.lengths.sum())), 4
            ),
            "left_out": len(plan.left_out),
        }
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in described[name].items()))
        if said := warning(fates):
            log.warning("%s: %s", name, said)
    return described


def _begin(
    directory: Path, made: artifacts.Section, inputs: dict[str, str], places: dict[str, object]
) -> str:
    """As `artifacts.begin`, on the first host before all others: it removes what other settings began."""
    for turn in (True, False):
        if turn == (jax.process_index() == 0):
            begun = artifacts.begin(directory, made, inputs, places=places, costly=students.CHECKPOINTS)
        hosts.compare("begin", {})
    return begun


def run(
    config: ExperimentConfig,
    workdir: Path,
    options: RunOptions | None = None,
    *,
    on_begin: Callable[[], None] | None = None,
) -> None:
    """Trains, or goes on; `on_begin` is called once it is known that no other settings have trained here."""
    options = options or RunOptions()
    hosts.join(options.hosts)
    if options.hosts:
        cli.keep_log(workdir / "logs" / f"host{jax.process_index()}.log")
        if jax.process_index():
            storage.push_logs_alone()
    directory, builder = workdir / "training", row_builder(config, workdir)
    inputs = {name: store.manifest["fingerprint"] for name, store in builder.stores.items()}
    source = students.open_source(config.student.init) if config.student.init else None
    config = students.as_made(config, next(iter(builder.stores.values())).manifest)
    student = students.shape(config, workdir, source)
    made = provenance(config, student)
    places: dict[str, object] = {name: workdir / "tokens" / name for name in inputs}
    if source:
        inputs["init"], places["init"] = source.fingerprint, config.student.init
    versions = artifacts.versions()
    hosts.compare("run", {"config": artifacts.digest(made), "data": artifacts.digest(inputs), **versions})
    if artifacts.is_finished(directory, made, inputs, places=places):
        return
    fingerprint = _begin(directory, made, inputs, places)
    if on_begin:
        on_begin()
    curriculum = Curriculum(
        config.curriculum, builder.plan_of, batch_rows=config.train.batch_rows, seed=config.seed
    )
    described = describe(builder, config.data.overlong)
    mesh = sharding.make_mesh(config.mesh)
    log.info(
        "student of %d parameters from %s, %d steps of %d rows, mesh %s",
        student.parameter_count, config.student.init or "random weights",
        curriculum.total_steps, config.train.batch_rows, dict(mesh.shape),
    )  # fmt: skip
    trainer = Trainer(
        directory,
        student=student,
        optimizer=config.optimizer,
        train=config.train,
        curriculum=curriculum,
        rows=builder,
        mesh=mesh,
        seed=config.seed,
        fingerprint=fingerprint,
        validation=VALIDATION if VALIDATION in builder.stores else None,
        compiler_options=config.compiler_options,
        init=source and (lambda: students.initial(source, student, mesh, config.seed)),
        peak_flops=peak_flops(options, mesh.devices.flat[0].device_kind, config.train.compute_dtype),
        profile=options.profile,
    )
    last = trainer.run()
    counts = {"steps": trainer.curriculum.total_steps, "data": described, "last": last}
    artifacts.finish(directory, made, inputs, counts)


def main() -> None:
    PROGRAM.main(lambda options: run(options.config, options.workdir, run_options(options)))


if __name__ == "__main__":
    main()
