"""Metrics: throughput and memory, and records of a run as JSON lines and TensorBoard files.

Imports no jax, so that reports can read metrics without it.
"""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax import artifacts

if TYPE_CHECKING:
    import jax

FILE = "metrics.jsonl"
# Metrics that differ from run to run.
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
    """Counts tokens and seconds since the last record, so that rates are means over whole steps.

    Args:
      flops_per_token: model FLOPs of a token, forward and backward.
      peak_flops: FLOP/s of all devices together; 0 if unknown, and then there is no `mfu`.
    """

    def __init__(self, flops_per_token: float = 0.0, peak_flops: float = 0.0):
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        self._since = time.perf_counter()
        self._sums: collections.Counter[str] = collections.Counter()

    def add(self, **amounts: float) -> None:
        """Adds `steps`, their `tokens`, those `supervised`, and seconds of `data_wait` and `save_wait`."""
        self._sums.update(amounts)

    def read(self) -> dict[str, float]:
        """Rates since the last call; `data_wait` and `save_wait` are shares of the time."""
        seconds, sums = time.perf_counter() - self._since, self._sums
        values = {
            "tokens_per_second": sums["tokens"] / seconds,
            "supervised_tokens_per_second": sums["supervised"] / seconds,
            "step_seconds": seconds / max(1, sums["steps"]),
            "data_wait": sums["data_wait"] / seconds,
            "save_wait": sums["save_wait"] / seconds,
        }
        if self.peak_flops:
            values["mfu"] = self.flops_per_token * values["tokens_per_second"] / self.peak_flops
        self.restart()
        return values


def device_bytes(devices: Sequence[jax.Device]) -> dict[str, int]:
    """The largest peak memory of `devices`, in bytes; empty where the platform does not report it (CPUs)."""
    found = [device.memory_stats() for device in devices]
    peaks = [stats["peak_bytes_in_use"] for stats in found if stats and "peak_bytes_in_use" in stats]
    return {"device_bytes": max(peaks)} if peaks else {}


class Metrics:
    """Writes records as JSON lines, and their numbers to TensorBoard.

    A run that resumes at `step` first removes the records of later steps, which it will make again.
    """

    def __init__(self, directory: str | os.PathLike[str], step: int):
        # tensorboardX imports torch where that is installed, a second of each start that nothing here needs.
        hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        try:
            from tensorboardX import SummaryWriter
        finally:
            if hidden is None:
                del sys.modules["torch"]

        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(self.path) if row["step"] <= step] if self.path.exists() else []
        with artifacts.atomic_write(self.path) as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._board = SummaryWriter(os.fspath(directory), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record of `kind` (train, validation, evaluation, round) after `step` steps."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file, up to the first incomplete line (the writer may have been killed)."""
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
