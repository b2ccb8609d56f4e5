"""The whole road: queries, traces, tokens, student, replies, table. Run again, it goes on where it was."""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("run")  # before the imports below, which take seconds

import json
import logging
import time
from pathlib import Path
from typing import Any

from orca_jax import artifacts, remote_workdir
from orca_jax.experiments import collect, evaluate, prepare, tables, train
from orca_jax.experiments.config import ExperimentConfig, load, plain

CONFIG = "experiment.json"
log = logging.getLogger(__name__)
PROGRAMS = (collect, prepare, train, evaluate, tables)


def keep_config(config: ExperimentConfig, workdir: Path) -> None:
    """Writes the resolved config as the workdir's experiment.json."""
    with artifacts.atomic_write(workdir / CONFIG) as file:
        json.dump(plain(config), file, indent=1)
        file.write("\n")


def run(config: Any, workdir: str | Path) -> str:
    """Runs an experiment in `workdir`, also `gs://…`, and returns its table. A notebook may call this."""
    experiment = config if isinstance(config, ExperimentConfig) else load(config)
    with remote_workdir.workdir(workdir) as folder:
        keep_config(experiment, folder)
        table = ""
        for program in PROGRAMS:
            started = time.monotonic()
            table = program.run(experiment, folder) or ""
            log.info("%s took %.0f s", program.__name__.rpartition(".")[2], time.monotonic() - started)
        return table


if __name__ == "__main__":
    launch.main(run)
