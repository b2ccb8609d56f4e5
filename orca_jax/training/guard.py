"""Which steps are not to be made: seen from the host, a step late, and told to the devices as a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_IN_A_ROW = 5
HORIZON = 50  # steps over which the running mean forgets
LEAST = 20  # steps before a mean is trusted


class _Mean(NamedTuple):
    """The running mean of the gradient norms of the steps made, up to step `step`."""

    step: int
    norm: float
    made: int

    def after(self, step: int, norm: float) -> _Mean:
        made = self.made + 1
        return _Mean(step, self.norm + (norm - self.norm) / min(made, HORIZON), made)


class Guard:
    """Counts skipped steps, and says which norm a step may have.

    A step's limit rests on the steps up to two before it: later ones need not have been measured when it is
    started. So it does not depend on when the loop looked, and a run that resumes has the same limits.
    """

    def __init__(self, note: Mapping[str, Any] | None = None):
        """From `note()` of an earlier guard, or from nothing."""
        note = note or {}
        self.skipped: int = note.get("skipped", 0)
        self.in_a_row: int = note.get("in_a_row", 0)
        self._means = [_Mean(*mean) for mean in note.get("means", [[0, 0.0, 0]])]

    def note(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "means": [list(m) for m in self._means]}

    def limit(self, step: int, factor: float) -> float:
        """The norm over which step `step` is skipped; infinite without a factor, or before enough steps."""
        mean = next(mean for mean in reversed(self._means) if mean.step <= max(0, step - 2))
        return factor * mean.norm if factor and mean.made >= LEAST else math.inf

    def see(self, step: int, norm: float, skipped: bool) -> None:
        """Takes in the outcome of a step; they come in order."""
        last = self._means[-1]
        if skipped:
            self.skipped += 1
            self.in_a_row += 1
            self._means = [last, last._replace(step=step)]
        else:
            self.in_a_row = 0
            self._means = [last, last.after(step, norm)]


class Plateau(NamedTuple):
    """The lowest validation loss of a stage, and validations since then."""

    best: float | None = None
    stale: int = 0

    def after(self, loss: float) -> Plateau:
        lowest = math.inf if self.best is None else self.best
        return Plateau(loss, 0) if loss < lowest else Plateau(self.best, self.stale + 1)
