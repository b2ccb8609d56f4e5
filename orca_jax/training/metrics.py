"""Metrics: throughput and memory, and records of a run: JSON lines, TensorBoard files, Weights & Biases.

Imports no jax, so that reports can read metrics without it.
"""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax import artifacts

if TYPE_CHECKING:
    import jax

FILE, RUN_ID = "metrics.jsonl", "wandb_run_id"
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


def wandb_run(project: str, directory: Path) -> Any:
    """The run of a training directory at Weights & Biases: the one that was begun there, or a new one.

    WANDB_MODE, WANDB_ENTITY and others count as wandb documents them; offline files are in `directory`.

    Raises:
      ValueError: the extra is not installed, or wandb refuses, for want of a key for example.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"train.wandb needs an extra: pip install -e '.[wandb]' ({error})") from error
    kept = directory / RUN_ID
    if not kept.exists():
        with artifacts.atomic_write(kept) as file:
            file.write(uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=project,
            id=kept.read_text(encoding="utf-8"),
            name=directory.resolve().parent.name,
            dir=directory,
            resume="allow",
            config=dict(artifacts.recorded(directory)["provenance"]),
            settings=wandb.Settings(console="off"),
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"train.wandb: {error}. Run wandb login, set WANDB_MODE=offline, or leave train.wandb empty"
        ) from error
    # Not wandb's own step, behind which a run that goes on from a checkpoint may not fall.
    run.define_metric("*", step_metric="step")
    return run


class Metrics:
    """Writes records as JSON lines, and their numbers to TensorBoard and to the project `wandb`, if given.

    A run that resumes at `step` first removes the records of later steps, which it will make again.
    """

    def __init__(self, directory: str | os.PathLike[str], step: int, wandb: str = ""):
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
        self._run = wandb_run(wandb, Path(directory)) if wandb else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record of `kind` (train, validation, evaluation, round) after `step` steps."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._run:
            self._run.log({"step": step, **numbers})

    def close(self) -> None:
        if self._run:
            self._run.finish()
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
