"""Contestants of a benchmark, timed in turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

Step = Callable[[], None]
YNN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}  # XLA's faster CPU matrix products


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do a job: `step` does it once and waits for its end.

    `tokens` are those that a step gets through, `supervised` those among them that count, `said` what it
    generated last.
    """

    name: str
    step: Step
    tokens: float
    supervised: float
    said: list[list[int]] = dataclasses.field(default_factory=list)


def race(contestants: list[Contestant], rounds: int, seconds: float) -> list[list[float]]:
    """Seconds a step of each contestant, a list a round; they take turns, so that noise meets all."""
    for contestant in contestants:
        contestant.step()
    return [[_seconds_a_step(contestant.step, seconds) for contestant in contestants] for _ in range(rounds)]


def _seconds_a_step(step: Step, seconds: float) -> float:
    started = time.perf_counter()
    step()  # not counted: it pays for the turn before, whose threads still spin and whose memory is gone
    if 0 < 2 * seconds < (took := time.perf_counter() - started):
        return took  # unless it is so long that this hardly matters
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or steps < 2:
        step()
        steps += 1
    return (time.perf_counter() - started) / steps
