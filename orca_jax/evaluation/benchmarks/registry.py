"""All benchmarks by the name a config gives them: questions, and texts for contamination."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax.evaluation.benchmarks import agieval, bbh, gsm8k, open_ended, toxigen, truthfulqa
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Group, Question


class Benchmark(NamedTuple):
    """A benchmark by its functions, which take its folder, or its file where it is one file.

    Attributes:
      documents: its texts, not to be trained on.
      questions: with `mode`, and some with the `size` that a file must have.
      modes: the modes of its questions; the first is the default.
      groups: its named aggregates.
      scored: replies are right or wrong; else a judge or a classifier reads them.
    """

    documents: Callable[[str | Path], Iterator[Document]]
    questions: Callable[..., list[Question]]
    modes: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    scored: bool = True


BENCHMARKS: Mapping[str, Benchmark] = {
    "bbh": Benchmark(bbh.documents, bbh.questions, bbh.MODES, bbh.GROUPS),
    "agieval": Benchmark(agieval.documents, agieval.questions, agieval.MODES, agieval.GROUPS),
    "truthfulqa_mc": Benchmark(truthfulqa.documents, truthfulqa.questions, truthfulqa.MODES),
    "toxigen": Benchmark(toxigen.documents, toxigen.questions, toxigen.MODES, scored=False),
    "gsm8k": Benchmark(gsm8k.documents, gsm8k.questions, gsm8k.MODES),
    **{
        source: Benchmark(
            partial(open_ended.documents, source=source),
            partial(open_ended.questions, source=source),
            (open_ended.MODE,),
            scored=False,
        )
        for source in open_ended.SOURCES
    },
}


def questions(name: str, path: str | Path, *, mode: str, size: int | None = None) -> list[Question]:
    """A benchmark's questions in a mode.

    Args:
      name: a key of `BENCHMARKS`.
      size: rows that its file must have, where it is not known by the file's name.

    Raises:
      BenchmarkError: name or mode is unknown, or a file is not what it should be.
    """
    benchmark = _benchmark(name)
    if mode not in benchmark.modes:
        raise BenchmarkError(f"{name} has no mode {mode!r}; its modes: {', '.join(benchmark.modes)}")
    options: dict[str, Any] = {}
    if size is not None:
        if "size" not in inspect.signature(benchmark.questions).parameters:
            raise BenchmarkError(f"{name}: the sizes of its files are known, and cannot be given")
        options = {"size": size}
    return benchmark.questions(path, mode=mode, **options)


def documents(sources: Mapping[str, str | Path]) -> Iterator[Document]:
    """The texts of all named benchmarks, for `queries.contamination`.

    Args:
      sources: benchmark (a key of `BENCHMARKS`) to its folder or file.

    Raises:
      BenchmarkError: a name is unknown, or a file not what it should be.
    """
    return itertools.chain.from_iterable(_benchmark(name).documents(path) for name, path in sources.items())


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise BenchmarkError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def show(benchmark: str, path: str | Path, mode: str = "", task: str = "", size: int | None = None) -> str:
    """The first question of a benchmark in each of its modes; in one `mode`, the first of each task."""
    modes = _benchmark(benchmark).modes
    parts = []
    for name in [mode] if mode else modes:
        try:
            every = questions(benchmark, path, mode=name, size=size)
        except BenchmarkError as error:
            if mode or name == modes[0]:
                raise
            parts.append(f"== {benchmark}, mode {name}: cannot be asked: {error}")
            continue
        of_task = [question for question in every if task in ("", question.task)]
        head = (
            f"== {benchmark}, mode {name}: {len(of_task)} questions of {len({q.task for q in of_task})} tasks"
        )
        first = {question.task: question for question in reversed(of_task)}
        parts += [head, *map(_as_text, list(first.values())[::-1] if mode else of_task[:1])]
    return "\n\n".join(parts)


def _as_text(question: Question) -> str:
    shown = [f"-- {question.id}:", question.text]
    if texts := question.extra.get("continuations"):
        shown += ["-- compared by likelihood:", *texts]
    if question.target:
        chance = "unknown" if question.chance is None else f"{100 * question.chance:.1f} %"
        shown.append(f"-- target: {question.target} (chance {chance})")
    return "\n".join(shown)
