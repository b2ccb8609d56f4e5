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
from orca_jax.artifacts import plain
from orca_jax.config import ExperimentConfig, load
from orca_jax.config_arms import ArmConfig, ArmSetConfig, HypothesisConfig
from orca_jax.config_check import build
from orca_jax.evaluation.cells import Cell
from orca_jax.evaluation.run import REPLIES, RecordedReply
from orca_jax.evaluation.scoring import SCORES
from orca_jax.records import Item
from orca_jax.reporting import arms, charts, hypotheses
from orca_jax.reporting.report_sources import CONFIG, SET, TABLE, read_json
from orca_jax.reporting.run_tables import has_oracles
from orca_jax.reporting.tables import ORACLE_NOTE
from orca_jax.training import curriculum, students

log = logging.getLogger(__name__)
RESULTS, FIGURE, HYPOTHESES = "results.json", "arms.png", "hypotheses.json"
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


def keep_hypotheses(arm_set: ArmSetConfig, workdir: Path) -> None:
    """Writes hypotheses.json as the set begins.

    Raises:
      ArtifactError: it began with other hypotheses.
    """
    path, now = workdir / HYPOTHESES, {one.name: plain(one) for one in arm_set.hypotheses}
    begun = (workdir / SET).exists() or any(workdir.glob(f"*/{SET}"))
    if arm_set.hypotheses and not path.exists() and not begun:
        with artifacts.atomic_write(path) as file:
            json.dump(now, file, indent=1)
    # Keys that are newer than the file have their defaults.
    kept = {name: plain(build(HypothesisConfig, one)) for name, one in read_json(path).items()}
    if changed := list(artifacts.differences(kept, now)):
        raise artifacts.ArtifactError(
            f"the hypotheses of {workdir} were written down when the set began, and are others now: "
            f"{'; '.join(changed)}. Restore them, or begin a new set in another --workdir"
        )


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
        by_arm, chance = {}, dict[str, float | None]()
        for arm in arm_set.arms:
            name = arm.evaluation(result)
            if all(_is_evaluated(workdir, arm.name, seed, name) for seed in arm_set.seeds):
                by_arm[arm.name] = [items(workdir, arm.name, seed, name) for seed in arm_set.seeds]
                scores = folder(workdir, arm.name, arm_set.seeds[0]) / "evaluation" / name / SCORES
                chance |= {task: of.get("chance") for task, of in read_json(scores).get("tasks", {}).items()}
        if by_arm:
            frame = arms.frame(by_arm)
            frame["chance"] = frame.task.map(chance).astype(float)
            found.append(arms.Result(result.title, frame))
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

    whole = curriculum.Curriculum(config.curriculum, plan, batch_rows=batch_rows, seed=config.seed)
    planned, rows = whole.planned, collections.Counter[str]()
    for stage, steps in zip(whole.stages, [*planned[:-1], counts["steps"] - sum(planned[:-1])]):
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
    judged = hypotheses.judge(arm_set, {"": found})
    text = arms.render(
        arm_set.name,
        arm_set.question,
        arm_set.baseline,
        found,
        training_facts(arm_set, workdir),
        note=ORACLE_NOTE if has_oracles(arm_set.config(arm_set.arms[0], arm_set.seeds[0])) else "",
        first=hypotheses.paragraphs(judged),
    )
    if missing := missing_runs(arm_set, workdir):
        lines = [f"- {arm}: seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items()]
        text += "\n".join(["\nNot finished, so that their arms are not compared:\n", *lines, ""])
        text += "\nRun the same command without `--arms` and `--seeds`: it makes what is missing.\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    rows = arms.rows(arm_set.baseline, found)
    with artifacts.atomic_write(workdir / RESULTS) as file:
        json.dump({"rows": rows, "hypotheses": [one.row() for one in judged]}, file, indent=1)
    if rows:
        _draw(rows, arm_set.question, workdir / FIGURE)
    return text


def _draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """The accuracy of every arm, a bar for each result, with a dot a seed."""
    shown = collections.defaultdict[str, dict[str, Cell]](dict)
    for row in rows:
        cell = Cell(row["accuracy"], row["n"], row["stderr"], row["of"], row["interval"])
        shown[row["arm"]][row["result"]] = cell
    seeds = {(row["arm"], row["result"]): row["by_seed"] for row in rows}
    charts.bars(shown, {}, caption=title, seeds=seeds).save(path, title=title)
