"""The runs of an arm set on disk: where they and their data are, what they measured, and the set's table.

A run is WORKDIR/ARM/seed-N, a workdir of its own, whose data are links into WORKDIR/data.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.config import ArmConfig, ArmSetConfig, ExperimentConfig, load, plain
from orca_jax.evaluation.cells import Cell
from orca_jax.evaluation.scoring import SCORES
from orca_jax.records import Item
from orca_jax.reporting import arms, charts, condition_charts, hypotheses
from orca_jax.reporting.report_sources import CONFIG, SET, TABLE, read_json
from orca_jax.reporting.run_tables import has_oracles
from orca_jax.reporting.tables import ORACLE_NOTE
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
    """Writes set.json: as a first arm begins, and when all have run; a set that is refused changes none.

    Raises:
      ArtifactError: the set began with other hypotheses.
    """
    check_hypotheses(arm_set, workdir)
    with artifacts.atomic_write(workdir / SET) as file:
        json.dump(plain(arm_set), file, indent=1)


def check_hypotheses(arm_set: ArmSetConfig, workdir: Path) -> None:
    """Raises ArtifactError where the set in `workdir` began with other hypotheses."""
    if not (about := read_json(workdir / SET)):
        return
    kept, now = (
        {one["name"]: one for one in found}
        for found in (about.get("hypotheses", ()), plain(arm_set)["hypotheses"])
    )
    if changed := list(artifacts.differences(kept, now, "hypotheses")):
        raise artifacts.ArtifactError(
            f"the hypotheses of {workdir} were written down when the set began, and differ now: "
            f"{'; '.join(changed)}. Restore them, or begin a new set in another --workdir"
        )


def take(arm_set: ArmSetConfig, arm: ArmConfig, seed: int, workdir: Path, reuse: Sequence[str]) -> bool:
    """Links what another set has run already in the place of an arm; whether there was such a run.

    Raises:
      ArtifactError: there is a link already, to a run that is gone.
    """
    directory = folder(workdir, arm.label, seed)
    if directory.is_symlink() and not directory.exists():
        raise artifacts.ArtifactError(
            f"{directory} links to a run that is gone; remove it to run the arm here"
        )
    config = arm_set.config(arm, seed)
    if not directory.exists() and (same := finished_run(config, reuse)):
        log.info("%s, seed %d: taken from %s", arm.label, seed, same)
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
    """The items of an evaluation, with the seed of the run in the place of the sampling's."""
    path = folder(workdir, arm, seed) / "evaluation" / evaluation / "items.jsonl"
    for item in files.read_jsonl(path, Item):
        yield dataclasses.replace(item, seed=seed)


def results(arm_set: ArmSetConfig, workdir: Path) -> list[arms.Result]:
    """What is finished of every result and condition: arms of which a seed is missing are left out."""
    found = []
    for result, condition in itertools.product(arm_set.results, arm_set.conditions):
        by_arm, chance = {}, dict[str, float | None]()
        for arm in arm_set.arms:
            name = arm.evaluation(result)
            there = all(_is_evaluated(workdir, arm.label, seed, name) for seed in arm_set.seeds)
            if arm.condition == condition and there:
                by_arm[arm.name] = [items(workdir, arm.label, seed, name) for seed in arm_set.seeds]
                scores = folder(workdir, arm.label, arm_set.seeds[0]) / "evaluation" / name / SCORES
                chance |= {task: of.get("chance") for task, of in read_json(scores).get("tasks", {}).items()}
        if by_arm:
            frame = arms.frame(by_arm)
            frame["chance"] = frame.task.map(chance).astype(float)
            found.append(arms.Result(result.title, frame, condition))
    return found


def missing_runs(arm_set: ArmSetConfig, workdir: Path) -> dict[str, list[int]]:
    """The seeds of every arm whose evaluation is not finished."""
    missing = collections.defaultdict(list)
    for arm, seed in arm_set.runs(None, None):
        wanted = filter(None, map(arm.evaluation, arm_set.results))
        if not all(_is_evaluated(workdir, arm.label, seed, name) for name in wanted):
            missing[arm.label].append(seed)
    return dict(missing)


def _is_evaluated(workdir: Path, arm: str, seed: int, evaluation: str) -> bool:
    return (folder(workdir, arm, seed) / "evaluation" / evaluation / artifacts.MANIFEST).exists()


def training_facts(arm_set: ArmSetConfig, workdir: Path) -> list[dict[str, Any]]:
    """What every arm was trained on, under its first seed that is finished."""
    facts: dict[str, dict[str, Any]] = {}
    for arm, seed in arm_set.runs(None, None):
        directory = folder(workdir, arm.label, seed) / "training"
        if arm.label not in facts and (directory / artifacts.MANIFEST).exists():
            counts = artifacts.read_manifest(directory)["counts"]
            facts[arm.label] = {"arm": arm.label, "note": arm.note, **seen(arm_set.config(arm, seed), counts)}
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
    judged = hypotheses.judge(arm_set, found)
    first = ["## Hypotheses", hypotheses.table(judged).markdown(), hypotheses.CAPTION] if judged else []
    for title in [result.title for result in arm_set.results] if any(arm_set.conditions) else ():
        if shown := [result for result in found if result.title == title]:
            first += [f"## {title}", arms.condition_table(shown).markdown(), arms.CAPTION]
    text = arms.render(
        arm_set.name,
        arm_set.question,
        arm_set.baseline,
        found,
        training_facts(arm_set, workdir),
        note=ORACLE_NOTE if has_oracles(arm_set.config(arm_set.arms[0], arm_set.seeds[0])) else "",
        first=first,
    )
    if missing := missing_runs(arm_set, workdir):
        lines = [f"- {arm}: seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items()]
        text += "\n".join(["\nNot finished, so that their arms are not compared:\n", *lines, ""])
        text += "\nRun the same command without `--arms` and `--seeds`: it makes what is missing.\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    rows = arms.rows(arm_set.baseline, found)
    with artifacts.atomic_write(workdir / RESULTS) as file:
        about = {"hypotheses": [one.row() for one in judged]} if judged else {}
        json.dump({"rows": rows, **about}, file, indent=1)
    if rows:
        _draw(rows, arm_set.question, workdir / FIGURE)
    for name, chart in _over_conditions(arm_set, found, workdir):
        for suffix in ("png", "svg"):
            chart.save(workdir / f"{name}.{suffix}", suffix=suffix, title=chart.caption)
    return text


def _over_conditions(
    arm_set: ArmSetConfig, found: Sequence[arms.Result], workdir: Path
) -> Iterator[tuple[str, charts.Chart]]:
    """Names and charts of the first result's conditions that have numbers."""
    finished = {result.condition: result for result in found if result.title == arm_set.results[0].title}
    folders = {
        (arm.condition, arm.name): [folder(workdir, arm.label, seed) for seed in arm_set.seeds]
        for arm in arm_set.arms
    }
    for name, places in condition_charts.families(arm_set.conditions).items():
        there = {place: finished[at] for place, at in places.items() if at in finished}
        if chart := condition_charts.accuracy(name, there):
            yield f"accuracy-{name}", chart
        curves, pair = condition_charts.curves(arm_set, folders), condition_charts.compared(arm_set)
        if pair and (chart := condition_charts.difference_map(name, places, pair, curves)):
            yield f"map-{name}", chart


def _draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """The accuracy of every arm, a bar for each result, with a dot a seed; of conditions the first result."""
    if any("condition" in row for row in rows):
        rows = [
            {**row, "arm": row["condition"], "result": row["arm"]}
            for row in rows
            if row["result"] == rows[0]["result"]
        ]
    shown: dict[str, dict[str, Cell]] = {row["arm"]: {} for row in rows}
    for row in rows:
        cell = Cell(row["accuracy"], row["n"], row["stderr"], row["of"], row["interval"])
        shown[row["arm"]][row["result"]] = cell
    seeds = {(row["arm"], row["result"]): row["by_seed"] for row in rows}
    charts.bars(shown, {}, caption=title, seeds=seeds).save(path, title=title)
