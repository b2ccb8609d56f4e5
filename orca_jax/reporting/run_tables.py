"""The tables of one run: everything that was evaluated in a workdir."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig
from orca_jax.reporting import charts, tables
from orca_jax.training import metrics


def scores(workdir: Path, name: str) -> dict[str, Any]:
    """The scores of an evaluation.

    Raises:
      ArtifactError: it is not finished.
    """
    directory = workdir / "evaluation" / name
    if not (directory / artifacts.MANIFEST).exists():
        there = sorted(path.parent.name for path in directory.parent.glob(f"*/{artifacts.MANIFEST}"))
        raise artifacts.ArtifactError(
            f"{directory} has no {artifacts.MANIFEST}: nothing is finished there (finished beside it: "
            f"{', '.join(there) or 'nothing'}); run `python -m experiments.evaluate run` with this config "
            "and workdir first"
        )
    return json.loads((directory / "scores.json").read_text(encoding="utf-8"))


def puzzle_scores(config: ExperimentConfig, workdir: Path) -> dict[str, dict[str, Any]]:
    """The puzzles' scores by the name of the system message; empty where none were evaluated."""
    if not config.puzzles.families:
        return {}
    return {
        tables.message_name(i): scores(workdir, f"puzzles-message-{i}") for i in config.evaluation.messages
    }


def has_oracles(config: ExperimentConfig) -> bool:
    return any(teacher.kind == "oracle" for teacher in config.teachers)


def held_out_losses(workdir: Path) -> list[dict[str, Any]]:
    """The validations of the training, in their order; none where a model made elsewhere was evaluated."""
    if not (workdir / "training" / metrics.FILE).exists():
        return []
    return [row for row in metrics.read(workdir / "training" / metrics.FILE) if row["kind"] == "validation"]


def other_benchmarks(config: ExperimentConfig, workdir: Path) -> Iterator[str]:
    """Titles and tables of what was evaluated besides puzzles and BBH, in each mode."""
    for name in config.given_benchmarks:
        for mode in config.evaluation.modes[name] if name != "bbh" else ():
            found = scores(workdir, f"{name}-{mode}")
            yield f"## {name}, mode `{mode}`"
            yield tables.score_table(found) if "tasks" in found else tables.unscored_sentence(found, name)


def render(config: ExperimentConfig, workdir: Path) -> str:
    """The Markdown of everything that was evaluated."""
    parts = [f"# {config.name}"]
    if by_message := puzzle_scores(config, workdir):
        note = tables.ORACLE_NOTE if has_oracles(config) else ""
        table = tables.puzzle_table(by_message, note=note, whole=config.evaluation.per_family)
        parts += ["## Puzzles (mode `robust`, test puzzles unseen in training)", table]
    if validations := held_out_losses(workdir):
        parts += ["## Held-out traces", tables.loss_table(validations)]
    if "bbh" in config.given_benchmarks and config.evaluation.modes["bbh"]:
        by_run = {
            f"{config.name}, {mode}": scores(workdir, f"bbh-{mode}")
            for mode in config.evaluation.modes["bbh"]
        }
        parts += ["## Big-Bench Hard, beside Table 11 of the paper", tables.bbh_table(by_run)]
    parts += other_benchmarks(config, workdir)
    if not config.puzzles.families and not config.given_benchmarks:
        parts.append("Nothing was evaluated: the config has no puzzle families and no benchmarks.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(config: ExperimentConfig, workdir: Path) -> str:
    """Writes table.md and accuracy.png, prints the tables and returns them."""
    text = render(config, workdir)
    with artifacts.atomic_write(workdir / "table.md") as file:
        file.write(text)
    if by_message := puzzle_scores(config, workdir):
        teachers = " (teachers: procedural oracles)" if has_oracles(config) else ""
        title = f"{config.name}: test puzzles, n and errors in table.md{teachers}"
        columns = {name: tables.measured_column(found) for name, found in by_message.items()}
        tasks = {task: row["chance"] for found in by_message.values() for task, row in found["tasks"].items()}
        rows = {task: {name: column.get(task) for name, column in columns.items()} for task in sorted(tasks)}
        charts.bars(rows, tasks, caption=title).save(workdir / "accuracy.png", title=title)
    print(text)
    return text
