"""How fast a run goes and where its time and memory go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

# Names of values that differ from run to run.
TIMED = (
    "tokens_per_second",
    "supervised_tokens_per_second",
    "step_seconds",
    "data_wait",
    "save_wait",
    "mfu",
    "device_bytes",
)


class Speed:
    """Tokens and seconds since the last record, so that a rate is a mean over whole steps.

    Args:
      flops_per_token: model FLOPs of a token, forward and backward.
      peak_flops: FLOP/s of all devices together; 0 where it is not known, and then there is no `mfu`.
    """

    def __init__(self, flops_per_token: float = 0.0, peak_flops: float = 0.0):
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        self.since, self.steps, self.tokens, self.supervised = time.perf_counter(), 0, 0, 0.0
        self.waited = {"data": 0.0, "save": 0.0}

    def add(self, tokens: int, supervised: float, data_seconds: float) -> None:
        """A step: its tokens, those with loss, and the seconds it waited for its data."""
        self.steps += 1
        self.tokens += tokens
        self.supervised += supervised
        self.waited["data"] += data_seconds

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Time inside is what the loop waits for a checkpoint."""
        began = time.perf_counter()
        yield
        self.waited["save"] += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Rates since the last reading; `data_wait` and `save_wait` are shares of the time."""
        seconds = time.perf_counter() - self.since
        rate = self.tokens / seconds
        values = {
            "tokens_per_second": rate,
            "supervised_tokens_per_second": self.supervised / seconds,
            "step_seconds": seconds / max(1, self.steps),
            **{f"{name}_wait": waited / seconds for name, waited in self.waited.items()},
        }
        if self.peak_flops:
            values["mfu"] = self.flops_per_token * rate / self.peak_flops
        self.restart()
        return values


def device_bytes(devices: Sequence[jax.Device]) -> dict[str, int]:
    """The most bytes that one of `devices` has had in use, where the platform counts them (CPUs do not)."""
    found = [device.memory_stats() for device in devices]
    peaks = [stats["peak_bytes_in_use"] for stats in found if stats and "peak_bytes_in_use" in stats]
    return {"device_bytes": max(peaks)} if peaks else {}


class Profile:
    """A trace of steps `first` to `last`, for TensorBoard's profiler, under `directory`; None: of no step."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None):
        if steps and not 1 <= steps[0] <= steps[1]:
            raise ValueError(f"cannot profile steps {steps[0]} to {steps[1]}; steps count from 1")
        self.directory = directory
        self.steps = steps
        self.tracing = False

    def before(self, step: int) -> None:
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.directory))
            self.tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace once the last step's `results` are there."""
        if self.tracing and self.steps and step == self.steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
