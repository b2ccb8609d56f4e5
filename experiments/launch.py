"""What every program's main does: flags, logging, errors without a traceback where the user can mend them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.logging import RichHandler

from experiments.config import ExperimentConfig, load
from orca_jax.artifacts import ArtifactError
from orca_jax.asking.ledger import LedgerError
from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.records import RecordError
from orca_jax.settings import SettingsError
from orca_jax.training.checkpoints import CheckpointError

USER_ERRORS = (
    ArtifactError,
    CheckpointError,
    FileNotFoundError,
    FloatingPointError,
    LayoutError,
    LedgerError,
    RecordError,
    SettingsError,
    TokenizerError,
    ValueError,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/mini.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all artifacts go; run again to go on.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of errors in config or input.")


def set_up_logging() -> None:
    terminal = sys.stderr.isatty()
    handler: logging.Handler = RichHandler(show_path=False) if terminal else logging.StreamHandler()
    form = "%(message)s" if terminal else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[handler], force=True)
    for noisy in ("absl", "orbax", "jax", "grain", "tensorboardX"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def checked(work: Callable[[], Any], traceback: bool = False) -> Any:
    """Runs `work`; an error that the user can mend ends the program with its message and status 1."""
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def main(run: Callable[[ExperimentConfig, Path], Any]) -> None:
    """Runs a program that takes --config and --workdir."""
    flags.mark_flags_as_required(["config", "workdir"])

    def work(_: list[str]) -> None:
        set_up_logging()
        workdir = Path(_WORKDIR.value)
        checked(lambda: run(load(_CONFIG.value), workdir), _TRACEBACK.value)

    app.run(work)
