"""What `benchmarks.gpu` measures, a case in a process: each function returns figures, or raises.

Rows are packed and their segments kept apart; `software` torch is transformers with flex attention, on the
same segments.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.metadata
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import racing
from orca_jax import compiler_options
from orca_jax.config import Remat
from orca_jax.data.rows import Row, stack
from orca_jax.planning import chips
from orca_jax.student import attention, llama
from orca_jax.student.engine import Generator
from orca_jax.student.presets import PRESETS, LlamaConfig

EXAMPLES_A_ROW = 2.7  # the paper's packing (ORCA, 3.2)
SIZE_1B: Any = dict(hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=16, num_kv_heads=16)
SHAPES = {
    "1B": dataclasses.replace(PRESETS["llama2-7b"], **SIZE_1B),
    "7B": PRESETS["llama2-7b"],
    "30M": racing.student(8192, 512, 1408, 7, 8),
    "tiny": racing.student(256, 64, 128, 2, 4),  # for tests
    "tiniest": racing.student(256, 32, 64, 1, 2),
}
# Relative norm of the error beside float32 with `highest` precision. Inputs and output are in bfloat16, whose
# numbers are 2^-8 apart; probabilities are rounded to it inside kernels.
TOLERANCE = 2e-2
CAUSAL = "causal only"  # no backend: one long segment, the bound for those that keep segments apart
VERSIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "torch",
    "transformers",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
)
TOP = 15  # kernels of a profile


class Case(NamedTuple):
    """One thing to measure, by a function of `KINDS`."""

    kind: str
    attention: str = ""
    shape: str = ""
    rows: int = 0
    row_length: int = 0
    remat: Remat = "none"
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return " ".join(str(one) for one in self if one)

    @property
    def config(self) -> LlamaConfig:
        backend: Any = self.attention if self.kind != "torch" else "auto"
        return dataclasses.replace(SHAPES[self.shape], attention=backend or "auto", remat=self.remat)


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


def ceilings(case: Case) -> dict[str, Any]:
    """Versions, memory, copy bandwidth, and products of `row_length` squared matrices."""
    found, size = {}, case.row_length
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    square = jnp.ones((size, size), jnp.bfloat16)
    product = seconds_of(jax.jit(lambda x: x @ x), square)
    copied = seconds_of(jax.jit(lambda x: x + 1), jnp.ones((size, size), jnp.float32))
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "versions": found,
        "memory_gib": stats.get("bytes_limit", 0) / 2**30,
        "product_tflops": 2 * size**3 / product / 1e12,
        "copy_gbps": 2 * 4 * size**2 / copied / 1e9,
    }


def seconds_of(function: Callable[..., Any], *given: Any, turns: int = 10) -> float:
    """Seconds of a call, the median of some after the first, which compiles."""
    jax.block_until_ready(function(*given))
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        jax.block_until_ready(function(*given))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def gate(case: Case) -> dict[str, Any]:
    """The backend's outputs and gradients beside the reference's in float32; segments must not meet.

    Raises:
      ValueError: an error is over TOLERANCE, or a change of one segment changes a bit of another.
    """
    errors = {}
    for heads, kv_heads in ((16, 16), (32, 8)):
        for size in (64, 128):
            what = f"{heads}/{kv_heads} heads of {size}"
            given, segment_ids, cotangent = attended(case, heads, kv_heads, size)
            result = pulled(case.attention, given, segment_ids, cotangent)
            wanted = pulled("reference", [one.astype(jnp.float32) for one in given], segment_ids, cotangent)
            for part, ours, theirs in zip(("output", "query", "key", "value"), result, wanted):
                apart = jnp.linalg.norm(ours.astype(jnp.float32) - theirs) / jnp.linalg.norm(theirs)
                errors[f"{what}, {part}"] = float(apart)
            changed = [jnp.where((segment_ids == 1)[..., None, None], one + 1, one) for one in given]
            others = (segment_ids > 1)[..., None, None]
            for ours, after in zip(result, pulled(case.attention, changed, segment_ids, cotangent)):
                if not jnp.array_equal(jnp.where(others, ours, 0), jnp.where(others, after, 0)):
                    raise ValueError(f"{what}: a change of segment 1 changes what other segments compute")
    worst = max(errors, key=lambda one: errors[one] if np.isfinite(errors[one]) else np.inf)
    if not errors[worst] <= TOLERANCE:
        raise ValueError(f"{worst}: the error is {errors[worst]:.3g} of the norm, over {TOLERANCE}")
    return {"worst": worst, "error": errors[worst]}


def attended(
    case: Case, heads: int, kv_heads: int, size: int
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Query, key and value in bfloat16, uneven segments with a padded tail, and a cotangent in float32."""
    b, t = case.rows, case.row_length
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((b, t, heads, size), (b, t, kv_heads, size), (b, t, kv_heads, size))
    given = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes)]
    ends = np.cumsum([t // 3, t // 4 + 1, t // 8 + 3])
    row = np.searchsorted(ends, np.arange(t), side="right") + 1
    row[row > len(ends)] = 0
    segment_ids = jnp.asarray(np.tile(row.astype(np.int32), (b, 1)))
    return given, segment_ids, jax.random.normal(keys[3], shapes[0])


def pulled(
    backend: str, given: list[jax.Array], segment_ids: jax.Array, cotangent: jax.Array
) -> list[jax.Array]:
    """Output and gradients by query, key and value; float32 with `highest` precision."""
    precision = "highest" if given[0].dtype == jnp.float32 else None

    @jax.jit
    def run(*given: jax.Array) -> list[jax.Array]:
        one = functools.partial(attention.attend, segment_ids=segment_ids, backend=backend)
        output, pull = jax.vjp(one, *given)
        return [output, *pull(cotangent.astype(output.dtype))]

    with jax.default_matmul_precision(precision):
        return run(*given)


def alone(case: Case) -> dict[str, Any]:
    """Attention by itself, forward and backward."""
    config = SHAPES[case.shape]
    given, segment_ids, cotangent = attended(case, config.num_heads, config.num_kv_heads, config.head_dim)
    if case.attention == CAUSAL:
        chosen: Any = "cudnn" if jax.default_backend() == "gpu" else "xla"
        run = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=chosen)
    else:
        run = functools.partial(attention.attend, segment_ids=segment_ids, backend=case.attention)

    @jax.jit
    def both(*given: jax.Array) -> Any:
        output, pull = jax.vjp(run, *given)
        return pull(cotangent.astype(output.dtype))

    return {"ms": 1e3 * seconds_of(both, *given)}


def step(case: Case) -> dict[str, Any]:
    """Times training steps; seconds are the median of ten turns of two steps."""
    batch, config = packed(case), case.config
    if case.kind == "torch":
        import torch

        run = racing.transformers_step(config, [arguments(batch)], case.attention, autocast=True)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    else:
        run = ours(case, [batch])
        device = jax.devices()[0].device_kind
    losses: list[float] = []
    contestant = racing.Contestant("", lambda: losses.append(run()), 0, 0)
    seconds = racing.race([contestant], rounds=10, seconds=0)
    if case.kind == "torch":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    median, flops, chip = float(np.median(seconds)), model_flops(config, batch), chips.of_device(device)
    return {
        "ms": 1e3 * median,
        "ms_range": [1e3 * float(seconds.min()), 1e3 * float(seconds.max())],
        "tokens_per_second": np.count_nonzero(batch.segment_ids) / median,
        "model_tflops": flops / median / 1e12,
        "mfu": flops / median / chip.peak if chip else None,
        "peak_gib": peak / 2**30,
        "losses": [losses[0], losses[-1]],
    }


def ours(case: Case, batches: list[Row], **more: Any) -> Callable[[], float]:
    options = compiler_options.resolved("auto")
    return racing.training_step(case.config, batches, case.dtype, "adamw_bf16", options=options, **more)


def profile(case: Case) -> dict[str, Any]:
    """Three steps, traced: the kernels that take longest, as names with milliseconds a step and launches."""
    run = ours(case, [packed(case)])
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(3):
                run()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        with gzip.open(path, "rt") as file:
            events = json.load(file)["traceEvents"]
    times, launches = Counter[str](), Counter[str]()
    for event in on_device(events):
        times[event["name"]] += event.get("dur", 0) / 3e3
        launches[event["name"]] += 1
    kernels = [[name, ms, launches[name] / 3] for name, ms in times.most_common(TOP)]
    return {"kernels": kernels, "ms": sum(times.values()), "launches": sum(launches.values()) / 3}


def on_device(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events of a GPU's streams; where there is no GPU, all that have a duration."""
    named = {one["pid"]: one["args"].get("name", "") for one in events if one.get("name") == "process_name"}
    gpus = {pid for pid, name in named.items() if "/device:GPU" in name}
    threads = {
        (one["pid"], one["tid"]): one["args"].get("name", "")
        for one in events
        if one.get("name") == "thread_name"
    }
    for event in events:
        place = event.get("pid"), event.get("tid")
        if "dur" in event and (not gpus or (event["pid"] in gpus and "Stream" in threads.get(place, ""))):
            yield event


def decode(case: Case) -> dict[str, Any]:
    """New tokens a second, greedily: half of `row_length` is the prompt."""
    config, half = case.config, case.row_length // 2
    dtype = jnp.dtype(case.dtype)
    params = jax.jit(lambda: jax.tree.map(lambda one: one.astype(dtype), llama.init(config, 0)))()
    generator = Generator(
        params, config, stop_ids=(), batch_size=case.rows, max_length=case.row_length + 1, dtype=dtype
    )
    del params
    prompts = list(np.random.default_rng(0).integers(3, config.vocab_size, (case.rows, half), np.int32))

    def answered() -> None:
        generator.generate(prompts, max_tokens=[half] * case.rows)

    began = time.perf_counter()
    answered()
    first = time.perf_counter() - began
    median = seconds_of(answered, turns=2)
    return {"ms": 1e3 * median / half, "tokens_per_second": case.rows * half / median, "first_s": first}


def losses(case: Case) -> dict[str, Any]:
    """Twenty steps in float32 at `highest` precision beside the CPU's, and in bfloat16.

    Raises:
      ValueError: a loss in float32 is a thousandth or more off.
    """
    batches = [packed(case)]

    def curve(**changes: Any) -> list[float]:
        device = changes.pop("device", None)
        one = ours(case._replace(**changes), batches, device=device)
        return [one() for _ in range(20)]

    with jax.default_matmul_precision("highest"):
        cpu = jax.local_devices(backend="cpu")[0]
        options = {"dtype": "float32", "attention": "reference", "device": cpu}
        wanted, found = curve(**options), curve(dtype="float32")
    rounded = curve()
    apart, apart_rounded = (float(np.max(np.abs(np.divide(one, wanted) - 1))) for one in (found, rounded))
    if not apart < 1e-3:
        raise ValueError(f"float32 losses are up to {apart:.3g} off the CPU's: {found} beside {wanted}")
    return {"float32_off": apart, "bfloat16_off": apart_rounded, "losses": [wanted[0], wanted[-1]]}


def start(case: Case) -> dict[str, Any]:
    """Seconds to a first training step, in a process that may find its programs compiled."""
    began = time.perf_counter()
    ours(case, [packed(case)])()
    return {"first_s": time.perf_counter() - began, "cache": os.environ.get("JAX_COMPILATION_CACHE_DIR", "")}


KINDS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "ceilings": ceilings, "gate": gate, "attention": alone, "step": step, "torch": step, "profile": profile,
    "decode": decode, "losses": losses, "start": start, "start again": start,
}  # fmt: skip
