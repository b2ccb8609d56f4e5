"""The whole road: queries, traces, tokens, student, replies, table. Run again, it goes on where it was."""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("run")  # before the imports below, which take seconds

import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

from orca_jax import artifacts, storage
from orca_jax.experiments import collect, evaluate, prepare, tables, train
from orca_jax.experiments.config import ExperimentConfig, load, plain

CONFIG = "experiment.json"
log = logging.getLogger(__name__)
PROGRAMS = (collect, prepare, train, evaluate, tables)


def keep_config(config: ExperimentConfig, workdir: Path) -> None:
    """Writes the resolved config as the workdir's experiment.json, where it is another."""
    text = json.dumps(plain(config), indent=1) + "\n"
    path = workdir / CONFIG
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with artifacts.atomic_write(path) as file:
            file.write(text)


def run(config: Any, workdir: str | Path) -> str:
    """Runs an experiment in `workdir`, also `gs://…`, and returns its table. A notebook may call this.

    The config is kept once the training of this config has begun, and when all programs have taken what is
    there for theirs: a run that one of them refuses leaves the one that was kept.
    """
    experiment = config if isinstance(config, ExperimentConfig) else load(config)
    with storage.workdir(workdir) as folder:
        keep = functools.partial(keep_config, experiment, folder)
        table = ""
        for program in PROGRAMS:
            started = time.monotonic()
            more = {"on_begin": keep} if program is train else {}
            table = program.run(experiment, folder, **more) or ""
            log.info("%s took %.0f s", program.__name__.rpartition(".")[2], time.monotonic() - started)
            if program is evaluate:
                keep()
        return table


if __name__ == "__main__":
    launch.main(run)
