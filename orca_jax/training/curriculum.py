"""The curriculum as data: stages over data sets, and the rows of every step.

`Curriculum.position` computes stage, epoch and rows from the step alone, so a run resumes from one integer
(and, with plateaus, from the steps at which stages ended). The paper's curriculum has two stages, ChatGPT's
traces and then GPT-4's (section 3.1.3).
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orca_jax import plugins
from orca_jax.config import BLOCK, OnPolicyConfig, StageConfig, normalized
from orca_jax.data.packing import PackingPlan
from orca_jax.data.rows import Distillation

DECAY = 0.1  # share of the steps after the warm-up in which `wsd` falls
PIECES = 64  # the least number of blocks of a stage whose shares change
# Epochs of a data set's plans for each stage that uses it, so that stages do not repeat an order of rows.
EPOCHS = 1000
ROUND = "round/{}"  # the data set of a round's traces

Plans = Callable[[str, int], PackingPlan]


def expected(stage: StageConfig, rows: int, total: int) -> np.ndarray:
    """Expected rows of each data set, in the order of `stage.names`, among the first `rows` of `total`.

    Shares change from row to row; after the end of the stage the last ones hold.
    """
    begin = normalized(stage.datasets)
    first, last = (
        np.array([shares.get(name, 0.0) for name in stage.names])
        for shares in (begin, normalized(stage.anneal_to) or begin)
    )
    inside = min(rows, total)
    moved = inside**2 / (2 * total)  # the integral of row / total
    return first * inside + (last - first) * moved + last * (rows - inside)


def _of_plugin(stage: StageConfig) -> plugins.Curriculum:
    """What a plugin decides of a stage; nothing where the stage names none."""
    if stage.kind:
        found: plugins.Curriculum = plugins.CURRICULA.entries[stage.kind]
        return found
    return plugins.Curriculum(None, None)


def shares(stage: StageConfig, done: float) -> np.ndarray:
    """The shares of the data sets, in the order of `stage.names`, that a plugin gives for a point of a stage.

    Raises:
      ValueError: it gives other data sets or a negative weight, or all are 0.
    """
    weights = _of_plugin(stage).weights
    given = dict(weights(stage, done)) if weights else {}
    if not given.keys() <= set(stage.names) or min(given.values(), default=0) < 0 or not sum(given.values()):
        raise ValueError(
            f"curriculum {stage.kind!r} gives the weights {given} at {done:.2f} of stage {stage.name!r}; it "
            f"must give weights of 0 or more to some of its data sets: {', '.join(stage.names)}"
        )
    return np.array([normalized(given).get(name, 0.0) for name in stage.names])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round(StageConfig):
    """A round of a stage on policy: a stage of its own, on the one learning-rate schedule of all its rounds.

    Attributes:
      number: of all the curriculum's rounds.
      source: the data set whose questions are answered, and whose teacher mends the replies.
      before: steps of the stage's earlier rounds.
      whole: steps of all its rounds.
      rules: how its traces are made.
    """

    number: int
    source: str
    before: int
    whole: int
    rules: OnPolicyConfig

    @property
    def dataset(self) -> str:
        """The data set of the round's traces."""
        return ROUND.format(self.number)


def with_rounds(stages: Sequence[StageConfig]) -> list[StageConfig]:
    """The stages, each one on policy as its rounds."""
    laid: list[StageConfig] = []
    number = 0
    for stage in stages:
        if (rules := stage.on_policy) is None:
            laid.append(stage)
            continue
        given = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
        steps, (source,) = stage.steps // rules.rounds, stage.names
        for index in range(rules.rounds):
            shares = {source: 1 - rules.share, ROUND.format(number): rules.share}
            given |= {
                "datasets": {name: share for name, share in shares.items() if share > 0},
                "steps": steps,
                "on_policy": None,
                "reset_optimizer": stage.reset_optimizer and index == 0,
            }
            one = Round(
                **given, number=number, source=source, before=index * steps, whole=stage.steps, rules=rules
            )
            laid.append(one)
            number += 1
    return laid


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Learning rate at step `step` of the stage's `steps`, see `StageConfig.schedule`."""
    if isinstance(stage, Round):
        step, steps = stage.before + step, stage.whole
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    done = min(1.0, (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps))
    if rate := _of_plugin(stage).rate:
        return stage.learning_rate * rate(stage, done)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "wsd": min(1.0, (1 - done) / DECAY),
        "constant": 1.0,
    }[stage.schedule]
    return stage.learning_rate * (stage.final_fraction + (1 - stage.final_fraction) * left)


class RowRef(NamedTuple):
    """A row of an epoch's plan; rows after the plan's end are empty and have no weight."""

    dataset: str
    epoch: int
    row: int


class Position(NamedTuple):
    """Stage, epoch and learning rate of a step; `rows` is the global batch, the same for all hosts."""

    stage: int
    stage_step: int
    epoch: int
    learning_rate: float
    rows: tuple[RowRef, ...]


class _Stream:
    """A data set's rows, epoch after epoch from `first` on, each epoch padded to whole batches."""

    def __init__(self, dataset: str, plans: Plans, batch_rows: int, first: int):
        self.dataset = dataset
        self.plans = plans
        self.batch_rows = batch_rows
        self.first = first
        self.ends = [0]
        self._lock = threading.Lock()  # the loader's threads use it too

    def rows_through(self, epoch: int) -> int:
        """Rows in the first `epoch` epochs."""
        with self._lock:
            while len(self.ends) <= epoch:
                rows = self.plans(self.dataset, self.first + len(self.ends) - 1).rows
                if rows == 0:
                    raise ValueError(f"data set {self.dataset!r} has no rows to train on")
                self.ends.append(self.ends[-1] + math.ceil(rows / self.batch_rows) * self.batch_rows)
            return self.ends[epoch]

    def at(self, index: int) -> RowRef:
        while self.ends[-1] <= index:
            self.rows_through(len(self.ends))
        epoch = bisect.bisect_right(self.ends, index) - 1
        return RowRef(self.dataset, self.first + epoch, index - self.ends[epoch])


class _Annealed:
    """Counts of rows by data set in the first blocks, of `size` rows, of a stage whose shares change.

    Each block takes the rows by which its data sets are behind what is expected, rounded so that they add
    up to the block. So no count decreases, and each stays within a row or two of what is expected.
    """

    def __init__(self, stage: StageConfig, total: int):
        self.size = max(1, min(BLOCK, total // PIECES))
        self._stage = stage
        self._total = total
        self._counts = [np.zeros(len(stage.names), np.int64)]
        self._expected = np.zeros(len(stage.names))
        self._lock = threading.Lock()

    def drawn(self, blocks: int) -> list[int]:
        with self._lock:
            while len(self._counts) <= blocks:
                rows = len(self._counts) * self.size
                if _of_plugin(self._stage).weights:
                    middle = min(1.0, (rows - self.size / 2) / self._total)
                    self._expected = self._expected + self.size * shares(self._stage, middle)
                else:
                    self._expected = expected(self._stage, rows, self._total)
                wanted = self._expected - self._counts[-1]
                self._counts.append(self._counts[-1] + _whole(wanted, self.size))
            return [int(count) for count in self._counts[blocks]]


def _whole(wanted: np.ndarray, total: int) -> np.ndarray:
    """Rounds `wanted`, whose sum is `total`, to integers of 0 or more with the same sum."""
    counts = np.maximum(np.floor(wanted + 1e-6), 0).astype(np.int64)
    while (missing := total - int(counts.sum())) != 0:
        # One row at a time, where the error is largest; at most as many rows as there are data sets.
        behind = np.where((missing > 0) | (counts > 0), wanted - counts, np.inf)
        counts[np.argmax(behind) if missing > 0 else np.argmin(behind)] += np.sign(missing)
    return counts


class Curriculum:
    """Stages laid end to end.

    Args:
      stages: in the order they are trained; each one on policy becomes its rounds.
      plans: the packing plan of (data set, epoch).
      batch_rows: rows a step, over all hosts and accumulation steps.
      seed: of the order of data sets in a mixture.
    """

    def __init__(self, stages: Sequence[StageConfig], plans: Plans, *, batch_rows: int, seed: int):
        if not stages:
            raise ValueError("curriculum is empty: give at least one stage")
        self.stages = tuple(stages := with_rounds(stages))
        self.batch_rows = batch_rows
        self.seed = seed
        self._streams: list[dict[str, _Stream]] = []
        self.planned: list[int] = []
        for index, stage in enumerate(stages):
            before = [name for earlier in stages[:index] for name in earlier.names]
            streams = {
                name: _Stream(name, plans, batch_rows, EPOCHS * before.count(name)) for name in stage.names
            }
            rows = 0 if stage.steps else sum(each.rows_through(stage.epochs) for each in streams.values())
            self._streams.append(streams)
            self.planned.append(stage.steps or math.ceil(rows / batch_rows))
        self._annealed = {
            index: _Annealed(stage, steps * batch_rows)
            for index, (stage, steps) in enumerate(zip(self.stages, self.planned))
            if stage.anneal_to or _of_plugin(stage).weights
        }
        self.ended: dict[int, int] = {}
        self.starts = self._starts()

    def _starts(self) -> list[int]:
        lengths = [self.ended.get(index, steps) for index, steps in enumerate(self.planned)]
        return np.concatenate([[0], np.cumsum(lengths)]).tolist()

    def ending(self, ended: Mapping[int, int]) -> Curriculum:
        """A copy in which stages (by index) ended after the given numbers of their steps."""
        other = copy.copy(self)
        other.ended = {**self.ended, **ended}
        other.starts = other._starts()
        return other

    @property
    def total_steps(self) -> int:
        return self.starts[-1]

    def stage_at(self, step: int) -> int:
        """Index of the stage that a step belongs to."""
        return bisect.bisect_right(self.starts, step) - 1

    def position(self, step: int) -> Position:
        """Stage, epoch (of the data set of the first row), learning rate and rows of a step."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the curriculum's {self.total_steps} steps")
        stage = self.stage_at(step)
        stage_step = step - self.starts[stage]
        first = stage_step * self.batch_rows
        rows = tuple(self._row(stage, index) for index in range(first, first + self.batch_rows))
        rate = learning_rate(self.stages[stage], stage_step, self.planned[stage])
        return Position(stage, stage_step, rows[0].epoch % EPOCHS, rate, rows)

    def refs(self, step: int) -> Sequence[tuple[Any, ...]]:
        """What `RowBuilder.row` takes for each row of a step's global batch."""
        position = self.position(step)
        stage = self.stages[position.stage]
        if not stage.distill_weight:
            return position.rows
        distillation = Distillation(stage.distill_weight, stage.distill_temperature)
        return [(*ref, distillation) for ref in position.rows]

    def _row(self, stage: int, index: int) -> RowRef:
        streams = self._streams[stage]
        names = self.stages[stage].names
        if len(names) == 1:
            return streams[names[0]].at(index)
        size = self._annealed[stage].size if stage in self._annealed else BLOCK
        block, offset = divmod(index, size)
        before, turns, ranks = self._block(stage, block)
        choice = int(turns[offset])
        return streams[names[choice]].at(before[choice] + int(ranks[offset]))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a curriculum lives as long as its run
    def _block(self, stage: int, block: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        """For a block of rows: rows before it by data set, the data set of each row, and its rank in that."""
        before, after = (self._drawn(stage, block + i) for i in (0, 1))
        counts = [end - start for start, end in zip(before, after)]
        turns = np.repeat(np.arange(len(counts)), counts)
        turns = np.random.default_rng([self.seed, stage, block]).permutation(turns)
        ranks = np.zeros(len(turns), np.int64)
        for choice, count in enumerate(counts):
            ranks[turns == choice] = np.arange(count)
        return before, turns, ranks

    def _drawn(self, stage: int, blocks: int) -> list[int]:
        """Rows of each data set in the first `blocks` blocks; they add up to all rows."""
        if stage in self._annealed:
            return self._annealed[stage].drawn(blocks)
        ends = np.floor(
            np.cumsum(list(normalized(self.stages[stage].datasets).values())) * blocks * BLOCK + 1e-6
        ).astype(int)
        ends[-1] = blocks * BLOCK
        return np.diff(ends, prepend=0).tolist()
