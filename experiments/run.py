"""Runs a whole experiment: queries, traces, tokens, student, replies, tables. Run again, it goes on.

python -m experiments.run --config=configs/mini.py --workdir=runs/mini
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__,
    *cli.EXPERIMENT,
    cli.WORKERS,
    *cli.TRAIN,
    made=("{workdir}/table.md",),
    then="report --workdir={workdir}",
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

from orca_jax import artifacts, storage
from orca_jax.artifacts import plain
from orca_jax.config import ExperimentConfig, load
from orca_jax.experiments import collect, evaluate, prepare, tables, train
from orca_jax.reporting.report_sources import CONFIG

log = logging.getLogger(__name__)
PROGRAMS = (collect, prepare, train, evaluate, tables)


def keep_config(config: ExperimentConfig, workdir: Path) -> None:
    """Writes the resolved config as the workdir's experiment.json, where it is another."""
    text = json.dumps(plain(config), indent=1) + "\n"
    path = workdir / CONFIG
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with artifacts.atomic_write(path) as file:
            file.write(text)


def run(config: Any, workdir: str | Path, options: cli.Options | None = None) -> str:
    """Runs an experiment in `workdir`, also `gs://…`, and returns its table. A notebook may call this.

    The config is kept once the training of this config has begun, and when all programs have taken what is
    there for theirs: a run that one of them refuses leaves the one that was kept.

    Args:
      options: of `prepare` and `train` (cli.WORKERS, cli.TRAIN); None: their defaults.
    """
    experiment = config if isinstance(config, ExperimentConfig) else load(config)
    options = options or PROGRAM.options()
    with storage.workdir(workdir) as folder:
        keep = functools.partial(keep_config, experiment, folder)
        more: dict[Any, dict[str, Any]] = {
            prepare: {"workers": options.workers},
            train: {"options": options, "on_begin": keep},
        }
        table = ""
        for program in PROGRAMS:
            started = time.monotonic()
            table = program.run(experiment, folder, **more.get(program, {})) or ""
            log.info("%s took %.0f s", program.__name__.rpartition(".")[2], time.monotonic() - started)
            if program is evaluate:
                keep()
        return table


def main() -> None:
    PROGRAM.main(lambda options: run(options.config, options.workdir, options))


if __name__ == "__main__":
    main()
