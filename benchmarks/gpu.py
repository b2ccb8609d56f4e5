"""Training steps at full size on one GPU, beside torch; few packages are needed.

python -m benchmarks.gpu --minutes=10 --out=benchmark_gpu.jsonl    # a line of JSON a case, a table at the end
python -m benchmarks.gpu --case=7B                                 # cases with this in their names

Packed rows of 2,048 positions, segments kept apart, bfloat16 products over float32 parameters. Every case
runs in a process of its own, so that its peak memory is its own and running out of it ends no other. Where
transformers and torch are installed, the same step runs in them, with flex attention over the same segments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import racing
from orca_jax.config import LlamaConfig, OptimizerConfig, Remat
from orca_jax.data.rows import Row, stack
from orca_jax.planning import chips
from orca_jax.student.presets import PRESETS

EXAMPLES_A_ROW = 2.7  # the paper's packing (ORCA, 3.2)
WARM_UP, TIMED = 3, 10
LEFT_OUT = "left out"
SIZE_1B: dict[str, Any] = dict(
    hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=16, num_kv_heads=16
)
SHAPES = {
    "1B": dataclasses.replace(PRESETS["llama2-7b"], **SIZE_1B),
    "7B": PRESETS["llama2-7b"],
    "tiny": racing.student(256, 64, 128, 2, 4),
}


class Case(NamedTuple):
    """One thing to time; `software` is orca_jax or torch."""

    shape: str
    software: str
    attention: str
    remat: Remat
    rows: int
    row_length: int = 2048

    @property
    def name(self) -> str:
        return " ".join(map(str, self))

    @property
    def config(self) -> LlamaConfig:
        attention: Any = self.attention if self.software == "orca_jax" else "auto"
        return dataclasses.replace(SHAPES[self.shape], attention=attention, remat=self.remat)


# In the order of their worth, since the time may end before the list does.
CASES = (
    Case("1B", "orca_jax", "blockwise", "products", 8),
    Case("1B", "orca_jax", "pallas_gpu", "products", 8),
    Case("1B", "torch", "flex_attention", "none", 8),
    Case("7B", "orca_jax", "pallas_gpu", "full", 4),
    Case("7B", "torch", "flex_attention", "full", 4),
    Case("1B", "orca_jax", "pallas_gpu", "none", 8),
    Case("1B", "orca_jax", "pallas_gpu", "full", 16),
    Case("7B", "orca_jax", "blockwise", "full", 4),
    Case("1B", "orca_jax", "causal_blocks", "full", 8),
    Case("1B", "orca_jax", "reference", "full", 4),
)
ON_CPU = (
    Case("tiny", "orca_jax", "blockwise", "full", 2, 64),
    Case("tiny", "orca_jax", "causal_blocks", "none", 2, 64),
    Case("tiny", "torch", "sdpa", "none", 2, 64),
)


def packed(case: Case) -> Row:
    """A batch of packed rows of uneven examples."""
    count = int(4 * EXAMPLES_A_ROW * case.rows) + 8
    median = 0.85 * case.row_length / EXAMPLES_A_ROW
    examples = racing.uneven_examples(count, case.config.vocab_size, case.row_length, median, spread=0.6)
    return stack(racing.packed_rows(examples, case.row_length)[: case.rows])


def model_flops(config: LlamaConfig, batch: Row) -> float:
    """FLOPs of a step that the mathematics needs: 6 a weight and token, and causal attention in segments."""
    rows = np.asarray(batch.segment_ids)
    sizes = np.concatenate([np.unique(row[row > 0], return_counts=True)[1] for row in rows]).astype(float)
    a_position = config.training_flops(2) - config.training_flops(0)  # with one position seen on average
    return config.training_flops(0) * sizes.sum() + a_position * float((sizes * sizes / 2).sum())


def arguments(batch: Row) -> dict[str, np.ndarray]:
    """Packed rows for transformers, which keeps segments apart by positions that begin anew."""
    labels = np.where(batch.loss_weights > 0, batch.targets, -100).astype(np.int64)
    tokens, positions = batch.tokens.astype(np.int64), batch.positions.astype(np.int64)
    return {"input_ids": tokens, "position_ids": positions, "labels": labels, "shift_labels": labels}


def measure(case: Case) -> dict[str, Any]:
    """Times a case here; seconds are the median of `TIMED` steps."""
    batch, config = packed(case), case.config
    if case.software == "torch":
        import torch

        step = racing.transformers_step(config, [arguments(batch)], attention=case.attention, autocast=True)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    else:
        step = racing.training_step(config, [batch], "bfloat16", OptimizerConfig(kind="adamw_bf16"))
        device = jax.devices()[0].device_kind
    losses = [step() for _ in range(WARM_UP)]
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - started)
    if case.software == "torch":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    median, flops, chip = float(np.median(seconds)), model_flops(config, batch), chips.of_device(device)
    return {
        "device": device,
        "step_ms": 1e3 * median,
        "step_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens_per_second": float((np.asarray(batch.segment_ids) > 0).sum()) / median,
        "model_tflops": flops / median / 1e12,
        "mfu": flops / median / chip.peak if chip else None,
        "peak_gib": peak / 2**30,
        "losses": [losses[0], losses[-1]],
    }


def in_process(case: Case, seconds: float) -> dict[str, Any]:
    """The measurements of a case, or under `outcome` why there are none."""
    if seconds <= 30:
        return {"outcome": LEFT_OUT}
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", json.dumps(case)]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    if case.software == "torch":
        environment["JAX_PLATFORMS"] = "cpu"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"outcome": f"not done within the {seconds:.0f} s that were left"}
    if done.returncode:
        return {"outcome": reason(done.stderr)}
    return {"outcome": "ok", **json.loads(done.stdout.splitlines()[-1])}


def reason(errors: str) -> str:
    """Why a case ended, in a line."""
    if "RESOURCE_EXHAUSTED" in errors or "OutOfMemoryError" in errors:
        return "out of memory"
    lines = [line for line in errors.strip().splitlines() if line.strip() and not line.startswith("-----")]
    named = [line for line in lines if "Error" in line]
    return (named or lines or ["no error message"])[-1].strip()[:200]


def cases() -> tuple[Case, ...]:
    """Those for the machine; a process of its own finds out, so that this one holds no device."""
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ON_CPU if answer.stdout.split()[-1] == "cpu" else CASES


def main(minutes: float = 10.0, case: str = "", out: str = "benchmark_gpu.jsonl", child: str = "") -> None:
    if child:
        print(json.dumps(measure(Case(*json.loads(child)))), flush=True)
        return
    deadline = time.monotonic() + 60 * minutes
    results: list[dict[str, Any]] = []
    for one in (one for one in cases() if case in one.name):
        found = in_process(one, deadline - time.monotonic())
        results.append({"case": one.name, **one._asdict(), **found})
        print(f"{one.name}: {found['outcome']}", file=sys.stderr, flush=True)
        Path(out).write_text("".join(json.dumps(result) + "\n" for result in results))
    columns = ("step_ms", "tokens_per_second", "model_tflops", "mfu", "peak_gib")
    cells = [[f"{one[key]:.5g}" if one.get(key) else "-" for key in columns] for one in results]
    table = [[one["case"], one["outcome"], *row] for one, row in zip(results, cells)]
    print(racing.markdown(["case", "outcome", *columns], table))


if __name__ == "__main__":
    racing.command(main)
