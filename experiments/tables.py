"""Scores to tables: those of a run, or the paper's with what any number of runs measured.

    python -m experiments.tables --config=configs/mini.py --workdir=runs/mini
    python -m experiments.tables paper --out=FOLDER [--runs=WORKDIR,ARMS,...]

`run`, which may be left out, prints a run's tables and keeps them as table.md, with accuracy.png.
"""

from __future__ import annotations

from orca_jax import cli

RUNS = cli.Option("runs", [], "Workdirs or sets of arms, whose scores stand beside the published ones.")
PROGRAM = cli.Program(
    __doc__,
    commands={
        "run": cli.Command("Prints and writes the tables of a run.", *cli.EXPERIMENT),
        "paper": cli.Command("Writes all tables and figures of the Orca paper.", cli.OUT, RUNS),
    },
    default="run",
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig
from orca_jax.queries import system_messages
from orca_jax.reporting import figures, paper_figures, paper_tables, paper_writers, tables
from orca_jax.reporting.paper import TABLES
from orca_jax.training import metrics


def scores(workdir: Path, name: str) -> dict[str, Any]:
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


# The paper's tables


def write_paper(folders: Sequence[str | Path], out: Path) -> str:
    """Writes the paper's tables and figures with what the runs in `folders` measured; returns the index."""
    runs = paper_tables.find(folders)
    pages = [paper_tables.page(table, runs) for table in TABLES]
    drawings = paper_figures.drawings(runs, _message_shares(), _answer_lengths(runs))
    return paper_writers.write(out, pages, drawings, runs)


def _message_shares() -> dict[str, dict[int, float]]:
    messages = system_messages.all_messages().values()
    return {name: {m.id: m.shares[name] for m in messages} for name in system_messages.COLLECTIONS}


def _answer_lengths(runs: Sequence[paper_tables.Run]) -> dict[str, dict[int, np.ndarray]]:
    """Trace set to system message to the lengths of its answers, of the first run that has any."""
    for run in runs:
        found = sorted((run.workdir / "tokens").glob("*/columns.npz"))
        if sets := {path.parent.name: path for path in found if path.parent.name != "validation"}:
            return {f"{name} ({run.name})": _by_message(path) for name, path in sets.items()}
    return {}


def _by_message(path: Path) -> dict[int, np.ndarray]:
    with np.load(path) as columns:
        ids, lengths = columns["system_message_id"], columns["supervised"]
    return {int(id): lengths[ids == id] for id in np.unique(ids)}


def paper(options: cli.Options) -> None:
    write_paper(options.runs, Path(options.out))
    print(f"{Path(options.out) / paper_writers.INDEX} lists the tables and figures")


def main() -> None:
    PROGRAM.main(run=lambda options: run(options.config, options.workdir), paper=paper)


if __name__ == "__main__":
    main()
