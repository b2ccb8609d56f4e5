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

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def ablate(arm_set: ArmSetConfig, workdir: Path, options: cli.Options | None = None) -> str:
    """Runs what is missing of the set and returns its table. A notebook may call this."""
    options = options or PROGRAM.options()
    chosen = arm_set.chosen(options.conditions)
    arm_runs.keep_hypotheses(arm_set, workdir)
    for condition in chosen:
        log.info("condition %s", condition.name)
        _run(arm_set.under(condition), workdir / condition.name, options, [f"--conditions={condition.name}"])
    if not chosen:
        text = _run(arm_set, workdir, options)
    else:
        text = conditions.write(arm_set, workdir) if options.table else ""
    print(text)
    return text


def _run(arm_set: ArmSetConfig, workdir: Path, options: cli.Options, condition: Sequence[str] = ()) -> str:
    """Runs what is missing of a set, or of a set's condition that is named by an option."""
    if options.bbh:
        arm_set = arm_files.with_bbh(arm_set, Path(options.bbh))
    asked = arm_set.runs(options.arms, options.seeds)
    taken = [one for one in asked if take(arm_set, *one, workdir, options.reuse)]
    chosen = [one for one in asked if one not in taken]
    if options.jobs > 1:
        for arm, seed in chosen:
            make_data(arm_set.config(arm, seed), workdir, folder(workdir, arm.name, seed), options)
        _in_processes(workdir, chosen, options.jobs, condition)
    else:
        for number, (arm, seed) in enumerate(chosen, 1):
            log.info("run %d of %d: %s, seed %d", number, len(chosen), arm.name, seed)
            run_one(arm_set, arm, seed, workdir, options)
    for arm, seed in taken if options.bbh else ():
        arm_files.evaluate_arm(arm_set, arm, seed, folder(workdir, arm.name, seed), Path(options.bbh))
    keep_set(arm_set, workdir)
    return arm_runs.write(arm_set, workdir) if options.table else ""


def run_one(arm_set: ArmSetConfig, arm: ArmConfig, seed: int, workdir: Path, options: cli.Options) -> None:
    """Runs one arm under one seed, from its data to its table."""
    config, directory = arm_set.config(arm, seed), folder(workdir, arm.name, seed)
    shared = make_data(config, workdir, directory, options)
    for name in SHARED:
        link(directory / name, shared / name)
    link(directory / LEDGER, workdir / LEDGER)  # for rounds on policy
    if not (workdir / SET).exists():
        keep_set(arm_set, workdir)
    run.run(config, directory, options)
    if options.bbh:
        arm_files.evaluate_arm(arm_set, arm, seed, directory, Path(options.bbh))
        tables.run(config, directory)


def make_data(config: ExperimentConfig, workdir: Path, directory: Path, options: cli.Options) -> Path:
    """Makes what a run needs, or finds it there, and returns the folder that it shares with other runs."""
    shared = data_folder(config, workdir, directory)
    link(shared / LEDGER, workdir / LEDGER)  # a teacher is paid once for all arms
    collect.run(config, shared)
    prepare.run(config, shared, workers=options.workers, kept=True)  # an arm may have been trained on it
    return shared


def shares_of_cores(jobs: int) -> list[list[int]]:
    """The cores of each of so many jobs; where they are more than cores, several share one."""
    cores = tokens.cores()
    share = max(1, len(cores) // jobs)
    return [(cores * jobs)[index * share : (index + 1) * share] for index in range(jobs)]


def _in_processes(
    workdir: Path, chosen: Sequence[tuple[ArmConfig, int]], jobs: int, condition: Sequence[str]
) -> None:
    """Runs arms in processes of their own, each on its share of the cores, with its output in log.txt."""
    free = shares_of_cores(jobs)

    def work(one: tuple[ArmConfig, int]) -> None:
        arm, seed = one
        mine, log_file = free.pop(), folder(workdir, arm.name, seed) / "log.txt"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "orca_jax.experiments.ablate", *sys.argv[1:]]
        command += [f"--arms={arm.name}", f"--seeds={seed}", "--jobs=1", "--table=false", *condition]
        log.info("%s, seed %d: started; see %s", arm.name, seed, log_file)
        with open(log_file, "a", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            if hasattr(os, "sched_setaffinity"):
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
        list(pool.map(work, chosen))


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
