"""Writes one page about a finished or unfinished run or arm set: a file that needs no network.

python -m experiments.report --workdir=runs/mini
python -m experiments.report --workdir=runs/main --out=main.html
"""

from __future__ import annotations

from orca_jax import cli

OUT = cli.Option("out", "", "The file to write; empty: WORKDIR/report.html.")
PROGRAM = cli.Program(__doc__, cli.WORKDIR, cli.SCRATCH, OUT)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import logging
from collections.abc import Iterator
from pathlib import Path

from orca_jax.config import ExperimentConfig
from orca_jax.evaluation.benchmarks import puzzles, registry
from orca_jax.evaluation.questions import Question
from orca_jax.experiments import evaluate
from orca_jax.reporting import report

log = logging.getLogger(__name__)
FILE = "report.html"


def write(workdir: Path, path: Path | None = None) -> Path:
    """Writes the report of a workdir, by default into it, and returns its path."""
    path = path or workdir / FILE
    size = report.write(workdir, path, asked)
    log.info("%s: %.1f MB", path, size / 1e6)
    return path


def asked(config: ExperimentConfig) -> Iterator[Question]:
    """The questions of a config's evaluation."""
    yield from puzzles.questions(evaluate.test_puzzles(config))
    for name, path in config.given_benchmarks.items():
        for mode in config.evaluation.modes[name]:
            yield from registry.questions(name, path, mode=mode)


def main() -> None:
    PROGRAM.main(lambda options: print(write(options.workdir, Path(options.out) if options.out else None)))


if __name__ == "__main__":
    main()
