"""Training steps at full size on one GPU, beside torch; few packages are needed.

python -m benchmarks.gpu --case=7B --out=benchmark_gpu.jsonl    # cases with 7B in their names; a line a case

Packed rows of 2,048 positions, segments kept apart, bfloat16 products over float32 parameters. Every case
runs in a process of its own, so that its peak memory is its own and running out of it ends no other. Where
transformers and torch are installed, the same step runs in them, with flex attention over the same segments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import racing
from orca_jax.config import Remat
from orca_jax.data.rows import Row, stack
from orca_jax.planning import chips
from orca_jax.student.presets import PRESETS, LlamaConfig

EXAMPLES_A_ROW = 2.7  # the paper's packing (ORCA, 3.2)
SIZE_1B: Any = dict(hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=16, num_kv_heads=16)
SHAPES = {
    "1B": dataclasses.replace(PRESETS["llama2-7b"], **SIZE_1B),
    "7B": PRESETS["llama2-7b"],
    "tiny": racing.student(256, 64, 128, 2, 4),  # for tests
}
COLUMNS = ("step_ms", "tokens_per_second", "model_tflops", "mfu", "peak_gib")


class Case(NamedTuple):
    """One thing to time; `software` is orca_jax or torch."""

    shape: str
    software: str
    attention: str
    remat: Remat
    rows: int
    row_length: int = 2048

    @property
    def config(self) -> LlamaConfig:
        attention: Any = self.attention if self.software == "orca_jax" else "auto"
        return dataclasses.replace(SHAPES[self.shape], attention=attention, remat=self.remat)


CASES = (  # in the order of their worth, since the time may end before the list does
    Case("1B", "orca_jax", "blockwise", "products", 8),
    Case("1B", "orca_jax", "cudnn", "products", 8),
    Case("1B", "torch", "flex_attention", "none", 8),
    Case("7B", "orca_jax", "cudnn", "full", 4),
    Case("7B", "torch", "flex_attention", "full", 4),
    Case("1B", "orca_jax", "cudnn", "none", 8),
    Case("1B", "orca_jax", "cudnn", "full", 16),
    Case("7B", "orca_jax", "blockwise", "full", 4),
    Case("1B", "orca_jax", "causal_blocks", "full", 8),
    Case("1B", "orca_jax", "reference", "full", 4),
)


def packed(case: Case) -> Row:
    """A batch of packed rows of uneven examples."""
    count, median = int(4 * EXAMPLES_A_ROW * case.rows) + 8, 0.85 * case.row_length / EXAMPLES_A_ROW
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
    """Times a case in this process; seconds are the median of ten turns of two steps."""
    batch, config = packed(case), case.config
    if case.software == "torch":
        import torch

        run = racing.transformers_step(config, [arguments(batch)], case.attention, autocast=True)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    else:
        run = racing.training_step(config, [batch], "bfloat16", "adamw_bf16")
        device = jax.devices()[0].device_kind
    losses: list[float] = []
    contestant = racing.Contestant("", lambda: losses.append(run()), 0, 0)
    seconds = racing.race([contestant], rounds=10, seconds=0)
    if case.software == "torch":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    median, flops, chip = float(np.median(seconds)), model_flops(config, batch), chips.of_device(device)
    return {
        "device": device,
        "step_ms": 1e3 * median,
        "step_ms_range": [1e3 * float(seconds.min()), 1e3 * float(seconds.max())],
        "tokens_per_second": np.count_nonzero(batch.segment_ids) / median,
        "model_tflops": flops / median / 1e12,
        "mfu": flops / median / chip.peak if chip else None,
        "peak_gib": peak / 2**30,
        "losses": [losses[0], losses[-1]],
    }


def reason(errors: str) -> str:
    """Why a case ended, in a line."""
    if re.search("RESOURCE_EXHAUSTED|OutOfMemoryError", errors):
        return "out of memory"
    return (re.findall(".*Error.*", errors) or ["no error message"])[-1].strip()[:200]


def main(case: str = "", out: str = "benchmark_gpu.jsonl", child: str = "") -> None:
    if child:
        print(json.dumps(measure(Case(*json.loads(child)))), flush=True)
        return
    results: list[dict[str, Any]] = []
    for name, one in ((" ".join(map(str, one)), one) for one in CASES):
        if case not in name:
            continue
        environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        if one.software == "torch":
            environment["JAX_PLATFORMS"] = "cpu"
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", json.dumps(one)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        found = {} if done.returncode else json.loads(done.stdout.splitlines()[-1])
        outcome = reason(done.stderr) if done.returncode else "ok"
        results.append({"case": name, **one._asdict(), "outcome": outcome, **found})
        Path(out).write_text("".join(json.dumps(result) + "\n" for result in results))
    cells = [[f"{one[key]:.5g}" if one.get(key) else "-" for key in COLUMNS] for one in results]
    table = [[one["case"], one["outcome"], *row] for one, row in zip(results, cells)]
    print(racing.markdown(["case", "outcome", *COLUMNS], table))


if __name__ == "__main__":
    racing.command(main)
