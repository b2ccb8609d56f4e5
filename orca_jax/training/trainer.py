"""The training loop: steps of a curriculum, checkpoints, metrics one step late, validation.

What resumes is parameters, optimizer and one integer; the rest follows from the step.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax import artifacts
from orca_jax.data import loader
from orca_jax.data.rows import stack
from orca_jax.progress import progress
from orca_jax.student import llama, sharding
from orca_jax.student.config import LlamaConfig
from orca_jax.training.checkpoints import Checkpoints
from orca_jax.training.curriculum import Curriculum, Position
from orca_jax.training.metrics import Metrics
from orca_jax.training.optimizer import OptimizerConfig, make_optimizer
from orca_jax.training.step import StepMetrics, Steps, TrainState, make_steps

log = logging.getLogger(__name__)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
GROUPED = ("collection", "teacher", "system_message_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a curriculum is run.

    Attributes:
      batch_rows: rows an optimizer step, over all devices and accumulation parts.
      accumulation: parts a batch is computed in, one after the other.
      compute_dtype: float32 or bfloat16; parameters and moments stay float32.
      checkpoint_every, validate_every: in steps; 0 validates only at the end of a stage.
      keep: checkpoints preserved.
    """

    batch_rows: int = 8
    accumulation: int = 1
    compute_dtype: str = "float32"
    checkpoint_every: int = 100
    keep: int = 2
    log_every: int = 10
    validate_every: int = 0

    def __post_init__(self) -> None:
        if self.compute_dtype not in DTYPES:
            raise ValueError(f"train.compute_dtype={self.compute_dtype!r}; known: {', '.join(DTYPES)}")
        for name in ("batch_rows", "accumulation", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_rows % self.accumulation:
            raise ValueError(f"train.accumulation={self.accumulation} must divide batch_rows={self.batch_rows}")

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ValueError where the rows of an accumulation part do not divide over the mesh."""
        rows, shards = self.batch_rows // self.accumulation, sharding.batch_shards(mesh)
        if rows % shards:
            raise ValueError(
                f"train.batch_rows / train.accumulation = {rows} rows do not divide over data x fsdp = {shards}"
            )


class _Late(NamedTuple):
    """A step whose metrics are still on the devices."""

    step: int
    position: Position
    metrics: StepMetrics
    seconds: float
    waited: float


class Trainer:
    """Runs `curriculum` in `directory` (checkpoints/, metrics.jsonl), or goes on with what is there.

    Args:
      rows: rows of the curriculum's data sets, and of `validation` where given.
      fingerprint: of everything the run depends on; a directory of another one is refused.
    """

    def __init__(
        self,
        directory: Path,
        *,
        student: LlamaConfig,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        curriculum: Curriculum,
        rows: loader.RowBuilder,
        mesh: Mesh,
        seed: int,
        fingerprint: str,
        validation: str | None = None,
        compiler_options: Mapping[str, str] | None = None,
    ):
        train.check_mesh(mesh)
        self.directory = directory
        self.student = student
        self.train = train
        self.curriculum = curriculum
        self.rows = rows
        self.mesh = mesh
        self.seed = seed
        self.validation = validation
        self.placement = sharding.batch_sharding(mesh)
        self.note = {"fingerprint": fingerprint, "versions": artifacts.versions(), "mesh": dict(mesh.shape)}
        self.checkpoints = Checkpoints(directory / "checkpoints", keep=train.keep, note=self.note)
        self.steps: Steps = make_steps(
            student,
            make_optimizer(optimizer),
            mesh,
            dtype=DTYPES[train.compute_dtype],
            accumulation=train.accumulation,
            compiler_options=compiler_options,
        )

    def run(self) -> dict[str, Any]:
        """Trains to the curriculum's end; returns the last metrics.

        On Ctrl-C or any error the steps done are saved first.
        """
        with jax.set_mesh(self.mesh):
            step, state = self._start()
            metrics = Metrics(self.directory, step)
            try:
                last = self._loop(step, state, metrics)
            finally:
                metrics.close()
                self.checkpoints.close()
        return last

    def _start(self) -> tuple[int, TrainState]:
        restored = self.checkpoints.restore(self.steps.abstract)
        if restored is None:
            params = llama.init(self.student, self.seed)
            return 0, self.steps.init(params)
        for warning in changed_environment(restored.note, self.note):
            log.warning("resuming at step %d: %s", restored.step, warning)
        if restored.note.get("fingerprint") != self.note["fingerprint"]:
            raise artifacts.ArtifactError(
                f"{self.directory} holds checkpoints of another run; use another workdir, or remove it"
            )
        log.info("resuming at step %d of %d", restored.step, self.curriculum.total_steps)
        return restored.step, restored.state

    def _loop(self, start: int, state: TrainState, metrics: Metrics) -> dict[str, Any]:
        total, saved, last = self.curriculum.total_steps, start, {}
        late: collections.deque[_Late] = collections.deque()
        done = start
        try:
            with progress("training", total, start) as report:
                batches = self._batches(start, total)
                for step in range(start, total):
                    began = time.perf_counter()
                    batch = next(batches)
                    waited = time.perf_counter() - began
                    position = self.curriculum.position(step)
                    state, measured = self._step(state, batch, position)
                    done = step + 1
                    late.append(_Late(done, position, measured, time.perf_counter() - began, waited))
                    if len(late) > 1:
                        last = self._record(late.popleft(), metrics) or last
                        report(done, _shown(last))
                    if self._validates(step):
                        self._validate(state, done, metrics)
                    if done % self.train.checkpoint_every == 0 or done == total:
                        self.checkpoints.save(done, state)
                        saved = done
                while late:
                    last = self._record(late.popleft(), metrics, force=True) or last
        except BaseException:
            if done > saved:
                self.checkpoints.save(done, state)
                log.warning("interrupted: saved step %d; run the same command again to go on", done)
            raise
        return last

    def _batches(self, start: int, stop: int) -> Iterator[loader.Batch]:
        return loader.batches(
            lambda step: self.curriculum.position(step).rows,
            start=start,
            stop=stop,
            rows=self.train.batch_rows,
            builder=self.rows,
            placement=self.placement,
        )

    def _step(self, state: TrainState, batch: loader.Batch, position: Position) -> tuple[TrainState, StepMetrics]:
        stage = self.curriculum.stages[position.stage]
        if stage.reset_optimizer and position.stage_step == 0 and position.stage > 0:
            state = self.steps.reset(state)
        rows = loader.on_devices(batch, self.train.batch_rows, self.placement)
        return self.steps.update(state, rows, np.float32(position.learning_rate))

    def _record(self, late: _Late, metrics: Metrics, force: bool = False) -> dict[str, Any] | None:
        """Fetches a step's metrics, which blocks only while that step still runs, and writes some."""
        if late.step % self.train.log_every and late.step > 1 and not force:
            late.metrics.loss.total.block_until_ready()
            return None
        measured = jax.device_get(late.metrics)
        if not np.isfinite(measured.loss.total):
            raise FloatingPointError(
                f"the loss is {measured.loss.total} at step {late.step}; lower the learning rate"
            )
        positions = self.train.batch_rows * self.rows.row_length
        values = {
            "stage": self.curriculum.stages[late.position.stage].name,
            "epoch": late.position.epoch,
            "loss": float(measured.loss.mean),
            "gradient_norm": float(measured.gradient_norm),
            "learning_rate": late.position.learning_rate,
            "supervised_tokens": float(measured.loss.weight),
            "fill": int(measured.tokens) / positions,
            "tokens_per_second": int(measured.tokens) / late.seconds,
            "data_wait": late.waited / late.seconds,
        }
        if jax.process_index() == 0:
            metrics.write("train", late.step, values)
        return values

    def _validates(self, step: int) -> bool:
        if self.validation is None:
            return False
        every = self.train.validate_every
        return step + 1 in self.curriculum.starts or bool(every and (step + 1) % every == 0)

    def _validate(self, state: TrainState, step: int, metrics: Metrics) -> None:
        """Mean loss a supervised token on the validation set, over all and by group."""
        losses, weights, columns = self._validation_losses(state.params)
        values: dict[str, Any] = {"loss": losses.sum() / max(weights.sum(), 1e-30), "examples": len(losses)}
        for group in GROUPED:
            for name in np.unique(columns[group]):
                mine = columns[group] == name
                values[f"loss/{group}={name}"] = losses[mine].sum() / max(weights[mine].sum(), 1e-30)
        if jax.process_index() == 0:
            metrics.write("validation", step, {k: float(v) for k, v in values.items()})
            log.info("validation after step %d: loss %.4f", step, values["loss"])

    def _validation_losses(self, params: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Summed loss and weight of every validation example, and its columns."""
        assert self.validation is not None
        name, size = self.validation, self.train.batch_rows
        plan = self.rows.plan_of(name, 0)
        sums, weights = np.zeros(len(self.rows.lengths[name])), np.zeros(len(self.rows.lengths[name]))
        for start in range(0, plan.rows, size):
            rows = [self.rows.row(name, 0, start + i) for i in range(size)]
            batch = loader.Batch(0, tuple(range(size)), stack(rows))
            placed = loader.on_devices(batch, size, self.placement)
            losses = np.asarray(self.steps.token_losses(params, placed), np.float64)
            for i, row in enumerate(rows):
                add_by_segment(sums, plan.row(start + i), row.segment_ids, losses[i])
                add_by_segment(weights, plan.row(start + i), row.segment_ids, row.loss_weights)
        columns = self.rows.stores[name].columns
        return sums[plan.examples], weights[plan.examples], {g: columns[g][plan.examples] for g in GROUPED}


def add_by_segment(sums: np.ndarray, examples: np.ndarray, segment_ids: np.ndarray, values: np.ndarray) -> None:
    """Adds a row's values [row_length] to the sums [n] of the examples that its segments hold."""
    if len(examples):
        sums[examples] += np.bincount(segment_ids, weights=values, minlength=len(examples) + 1)[1:]


def changed_environment(before: Any, now: Any) -> list[str]:
    """What differs between two checkpoints' notes and may change the last bits of a result."""
    old, new = before.get("versions", {}), now["versions"]
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in {*old, *new} if old.get(k) != new.get(k)]
    if before.get("mesh") != now["mesh"]:
        changes.append(f"mesh was {before.get('mesh')}, is {now['mesh']}")
    return sorted(changes)


def _shown(values: dict[str, Any]) -> str:
    if not values:
        return ""
    return f"{values['stage']} loss {values['loss']:.3f} {values['tokens_per_second']:.0f} tokens/s"
