"""Skipped steps and plateaus: decisions of the host from metrics that it reads one step late."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_IN_A_ROW = 5
HORIZON = 50  # steps over which the running mean forgets
LEAST = 20  # steps before a mean is trusted


class _Mean(NamedTuple):
    """The running mean of the gradient norms of the steps that were not skipped, up to step `step`."""

    step: int
    norm: float
    made: int

    def after(self, step: int, norm: float) -> _Mean:
        made = self.made + 1
        return _Mean(step, self.norm + (norm - self.norm) / min(made, HORIZON), made)


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
        self._means = [_Mean(*mean) for mean in note.get("means", [[0, 0.0, 0]])]

    def note(self) -> dict[str, Any]:
        """The state as JSON, for a checkpoint's note."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "means": [list(m) for m in self._means]}

    def limit(self, step: int, factor: float) -> float:
        """The gradient norm above which a step is skipped: `factor` times the running mean.

        Infinite if `factor` is 0, or before `LEAST` steps.
        """
        mean = next(mean for mean in reversed(self._means) if mean.step <= max(0, step - 2))
        return factor * mean.norm if factor and mean.made >= LEAST else math.inf

    def see(self, step: int, norm: float, skipped: bool) -> None:
        """Adds the outcome of a step; called in the order of steps."""
        last = self._means[-1]
        if skipped:
            self.skipped += 1
            self.in_a_row += 1
            self._means = [last, last._replace(step=step)]
        else:
            self.in_a_row = 0
            self._means = [last, last.after(step, norm)]


class Plateau(NamedTuple):
    """The lowest validation loss of a stage, and the number of validations since."""

    best: float | None = None
    stale: int = 0

    def after(self, loss: float) -> Plateau:
        lowest = math.inf if self.best is None else self.best
        return Plateau(loss, 0) if loss < lowest else Plateau(self.best, self.stale + 1)
