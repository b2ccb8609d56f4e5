"""Training steps at full size on one GPU, beside torch: needs jax, flax, optax and numpy alone.

Packed rows of 2,048 positions, segments kept apart, bfloat16 products over float32 parameters. Every case
runs in a process of its own, so that its peak memory is its own and running out of it ends no other. Where
torch is installed, the same step runs in it, with flex attention over the same segments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax.config import LlamaConfig
from orca_jax.data.packing import make_plan
from orca_jax.data.rows import Row, build_row, stack
from orca_jax.planning import chips
from orca_jax.student.presets import PRESETS

EXAMPLES_A_ROW = 2.7  # the paper's packing (ORCA, 3.2)
WARM_UP, TIMED = 3, 10
LEFT_OUT = "left out"
SHAPES = {
    "1B": dataclasses.replace(
        PRESETS["llama2-7b"],
        hidden_size=2048,
        intermediate_size=5632,
        num_layers=22,
        num_heads=16,
        num_kv_heads=16,
    ),
    "7B": PRESETS["llama2-7b"],
    "tiny": LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, head_dim=16
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time."""

    shape: str
    software: str  # orca_jax or torch
    attention: str
    remat: str
    rows: int
    row_length: int = 2048

    @property
    def name(self) -> str:
        return (
            f"{self.shape} {self.software} {self.attention} remat={self.remat} {self.rows}x{self.row_length}"
        )


# In the order of their worth, since the time may end before the list does.
CASES = (
    Case("1B", "orca_jax", "blockwise", "products", 8),
    Case("1B", "orca_jax", "pallas_gpu", "products", 8),
    Case("1B", "torch", "flex", "none", 8),
    Case("7B", "orca_jax", "pallas_gpu", "full", 4),
    Case("7B", "torch", "flex", "full", 4),
    Case("1B", "orca_jax", "pallas_gpu", "none", 8),
    Case("1B", "orca_jax", "pallas_gpu", "full", 16),
    Case("7B", "orca_jax", "blockwise", "full", 4),
    Case("1B", "orca_jax", "causal_blocks", "full", 8),
    Case("1B", "orca_jax", "reference", "full", 4),
)
ON_CPU = (
    Case("tiny", "orca_jax", "blockwise", "full", 2, 64),
    Case("tiny", "orca_jax", "causal_blocks", "none", 2, 64),
    Case("tiny", "torch", "masked", "none", 2, 64),
)


def config_of(case: Case) -> LlamaConfig:
    return dataclasses.replace(SHAPES[case.shape], attention=case.attention, remat=case.remat)


def packed(case: Case, seed: int = 0) -> Row:
    """A batch of packed rows: examples of log-normal lengths, the last half of each supervised."""
    random = np.random.default_rng(seed)
    vocab, longest = SHAPES[case.shape].vocab_size, case.row_length
    mean = longest / EXAMPLES_A_ROW
    count = int(4 * EXAMPLES_A_ROW * case.rows) + 8
    lengths = np.clip(random.lognormal(np.log(0.85 * mean), 0.6, count), 2, longest).astype(int)
    plan = make_plan(lengths, row_length=longest, max_segments=32, seed=seed, epoch=0)
    tokens = [random.integers(3, vocab, n + 1, dtype=np.int32) for n in lengths]
    examples = [{"tokens": t, "weights": (np.arange(len(t)) >= len(t) // 2) * np.float32(1)} for t in tokens]
    rows = [build_row([examples[i] for i in plan.row(r)], longest, 0) for r in range(case.rows)]
    return stack(rows)


def model_flops(config: LlamaConfig, batch: Row) -> float:
    """FLOPs of a step that the mathematics needs: 6 a weight and token, and causal attention in segments."""
    segments = [
        np.unique(row[row > 0], return_counts=True)[1].astype(float) for row in np.asarray(batch.segment_ids)
    ]
    sizes = np.concatenate(segments)
    products = config.training_flops(0) * sizes.sum()
    a_position = config.training_flops(2) - config.training_flops(0)  # with one position seen on average
    return products + a_position * float((sizes * sizes / 2).sum())


def run(minutes: float, case: str, out: str, child: str) -> None:
    """Runs the cases in turn, each in a process; a table at the end."""
    if child:
        print(json.dumps(measure(Case(**json.loads(child)))), flush=True)
        return
    deadline = time.monotonic() + 60 * minutes
    results = []
    for one in cases():
        if case in one.name:
            left = deadline - time.monotonic()
            result = in_process(one, left) if left > 30 else failed(one, LEFT_OUT)
            results.append(result)
            print(f"{one.name}: {result['outcome']}", file=sys.stderr, flush=True)
            write(Path(out), results)
    print(table(results))


def cases() -> tuple[Case, ...]:
    """Those for the machine; asked in a process of its own, so that this one holds no device."""
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ON_CPU if answer.stdout.split()[-1] == "cpu" else CASES


def in_process(case: Case, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "orca_jax.experiments.benchmark", "gpu"]
    command += ["--child", json.dumps(dataclasses.asdict(case))]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return failed(case, f"not done within the {seconds:.0f} s that were left")
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return failed(case, reason(done.stderr))


def reason(errors: str) -> str:
    """Why a case ended, in a line."""
    if "RESOURCE_EXHAUSTED" in errors or "OutOfMemoryError" in errors:
        return "out of memory"
    lines = [line for line in errors.strip().splitlines() if line.strip() and not line.startswith("-----")]
    named = [line for line in lines if "Error" in line]
    return (named or lines or ["no word of why"])[-1].strip()[:200]


def failed(case: Case, why: str) -> dict[str, Any]:
    return {"case": case.name, "outcome": why, **dataclasses.asdict(case)}


def write(path: Path, results: list[dict[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text("".join(json.dumps(result) + "\n" for result in results))
    beside.replace(path)


def measure(case: Case) -> dict[str, Any]:
    """Times a case here; seconds are the median of `TIMED` steps."""
    make: Callable[[Case, Row], tuple[Callable[[], float], Callable[[], int], str]]
    make = torch_step if case.software == "torch" else our_step
    batch = packed(case)
    step, peak, device = make(case, batch)
    losses = [step() for _ in range(WARM_UP)]
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - started)
    median, flops = float(np.median(seconds)), model_flops(config_of(case), batch)
    top = peak_flops(device)
    return {
        "case": case.name,
        "outcome": "ok",
        **dataclasses.asdict(case),
        "device": device,
        "step_ms": 1e3 * median,
        "step_ms_range": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens_per_second": float((np.asarray(batch.segment_ids) > 0).sum()) / median,
        "model_tflops": flops / median / 1e12,
        "mfu": flops / median / top if top else None,
        "peak_gib": peak() / 2**30,
        "losses": [losses[0], losses[-1]],
    }


def peak_flops(device: str) -> float:
    """Dense bfloat16 FLOP/s of a GPU by its name; 0 where it is not known."""
    chip = chips.of_device(device)
    return chip.peak if chip else 0.0


def our_step(case: Case, batch: Row) -> tuple[Callable[[], float], Callable[[], int], str]:
    """The step that `train` runs; what it takes at most, and where it runs."""
    import jax
    import jax.numpy as jnp

    from orca_jax.student import llama, sharding
    from orca_jax.training.optimizer import OptimizerConfig, make_optimizer
    from orca_jax.training.step import make_steps

    config, device = config_of(case), jax.devices()[0]
    mesh = sharding.make_mesh(sharding.MeshConfig(), [device])
    optimizer = make_optimizer(OptimizerConfig(kind="adamw_bf16"))
    steps = make_steps(config, optimizer, mesh, dtype=jnp.dtype("bfloat16"), accumulation=1)
    where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)
    state = [steps.init(jax.jit(lambda: llama.init(config, 0), out_shardings=where)())]
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))

    def step() -> float:
        state[0], metrics = steps.update(state[0], placed, jnp.float32(1e-4))
        return float(metrics.loss.total / metrics.loss.weight)

    def peak() -> int:
        return int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))

    return step, peak, device.device_kind


def torch_step(case: Case, batch: Row) -> tuple[Callable[[], float], Callable[[], int], str]:
    """The same step in torch."""
    from orca_jax.experiments.torch_llama import training_step

    return training_step(config_of(case), batch, case.attention, case.remat)


def table(results: list[dict[str, Any]]) -> str:
    """Plain text: reporting's tables need more packages than there may be."""
    lines = [f"{'case':52} {'ms a step':>10} {'tokens/s':>10} {'TFLOP/s':>8} {'MFU':>6} {'peak GiB':>9}"]
    for result in results:
        if result["outcome"] != "ok":
            lines.append(f"{result['case']:52} {result['outcome']}")
            continue
        mfu = f"{result['mfu']:6.1%}" if result["mfu"] else "     -"
        lines.append(
            f"{result['case']:52} {result['step_ms']:10.1f} {result['tokens_per_second']:10.0f} "
            f"{result['model_tflops']:8.2f} {mfu} {result['peak_gib']:9.2f}"
        )
    return "\n".join(lines)
