"""Trains the student of a workdir on its token stores, or goes on with it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from orca_jax import artifacts, compiler_options, hub, plugins
from orca_jax.config import ExperimentConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.loader import RowBuilder
from orca_jax.data.prepared import VALIDATION
from orca_jax.data.tokens import TokenStore, warning
from orca_jax.student import sharding
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import hosts, students
from orca_jax.training.curriculum import Curriculum, Round
from orca_jax.training.trainer import Evaluate, MakeRound, Trainer

log = logging.getLogger(__name__)


def train(
    config: ExperimentConfig,
    workdir: Path,
    *,
    peak_flops: float = 0.0,
    profile: tuple[int, int] | None = None,
    on_begin: Callable[[], None] | None = None,
    evaluation: Callable[[ExperimentConfig, LlamaConfig, Mesh], Evaluate] | None = None,
    rounds: Callable[[ExperimentConfig, LlamaConfig, Mesh, str], MakeRound] | None = None,
) -> None:
    """Runs the curriculum, or goes on with it; with several hosts, each calls it after `hosts.join`.

    Args:
      peak_flops: FLOP/s of one device, for the metric mfu; 0: not known.
      profile: the first and the last step to trace.
      on_begin: called once it is known that no other settings have trained here.
      evaluation: makes what evaluates the student for `train.evaluate_every`, see `Trainer.evaluate`.
      rounds: makes what makes rounds on policy, given the training's fingerprint, see `Trainer.make_round`.
    """
    directory, builder = workdir / "training", row_builder(config, workdir)
    inputs = {name: store.manifest["fingerprint"] for name, store in builder.stores.items()}
    source = students.open_source(config.student.init) if config.student.init else None
    config = students.as_made(config, next(iter(builder.stores.values())).manifest)
    students.check_tokenizer(config, workdir)
    student = students.shape(config, workdir, source)
    begun = artifacts.recorded(directory)["provenance"].get("compiler_options")
    options = compiler_options.resolved(config.compiler_options, begun)
    made = provenance(dataclasses.replace(config, compiler_options=options), student)
    places: dict[str, object] = {name: workdir / "tokens" / name for name in inputs}
    if source:
        inputs["init"], places["init"] = source.fingerprint, config.student.init
    versions = artifacts.versions()
    hosts.compare("run", {"config": artifacts.digest(made), "data": artifacts.digest(inputs), **versions})
    artifact = artifacts.Artifact(directory, made, inputs, places)
    if artifact.finished():
        return
    take = compiler_options.known if config.compiler_options == "auto" else compiler_options.check
    options = take(options)
    for first in (True, False):  # the first host before all others: it removes what other settings began
        if first == (jax.process_index() == 0):
            fingerprint = artifact.begin(costly=students.CHECKPOINTS)
        hosts.compare("begin", {})
    if on_begin:
        on_begin()
    own = config.train
    curriculum = Curriculum(config.curriculum, builder.plan_of, batch_rows=own.batch_rows, seed=config.seed)
    check_distilled(config, builder)
    described = describe(builder, config.data.overlong, builder.stores)
    mesh = sharding.make_mesh(config.mesh)
    log.info(
        "student of %d parameters from %s, %d steps of %d rows, mesh %s", student.parameter_count,
        config.student.init or "random weights", curriculum.total_steps, own.batch_rows, dict(mesh.shape),
    )  # fmt: skip
    on_policy = any(stage.on_policy for stage in config.curriculum)
    make_round = rounds(config, student, mesh, fingerprint) if rounds and on_policy else None
    trainer = Trainer(
        directory=directory,
        student=student,
        optimizer=config.optimizer,
        train=own,
        curriculum=curriculum,
        rows=builder,
        mesh=mesh,
        seed=config.seed,
        fingerprint=fingerprint,
        validation=VALIDATION if VALIDATION in builder.stores else None,
        compiler_options=options,
        init=functools.partial(students.initial, source, student, mesh, config.seed) if source else None,
        peak_flops=peak_flops,
        profile=profile,
        evaluate=evaluation(config, student, mesh) if evaluation and own.evaluate_every else None,
        make_round=make_round,
    )
    last = trainer.run()
    for stage in trainer.curriculum.stages if make_round else ():
        if make_round and isinstance(stage, Round):
            builder.add(stage.dataset, make_round(None, stage), like=stage.source)
            described |= describe(builder, config.data.overlong, [stage.dataset])
    counts = {"steps": trainer.curriculum.total_steps, "data": described, "last": last}
    artifact.finish(counts | ended(trainer.curriculum), hub.revisions(config.student.init))


def ended(curriculum: Curriculum) -> dict[str, Any]:
    """`ended` of a manifest: the stages that a plateau ended, and their steps; nothing where none was."""
    stages = [(curriculum.stages[index], steps) for index, steps in curriculum.ended.items()]
    rows = [{"stage": one.name, "steps": steps, "plateau_of": one.plateau_of} for one, steps in stages]
    return {"ended": rows} if rows else {}


def provenance(config: ExperimentConfig, student: LlamaConfig) -> artifacts.Section:
    """Everything of the config that the trained parameters depend on."""
    plateaus = {stage.plateau_of for stage in config.curriculum if stage.until_plateau}
    quiet = (
        *config.train.NO_NUMBER,
        *(() if plateaus else config.train.PLATEAU),
        *(() if "accuracy" in plateaus else config.train.EVALUATED),
    )
    return artifacts.joined(
        {"program": "train", "student": artifacts.section(student)},
        # Manifests without a layout are of a time when it was `orca`.
        artifacts.Section({"layout": config.data.layout}, {"layout": "orca"}),
        artifacts.section(config, without=(*config.NO_NUMBER, *config.BESIDE)),
        artifacts.unrecorded({"compiler_options": config.compiler_options}),
        {
            "data": artifacts.section(config.data, without=config.data.STORED),
            "train": artifacts.section(config.train, without=quiet),
        },
        evaluated(config) if "accuracy" in plateaus else {},
        plugins.provenance(
            (plugins.LAYOUTS, config.data.layout),
            *((plugins.CURRICULA, stage.kind) for stage in config.curriculum),
            *((plugins.PUZZLES, family) for family in config.puzzles.families if "accuracy" in plateaus),
        ),
    )


def evaluated(config: ExperimentConfig) -> dict[str, artifacts.Section]:
    """What the accuracy of a student that is being trained depends on besides."""
    own = config.evaluation
    counted = artifacts.section(own, ("difficulties", "max_tokens", "max_length", "seed", "batch_size"))
    chosen = {"messages": own.messages[:1], "dtype": compute_dtype(own.dtype).name}
    return {
        "evaluation": artifacts.joined(counted, chosen),
        "puzzles": artifacts.section(config.puzzles, ("families",)),
    }


def row_builder(config: ExperimentConfig, workdir: Path) -> RowBuilder:
    """Rows of the token stores of the curriculum's data sets, and of validation where there is one."""
    names = {name for stage in config.curriculum for name in stage.names}
    stores = {name: TokenStore(workdir / "tokens" / name) for name in sorted(names)}
    validation = workdir / "tokens" / VALIDATION
    if config.data.validation_fraction > 0 and len(held := TokenStore(validation)):
        stores[VALIDATION] = held
    return RowBuilder(
        stores,
        row_length=config.data.row_length,
        max_segments=config.data.max_segments,
        overlong=config.data.overlong,
        pad_id=tokenizers.load(workdir / "tokenizer").pad_id,
        seed=config.seed,
        leaking={"separated": [], "leaking": [t.name for t in config.teachers]}[config.data.segments],
    )


def check_distilled(config: ExperimentConfig, rows: RowBuilder) -> None:
    """Raises ValueError if a stage distils data sets that hold no teacher's distributions."""
    for stage in config.curriculum if rows.top else ():
        counts = {name: rows.stores[name].manifest["counts"]["alternatives"] for name in stage.names}
        if stage.distill_weight and not any(found["tokens"] for found in counts.values()):
            why = "; ".join(f"{name}: {found['left_out']}" for name, found in counts.items())
            raise ValueError(
                f"curriculum stage {stage.name!r} has a distill_weight, and its data sets hold no "
                f"alternatives ({why}): collect them with api.top_logprobs, or name a teacher's `scorer`"
            )


def describe(rows: RowBuilder, overlong: str, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """What packing makes of data sets' first epochs: the figures to look at before training."""
    described = {}
    for name in names:
        store, plan = rows.stores[name], rows.plan_of(name, 0)
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
