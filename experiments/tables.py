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
        "run": cli.Command(
            "Prints and writes the tables of a run.",
            *cli.EXPERIMENT,
            made=("{workdir}/table.md",),
            then="report --workdir={workdir}",
        ),
        "paper": cli.Command(
            "Writes all tables and figures of the Orca paper.", cli.OUT, RUNS, made=("{out}",)
        ),
    },
    default="run",
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

from pathlib import Path

from orca_jax.reporting import paper_writers
from orca_jax.reporting.run_tables import write as run


def paper(options: cli.Options) -> None:
    out = Path(options.out)
    paper_writers.write_paper(options.runs, out)
    print(f"{out / paper_writers.INDEX} lists the tables and figures")


def main() -> None:
    PROGRAM.main(run=lambda options: run(options.config, options.workdir), paper=paper)


if __name__ == "__main__":
    main()
