"""What our programs reach on one GPU, beside torch; few packages are needed. Half an hour in three calls:

python -m benchmarks.gpu --part=truth       # versions, ceilings, backends beside the reference and alone
python -m benchmarks.gpu --part=headline    # training steps of 1.26B and 6.74B parameters; torch; a profile
python -m benchmarks.gpu --part=rest        # decoding, losses beside the CPU's, a second start

Results are lines of `--out` as they come; a case that has one is not measured again, so that a call goes on
where another ended. Every case runs in a process of its own, with a limit of time: its peak memory is its
own, and running out of it ends no other. A backend that failed the gate is timed nowhere.
`--shapes=cpu` tries all of it in minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import gpu_cases, racing
from benchmarks.gpu_cases import CAUSAL, Case
from orca_jax.student.attention import BACKENDS

COLUMNS = (
    "ms",
    "tokens_per_second",
    "mfu",
    "peak_gib",
    "product_tflops",
    "copy_gbps",
    "error",
    "float32_off",
    "first_s",
)
PARTS = ("truth", "headline", "rest")
# Backends that are made for one platform.
ONLY = {"splash": "tpu", "cudnn": "gpu"}
# All scores are in memory: too slow at full size to be worth a case.
QUADRATIC = ("reference", "causal_blocks")
Results = Mapping[str, Mapping[str, Any]]


class Sizes(NamedTuple):
    large: str
    small: str
    compared: str  # trained on the CPU too
    row_length: int
    rows: tuple[int, int]
    product: int  # a side of the matrices
    decoded: tuple[int, ...]  # rows
    decoded_length: int


SIZES = {
    "gpu": Sizes("7B", "1B", "30M", 2048, (4, 8), 8192, (1, 16, 64), 1024),
    "cpu": Sizes("tiny", "tiniest", "tiniest", 64, (1, 2), 128, (1, 2), 16),
}


def ok(results: Results, case: Case) -> bool:
    return results.get(case.name, {}).get("outcome") == "ok"


def cases(part: str, sizes: Sizes, results: Results) -> Iterator[Case]:
    """What a part measures, in the order of its worth; what came before decides over what follows."""
    few, many = sizes.rows
    length = sizes.row_length
    ceiling = Case("ceilings", row_length=sizes.product)
    yield ceiling
    if not ok(results, ceiling):
        return
    platform = results[ceiling.name]["platform"]
    gates = {
        name: Case("gate", name, rows=2, row_length=min(512, length))
        for name in BACKENDS
        if ONLY.get(name, platform) == platform
    }
    yield from gates.values()
    passed = [name for name, one in gates.items() if ok(results, one)]
    timed = [name for name in passed if name not in QUADRATIC or platform == "cpu"]
    alone = {name: Case("attention", name, sizes.small, many, length) for name in (*timed, CAUSAL)}
    yield from alone.values()
    ranked = sorted(
        (name for name in timed if ok(results, alone[name])), key=lambda name: results[alone[name].name]["ms"]
    )
    if not ranked:
        return
    best = ranked[0]
    small = {name: Case("step", name, sizes.small, many, length, "products") for name in ranked[:2]}
    if part == "truth":
        yield from small.values()
        if "blockwise" in ranked[2:]:
            yield Case("step", "blockwise", sizes.small, many, length, "products")
    elif part == "headline":
        yield Case("step", best, sizes.large, few, length, "products")
        yield Case("step", best, sizes.large, many, length, "full")
        yield Case("step", best, sizes.small, many, length, "none")
        yield small[best]
        torch = "flex_attention" if platform == "gpu" else "sdpa"
        yield Case("torch", torch, sizes.small, many, length)
        yield Case("torch", torch, sizes.large, few, length, "full")
        yield Case("profile", best, sizes.large, few, length, "products")
    else:
        for dtype in ("bfloat16", "float32"):
            for rows in sizes.decoded:
                yield Case("decode", "", sizes.large, rows, sizes.decoded_length, dtype=dtype)
        yield Case("losses", best, sizes.compared, few, min(512, length))
        for kind in ("start", "start again"):
            yield Case(kind, best, sizes.small, few, length, "products")


def reason(errors: str) -> str:
    """Why a case ended, in a line."""
    if re.search("RESOURCE_EXHAUSTED|OutOfMemoryError", errors):
        return "out of memory"
    return (re.findall(".*Error.*", errors) or ["no error message"])[-1].strip()[:200]


def run(case: Case, out: Path, seconds: float) -> dict[str, Any]:
    """Measures a case in a process of its own.

    Raises:
      subprocess.TimeoutExpired: it takes longer.
    """
    environment = {**os.environ, "XLA_CLIENT_MEM_FRACTION": "0.95"}
    if case.kind == "torch":
        environment["JAX_PLATFORMS"] = "cpu"
    if case.kind.startswith("start"):
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(out.absolute().with_suffix(".cache")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    if done.returncode:
        return {"outcome": reason(done.stderr)}
    return {"outcome": "ok", **json.loads(done.stdout.splitlines()[-1])}


def main(
    part: str = "truth",
    shapes: str = "gpu",
    out: str = "benchmark_gpu.jsonl",
    seconds: float = 540.0,
    limit: float = 180.0,
    child: str = "",
) -> None:
    if child:
        one = Case(*json.loads(child))
        print(json.dumps(gpu_cases.KINDS[one.kind](one)), flush=True)
        return
    if part not in PARTS or shapes not in SIZES:
        raise SystemExit(f"--part is one of {', '.join(PARTS)}, and --shapes one of {', '.join(SIZES)}")
    path, deadline = Path(out), time.monotonic() + seconds
    text = path.read_text() if path.exists() else ""
    results = {one["case"]: one for one in map(json.loads, text.splitlines())}
    while todo := [one for one in cases(part, SIZES[shapes], results) if one.name not in results][:1]:
        (case,) = todo
        left = deadline - time.monotonic()
        try:
            found = run(case, path, min(limit, max(left, 0)))
        except subprocess.TimeoutExpired:
            if left < limit:
                print(f"the time is over before {case.name}; the same command goes on")
                break
            found = {"outcome": f"over {limit:.0f} s"}
        results[case.name] = {"case": case.name, **found}
        with path.open("a") as file:
            file.write(json.dumps(results[case.name]) + "\n")
        print(case.name, found["outcome"], file=sys.stderr, flush=True)
    shown = [results[one.name] for one in cases(part, SIZES[shapes], results) if one.name in results]
    cells = [[f"{one[key]:.4g}" if one.get(key) else "-" for key in COLUMNS] for one in shown]
    print(
        racing.markdown(
            ["case", "outcome", *COLUMNS], [[o["case"], o["outcome"], *c] for o, c in zip(shown, cells)]
        )
    )
    for one in shown:
        if kernels := one.get("kernels"):
            rows = [[name[:80], f"{ms:.3f}", f"{launches:.0f}"] for name, ms, launches in kernels]
            print(f"\n{one['case']}\n" + racing.markdown(["kernel", "ms a step", "launches"], rows))


if __name__ == "__main__":
    racing.command(main)
