"""What a benchmark asks, as text."""

from __future__ import annotations

from pathlib import Path

from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.files import BenchmarkError
from orca_jax.evaluation.questions import Question


def show(benchmark: str, path: str | Path, mode: str = "", task: str = "", size: int | None = None) -> str:
    """The first question of a benchmark in each of its modes; in one `mode`, the first of each task."""
    reader = registry.BENCHMARKS.get(benchmark)
    if reader is None:
        raise BenchmarkError(f"unknown benchmark {benchmark!r}; known: {', '.join(registry.BENCHMARKS)}")
    parts = []
    for name in [mode] if mode else reader.modes:
        try:
            asked = registry.questions(benchmark, path, mode=name, size=size)
        except BenchmarkError as error:
            if mode or name == reader.modes[0]:
                raise
            parts.append(f"== {benchmark}, mode {name}: cannot be asked: {error}")
            continue
        of_task = [question for question in asked if task in ("", question.task)]
        head = (
            f"== {benchmark}, mode {name}: {len(of_task)} questions of {len({q.task for q in of_task})} tasks"
        )
        first = {question.task: question for question in reversed(of_task)}
        parts += [head, *map(_shown, list(first.values())[::-1] if mode else of_task[:1])]
    return "\n\n".join(parts)


def _shown(question: Question) -> str:
    shown = [f"-- {question.id}:", question.text]
    if texts := question.extra.get("continuations"):
        shown += ["-- compared by likelihood:", *texts]
    if question.target:
        chance = "unknown" if question.chance is None else f"{100 * question.chance:.1f} %"
        shown.append(f"-- target: {question.target} (chance {chance})")
    return "\n".join(shown)
