"""What every program's main does: flags, logging, errors without a traceback where the user can mend them."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.logging import RichHandler

from experiments.config import ExperimentConfig, load
from orca_jax.artifacts import ArtifactError
from orca_jax.asking.endpoint import AskingStopped
from orca_jax.asking.ledger import LedgerError
from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.evaluation.examination import ExaminationError
from orca_jax.records import RecordError
from orca_jax.settings import SettingsError
from orca_jax.training.checkpoints import CheckpointError

USER_ERRORS = (
    ArtifactError,
    AskingStopped,
    CheckpointError,
    ExaminationError,
    FloatingPointError,
    LayoutError,
    LedgerError,
    OSError,
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
    for noisy in ("orbax", "jax", "grain", "tensorboardX", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs every error of its threads through absl, with a traceback a thread, and raises it too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


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
        print(f"error: {error}{_advice(error)}", file=sys.stderr)
        sys.exit(1)


def _advice(error: Exception) -> str:
    full = os.strerror(errno.ENOSPC) in str(error)
    return "\nThe disk is full: free some space and run the same command again to go on" if full else ""


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments that are no flags; what is wrong with a flag, or in the config file, ends the program.

    A config file is run while its flag is parsed, so its errors show here too.
    """
    try:
        rest = flags.FLAGS(list(arguments))
        file = re.sub(r"\.py:.*$", ".py", config_flags.get_config_filename(flags.FLAGS["config"]))
        if Path(file).is_file():
            return rest
        text = f"no config file {file}"
    except flags.Error as error:
        # ml_collections puts a whole traceback into its message; its last line says what was wrong.
        text = str(error).strip().rpartition("\n")[2]
    except (AttributeError, KeyError) as error:
        text = _unknown_key(arguments, str(error.args[0] if error.args else error).strip("'\""))
    except (OSError, TypeError, ValueError) as error:
        text = str(error)
    print(f"error: {text.strip()}", file=sys.stderr)
    sys.exit(1)


def _unknown_key(arguments: Sequence[str], text: str) -> str:
    """ml_collections' words on an unknown key, behind the override that they are about."""
    overrides = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--config.")]
    about = [name for name in overrides if name.rpartition(".")[2] in re.split(r"[^\w]+", text)]
    hint = text.replace("\\n", "\n").rpartition("\n")[2]
    return f"unknown config key '{about[0]}'. {hint}" if about else text


def main(run: Callable[[ExperimentConfig, Path], Any]) -> None:
    """Runs a program that takes --config and --workdir."""
    flags.mark_flags_as_required(["config", "workdir"])

    def work(_: list[str]) -> None:
        set_up_logging()
        if not _WORKDIR.value:
            sys.exit("error: --workdir is empty; name a directory for the artifacts")
        workdir = Path(_WORKDIR.value)
        checked(lambda: run(load(_CONFIG.value), workdir), _TRACEBACK.value)

    app.run(work, flags_parser=parse_flags)
