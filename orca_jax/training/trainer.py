"""The training loop: steps of a curriculum, checkpoints, metrics one step late, validation.

What resumes is parameters, optimizer and one integer; the rest follows from the step, and from what few
numbers a checkpoint's note holds: steps skipped, and stages that ended at a plateau.
"""

from __future__ import annotations

import collections
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from orca_jax import artifacts
from orca_jax.config import LlamaConfig, OptimizerConfig, TrainConfig
from orca_jax.data import loader
from orca_jax.data.rows import Row
from orca_jax.progress import progress
from orca_jax.student import llama, sharding
from orca_jax.training import hosts, interruption, meters
from orca_jax.training.checkpoints import Checkpoints
from orca_jax.training.curriculum import Curriculum, Position
from orca_jax.training.guard import MOST_IN_A_ROW, Guard, Plateau
from orca_jax.training.metrics import FILE, Metrics, read
from orca_jax.training.optimizer import make_optimizer
from orca_jax.training.step import StepMetrics, Steps, TrainState, make_steps
from orca_jax.training.validation import Validation

log = logging.getLogger(__name__)


class _Late(NamedTuple):
    """A step whose metrics are still on the devices; `waited` seconds for its data, `limit` of its norm."""

    step: int
    position: Position
    metrics: StepMetrics
    waited: float
    limit: float


class Trainer:
    """Runs `curriculum` in `directory` (checkpoints/, metrics.jsonl), or goes on with what is there.

    Args:
      rows: rows of the curriculum's data sets, and of `validation` where given.
      fingerprint: of everything the run depends on; a directory of another one is refused.
      init: gives the parameters to start from; without it they are drawn from the seed.
      peak_flops: FLOP/s of one device in the compute type; 0: not known, and no `mfu` is measured.
      profile: the first and the last step to trace for TensorBoard's profiler.
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
        peak_flops: float = 0.0,
        profile: tuple[int, int] | None = None,
    ):
        _check_mesh(train, mesh)
        _check_plateaus(curriculum, train, validation)
        self.directory = directory
        self.student = student
        self.train = train
        self.curriculum = curriculum
        self.rows = rows
        self.mesh = mesh
        self.init = init or self._fresh
        self.seed = seed
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
        self.speed = meters.Speed(student.training_flops(rows.row_length), peak_flops * mesh.size)
        self.profile = meters.Profile(directory, profile)
        self.preemption = hosts.PreemptionSync(mesh)
        self.guard = Guard()
        self.plateau = Plateau()
        self.limited = any(stage.skip_spikes for stage in curriculum.stages)
        self.steps: Steps = make_steps(
            student,
            make_optimizer(optimizer),
            mesh,
            dtype=jnp.dtype(train.compute_dtype),
            accumulation=train.accumulation,
            compiler_options=compiler_options,
            limited=self.limited,
        )

    def run(self) -> dict[str, Any]:
        """Trains to the curriculum's end; returns the last metrics.

        On Ctrl-C or SIGTERM the steps done are saved first; then KeyboardInterrupt is raised, or SystemExit
        with the code that says 'again'.

        Raises:
          ArtifactError: the directory holds another run's checkpoints.
          CheckpointError: it holds checkpoints, and none is whole.
          FloatingPointError: so many steps in a row were skipped that the run is lost.
          HostsError: the hosts are not about to run the same thing.
        """
        with jax.set_mesh(self.mesh), interruption.deferred() as interrupted:
            self._compare_hosts()
            step, state, note = self._start()
            self.metrics = Metrics(self.directory, step) if jax.process_index() == 0 else None
            try:
                self._recall(step, state, note)
                return self._loop(step, state, interrupted)
            finally:
                self.profile.close()
                if self.metrics:
                    self.metrics.close()
                self.checkpoints.close()

    def _compare_hosts(self) -> None:
        """All hosts must compile the same step, and go on from the same checkpoint."""
        if jax.process_count() > 1:
            newest = max(self.checkpoints.steps(), default=0)
            values = {"the newest checkpoint": str(newest), "the training step": self._program()}
            hosts.compare("step", values)

    def _program(self) -> str:
        """A fingerprint of the step that is to be compiled."""
        size = (self.train.batch_rows, self.rows.row_length)
        kinds = Row(*(jnp.float32 if name == "loss_weights" else jnp.int32 for name in Row._fields))
        rows = jax.tree.map(lambda kind: jax.ShapeDtypeStruct(size, kind), kinds)
        scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * (2 if self.limited else 1)
        step: Any = self.steps.update
        return artifacts.digest(step.lower(self.steps.abstract, rows, *scalars).as_text())

    def _start(self) -> tuple[int, TrainState, Mapping[str, Any]]:
        if self.checkpoints.fingerprint() not in (None, self.note["fingerprint"]):
            raise artifacts.ArtifactError(
                f"{self.directory} holds checkpoints of another run; use another workdir, or remove it"
            )
        restored = self.checkpoints.restore(self.steps.abstract)
        if restored is None:
            return 0, self.steps.init(self.init()), {}
        for warning in changed_environment(restored.note, self.note):
            log.warning("resuming at step %d: %s", restored.step, warning)
        return restored.step, restored.state, restored.note

    def _fresh(self) -> Any:
        """New parameters, each drawn where it lies: the whole student need not fit one device."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.steps.abstract.params)
        return jax.jit(lambda: llama.init(self.student, self.seed), out_shardings=where)()

    def _recall(self, step: int, state: TrainState, note: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint's note says of the steps before it."""
        self.guard = Guard(note.get("guard"))
        stages = note.get("stages", {})
        self.plateau = Plateau(*stages.get("plateau", Plateau()))
        self.curriculum = self.curriculum.ending(dict(stages.get("ended", ())))
        if step:
            log.info("resuming at step %d of %d", step, self.curriculum.total_steps)
        if stages.get("validation_owed"):
            self._validate(state, step)

    def _noted(self, owed: bool) -> dict[str, Any]:
        """What `_recall` needs, as JSON."""
        ended = [list(pair) for pair in self.curriculum.ended.items()]
        stages = {"plateau": list(self.plateau), "ended": ended, "validation_owed": owed}
        return {"guard": self.guard.note(), "stages": stages}

    def _loop(self, start: int, state: TrainState, interrupted: interruption.Interruption) -> dict[str, Any]:
        last: dict[str, Any] = {}
        late: collections.deque[_Late] = collections.deque()
        pending: collections.deque[Any] = collections.deque()
        curriculum, batches, done = self.curriculum, self._batches(start), start
        self.first = start + 1
        self.speed.restart()
        with progress("training", self.curriculum.total_steps, start) as report:
            while done < self.curriculum.total_steps:
                done += 1
                state, step = self._step(state, done, batches)
                late.append(step)
                pending.append(self.preemption.cast(interrupted.signal))
                leaving = self._leaving(pending)
                self.checkpoints.look()
                due = self._validation_due(done)
                # A step is recorded when it completes, hence before validation, whose time is not its own,
                # and before a save, since nothing is saved whose metrics are not written.
                settle = due or leaving or self._checkpoint_due(done)
                while len(late) > (0 if settle else 1):
                    last = self._record(late.popleft()) or last
                    report(done, _shown(last))
                if due and not leaving:
                    self._validate(state, done)  # which may end the run here
                if leaving or self._checkpoint_due(done):
                    with self.speed.saving():
                        self.checkpoints.save(done, state, self._noted(owed=bool(due and leaving)))
                if leaving:
                    self._leave(leaving, done)
                if self.curriculum is not curriculum:  # a stage has ended, and other rows come next
                    curriculum, batches = self.curriculum, self._batches(done)
        return last or self._last_written()

    def _leaving(self, pending: collections.deque[Any]) -> signal.Signals | None:
        """The signal to obey at this step, if any: the same on all hosts."""
        if self.preemption.alone or len(pending) > 1:
            return self.preemption.read(pending.popleft())
        return None

    def _checkpoint_due(self, done: int) -> bool:
        return done == self.curriculum.total_steps or done % self.train.checkpoint_every == 0

    def _validation_due(self, done: int) -> bool:
        """At a stage's end, and every few steps where configured."""
        every = self.train.validate_every
        return bool(self.validation) and (done in self.curriculum.starts or (every > 0 and done % every == 0))

    def _last_written(self) -> dict[str, Any]:
        """The last line of training, of a run that had nothing left to do but to end."""
        lines = [row for row in read(self.directory / FILE) if row["kind"] == "train"]
        values = lines[-1] if lines else {}
        return {key: value for key, value in values.items() if key not in ("kind", "step")}

    def _batches(self, start: int) -> Iterator[loader.Batch]:
        curriculum = self.curriculum  # which may be another when the loader's threads ask
        return loader.batches(
            lambda step: curriculum.position(step).rows,
            start=start,
            stop=curriculum.total_steps,
            rows=self.train.batch_rows,
            builder=self.rows,
            placement=self.placement,
        )

    def _step(
        self, state: TrainState, done: int, batches: Iterator[loader.Batch]
    ) -> tuple[TrainState, _Late]:
        """Starts the step that makes `done`; it runs on the devices while the loop goes on."""
        position = self.curriculum.position(done - 1)
        self.profile.before(done)
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        stage = self.curriculum.stages[position.stage]
        if stage.reset_optimizer and position.stage_step == 0 and position.stage > 0:
            state = self.steps.reset(state)
        rows = loader.on_devices(batch, self.train.batch_rows, self.placement)
        limit = self.guard.limit(done, stage.skip_spikes)
        scalars = [jnp.float32(position.learning_rate), *([jnp.float32(limit)] if self.limited else [])]
        state, measured = self.steps.update(state, rows, *scalars)
        self.profile.after(done, measured)
        return state, _Late(done, position, measured, waited, limit)

    def _validate(self, state: TrainState, done: int) -> None:
        assert self.validation, "validation is due only where there is some"
        values = self.validation(state.params, self.steps.token_losses)
        log.info("validation after step %d: loss %.4f", done, values["loss"])
        self._write("validation", done, values)
        self._look_for_plateau(done, values["loss"])
        self.speed.restart()

    def _look_for_plateau(self, done: int, loss: float) -> None:
        """Ends the stage here if its validation loss has not fallen for as long as it says."""
        index = self.curriculum.stage_at(done - 1)
        stage = self.curriculum.stages[index]
        self.plateau = self.plateau.after(loss)
        if stage.until_plateau and self.plateau.stale >= stage.until_plateau:
            steps = done - self.curriculum.starts[index]
            log.info("stage %s ends at a plateau after %d steps: %s", stage.name, steps, self.plateau)
            self.curriculum = self.curriculum.ending({index: steps})
        if done == self.curriculum.starts[index + 1]:
            self.plateau = Plateau()

    def _leave(self, why: signal.Signals, done: int) -> NoReturn:
        self.checkpoints.wait()
        log.warning("%s: saved step %d; run the same command again to go on", why.name, done)
        interruption.exit_for(why)

    def _record(self, late: _Late) -> dict[str, Any] | None:
        """Fetches a step's metrics, which waits only for that step, and writes every few of them."""
        measured = jax.device_get(late.metrics)
        self.speed.add(int(measured.tokens), float(measured.loss.weight), late.waited)
        self.guard.see(late.step, float(measured.gradient_norm), bool(measured.skipped))
        if measured.skipped:
            self._say_skipped(late, measured)
        # At a plateau, validation ends the run at a step that nobody knew to be its last.
        stage = self.curriculum.stages[late.position.stage]
        ending = bool(stage.until_plateau) and self._validation_due(late.step)
        if (
            late.step % self.train.log_every
            and not ending
            and late.step not in (1, self.curriculum.total_steps)
        ):
            if late.step == self.first:
                self.speed.restart()  # a resumed run's first step includes compiling it
            return None
        values = {
            "stage": stage.name,
            "epoch": late.position.epoch,
            "loss": float(measured.loss.mean),
            "gradient_norm": float(measured.gradient_norm),
            "learning_rate": late.position.learning_rate,
            "supervised_tokens": float(measured.loss.weight),
            "fill": int(measured.tokens) / (self.train.batch_rows * self.rows.row_length),
            "skipped": self.guard.skipped,
            **self.speed.read(),
            **meters.device_bytes(self.mesh.local_devices),
        }
        self._write("train", late.step, values)
        return values

    def _say_skipped(self, late: _Late, measured: StepMetrics) -> None:
        """Logs a skipped step; after too many in a row, FloatingPointError."""
        what = f"the loss is {measured.loss.total} and the gradient's norm {measured.gradient_norm}"
        over = f" (over {late.limit:.4g})" if measured.gradient_norm > late.limit else ""
        if self.guard.in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{what}{over} at step {late.step}; lower the learning rate. The last "
                f"{self.guard.in_a_row} steps were skipped, and changed nothing"
            )
        log.warning("step %d is skipped: %s%s", late.step, what, over)

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(kind, step, values)


def _check_mesh(train: TrainConfig, mesh: Mesh) -> None:
    """Raises ValueError where the rows of an accumulation part do not divide over the mesh."""
    rows, shards = train.batch_rows // train.accumulation, sharding.batch_shards(mesh)
    if rows % shards:
        raise ValueError(
            f"train.batch_rows / train.accumulation = {rows} rows do not divide over "
            f"data x fsdp = {shards} devices; take a multiple of {shards * train.accumulation} batch_rows"
        )


def _check_plateaus(curriculum: Curriculum, train: TrainConfig, validation: str | None) -> None:
    """Raises ValueError where a stage waits for a validation loss that is never measured."""
    waiting = [stage.name for stage in curriculum.stages if stage.until_plateau]
    if waiting and not (validation and train.validate_every):
        raise ValueError(
            f"curriculum stage {waiting[0]!r} ends at a plateau of the validation loss: set "
            "train.validate_every, and hold out examples (data.validation_fraction)"
        )


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
