"""Runs an ablation: arms that differ in what the config says, each under several seeds.

    python -m experiments.ablate --config=configs/ablations/main.py --workdir=runs/main
    python -m experiments.ablate --config=configs/ablations/main.py --workdir=runs/main --seeds=0
    python -m experiments.ablate plan --config=configs/ablations/main.py --difference=3

Every arm and seed is a workdir of its own, WORKDIR/ARM/seed-N, whose data are links into WORKDIR/data, where
what several of them need is made once; `--reuse=runs/main` takes runs of the same config that another set has
finished. Run again, it goes on where it was; any part of it may run elsewhere on the same folder. It ends in
WORKDIR/table.md: the arms beside one another, tested against the baseline.
"""

from __future__ import annotations

from orca_jax import cli
from orca_jax.config_arms import load_set

JOBS = cli.Option("jobs", 1, "Arms that run at once, each on its part of the cores.", lower_bound=1)
RUN = cli.Command(
    "Runs what is missing of the set, and writes its table.",
    *cli.EXPERIMENT,
    cli.Option("conditions", list, "Only these conditions of a set that has some."),
    cli.Option("arms", list, "Only these arms."),
    cli.Option("seeds", list, "Only these seeds."),
    cli.Option("bbh", "", "A folder of Big-Bench Hard: every student answers the files of its families."),
    cli.Option("reuse", [], "Workdirs of other sets, whose finished runs of the same config are taken."),
    JOBS,
    cli.Option("table", True, "Write the set's tables and charts at the end."),
    cli.WORKERS,
    *cli.TRAIN,
    made=("{workdir}",),
    then="report --workdir={workdir}",
)
PLAN = cli.Command(
    "What the set can find, and how long it takes here.\n\n"
    "Of each hypothesis (or each arm against the baseline), the smallest difference that is found with a "
    "power of 80 %, alone and with Holm's correction; and the hours of training, from steps timed here.",
    cli.CONFIG,
    cli.Option("difference", 0.0, "Points: also the seeds, or items, that find it.", lower_bound=0.0),
    cli.Option("items", 0, "Of each hypothesis; 0: the puzzles of the config.", lower_bound=0),
    cli.Option("seed_count", 0, "How many seeds; 0: the set's.", lower_bound=0),
    cli.Option(
        "seed_deviation", 2.0, "Points between seeds of an arm; see docs/findings.md.", lower_bound=0.0
    ),
    cli.Option("measured", "", "A set's workdir: take the variances of its finished arms."),
    cli.Option("seconds_per_student", 0.0, "In place of a timed step.", lower_bound=0.0),
    JOBS,
    then="ablate run {same} --workdir=WORKDIR",
)
PROGRAM = cli.Program(__doc__, commands={"run": RUN, "plan": PLAN}, default="run", load=load_set, parts=None)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from orca_jax.config import ExperimentConfig
from orca_jax.config_arms import ArmConfig, ArmSetConfig
from orca_jax.data import tokens
from orca_jax.evaluation import arm_files
from orca_jax.experiments import collect, prepare, run, tables
from orca_jax.planning import ablation
from orca_jax.reporting import arm_runs, conditions
from orca_jax.reporting.arm_runs import data_folder, folder, keep_set, link, take
from orca_jax.reporting.report_sources import SET
from orca_jax.teachers.collection import LEDGER

log = logging.getLogger(__name__)
SHARED = ("queries", "traces", "quality", "cards", "tokenizer", "tokens")


class Run(NamedTuple):
    """One arm under one seed, of a set or of a set's condition, in the set's or the condition's folder."""

    arm_set: ArmSetConfig
    workdir: Path
    condition: str  # its name, or empty
    arm: ArmConfig
    seed: int

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.condition, f"{self.arm.name}, seed {self.seed}"]))

    @property
    def directory(self) -> Path:
        return folder(self.workdir, self.arm.name, self.seed)


def ablate(arm_set: ArmSetConfig, workdir: Path, options: cli.Options | None = None) -> str:
    """Runs what is missing of the set and returns its table. A notebook may call this."""
    options = options or PROGRAM.options()
    chosen = arm_set.chosen(options.conditions)
    arm_runs.keep_hypotheses(arm_set, workdir)
    parts = [(arm_set.under(one), workdir / one.name, one.name) for one in chosen]
    parts = parts or [(arm_set, workdir, "")]
    if options.bbh:
        parts = [(arm_files.with_bbh(part, Path(options.bbh)), *rest) for part, *rest in parts]
    asked = [Run(*part, *one) for part in parts for one in part[0].runs(options.arms, options.seeds)]
    taken = [one for one in asked if take(one.arm_set, one.arm, one.seed, one.workdir, options.reuse)]
    missing = [one for one in asked if one not in taken]
    if options.jobs > 1:
        _in_processes(missing, options.jobs)
    else:
        for number, one in enumerate(missing, 1):
            log.info("run %d of %d: %s", number, len(missing), one.name)
            run_one(one, options)
    for one in taken if options.bbh else ():
        arm_files.evaluate_arm(one.arm_set, one.arm, one.seed, one.directory, Path(options.bbh))
    text = ""
    for part, directory, _ in parts:
        keep_set(part, directory)
        text = arm_runs.write(part, directory) if options.table else ""
    if chosen and options.table:
        text = conditions.write(arm_set, workdir)
    print(text)
    return text


def run_one(one: Run, options: cli.Options) -> None:
    """Runs one arm under one seed, from its data to its table."""
    config, directory, workdir = one.arm_set.config(one.arm, one.seed), one.directory, one.workdir
    shared = make_data(config, workdir, directory, options)
    for name in SHARED:
        link(directory / name, shared / name)
    link(directory / LEDGER, workdir / LEDGER)  # for rounds on policy
    if not (workdir / SET).exists():
        keep_set(one.arm_set, workdir)
    run.run(config, directory, options)
    if options.bbh:
        arm_files.evaluate_arm(one.arm_set, one.arm, one.seed, directory, Path(options.bbh))
        tables.run(config, directory)


def make_data(config: ExperimentConfig, workdir: Path, directory: Path, options: cli.Options) -> Path:
    """Makes what a run needs, or finds it there, and returns the folder that it shares with other runs.

    Waits while another process makes data that may be the same: those of the seed, and of all seeds where a
    teacher is no oracle.
    """
    shared = data_folder(config, workdir, directory)
    link(shared / LEDGER, workdir / LEDGER)  # a teacher is paid once for all arms
    oracles = all(teacher.kind == "oracle" for teacher in config.teachers)
    lock_file = workdir / "data" / f"seed-{config.seed if oracles else 'all'}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        collect.run(config, shared)
        prepare.run(config, shared, workers=options.workers, kept=True)  # an arm may have been trained on it
    return shared


def shares_of_cores(jobs: int) -> list[list[int]]:
    """The cores of each of so many jobs; where they are more than cores, several share one."""
    cores = tokens.cores()
    share = max(1, len(cores) // jobs)
    return [(cores * jobs)[index * share : (index + 1) * share] for index in range(jobs)]


def _in_processes(runs: Sequence[Run], jobs: int) -> None:
    """Runs arms in processes of their own, each on its share of the cores, with its output in log.txt.

    One arm of all conditions and seeds comes first, so that their data are made at once too.
    """
    free = shares_of_cores(jobs)

    def work(one: Run) -> None:
        mine, log_file = free.pop(), one.directory / "log.txt"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "orca_jax.experiments.ablate", *sys.argv[1:]]
        command += [f"--arms={one.arm.name}", f"--seeds={one.seed}", "--jobs=1", "--table=false"]
        command += [f"--conditions={one.condition}"] if one.condition else []
        log.info("%s: started; see %s", one.name, log_file)
        with open(log_file, "a", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, mine)
            status = process.wait()
        free.append(mine)
        if status:
            last = log_file.read_text(encoding="utf-8").strip().rpartition("\n")[2]
            raise ChildProcessError(f"{one.name} ended with status {status}: {last} (see {log_file})")
        log.info("%s: finished", one.name)

    arms = [one.arm.name for one in runs]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, sorted(runs, key=lambda one: arms.index(one.arm.name))))


def plan(options: cli.Options) -> None:
    """Prints what the set can find, and the hours that it takes here."""
    print(
        ablation.report(
            options.config,
            seeds=options.seed_count,
            items=options.items,
            difference=options.difference,
            deviation=options.seed_deviation,
            workdir=Path(options.measured) if options.measured else None,
        )
    )
    print(ablation.hours(options.config, options.seed_count, options.seconds_per_student, options.jobs))


def main() -> None:
    PROGRAM.main(run=lambda options: ablate(options.config, options.workdir, options), plan=plan)


if __name__ == "__main__":
    main()
