"""Tokens to a student: runs the curriculum, or goes on with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from experiments import launch, students
from experiments.config import ExperimentConfig, plain
from experiments.prepare import VALIDATION
from orca_jax import artifacts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.loader import RowBuilder
from orca_jax.data.tokens import TokenStore
from orca_jax.student import sharding
from orca_jax.student.config import LlamaConfig
from orca_jax.training.curriculum import Curriculum
from orca_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


def made_by(config: ExperimentConfig, student: LlamaConfig) -> dict[str, Any]:
    """Everything of the config that the trained parameters depend on."""
    parts = ("seed", "curriculum", "optimizer", "compiler_options")
    data = {name: getattr(config.data, name) for name in ("row_length", "max_segments", "overlong")}
    train = {name: getattr(config.train, name) for name in ("batch_rows", "accumulation", "compute_dtype")}
    chosen = {name: plain(getattr(config, name)) for name in parts}
    layout = {"layout": config.data.layout}
    return {"program": "train", "student": plain(student), **layout, **chosen, "data": data, "train": train}


def stores(config: ExperimentConfig, workdir: Path) -> dict[str, TokenStore]:
    """The token stores of the curriculum's data sets, and of validation where there is one."""
    names = {name for stage in config.curriculum for name in stage.datasets}
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
    )


def describe(rows: RowBuilder) -> dict[str, dict[str, float]]:
    """What packing makes of every data set's first epoch: the figures to look at before training."""
    described = {}
    for name, store in rows.stores.items():
        plan = rows.plan_of(name, 0)
        first = store.columns["first_supervised"]
        described[name] = {
            "examples": len(store),
            "rows": plan.rows,
            "examples_per_row": round(plan.packing_factor, 3),
            "fill": round(plan.fill, 5),
            "supervised_share": round(
                float(store.columns["supervised"].sum() / max(1, store.lengths.sum())), 4
            ),
            "cut_or_too_long": int((store.lengths > rows.row_length).sum()),
            "left_out": len(plan.left_out),
            "nothing_supervised": int((first < 0).sum()),
        }
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in described[name].items()))
    return described


def run(config: ExperimentConfig, workdir: Path) -> None:
    directory, builder = workdir / "training", row_builder(config, workdir)
    inputs = {name: store.manifest["fingerprint"] for name, store in builder.stores.items()}
    source = students.open_source(config.student.init) if config.student.init else None
    student = students.shape(config, workdir, source)
    settings = made_by(config, student)
    if source:
        inputs["init"] = source.fingerprint
    if artifacts.is_finished(directory, settings, inputs):
        return
    artifacts.begin(directory, settings, inputs)
    curriculum = Curriculum(
        config.curriculum, builder.plan_of, batch_rows=config.train.batch_rows, seed=config.seed
    )
    described = describe(builder)
    mesh = sharding.make_mesh(config.mesh)
    log.info(
        "student of %d parameters, %d steps of %d rows, mesh %s",
        student.parameter_count, curriculum.total_steps, config.train.batch_rows, dict(mesh.shape),
    )  # fmt: skip
    last = Trainer(
        directory,
        student=student,
        optimizer=config.optimizer,
        train=config.train,
        curriculum=curriculum,
        rows=builder,
        mesh=mesh,
        seed=config.seed,
        fingerprint=artifacts.fingerprint(settings, inputs),
        validation=VALIDATION if VALIDATION in builder.stores else None,
        compiler_options=config.compiler_options,
        init=source and (lambda: students.initial(source, student, mesh, config.seed)),
    ).run()
    counts = {"steps": curriculum.total_steps, "data": described, "last": last}
    artifacts.finish(directory, settings, inputs, counts)


if __name__ == "__main__":
    launch.main(run)
