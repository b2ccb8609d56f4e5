"""An ablation: several arms that differ in what the config says they differ in, each under several seeds.

    python -m experiments.ablate --config=configs/ablations/main.py --workdir=runs/main
    python -m experiments.ablate --config=configs/ablations/main.py --workdir=runs/main --arms=answers

Every arm and seed is a workdir of its own, WORKDIR/ARM/seed-N, whose data are links into WORKDIR/data, where
what several of them need is made once; `--reuse=runs/main` takes runs of the same config that another set has
finished. Run again, it goes on where it was; any part of it may run elsewhere on the same folder. It ends in
WORKDIR/table.md: the arms beside one another, tested against the baseline.
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__,
    *cli.EXPERIMENT,
    cli.Option("arms", list, "Only these arms."),
    cli.Option("seeds", list, "Only these seeds."),
    cli.Option("bbh", "", "A folder of Big-Bench Hard: every student answers the files of its families."),
    cli.Option("reuse", [], "Workdirs of other sets, whose finished runs of the same config are taken."),
    cli.Option("jobs", 1, "Arms that run at once, each on its part of the cores.", lower_bound=1),
    *cli.PREPARE,
    *cli.TRAIN,
    load="orca_jax.config:load_set",
    parts=None,
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import collections
import dataclasses
import functools
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.config import ArmConfig, ArmSetConfig, ExperimentConfig, load, plain
from orca_jax.experiments import ablate_bbh, collect, evaluate, prepare, run, tables, train
from orca_jax.records import Item
from orca_jax.reporting import arms as arm_tables
from orca_jax.reporting import figures
from orca_jax.teachers.collection import LEDGER
from orca_jax.training import curriculum, students

log = logging.getLogger(__name__)
ABOUT, RESULTS, TABLE, FIGURE = "set.json", "results.json", "table.md", "arms.png"
SHARED = ("queries", "traces", "quality", "cards", "tokenizer", "tokens")
DATA_KEYS = ("seed", "benchmarks", "puzzles", "flan", "teachers")
ROW_KEYS = ("row_length", "max_segments", "overlong", "segments")


def data_key(config: ExperimentConfig) -> str:
    """The same for runs whose queries, traces and tokens are the same."""
    data = {name: value for name, value in plain(config.data).items() if name not in ROW_KEYS}
    ids = config.student.vocab_size, config.student.init
    return artifacts.digest([{name: plain(getattr(config, name)) for name in DATA_KEYS}, data, ids])[:12]


def data_folder(config: ExperimentConfig, workdir: Path, directory: Path) -> Path:
    """Where the data of a run in `directory` are: those that it was trained on, or else WORKDIR/data/KEY."""
    if students.is_trained(directory):
        return (directory / "tokens").resolve().parent
    return workdir / "data" / data_key(config)


def make_data(config: ExperimentConfig, workdir: Path, shared: Path, options: cli.Options) -> None:
    """Makes what runs need in their shared folder, or finds it there."""
    _link(shared / LEDGER, workdir / LEDGER)  # a teacher is paid once for all arms
    collect.run(config, shared)
    how = prepare.runner(options.workers, options.beam)
    prepare.run(config, shared, how=how, kept=True)  # an arm may have been trained on it


def _link(link: Path, target: Path) -> None:
    to = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) != to:
        link.unlink()
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)


def run_one(arm_set: ArmSetConfig, arm: ArmConfig, seed: int, workdir: Path, options: cli.Options) -> None:
    """One arm under one seed, from its data to its table."""
    config, directory = arm_set.config(arm, seed), folder(workdir, arm.name, seed)
    shared = data_folder(config, workdir, directory)
    make_data(config, workdir, shared, options)
    for name in SHARED:
        _link(directory / name, shared / name)
    keep = functools.partial(run.keep_config, config, directory)

    def begun() -> None:
        keep()
        if not (workdir / ABOUT).exists():
            keep_set(arm_set, workdir)

    train.run(config, directory, train.run_options(options), on_begin=begun)
    evaluate.run(config, directory)
    keep()
    if options.bbh:
        ablate_bbh.evaluate_arm(arm_set, arm, seed, directory, Path(options.bbh))
    tables.run(config, directory)


def keep_set(arm_set: ArmSetConfig, workdir: Path) -> None:
    """Writes set.json: as a first arm begins, and when all have run; a set that is refused changes none."""
    with artifacts.atomic_write(workdir / ABOUT) as file:
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
    same = None if directory.exists() else finished_run(arm_set.config(arm, seed), reuse)
    if same:
        log.info("%s, seed %d: taken from %s", arm.name, seed, same)
        _link(directory, same)
    return directory.is_symlink()


def finished_run(config: ExperimentConfig, workdirs: Sequence[str]) -> Path | None:
    """A finished run of the same config, whatever its name, in the workdirs of other sets."""
    wanted = dataclasses.replace(config, name="")
    for workdir in workdirs:
        for about in sorted(Path(workdir).glob(f"*/*/{run.CONFIG}")):
            there = load(json.loads(about.read_text(encoding="utf-8")))
            if (about.parent / TABLE).exists() and dataclasses.replace(there, name="") == wanted:
                return about.parent
    return None


def folder(workdir: Path, arm: str, seed: int) -> Path:
    return workdir / arm / f"seed-{seed}"


def items(workdir: Path, arm: str, seed: int, evaluation: str) -> Iterator[Item]:
    """The items of an evaluation, with the seed of the run in the place of the sampling's."""
    path = folder(workdir, arm, seed) / "evaluation" / evaluation / "items.jsonl"
    for item in files.read_jsonl(path, Item):
        yield dataclasses.replace(item, seed=seed)


def results(arm_set: ArmSetConfig, workdir: Path) -> list[arm_tables.Result]:
    """What is finished of every result of the set: arms of which a seed is missing are left out."""
    found = []
    for result in arm_set.results:
        by_arm = {
            arm.name: [list(items(workdir, arm.name, seed, arm.evaluation(result))) for seed in arm_set.seeds]
            for arm in arm_set.arms
            if all(
                _is_evaluated(folder(workdir, arm.name, seed), arm.evaluation(result))
                for seed in arm_set.seeds
            )
        }
        if by_arm:
            found.append(arm_tables.Result(result.title, by_arm))
    return found


def missing_runs(arm_set: ArmSetConfig, workdir: Path) -> dict[str, list[int]]:
    """The seeds of every arm whose evaluation is not finished."""
    missing = collections.defaultdict(list)
    for arm, seed in arm_set.runs(None, None):
        wanted = [name for result in arm_set.results if (name := arm.evaluation(result))]
        if not all(_is_evaluated(folder(workdir, arm.name, seed), name) for name in wanted):
            missing[arm.name].append(seed)
    return dict(missing)


def _is_evaluated(directory: Path, evaluation: str) -> bool:
    return (directory / "evaluation" / evaluation / artifacts.MANIFEST).exists()


def training_facts(arm_set: ArmSetConfig, workdir: Path) -> list[dict[str, Any]]:
    """What every arm was trained on, under its first seed that is finished."""
    facts = []
    for arm, seed in arm_set.runs(None, None):
        manifest = folder(workdir, arm.name, seed) / "training" / artifacts.MANIFEST
        if manifest.exists() and arm.name not in {fact["arm"] for fact in facts}:
            counts = artifacts.read_manifest(manifest.parent)["counts"]
            facts.append({"arm": arm.name, "note": arm.note, **seen(arm_set.config(arm, seed), counts)})
    return facts


def seen(config: ExperimentConfig, counts: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished training saw: positions, supervised tokens and examples, these by data set too."""
    data, rows, done = counts["data"], collections.Counter[str](), 0
    for index, stage in enumerate(config.curriculum):
        last = index == len(config.curriculum) - 1
        own = sum(data[name]["rows"] for name in stage.names) * stage.epochs / config.train.batch_rows
        steps = counts["steps"] - done if last else stage.steps or math.ceil(own)
        done += steps
        total = steps * config.train.batch_rows
        rows.update(dict(zip(stage.names, map(float, curriculum.expected(stage, total, total)))))
    examples = {name: count * data[name]["examples_per_row"] for name, count in rows.items()}
    supervised = {
        name: count * config.data.row_length * data[name]["fill"] * data[name]["supervised_share"]
        for name, count in rows.items()
    }
    return {
        "steps": counts["steps"],
        "positions": counts["steps"] * config.train.batch_rows * config.data.row_length,
        "supervised": sum(supervised.values()),
        "examples": sum(examples.values()),
        "by_set": examples,
    }


def report(arm_set: ArmSetConfig, workdir: Path) -> str:
    """Writes table.md, results.json and arms.png of what is finished, and returns the table."""
    found = results(arm_set, workdir)
    oracles = tables.has_oracles(arm_set.config(arm_set.arms[0], arm_set.seeds[0]))
    text = arm_tables.render(
        arm_set.name,
        arm_set.question,
        arm_set.baseline,
        found,
        training_facts(arm_set, workdir),
        note=tables.ORACLE_NOTE if oracles else "",
    )
    if missing := missing_runs(arm_set, workdir):
        lines = [f"- {arm}: seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items()]
        text += "\n".join(["\nNot finished, so that their arms are not compared:\n", *lines, ""])
        text += "\nRun the same command without `--arms` and `--seeds`: it makes what is missing.\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    rows = arm_tables.rows(arm_set.baseline, found)
    with artifacts.atomic_write(workdir / RESULTS) as file:
        json.dump({"rows": rows}, file, indent=1)
    if rows:
        figures.arm_dots(rows, workdir / FIGURE, baseline=arm_set.baseline, title=arm_set.question)
    return text


def shares_of_cores(jobs: int) -> list[list[int]]:
    """The cores of each of so many jobs; where they are more than cores, several share one."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = sorted(affinity)
    share = max(1, len(cores) // jobs)
    return [(cores * jobs)[index * share : (index + 1) * share] for index in range(jobs)]


def _in_processes(workdir: Path, chosen: Sequence[tuple[ArmConfig, int]], jobs: int) -> None:
    """Runs arms in processes of their own, each on its share of the cores, with its output in log.txt."""
    free, pins = shares_of_cores(jobs), hasattr(os, "sched_setaffinity")

    def work(one: tuple[ArmConfig, int]) -> None:
        arm, seed = one
        mine, log_file = free.pop(), folder(workdir, arm.name, seed) / "log.txt"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "orca_jax.experiments.ablate", *sys.argv[1:]]
        command += [f"--arms={arm.name}", f"--seeds={seed}", "--jobs=1"]
        log.info("%s, seed %d: started; see %s", arm.name, seed, log_file)
        with open(log_file, "a", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            if pins:
                os.sched_setaffinity(process.pid, mine)
            status = process.wait()
        free.append(mine)
        if status:
            last = log_file.read_text(encoding="utf-8").strip().rpartition("\n")[2]
            raise ChildProcessError(
                f"{arm.name}, seed {seed} ended with status {status}: {last} (see {log_file})"
            )
        log.info("%s, seed %d: finished", arm.name, seed)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, chosen):
            pass


def ablate(arm_set: ArmSetConfig, workdir: Path, options: cli.Options | None = None) -> str:
    """Runs what is missing of the set and returns its table. A notebook may call this."""
    options = options or PROGRAM.options()
    if options.bbh:
        arm_set = ablate_bbh.with_bbh(arm_set, Path(options.bbh))
    asked = arm_set.runs(options.arms, options.seeds)
    taken = [(arm, seed) for arm, seed in asked if take(arm_set, arm, seed, workdir, options.reuse)]
    chosen = [one for one in asked if one not in taken]
    if options.jobs > 1:
        configs = {(arm.name, seed): arm_set.config(arm, seed) for arm, seed in chosen}
        folders = {data_folder(c, workdir, folder(workdir, *one)): c for one, c in configs.items()}
        for shared, config in folders.items():
            make_data(config, workdir, shared, options)
        _in_processes(workdir, chosen, options.jobs)
    else:
        for number, (arm, seed) in enumerate(chosen, 1):
            log.info("run %d of %d: %s, seed %d", number, len(chosen), arm.name, seed)
            run_one(arm_set, arm, seed, workdir, options)
    if options.bbh:
        for arm, seed in taken:
            ablate_bbh.evaluate_arm(arm_set, arm, seed, folder(workdir, arm.name, seed), Path(options.bbh))
    keep_set(arm_set, workdir)
    text = report(arm_set, workdir)
    print(text)
    return text


def main() -> None:
    PROGRAM.main(lambda options: ablate(options.config, options.workdir, options))


if __name__ == "__main__":
    main()
