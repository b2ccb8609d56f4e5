"""Puzzles as a taskset of Prime Intellect's `verifiers` (version 0.4), which is installed apart.

It finds tasksets by a top-level name and by `__all__`: docs/data.md has the file that makes these known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import verifiers.v1 as vf

from orca_jax.evaluation import puzzle_rewards
from orca_jax.evaluation.puzzle_rewards import Verdict

__all__ = ["PuzzleTaskset"]


class PuzzleConfig(vf.TasksetConfig):
    """Which puzzles, see `puzzle_rewards.rows`."""

    families: tuple[str, ...] = ("tracking", "pointer_chasing", "nested_booleans")
    difficulties: tuple[int, ...] = (2, 4, 8)
    count: int = 1000
    seed: int = 0
    split: Literal["train", "test"] = "train"
    message: int = 7


class PuzzleData(vf.TaskData):
    """A row of `puzzle_rewards.rows`."""

    row: dict[str, Any]


class PuzzleTask(vf.Task[PuzzleData]):
    """One puzzle: its reward is a right answer, its metrics are about the steps."""

    def verdict(self, trace: vf.Trace) -> Verdict:
        replies = [str(m.content or "") for m in trace.messages if m.role == "assistant"]
        return puzzle_rewards.verdict(self.data.row, replies[-1] if replies else "")

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """1 for a right answer."""
        return float(self.verdict(trace).correct)

    @vf.metric
    async def steps(self, trace: vf.Trace) -> dict[str, float]:
        """Counts of steps, and whether all lines are right."""
        found = dataclasses.asdict(self.verdict(trace))
        return {name: float(value) for name, value in found.items() if name not in ("correct", "answer")}


class PuzzleTaskset(vf.Taskset[PuzzleTask, PuzzleConfig]):
    """The puzzles of a config."""

    def load(self) -> Iterable[PuzzleTask]:
        own = self.config
        made = puzzle_rewards.rows(
            own.families, own.difficulties, own.count, seed=own.seed, split=own.split, message=own.message
        )
        for row in made:
            system = next((m["content"] for m in row["prompt"] if m["role"] == "system"), None)
            question = row["prompt"][-1]["content"]
            data = PuzzleData(id=row["id"], prompt=question, system_prompt=system, row=row)
            yield PuzzleTask(data, own.task)
