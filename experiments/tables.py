"""Scores to the table: what is printed at a run's end, and kept as table.md, with accuracy.png."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import launch
from experiments.config import ExperimentConfig
from orca_jax import artifacts
from orca_jax.reporting import figures, tables
from orca_jax.reporting import scores as score_tables
from orca_jax.training import metrics

ORACLE_NOTE = (
    "The teachers are procedural oracles that know each puzzle's solution, not language models: "
    "these numbers say what this miniature student learned from them, and nothing about ChatGPT or GPT-4."
)
MESSAGE_NAMES = {1: "empty message", 7: "step by step"}


def scores(workdir: Path, name: str) -> dict[str, Any]:
    directory = workdir / "evaluation" / name
    artifacts.read_manifest(directory)
    return json.loads((directory / "scores.json").read_text(encoding="utf-8"))


def puzzle_scores(config: ExperimentConfig, workdir: Path) -> dict[str, dict[str, Any]]:
    """The puzzles' scores by the name of the system message; empty where none were examined."""
    if not config.puzzles.families:
        return {}
    return {
        MESSAGE_NAMES.get(i, f"message {i}"): scores(workdir, f"puzzles-message-{i}")
        for i in config.evaluation.messages
    }


def has_oracles(config: ExperimentConfig) -> bool:
    return any(teacher.kind == "oracle" for teacher in config.teachers)


def held_out_losses(workdir: Path) -> list[dict[str, Any]]:
    """The validations of the training, in their order."""
    return [row for row in metrics.read(workdir / "training" / metrics.FILE) if row["kind"] == "validation"]


def other_benchmarks(config: ExperimentConfig, workdir: Path) -> Iterator[str]:
    """Titles and tables of what was examined besides puzzles and BBH, in each mode."""
    for name in config.given_benchmarks:
        for mode in config.evaluation.modes[name] if name != "bbh" else ():
            found = scores(workdir, f"{name}-{mode}")
            yield f"## {name}, mode `{mode}`"
            yield score_tables.table(found) if "tasks" in found else unscored(found)


def unscored(found: Mapping[str, Any]) -> str:
    """What is said of replies that have no right answer."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["outcomes"].items()))
    return (
        f"{found['n']} replies ({outcomes}), which have no right answer: a judge or a classifier scores them."
    )


def render(config: ExperimentConfig, workdir: Path) -> str:
    """The Markdown of everything that was examined."""
    parts = [f"# {config.name}"]
    if by_message := puzzle_scores(config, workdir):
        table = tables.puzzle_table(by_message, note=ORACLE_NOTE if has_oracles(config) else "")
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
        parts.append("Nothing was examined: the config has no puzzle families and no benchmarks.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def run(config: ExperimentConfig, workdir: Path) -> str:
    text = render(config, workdir)
    with artifacts.atomic_write(workdir / "table.md") as file:
        file.write(text)
    if by_message := puzzle_scores(config, workdir):
        teachers = " (teachers: procedural oracles)" if has_oracles(config) else ""
        title = f"{config.name}: test puzzles, n and errors in table.md{teachers}"
        figures.accuracy_bars(by_message, workdir / "accuracy.png", title=title)
    print(text)
    return text


if __name__ == "__main__":
    launch.main(run)
