"""The training loop: steps of a curriculum, metrics recorded a step late, validations, checkpoints.

A run resumes from its parameters, its optimizer state and its step. A checkpoint's note holds the few numbers
that do not follow from the step: skipped steps, and where stages ended at a plateau.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from orca_jax import artifacts
from orca_jax.artifacts import plain
from orca_jax.config import OptimizerConfig, TrainConfig
from orca_jax.data import loader
from orca_jax.data.tokens import TokenStore
from orca_jax.progress import progress
from orca_jax.student import llama, sharding
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import hosts
from orca_jax.training.checkpoints import Checkpoints
from orca_jax.training.curriculum import Curriculum, Position, Round
from orca_jax.training.metrics import FILE, Metrics, Speed, device_bytes, read
from orca_jax.training.step import StepMetrics, TrainState, make_optimizer, make_steps
from orca_jax.training.validation import validation_losses

log = logging.getLogger(__name__)
MOST_IN_A_ROW = 5
HORIZON = 50  # steps over which the running mean forgets
LEAST = 20  # steps before a mean is trusted
DECIDING = {"loss": "validation", "accuracy": "evaluation"}  # the records that show a plateau
NEEDED = {
    "loss": "train.validate_every, and hold out examples (data.validation_fraction)",
    "accuracy": "train.evaluate_every",
}
Evaluate = Callable[[Any], Mapping[str, float]]
# The traces of a round on policy, made by parameters as the step has them; None: they must be there.
MakeRound = Callable[[Any, Round], TokenStore]


class _Pending(NamedTuple):
    """A step whose metrics are still on the devices; `waited`: seconds it waited for its data."""

    step: int
    position: Position
    metrics: StepMetrics
    waited: float
    limit: float


@dataclasses.dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains on `curriculum` in `directory` (checkpoints/, metrics.jsonl), resuming what is there.

    Attributes:
      rows: builds rows of the curriculum's data sets, and of the data set `validation` if that is given.
      fingerprint: of everything that the run depends on; a directory of another run is refused.
      init: returns the initial parameters; by default they are drawn from the seed.
      peak_flops: FLOP/s of one device in the compute dtype; 0 if unknown, and then `mfu` is not measured.
      profile: the first and the last step to trace for TensorBoard's profiler.
      evaluate: the metrics of an evaluation by the parameters: `accuracy`, `stderr` and `n` among them. It
        depends on them alone. Called every `train.evaluate_every` steps and at the end of a stage.
      make_round: makes the traces of a round on policy as it begins, or opens those that are there.

    Raises:
      ValueError: rows do not divide over the mesh, a stage that ends at a plateau has no validation or
        evaluation, evaluations or rounds are to be made and there is no `evaluate` or `make_round`, or
        `profile` is no range of steps.
    """

    directory: Path
    student: LlamaConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    curriculum: Curriculum
    rows: loader.RowBuilder
    mesh: Mesh
    seed: int
    fingerprint: str
    validation: str | None = None
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    init: Callable[[], Any] | None = None
    peak_flops: float = 0.0
    profile: tuple[int, int] | None = None
    evaluate: Evaluate | None = None
    make_round: MakeRound | None = None

    def __post_init__(self) -> None:
        self._check()
        self.placement = sharding.batch_sharding(self.mesh)
        self.note = {
            "fingerprint": self.fingerprint,
            "versions": artifacts.versions(),
            "mesh": dict(self.mesh.shape),
            "devices": self.mesh.devices.flat[0].device_kind,
            "compiler_options": dict(self.compiler_options),
        }
        self.checkpoints = Checkpoints(self.directory / "checkpoints", keep=self.train.keep, note=self.note)
        flops = self.student.training_flops(self.rows.row_length)
        self.speed = Speed(flops, self.peak_flops * self.mesh.size)
        self.guard, self.plateau = Guard(), Plateau()
        self.limited = any(stage.skip_spikes for stage in self.curriculum.stages)
        self.steps = make_steps(
            self.student,
            make_optimizer(self.optimizer),
            self.mesh,
            dtype=jnp.dtype(self.train.compute_dtype),
            accumulation=self.train.accumulation,
            reduce_dtype=jnp.dtype(self.train.reduce_dtype),
            compiler_options=self.compiler_options,
            limited=self.limited,
        )

    def _check(self) -> None:
        rows, shards = self.train.batch_rows // self.train.accumulation, sharding.batch_shards(self.mesh)
        if rows % shards:
            raise ValueError(
                f"train.batch_rows / train.accumulation = {rows} rows do not divide over "
                f"data x fsdp = {shards} devices; take a multiple of {shards * self.train.accumulation} "
                "batch_rows"
            )
        if self.train.evaluate_every and not self.evaluate:
            raise ValueError("train.evaluate_every is set, and the trainer is given nothing to evaluate with")
        if not self.make_round and any(isinstance(stage, Round) for stage in self.curriculum.stages):
            raise ValueError("a stage is on policy, and the trainer is given nothing to make its rounds with")
        validated, evaluated = self.validation and self.train.validate_every, self.train.evaluate_every
        for stage in self.curriculum.stages:
            if stage.until_plateau and not (validated if stage.plateau_of == "loss" else evaluated):
                raise ValueError(
                    f"curriculum stage {stage.name!r} ends at a plateau of {stage.plateau_of}: set "
                    f"{NEEDED[stage.plateau_of]}"
                )
        if self.profile and not 1 <= self.profile[0] <= self.profile[1]:
            first, last = self.profile
            raise ValueError(f"cannot profile steps {first} to {last}; steps count from 1")

    def run(self) -> dict[str, Any]:
        """Trains to the end of the curriculum and returns the last metrics.

        On Ctrl-C or SIGTERM the steps done are saved first; then KeyboardInterrupt is raised, or SystemExit
        with the code for "run again". Before the first step is compiled the process ends at once.

        Raises:
          ArtifactError: the directory holds another run's checkpoints.
          CheckpointError: it holds checkpoints, and none is whole.
          FloatingPointError: too many steps in a row were skipped.
          HostsError: the hosts are not about to run the same thing.
        """
        self.tracing, self.preemption = False, hosts.PreemptionSync(self.mesh)
        with jax.set_mesh(self.mesh), hosts.DeferredSignals() as self.signals:
            self.signals.at_once = True
            done, state, owed = self._start()
            first = jax.process_index() == 0
            self.metrics = Metrics(self.directory, done, self.train.wandb) if first else None
            try:
                if owed:
                    self._assess(state, done)
                last = self._loop(done, state)
            finally:
                if self.tracing:
                    jax.profiler.stop_trace()
                if self.metrics:
                    self.metrics.close()
                self.checkpoints.close()
        if not last:  # no step was left to do
            trained = [row for row in read(self.directory / FILE) if row["kind"] == "train"]
            last = {k: v for k, v in (trained[-1] if trained else {}).items() if k not in ("kind", "step")}
        return last

    def _start(self) -> tuple[int, TrainState, bool]:
        """Restores the newest checkpoint, the same on all hosts, or initialises the state.

        Returns:
          The steps done, the state, and whether the run stopped before validation and evaluation of the last
          step.
        """
        step = [plain(part) for part in (self.student, self.optimizer, self.train, self.compiler_options)]
        newest = max(self.checkpoints.steps(), default=0)
        values = {"the newest checkpoint": str(newest), "the training step": artifacts.digest(step)}
        hosts.compare("step", values)
        if self.checkpoints.fingerprint() not in (None, self.fingerprint):
            raise artifacts.ArtifactError(
                f"{self.directory} holds checkpoints of another run; use another workdir, or remove it"
            )
        restored = self.checkpoints.restore(self.steps.abstract)
        if restored is None:
            return 0, self.steps.init(self.init() if self.init else self.draw_params()), False
        before = {name: restored.note.get(name) for name in self.note}
        for change in artifacts.differences(before, self.note):  # which may change a result's last bits
            log.warning("resuming at step %d: %s", restored.step, change)
        self.guard = Guard(restored.note.get("guard"))
        stages = restored.note.get("stages", {})
        self.plateau = Plateau(*stages.get("plateau", Plateau()))
        self.curriculum = self.curriculum.ending(dict(stages.get("ended", ())))
        log.info("resuming at step %d of %d", restored.step, self.curriculum.total_steps)
        return restored.step, restored.state, bool(stages.get("validation_owed"))

    def draw_params(self) -> Any:
        """New parameters, each drawn on the devices that hold it: one device need not fit all of them."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.steps.abstract.params)
        return jax.jit(lambda: llama.init(self.student, self.seed), out_shardings=where)()

    def _loop(self, done: int, state: TrainState) -> dict[str, Any]:
        """Runs the steps after the first `done`; returns the last metrics that were recorded."""
        last: dict[str, Any] = {}
        pending: collections.deque[_Pending] = collections.deque()
        curriculum, batches = self.curriculum, self._batches(done, state)
        first_traced, last_traced = self.profile or (0, 0)
        self.first = done + 1
        self.speed.restart()
        with progress("training", curriculum.total_steps, done) as report:
            while done < self.curriculum.total_steps:
                position = curriculum.position(done)
                stage = curriculum.stages[position.stage]
                done += 1
                if done == first_traced:
                    jax.profiler.start_trace(str(self.directory))
                    self.tracing = True
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                if stage.reset_optimizer and position.stage_step == 0 and position.stage > 0:
                    state = self.steps.reset(state)

                # Start the step; the devices compute it while the loop goes on.
                rows = loader.on_devices(batch, self.train.batch_rows, self.placement)
                limit = self.guard.limit(done, stage.skip_spikes)
                limits = [jnp.float32(limit)] if self.limited else []
                state, measured = self.steps.update(state, rows, jnp.float32(position.learning_rate), *limits)
                self.signals.at_once = False
                pending.append(_Pending(done, position, measured, waited, limit))
                if self.tracing and done == last_traced:
                    jax.block_until_ready(measured)
                    jax.profiler.stop_trace()
                    self.tracing = False

                # Record the step before, or also this one if validation or a checkpoint comes next:
                # validation's time is not the step's, and a saved step has its metrics written.
                stop = self.preemption.exchange(self.signals.received)
                assess = any(self._due(kind, done) for kind in DECIDING.values())
                save = bool(stop) or done % self.train.checkpoint_every == 0
                save |= done == self.curriculum.total_steps or done in self._round_starts()
                while len(pending) > (0 if assess or save else 1):
                    last = self._record(pending.popleft()) or last
                    text = "{stage} loss {loss:.3f} {tokens_per_second:.0f} tokens/s"
                    report(done, text.format(**last) if last else "")

                if assess and not stop:
                    try:
                        self._assess(state, done)
                    except hosts.Interrupted as interrupted:
                        stop, save = interrupted.signal, True
                    save |= done == self.curriculum.total_steps  # a plateau may end the run here
                if save:
                    began = time.perf_counter()
                    self.checkpoints.save(done, state, self._resume_note(assess and bool(stop)))
                    self.speed.add(save_wait=time.perf_counter() - began)
                if stop:
                    self._leave(stop, done)
                # A stage ended at a plateau, or a round begins: the rows change.
                if self.curriculum is not curriculum or done in self._round_starts():
                    curriculum, batches = self.curriculum, self._batches(done, state)
        return last

    def _leave(self, stop: signal.Signals, done: int) -> NoReturn:
        self.checkpoints.wait()
        log.warning("%s: saved step %d; run the same command again to go on", stop.name, done)
        if stop == signal.SIGTERM:
            raise SystemExit(hosts.AGAIN)
        raise KeyboardInterrupt(stop.name)

    def _resume_note(self, owed: bool) -> dict[str, Any]:
        ended = [list(pair) for pair in self.curriculum.ended.items()]
        stages = {"plateau": list(self.plateau), "ended": ended, "validation_owed": owed}
        return {"guard": self.guard.note(), "stages": stages}

    def _due(self, kind: str, done: int) -> bool:
        """Whether a validation or an evaluation is: at the end of a stage, and every so many steps."""
        every, there = self.train.validate_every, bool(self.validation)
        if kind == "evaluation":
            every, there = self.train.evaluate_every, self.train.evaluate_every > 0
        return there and (done in self.curriculum.starts or (every > 0 and done % every == 0))

    def _round_starts(self) -> list[int]:
        """The steps done when each round on policy begins."""
        stages = zip(self.curriculum.stages, self.curriculum.starts)
        return [start for stage, start in stages if isinstance(stage, Round)]

    def _open_round(self, state: TrainState, done: int) -> None:
        """Adds the traces of the round that the next step is of, if any; the first step of it makes them."""
        stage = self.curriculum.stages[self.curriculum.stage_at(done)]
        if not isinstance(stage, Round):
            return
        assert self.make_round, "checked at the beginning"
        begins = done in self._round_starts()
        self.checkpoints.wait()  # what the round begins with is on the disk, so it can be made again
        try:
            self._stop_if_told()
            with self.signals.interrupting():
                store = self.make_round(state.params if begins else None, stage)
        except hosts.Interrupted as interrupted:
            self._leave(interrupted.signal, done)
        self.rows.add(stage.dataset, store, like=stage.source)
        measured = {"stage": stage.name, "round": stage.number, **store.manifest["counts"]["replies"]}
        log.info("round %d after step %d: %s", stage.number, done, measured)
        written = read(self.directory / FILE) if self.metrics else []
        known = any(row["kind"] == "round" and row["round"] == stage.number for row in written)
        if self.metrics and begins and not known:
            self.metrics.write("round", done, measured)
        self.speed.restart()

    def _batches(self, start: int, state: TrainState) -> Iterator[loader.Batch]:
        """Batches from a step on, up to the next round on policy, whose rows are not there yet."""
        curriculum = self.curriculum  # the loader's threads must not see it replaced
        if start < curriculum.total_steps:
            self._open_round(state, start)
        later = [step for step in self._round_starts() if step > start]
        return loader.batches(
            self.curriculum.refs,  # of this one: the loader's threads must not see it replaced
            start=start,
            stop=min(later, default=curriculum.total_steps),
            rows=self.train.batch_rows,
            builder=self.rows,
            placement=self.placement,
        )

    def _assess(self, state: TrainState, done: int) -> None:
        """Records validation losses and evaluation where due, and ends the stage if it is at its plateau.

        Raises:
          Interrupted: a signal came; nothing is recorded or ended.
        """
        before = self.plateau, self.curriculum
        try:
            measured = list(self._measure(state, done))
        except hosts.Interrupted:
            self.plateau, self.curriculum = before
            raise
        if self.metrics:
            for kind, values in measured:
                self.metrics.write(kind, done, values)
        self.speed.restart()

    def _measure(self, state: TrainState, done: int) -> Iterator[tuple[str, Mapping[str, float]]]:
        """What is due, by kind, and sets `plateau` and `curriculum` to those after it."""
        index = self.curriculum.stage_at(done - 1)
        stage = self.curriculum.stages[index]
        deciding = DECIDING[stage.plateau_of]
        # The one that may end the stage comes first: at the end of a stage the other is due too.
        for kind in sorted(DECIDING.values(), key=lambda kind: kind != deciding):
            if not self._due(kind, done):
                continue
            values = self._validate(state, done) if kind == "validation" else self._evaluate(state, done)
            yield kind, values
            if kind != deciding:
                continue
            value = values[stage.plateau_of]
            self.plateau = self.plateau.after(value if stage.plateau_of == "loss" else -value)
            if stage.until_plateau and self.plateau.stale >= stage.until_plateau:
                steps = done - self.curriculum.starts[index]
                log.info(
                    "stage %s ends at a plateau after %d steps: %s is %.4f, the best was %.4f; %ss since: %d",
                    stage.name, steps, stage.plateau_of,
                    value, abs(self.plateau.best or 0), kind, self.plateau.stale,
                )  # fmt: skip
                self.curriculum = self.curriculum.ending({index: steps})
        if done == self.curriculum.starts[index + 1]:
            self.plateau = Plateau()

    def _validate(self, state: TrainState, done: int) -> Mapping[str, float]:
        assert self.validation, "validation is due only where there is some"
        values = validation_losses(
            state.params, self.steps.token_losses, self.validation, self.rows,
            batch_rows=self.train.batch_rows, placement=self.placement, after_batch=self._stop_if_told,
        )  # fmt: skip
        log.info("validation after step %d: loss %.4f", done, values["loss"])
        return values

    def _stop_if_told(self) -> None:
        """Raises Interrupted if any host has received a signal; all hosts call it alike."""
        if stop := self.preemption.exchange(self.signals.received):
            raise hosts.Interrupted(stop)

    def _evaluate(self, state: TrainState, done: int) -> Mapping[str, float]:
        assert self.evaluate, "evaluation is due only where there is some"
        began = time.perf_counter()
        self._stop_if_told()
        with self.signals.interrupting():
            values = self.evaluate(state.params)
        log.info(
            "evaluation after step %d: accuracy %.1f ± %.1f %% of %d questions, in %.1f s",
            done, 100 * values["accuracy"], 100 * values["stderr"], values["n"], time.perf_counter() - began,
        )  # fmt: skip
        return values

    def _record(self, pending: _Pending) -> dict[str, Any] | None:
        """Fetches a step's metrics, which waits only for that step; writes and returns every few of them.

        Raises:
          FloatingPointError: too many steps in a row were skipped.
        """
        step, position = pending.step, pending.position
        measured = jax.device_get(pending.metrics)
        tokens, supervised = int(measured.tokens), float(measured.loss.weight)
        self.speed.add(steps=1, tokens=tokens, supervised=supervised, data_wait=pending.waited)
        self.guard.see(step, float(measured.gradient_norm), bool(measured.skipped))
        if measured.skipped:
            what = f"the loss is {measured.loss.total} and the gradient's norm {measured.gradient_norm}"
            over = f" (over {pending.limit:.4g})" if measured.gradient_norm > pending.limit else ""
            if self.guard.in_a_row >= MOST_IN_A_ROW:
                raise FloatingPointError(
                    f"{what}{over} at step {step}; lower the learning rate. The last "
                    f"{self.guard.in_a_row} steps were skipped, and changed nothing"
                )
            log.warning("step %d is skipped: %s%s", step, what, over)
        stage = self.curriculum.stages[position.stage]
        logged = step % self.train.log_every == 0 or step in (1, self.curriculum.total_steps)
        # What shows a plateau may make any step at which it is due the run's last.
        if not logged and not (stage.until_plateau and self._due(DECIDING[stage.plateau_of], step)):
            if step == self.first:
                self.speed.restart()  # a resumed run's first step includes compiling it
            return None
        values = {
            "stage": stage.name,
            "epoch": position.epoch,
            **measured.loss.metrics(),
            "gradient_norm": float(measured.gradient_norm),
            "learning_rate": position.learning_rate,
            "supervised_tokens": supervised,
            "fill": tokens / (self.train.batch_rows * self.rows.row_length),
            "skipped": self.guard.skipped,
            **self.speed.read(),
            **device_bytes(self.mesh.local_devices),
        }
        if self.metrics:
            self.metrics.write("train", step, values)
        return values


class Guard:
    """Counts skipped steps, and limits the gradient norm of the next ones.

    The limit of a step depends on the steps up to two before it, since the metrics of the last one may not
    have been read when it starts. A run that resumes therefore has the same limits.
    """

    def __init__(self, note: Mapping[str, Any] | None = None):
        """Restores the guard whose `note()` this is, or starts a new one."""
        note = note or {}
        self.skipped: int = note.get("skipped", 0)
        self.in_a_row: int = note.get("in_a_row", 0)
        # After each of the last two steps: its number, the running mean of the gradient norms of the steps
        # that were not skipped, and their number.
        self._means: list[tuple[int, float, int]] = note.get("means", [(0, 0.0, 0)])

    def note(self) -> dict[str, Any]:
        """The state as JSON, for a checkpoint's note."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "means": [list(m) for m in self._means]}

    def limit(self, step: int, factor: float) -> float:
        """The gradient norm above which a step is skipped: `factor` times the running mean.

        Infinite if `factor` is 0, or before `LEAST` steps.
        """
        norm, made = next((n, made) for at, n, made in reversed(self._means) if at <= max(0, step - 2))
        return factor * norm if factor and made >= LEAST else math.inf

    def see(self, step: int, norm: float, skipped: bool) -> None:
        """Adds the outcome of a step; called in the order of steps."""
        last = self._means[-1]
        _, mean, made = last
        if skipped:
            self.skipped += 1
            self.in_a_row += 1
        else:
            self.in_a_row, made = 0, made + 1
            mean += (norm - mean) / min(made, HORIZON)
        self._means = [last, (step, mean, made)]


class Plateau(NamedTuple):
    """The lowest validation loss of a stage (or the negative of the highest accuracy), and how many since."""

    best: float | None = None
    stale: int = 0

    def after(self, loss: float) -> Plateau:
        lowest = math.inf if self.best is None else self.best
        return Plateau(loss, 0) if loss < lowest else Plateau(self.best, self.stale + 1)
