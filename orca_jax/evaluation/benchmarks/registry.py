"""All benchmarks by the name a config gives them: questions, and texts for contamination."""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from orca_jax import plugins
from orca_jax.config import BENCHMARK_MODES, ChoicesConfig
from orca_jax.evaluation.benchmarks import agieval, bbeh, bbh, choices, gsm8k, open_ended, toxigen, truthfulqa
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question
from orca_jax.plugins import Benchmark

OWN: dict[str, Benchmark] = {
    "bbh": Benchmark(bbh.questions, bbh.documents, bbh.GROUPS),
    "bbeh": Benchmark(bbeh.questions, bbeh.documents, bbeh.GROUPS),
    "agieval": Benchmark(agieval.questions, agieval.documents, agieval.GROUPS),
    "truthfulqa_mc": Benchmark(truthfulqa.questions, truthfulqa.documents, part=True),
    "toxigen": Benchmark(toxigen.questions, toxigen.documents, scored=False),
    "gsm8k": Benchmark(gsm8k.questions, gsm8k.documents, part=True),
    **{
        source: Benchmark(
            partial(open_ended.questions, source=source),
            partial(open_ended.documents, source=source),
            scored=False,
        )
        for source in open_ended.SOURCES
    },
}
BENCHMARKS: Mapping[str, Benchmark] = ChainMap(plugins.BENCHMARKS.entries, OWN)


def questions(
    name: str, path: str | Path | ChoicesConfig, *, mode: str, size: int | None = None
) -> list[Question]:
    """A benchmark's questions in one of its modes (`BENCHMARK_MODES`).

    Args:
      path: its folder or file, or where a set of a config's own has what.
      size: rows that its file must have, where it is not known by the file's name.

    Raises:
      BenchmarkError: name or mode is unknown, or a file is absent, truncated, damaged or has a target that is
        none of its options (BBH's known faults apart); names file and row.
    """
    modes = path.modes if isinstance(path, ChoicesConfig) else BENCHMARK_MODES[_known(name)]
    if mode not in modes:
        raise BenchmarkError(f"{name} has no mode {mode!r}; its modes: {', '.join(modes)}")
    if isinstance(path, ChoicesConfig):
        return choices.questions(path, mode=mode)
    benchmark = BENCHMARKS[name]
    if size is None:
        return benchmark.questions(path, mode=mode)
    if not benchmark.part:
        raise BenchmarkError(f"{name}: the sizes of its files are known, and cannot be given")
    return benchmark.questions(path, mode=mode, size=size)


def documents(sources: Mapping[str, str | Path | ChoicesConfig]) -> Iterator[Document]:
    """The texts of all named benchmarks, by folder or file, for `queries.contamination`; raises likewise."""
    return itertools.chain.from_iterable(
        choices.documents(path)
        if isinstance(path, ChoicesConfig)
        else BENCHMARKS[_known(name)].documents(path)
        for name, path in sources.items()
    )


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise BenchmarkError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return name


def show(benchmark: str, path: str | Path, mode: str = "", task: str = "", size: int | None = None) -> str:
    """The first question of a benchmark in each of its modes; in one `mode`, the first of each task."""
    parts = []
    for name in [mode] if mode else BENCHMARK_MODES[_known(benchmark)]:
        asked = [q for q in questions(benchmark, path, mode=name, size=size) if task in ("", q.task)]
        tasks = {question.task: question for question in reversed(asked)}
        parts.append(f"== {benchmark}, mode {name}: {len(asked)} questions of {len(tasks)} tasks")
        for question in list(tasks.values())[::-1] if mode else asked[:1]:
            chance = "unknown" if question.chance is None else f"{100 * question.chance:.1f} %"
            target = f"\n-- target: {question.target} (chance {chance})" if question.target else ""
            parts.append(f"-- {question.id}:\n{question.text}{target}")
    return "\n\n".join(parts)
