"""The tables of one run: everything that was evaluated in a workdir."""

from __future__ import annotations

import json
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
    messages = config.evaluation.messages if config.puzzles.families else ()
    return {tables.message_name(i): scores(workdir, f"puzzles-message-{i}") for i in messages}


def has_oracles(config: ExperimentConfig) -> bool:
    return any(teacher.kind == "oracle" for teacher in config.teachers)


def render(config: ExperimentConfig, workdir: Path) -> str:
    """The Markdown of everything that was evaluated, in each mode, and of the losses of the training."""
    parts, modes = [f"# {config.name}"], config.evaluation.modes
    if by_message := puzzle_scores(config, workdir):
        note = tables.ORACLE_NOTE if has_oracles(config) else ""
        table = tables.puzzle_table(by_message, note=note, whole=config.evaluation.per_family)
        parts += ["## Puzzles (mode `robust`, test puzzles unseen in training)", table]
    log = workdir / "training" / metrics.FILE  # none where a model made elsewhere was evaluated
    if losses := [row for row in (metrics.read(log) if log.exists() else ()) if row["kind"] == "validation"]:
        parts += ["## Held-out traces", tables.loss_table(losses)]
    if "bbh" in config.given_benchmarks and modes["bbh"]:
        by_run = {f"{config.name}, {mode}": scores(workdir, f"bbh-{mode}") for mode in modes["bbh"]}
        parts += ["## Big-Bench Hard, beside Table 11 of the paper", tables.bbh_table(by_run)]
    for name in config.given_benchmarks:
        for mode in modes[name] if name != "bbh" else ():
            found = scores(workdir, f"{name}-{mode}")
            parts.append(f"## {name}, mode `{mode}`")
            parts.append(
                tables.score_table(found) if "tasks" in found else tables.unscored_sentence(found, name)
            )
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
        chance = {
            task: row["chance"] for found in by_message.values() for task, row in found["tasks"].items()
        }
        rows = {task: {name: column.get(task) for name, column in columns.items()} for task in sorted(chance)}
        charts.bars(rows, chance, caption=title).save(workdir / "accuracy.png", title=title)
    print(text)
    return text
