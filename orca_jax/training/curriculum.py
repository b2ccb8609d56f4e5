"""The curriculum as data: stages over data sets, and where a step stands in them.

`Curriculum.position` says stage, epoch and rows from the step alone, so a run resumes from one
integer. The paper's curriculum is two stages, ChatGPT's traces and then GPT-4's (section 3.1.3).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from orca_jax.data.packing import PackingPlan

BLOCK = 256  # rows over which a mixture's shares are exact

Plans = Callable[[str, int], PackingPlan]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: which data sets, for how long, at which learning rate.

    Attributes:
      datasets: weights by data set name; rows are drawn in these shares. One name: that set alone.
      epochs: passes over all rows of the data sets; ignored where `steps` is given.
      learning_rate: the peak, reached after `warmup_steps`, then a cosine down to `final_fraction` of it.
      reset_optimizer: start the stage with fresh optimizer moments.
    """

    name: str
    datasets: Mapping[str, float]
    epochs: int = 1
    steps: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    final_fraction: float = 0.1
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        where = f"curriculum stage {self.name!r}"
        if not self.datasets:
            raise ValueError(f"{where}: datasets is empty")
        if self.steps < 0 or (self.steps == 0 and self.epochs < 1):
            raise ValueError(f"{where}: give epochs of at least 1, or steps")
        low = [name for name, share in self.shares.items() if share < 1 / BLOCK]
        if low:
            raise ValueError(f"{where}: the share of {', '.join(low)} is below 1/{BLOCK}; leave it out")

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.datasets.values())
        return (
            {name: weight / total for name, weight in self.datasets.items()}
            if total > 0
            else dict(self.datasets)
        )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at step `step` of the stage's `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


class RowRef(NamedTuple):
    """A row of an epoch's plan; rows past the plan's end are empty and have no weight."""

    dataset: str
    epoch: int
    row: int


class Position(NamedTuple):
    """Where a step stands. `rows` is the global batch, the same for every number of hosts."""

    stage: int
    stage_step: int
    epoch: int
    learning_rate: float
    rows: tuple[RowRef, ...]


class _Stream:
    """A data set's rows, epoch after epoch, each epoch filled up to whole batches."""

    def __init__(self, dataset: str, plans: Plans, batch_rows: int):
        self.dataset = dataset
        self.plans = plans
        self.batch_rows = batch_rows
        self.ends = [0]

    def rows_through(self, epoch: int) -> int:
        """Rows in epochs 0 .. epoch - 1."""
        while len(self.ends) <= epoch:
            rows = self.plans(self.dataset, len(self.ends) - 1).rows
            if rows == 0:
                raise ValueError(f"data set {self.dataset!r} has no rows to train on")
            self.ends.append(self.ends[-1] + math.ceil(rows / self.batch_rows) * self.batch_rows)
        return self.ends[epoch]

    def at(self, index: int) -> RowRef:
        while self.ends[-1] <= index:
            self.rows_through(len(self.ends))
        epoch = bisect.bisect_right(self.ends, index) - 1
        return RowRef(self.dataset, epoch, index - self.ends[epoch])


class Curriculum:
    """Stages laid end to end.

    Args:
      stages: in the order they are trained.
      plans: the packing plan of (data set, epoch).
      batch_rows: rows a step, over all hosts and accumulation steps.
      seed: of the order in which a mixture's data sets take turns.
    """

    def __init__(self, stages: Sequence[StageConfig], plans: Plans, *, batch_rows: int, seed: int):
        if not stages:
            raise ValueError("curriculum is empty: give at least one stage")
        self.stages = tuple(stages)
        self.batch_rows = batch_rows
        self.seed = seed
        names = {name for stage in stages for name in stage.datasets}
        self._plans = plans
        self._streams = [
            {
                name: _Stream(name, self._shifted(index), batch_rows)
                for name in names
                if name in stage.datasets
            }
            for index, stage in enumerate(stages)
        ]
        lengths = [self._stage_steps(index) for index in range(len(stages))]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()

    def _shifted(self, stage: int) -> Plans:
        """Plans whose epochs go on from earlier stages, so that no stage repeats an order."""
        return lambda name, epoch: self._plans(name, epoch + 1000 * stage)

    def _stage_steps(self, index: int) -> int:
        stage = self.stages[index]
        if stage.steps:
            return stage.steps
        rows = sum(stream.rows_through(stage.epochs) for stream in self._streams[index].values())
        return math.ceil(rows / self.batch_rows)

    @property
    def total_steps(self) -> int:
        return self.starts[-1]

    def position(self, step: int) -> Position:
        """Stage, epoch (of the stage's first data set), learning rate and rows of a step."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the curriculum's {self.total_steps} steps")
        stage = bisect.bisect_right(self.starts, step) - 1
        stage_step = step - self.starts[stage]
        first = stage_step * self.batch_rows
        rows = tuple(self._row(stage, index) for index in range(first, first + self.batch_rows))
        steps = self.starts[stage + 1] - self.starts[stage]
        return Position(stage, stage_step, rows[0].epoch, self.stages[stage].rate(stage_step, steps), rows)

    def _row(self, stage: int, index: int) -> RowRef:
        streams = self._streams[stage]
        names = tuple(self.stages[stage].datasets)
        if len(names) == 1:
            return streams[names[0]].at(index)
        block, offset = divmod(index, BLOCK)
        before, turns, ranks = self._block(stage, block)
        choice = int(turns[offset])
        return streams[names[choice]].at(before[choice] + int(ranks[offset]))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a curriculum lives as long as its run
    def _block(self, stage: int, block: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Of a block of rows: rows drawn before it by data set, whose turn each is, its rank in the block."""
        before, after = (self._drawn(stage, block + i) for i in (0, 1))
        counts = [end - start for start, end in zip(before, after)]
        turns = np.repeat(np.arange(len(counts)), counts)
        turns = np.random.default_rng([self.seed, stage, block]).permutation(turns)
        ranks = np.zeros(BLOCK, np.int64)
        for choice, count in enumerate(counts):
            ranks[turns == choice] = np.arange(count)
        return before, turns, ranks

    def _drawn(self, stage: int, blocks: int) -> list[int]:
        """Rows drawn of each data set in the first `blocks` blocks; they add up to all of them."""
        ends = np.floor(np.cumsum(list(self.stages[stage].shares.values())) * blocks * BLOCK + 1e-6).astype(
            int
        )
        ends[-1] = blocks * BLOCK
        return np.diff(ends, prepend=0).tolist()
