"""The runs of an arm set on disk: where they and their data are, what they measured, and the set's table.

A run is WORKDIR/ARM/seed-N, a workdir of its own, whose data are links into WORKDIR/data.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.config import ArmConfig, ArmSetConfig, ExperimentConfig, load, plain
from orca_jax.evaluation.cells import ABSENT, CAPTION, Cell
from orca_jax.evaluation.run import REPLIES, RecordedReply
from orca_jax.evaluation.statistics import Interval
from orca_jax.records import Item
from orca_jax.reporting import arms, charts
from orca_jax.reporting.report_sources import CONFIG, SET, TABLE
from orca_jax.reporting.run_tables import has_oracles
from orca_jax.reporting.tables import ORACLE_NOTE, Table
from orca_jax.training import curriculum, students

log = logging.getLogger(__name__)
RESULTS, FIGURE = "results.json", "arms.png"
DATA_KEYS = ("seed", "benchmarks", "puzzles", "flan", "teachers")


def folder(workdir: Path, arm: str, seed: int) -> Path:
    """The workdir of an arm under a seed."""
    return workdir / arm / f"seed-{seed}"


def data_key(config: ExperimentConfig) -> str:
    """The same for runs whose queries, traces and tokens are the same."""
    data = {name: getattr(config.data, name) for name in config.data.STORED}
    ids = config.student.vocab_size, config.student.init
    return artifacts.digest([{name: plain(getattr(config, name)) for name in DATA_KEYS}, data, ids])[:12]


def data_folder(config: ExperimentConfig, workdir: Path, directory: Path) -> Path:
    """Where the data of a run in `directory` are: those that it was trained on, or else WORKDIR/data/KEY."""
    if students.is_trained(directory):
        return (directory / "tokens").resolve().parent
    return workdir / "data" / data_key(config)


def link(link: Path, target: Path) -> None:
    """Makes `link` a relative link to `target`."""
    to = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) != to:
        link.unlink()
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)


def keep_set(arm_set: ArmSetConfig, workdir: Path) -> None:
    """Writes set.json: as a first arm begins, and when all have run; a set that is refused changes none."""
    with artifacts.atomic_write(workdir / SET) as file:
        json.dump(plain(arm_set), file, indent=1)


def take(arm_set: ArmSetConfig, arm: ArmConfig, seed: int, workdir: Path, reuse: Sequence[str]) -> bool:
    """Links what another set has run already in the place of an arm; whether there was such a run.

    Raises:
      ArtifactError: there is a link already, to a run that is gone.
    """
    directory = folder(workdir, arm.name, seed)
    if directory.is_symlink() and not directory.exists():
        raise artifacts.ArtifactError(
            f"{directory} links to a run that is gone; remove it to run the arm here"
        )
    config = arm_set.config(arm, seed)
    if not directory.exists() and (same := finished_run(config, reuse)):
        log.info("%s, seed %d: taken from %s", arm.name, seed, same)
        link(directory, same)
    return directory.is_symlink()


def finished_run(config: ExperimentConfig, workdirs: Sequence[str]) -> Path | None:
    """A finished run of the same config, whatever its name, in the workdirs of other sets."""
    wanted = dataclasses.replace(config, name="")
    for workdir in workdirs:
        for about in sorted(Path(workdir).glob(f"*/*/{CONFIG}")):
            there = load(json.loads(about.read_text(encoding="utf-8")))
            if (about.parent / TABLE).exists() and dataclasses.replace(there, name="") == wanted:
                return about.parent
    return None


# What they measured


def items(workdir: Path, arm: str, seed: int, evaluation: str) -> Iterator[Item]:
    """The items of an evaluation, with the seed of the run in the place of the sampling's.

    Their `extra` has the tokens of the reply too.
    """
    directory = folder(workdir, arm, seed) / "evaluation" / evaluation
    replies = files.read_jsonl(directory / REPLIES, RecordedReply) if (directory / REPLIES).exists() else ()
    tokens = {(one.benchmark, one.task, one.id): one.usage.completion_tokens for one in replies}
    for item in files.read_jsonl(directory / "items.jsonl", Item):
        said = {"tokens": count} if (count := tokens.get((item.benchmark, item.task, item.id))) else {}
        yield dataclasses.replace(item, seed=seed, extra={**item.extra, **said})


def results(arm_set: ArmSetConfig, workdir: Path) -> list[arms.Result]:
    """What is finished of every result of the set: arms of which a seed is missing are left out."""
    found = []
    for result in arm_set.results:
        by_arm = {
            arm.name: [items(workdir, arm.name, seed, arm.evaluation(result)) for seed in arm_set.seeds]
            for arm in arm_set.arms
            if all(_is_evaluated(workdir, arm.name, s, arm.evaluation(result)) for s in arm_set.seeds)
        }
        if by_arm:
            found.append(arms.Result(result.title, arms.frame(by_arm)))
    return found


def missing_runs(arm_set: ArmSetConfig, workdir: Path) -> dict[str, list[int]]:
    """The seeds of every arm whose evaluation is not finished."""
    missing = collections.defaultdict(list)
    for arm, seed in arm_set.runs(None, None):
        wanted = filter(None, map(arm.evaluation, arm_set.results))
        if not all(_is_evaluated(workdir, arm.name, seed, name) for name in wanted):
            missing[arm.name].append(seed)
    return dict(missing)


def _is_evaluated(workdir: Path, arm: str, seed: int, evaluation: str) -> bool:
    return (folder(workdir, arm, seed) / "evaluation" / evaluation / artifacts.MANIFEST).exists()


def training_facts(arm_set: ArmSetConfig, workdir: Path) -> list[dict[str, Any]]:
    """What every arm was trained on, under its first seed that is finished."""
    facts: dict[str, dict[str, Any]] = {}
    for arm, seed in arm_set.runs(None, None):
        directory = folder(workdir, arm.name, seed) / "training"
        if arm.name not in facts and (directory / artifacts.MANIFEST).exists():
            counts = artifacts.read_manifest(directory)["counts"]
            facts[arm.name] = {"arm": arm.name, "note": arm.note, **seen(arm_set.config(arm, seed), counts)}
    return list(facts.values())


def seen(config: ExperimentConfig, counts: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished training saw: positions, supervised tokens and examples, these by data set too."""
    data, batch_rows = counts["data"], config.train.batch_rows

    def plan(name: str, epoch: int) -> Any:
        return types.SimpleNamespace(rows=data[name]["rows"])

    planned = curriculum.Curriculum(config.curriculum, plan, batch_rows=batch_rows, seed=config.seed).planned
    rows = collections.Counter[str]()
    for stage, steps in zip(config.curriculum, [*planned[:-1], counts["steps"] - sum(planned[:-1])]):
        total = steps * batch_rows
        rows.update(dict(zip(stage.names, map(float, curriculum.expected(stage, total, total)))))
    examples = {name: count * data[name]["examples_per_row"] for name, count in rows.items()}
    supervised = {
        name: count * config.data.row_length * data[name]["fill"] * data[name]["supervised_share"]
        for name, count in rows.items()
    }
    return {
        "steps": counts["steps"],
        "positions": counts["steps"] * batch_rows * config.data.row_length,
        "supervised": sum(supervised.values()),
        "examples": sum(examples.values()),
        "by_set": examples,
    }


def write(arm_set: ArmSetConfig, workdir: Path) -> str:
    """Writes table.md, results.json and arms.png of what is finished, and returns the table."""
    found = results(arm_set, workdir)
    text = arms.render(
        arm_set.name,
        arm_set.question,
        arm_set.baseline,
        found,
        training_facts(arm_set, workdir),
        note=ORACLE_NOTE if has_oracles(arm_set.config(arm_set.arms[0], arm_set.seeds[0])) else "",
    )
    if missing := missing_runs(arm_set, workdir):
        lines = [f"- {arm}: seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items()]
        text += "\n".join(["\nNot finished, so that their arms are not compared:\n", *lines, ""])
        text += "\nRun the same command without `--arms` and `--seeds`: it makes what is missing.\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    rows = arms.rows(arm_set.baseline, found)
    with artifacts.atomic_write(workdir / RESULTS) as file:
        json.dump({"rows": rows}, file, indent=1)
    if rows:
        _draw(rows, arm_set.question, workdir / FIGURE)
    return text


def write_conditions(arm_set: ArmSetConfig, workdir: Path) -> str:
    """Writes table.md of a set under conditions: the first result of every arm under each that has one."""
    header = ["condition", *(arm.name for arm in arm_set.arms)]
    rows = []
    for condition in arm_set.conditions:
        path = workdir / condition.name / RESULTS
        found = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        shown = {}
        for row in found:
            if row["result"] == arm_set.results[0].title:
                interval = Interval(*row["interval"]) if row["interval"] else None
                cell = Cell(row["accuracy"], row["n"], row["stderr"], row["of"], interval)
                shown[row["arm"]] = f"{cell}, {row['tokens'] or 0:.0f} tokens"
        rows.append([condition.name, *(shown.get(arm.name, ABSENT) for arm in arm_set.arms)])
    text = f"# {arm_set.name}\n\n{arm_set.question}\n\n## {arm_set.results[0].title}\n\n"
    text += f"{Table(header, rows).markdown()}\n\n{CAPTION}\n"
    text += "\nTokens are those of a reply. Each condition has a folder of its own, with its tests.\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    return text


def _draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """The accuracy of every arm, a bar for each result, with a dot a seed."""
    shown: dict[str, dict[str, Cell]] = {row["arm"]: {} for row in rows}
    for row in rows:
        cell = Cell(row["accuracy"], row["n"], row["stderr"], row["of"], row["interval"])
        shown[row["arm"]][row["result"]] = cell
    seeds = {(row["arm"], row["result"]): row["by_seed"] for row in rows}
    charts.bars(shown, {}, caption=title, seeds=seeds).save(path, title=title)
