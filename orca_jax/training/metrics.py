"""Metrics as JSON lines and TensorBoard files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orca_jax import artifacts

FILE = "metrics.jsonl"


class Metrics:
    """Writes one JSON line a record, and its numbers to TensorBoard.

    A resumed run goes on at `step`: lines of later steps, which will be made again, are cut off first.
    """

    def __init__(self, directory: str | os.PathLike[str], step: int):
        from tensorboardX import SummaryWriter

        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(self.path) if row["step"] <= step] if self.path.exists() else []
        with artifacts.atomic_write(self.path) as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._board = SummaryWriter(os.fspath(directory), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record of `kind` (train, validation) after `step` steps."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a line torn by a kill ends the reading."""
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
