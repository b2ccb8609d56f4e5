"""The tables of one run: everything that was evaluated in a workdir."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from orca_jax import artifacts, storage
from orca_jax.config import ExperimentConfig
from orca_jax.evaluation import scoring
from orca_jax.files import read_jsonl
from orca_jax.records import Item
from orca_jax.reporting import arms, charts, tables
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
            f"{', '.join(there) or 'nothing'}); run "
            "`python -m orca_jax.experiments.evaluate run` with this config and workdir first"
        )
    return json.loads((directory / "scores.json").read_text(encoding="utf-8"))


def items(workdir: str | Path) -> pd.DataFrame:
    """The items of all that was evaluated in a workdir, also `gs://…`; `evaluation` names its folder.

    Raises:
      ArtifactError: nothing is finished there.
    """
    found = []
    root = Path(storage.local(f"{workdir}/evaluation"))
    for path in sorted(root.rglob(scoring.ITEMS)):
        if (path.parent / artifacts.MANIFEST).exists():
            name = str(path.parent.relative_to(root))
            found.append(pd.DataFrame(read_jsonl(path, Item)).assign(evaluation=name))
    if not found:
        raise artifacts.ArtifactError(f"{root} has no evaluation that is finished; run one first")
    return pd.concat(found, ignore_index=True)


def before(workdir: Path, name: str) -> str:
    """An evaluation, if there is one, of the student that training started from; its name in `scores`."""
    init = artifacts.recorded(workdir / "training")["inputs"].get("init", "")
    for path in sorted((workdir / "evaluation").glob(f"*/{name}")):
        if init and artifacts.recorded(path)["inputs"].get("student") == init:
            return f"{path.parent.name}/{name}"
    return ""


def by_student(workdir: Path, heading: str, name: str) -> dict[str, dict[str, Any]]:
    """The scores of an evaluation by heading: before training, if they are there, and after."""
    if not (first := before(workdir, name)):
        return {heading: scores(workdir, name)}
    return {f"before, {heading}": scores(workdir, first), f"after, {heading}": scores(workdir, name)}


def puzzle_scores(config: ExperimentConfig, workdir: Path) -> dict[str, dict[str, Any]]:
    """The puzzles' scores by the name of the system message; empty where none were evaluated."""
    found: dict[str, dict[str, Any]] = {}
    for message in config.evaluation.messages if config.puzzles.families else ():
        found |= by_student(workdir, tables.message_name(message), f"puzzles-message-{message}")
    return found


def paired(config: ExperimentConfig, workdir: Path) -> list[str]:
    """Titles and tables of the student before and after training, paired by question."""
    messages = config.evaluation.messages if config.puzzles.families else ()
    names = [f"puzzles-message-{message}" for message in messages]
    names += [f"{name}-{mode}" for name in config.given_benchmarks for mode in config.evaluation.modes[name]]
    parts = []
    for name in names:
        after = workdir / "evaluation" / name
        # Open questions have no right answers, and no items to be paired.
        if (first := before(workdir, name)) and (after / scoring.ITEMS).exists():
            parts.append(f"## {name} before and after training")
            parts.append(arms.compare_folders(workdir / "evaluation" / first, after, ("before", "after")))
    return parts


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
        by_run: dict[str, dict[str, Any]] = {}
        for mode in modes["bbh"]:
            by_run |= by_student(workdir, f"{config.name}, {mode}", f"bbh-{mode}")
        parts += ["## Big-Bench Hard, beside Table 11 of the paper", tables.bbh_table(by_run)]
    for name in config.given_benchmarks:
        for mode in modes[name] if name != "bbh" else ():
            title = f"{name}, mode `{mode}`"
            for heading, found in by_student(workdir, title, f"{name}-{mode}").items():
                parts.append(f"## {heading}")
                parts.append(
                    tables.score_table(found) if "tasks" in found else tables.unscored_sentence(found, name)
                )
    parts += paired(config, workdir)
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
