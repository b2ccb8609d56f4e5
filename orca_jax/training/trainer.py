"""The training loop: steps of a curriculum, checkpoints, metrics one step late, validation.

What resumes is parameters, optimizer and one integer; the rest follows from the step.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax import artifacts
from orca_jax.data import loader
from orca_jax.progress import progress
from orca_jax.student import llama, sharding
from orca_jax.student.config import LlamaConfig
from orca_jax.training import interruption
from orca_jax.training.checkpoints import Checkpoints
from orca_jax.training.curriculum import Curriculum, Position
from orca_jax.training.metrics import FILE, Metrics, read
from orca_jax.training.optimizer import OptimizerConfig, make_optimizer
from orca_jax.training.step import StepMetrics, Steps, TrainState, make_steps
from orca_jax.training.validation import Validation

log = logging.getLogger(__name__)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
            raise ValueError(
                f"train.accumulation={self.accumulation} must divide batch_rows={self.batch_rows}"
            )

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ValueError where the rows of an accumulation part do not divide over the mesh."""
        rows, shards = self.batch_rows // self.accumulation, sharding.batch_shards(mesh)
        if rows % shards:
            raise ValueError(
                f"train.batch_rows / train.accumulation = {rows} rows do not divide over "
                f"data x fsdp = {shards} devices"
            )


class _Late(NamedTuple):
    """A step whose metrics are still on the devices; `waited` seconds for its data."""

    step: int
    position: Position
    metrics: StepMetrics
    waited: float


class _Speed:
    """Tokens and seconds since the last record, so that a rate is a mean over whole steps."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.since, self.tokens, self.waited = time.perf_counter(), 0, 0.0

    def add(self, tokens: int, waited: float) -> None:
        self.tokens += tokens
        self.waited += waited

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.since
        values = {"tokens_per_second": self.tokens / seconds, "data_wait": self.waited / seconds}
        self.restart()
        return values


class Trainer:
    """Runs `curriculum` in `directory` (checkpoints/, metrics.jsonl), or goes on with what is there.

    Args:
      rows: rows of the curriculum's data sets, and of `validation` where given.
      fingerprint: of everything the run depends on; a directory of another one is refused.
      init: gives the parameters to start from; without it they are drawn from the seed.
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
        init: Callable[[], Any] | None = None,
    ):
        train.check_mesh(mesh)
        self.directory = directory
        self.student = student
        self.train = train
        self.curriculum = curriculum
        self.rows = rows
        self.mesh = mesh
        self.init = init or (lambda: llama.init(student, seed))
        self.placement = sharding.batch_sharding(mesh)
        self.validation = validation and Validation(
            validation, rows, batch_rows=train.batch_rows, placement=self.placement
        )
        self.note = {
            "fingerprint": fingerprint,
            "versions": artifacts.versions(),
            "mesh": dict(mesh.shape),
            "devices": mesh.devices.flat[0].device_kind,
            "compiler_options": dict(compiler_options or {}),
        }
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

        On Ctrl-C or SIGTERM the steps done are saved first, and KeyboardInterrupt is raised.

        Raises:
          ArtifactError: the directory holds another run's checkpoints.
          CheckpointError: it holds checkpoints, and none is whole.
          FloatingPointError: the loss is not finite; the last checkpoint is from before.
        """
        with jax.set_mesh(self.mesh), interruption.held() as interrupted:
            step, state = self._start()
            self.speed = _Speed()
            self.metrics = Metrics(self.directory, step) if jax.process_index() == 0 else None
            try:
                return self._loop(step, state, interrupted)
            finally:
                if self.metrics:
                    self.metrics.close()
                self.checkpoints.close()

    def _start(self) -> tuple[int, TrainState]:
        if self.checkpoints.fingerprint() not in (None, self.note["fingerprint"]):
            raise artifacts.ArtifactError(
                f"{self.directory} holds checkpoints of another run; use another workdir, or remove it"
            )
        restored = self.checkpoints.restore(self.steps.abstract)
        if restored is None:
            return 0, self.steps.init(self.init())
        for warning in changed_environment(restored.note, self.note):
            log.warning("resuming at step %d: %s", restored.step, warning)
        log.info("resuming at step %d of %d", restored.step, self.curriculum.total_steps)
        return restored.step, restored.state

    def _loop(self, start: int, state: TrainState, interrupted: interruption.Interruption) -> dict[str, Any]:
        total = self.curriculum.total_steps
        last: dict[str, Any] = {}
        late: collections.deque[_Late] = collections.deque()
        batches = self._batches(start, total)
        with progress("training", total, start) as report:
            for done in range(start + 1, total + 1):
                state, step = self._step(state, done, batches)
                late.append(step)
                if len(late) > 1:
                    last = self._record(late.popleft()) or last
                    report(done, _shown(last))
                leaving = interrupted.signal
                if leaving or done == total or done % self.train.checkpoint_every == 0:
                    # Nothing is saved before its metrics are written and known to be finite.
                    while late:
                        last = self._record(late.popleft()) or last
                    self.checkpoints.save(done, state)
                self._validate(state, done)
                if leaving:
                    self._leave(leaving, done)
        return last or self._last_written()

    def _last_written(self) -> dict[str, Any]:
        """The last line of training, of a run that had nothing left to do but to end."""
        lines = [row for row in read(self.directory / FILE) if row["kind"] == "train"]
        values = lines[-1] if lines else {}
        return {key: value for key, value in values.items() if key not in ("kind", "step")}

    def _batches(self, start: int, stop: int) -> Iterator[loader.Batch]:
        return loader.batches(
            lambda step: self.curriculum.position(step).rows,
            start=start,
            stop=stop,
            rows=self.train.batch_rows,
            builder=self.rows,
            placement=self.placement,
        )

    def _step(
        self, state: TrainState, done: int, batches: Iterator[loader.Batch]
    ) -> tuple[TrainState, _Late]:
        """Starts the step that makes `done`; it runs on the devices while the loop goes on."""
        position = self.curriculum.position(done - 1)
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        stage = self.curriculum.stages[position.stage]
        if stage.reset_optimizer and position.stage_step == 0 and position.stage > 0:
            state = self.steps.reset(state)
        rows = loader.on_devices(batch, self.train.batch_rows, self.placement)
        state, measured = self.steps.update(state, rows, jnp.float32(position.learning_rate))
        return state, _Late(done, position, measured, waited)

    def _validate(self, state: TrainState, done: int) -> None:
        """Validates at a stage's end, and every few steps where configured."""
        every = self.train.validate_every
        if self.validation and (done in self.curriculum.starts or (every and done % every == 0)):
            values = self.validation(state.params, self.steps.token_losses)
            log.info("validation after step %d: loss %.4f", done, values["loss"])
            self._write("validation", done, values)
            self.speed.restart()

    def _leave(self, why: signal.Signals, done: int) -> NoReturn:
        self.checkpoints.wait()
        log.warning("%s: saved step %d; run the same command again to go on", why.name, done)
        raise KeyboardInterrupt

    def _record(self, late: _Late) -> dict[str, Any] | None:
        """Fetches a step's metrics, which waits only for that step, and writes every few of them."""
        measured = jax.device_get(late.metrics)
        self.speed.add(int(measured.tokens), late.waited)
        if not (np.isfinite(measured.loss.total) and np.isfinite(measured.gradient_norm)):
            raise FloatingPointError(
                f"the loss is {measured.loss.total} and the gradient's norm {measured.gradient_norm} at step "
                f"{late.step}; lower the learning rate. The last checkpoint is from before"
            )
        if late.step % self.train.log_every and late.step not in (1, self.curriculum.total_steps):
            return None
        values = {
            "stage": self.curriculum.stages[late.position.stage].name,
            "epoch": late.position.epoch,
            "loss": float(measured.loss.mean),
            "gradient_norm": float(measured.gradient_norm),
            "learning_rate": late.position.learning_rate,
            "supervised_tokens": float(measured.loss.weight),
            "fill": int(measured.tokens) / (self.train.batch_rows * self.rows.row_length),
            **self.speed.read(),
        }
        self._write("train", late.step, values)
        return values

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(kind, step, values)


def changed_environment(before: Any, now: Any) -> list[str]:
    """What differs between two checkpoints' notes and may change the last bits of a result."""
    old, new = before.get("versions", {}), now["versions"]
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in {*old, *new} if old.get(k) != new.get(k)]
    for name in ("mesh", "devices", "compiler_options"):
        if before.get(name) != now.get(name):
            changes.append(f"{name} was {before.get(name)!r}, is {now.get(name)!r}")
    return sorted(changes)


def _shown(values: dict[str, Any]) -> str:
    if not values:
        return ""
    return f"{values['stage']} loss {values['loss']:.3f} {values['tokens_per_second']:.0f} tokens/s"
