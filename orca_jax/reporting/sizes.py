"""How many questions the published files of a benchmark ask, so that a part of them is shown as one."""

from __future__ import annotations

from pathlib import Path

from orca_jax import artifacts
from orca_jax.evaluation import modes
from orca_jax.evaluation.benchmarks import agieval, bbh, gsm8k, open_ended, puzzles, toxigen, truthfulqa


def full(benchmark: str, task: str, mode: str, n: int) -> int | None:
    """The number of questions of the task's file, of which `n` were asked in `mode`; None where unknown.

    Of a file with several versions it is the first that has `n` or more questions.
    """
    sizes = _sizes(benchmark, task, mode)
    return n if n in sizes else next((size for size in sizes if size > n), max(sizes, default=None))


def of_family(evaluation: Path) -> int | None:
    """How many puzzles of each family the config of an evaluation has, by its manifest; None of others."""
    try:
        provenance = artifacts.read_manifest(evaluation)["provenance"]
    except artifacts.ArtifactError:
        return None
    is_puzzles = str(provenance.get("name", "")).startswith(puzzles.BENCHMARK)
    return provenance.get("evaluation", {}).get("per_family") if is_puzzles else None


def _sizes(benchmark: str, task: str, mode: str) -> tuple[int, ...]:
    """Those of each known version, the paper's first."""
    match benchmark:
        case bbh.BENCHMARK if task in bbh.TASKS:
            return (bbh.TASKS[task].size - len(bbh.UNSCORED.get(task, ())),)
        case agieval.BENCHMARK if task in agieval.TASKS:
            return (agieval.TASKS[task].size,)
        case truthfulqa.BENCHMARK if mode in modes.LIKELIHOOD:
            return truthfulqa.SIZES
        case truthfulqa.BENCHMARK:
            return tuple(asked for _, asked in truthfulqa.VERSIONS)
        case gsm8k.BENCHMARK:
            return tuple(gsm8k.SIZES.values())
        case toxigen.BENCHMARK:
            return (toxigen.SIZE,)
        case open_ended.BENCHMARK if task in open_ended.SOURCES:
            return open_ended.SOURCES[task].sizes
    return ()
