"""What every program's main does: flags, logging, errors without a traceback where the user can mend them."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags
from rich.logging import RichHandler

from orca_jax import configs, remote, remote_workdir
from orca_jax.artifacts import ArtifactError
from orca_jax.asking.budget import BudgetSpent
from orca_jax.asking.endpoint import AskingStopped
from orca_jax.asking.ledger import LedgerError
from orca_jax.evaluation.examination import ExaminationError
from orca_jax.experiments.config import load
from orca_jax.remote import RemoteError
from orca_jax.training.checkpoints import CheckpointError

log = logging.getLogger(__name__)
FORM = "%(asctime)s %(levelname)s %(message)s"
USER_ERRORS = (
    ArtifactError,
    AskingStopped,
    CheckpointError,
    ExaminationError,
    FloatingPointError,
    LedgerError,
    OSError,
    RemoteError,
    ValueError,
)

# What to do about an error from below, by its words; the first that fits counts.
ADVICE = {
    os.strerror(errno.ENOSPC): "The disk is full: free some space and run the same command again to go on",
    os.strerror(errno.ENOENT): "Correct the path; a relative one starts at the folder of the command",
    os.strerror(errno.EADDRINUSE): "Another program listens there: give another port (0: any that is free)",
    "RESOURCE_EXHAUSTED": "Too little memory on the devices: see docs/troubleshooting.md#memory",
    "Unable to initialize backend": "Unset JAX_PLATFORMS, or install the extra for these devices: tpu, cuda",
}

EXIT_ERROR, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 3, 130

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/mini.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all artifacts go, a bucket too; run again to go on.")
_SCRATCH = flags.DEFINE_string("scratch", "", "Where copies of a bucket's files go; empty: the user's cache.")
flags.DEFINE_bool("traceback", False, "Show the traceback of errors in config or input.")


def set_up_logging() -> None:
    terminal = sys.stderr.isatty()
    handler: logging.Handler = RichHandler(show_path=False) if terminal else logging.StreamHandler()
    handler.setLevel(logging.INFO)
    form = "%(message)s" if terminal else FORM
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[handler], force=True)
    log.setLevel(logging.DEBUG)  # how a program ended: printed, and for the files of `keep_log`
    for noisy in ("orbax", "jax", "grain", "tensorboardX", "httpx2", "openai", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs every error of its threads through these, with a traceback a thread, and raises it too.
    # gcsfs says of every file what it could not find out about its bucket.
    for raised in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(raised).setLevel(logging.CRITICAL)
    sys.unraisablehook = _untidy


def _untidy(left: Any) -> None:
    """Orbax leaves tasks behind when a read fails; Python prints tracebacks as it collects them."""
    log.debug("left behind: %r", left.exc_value)


def keep_log(path: Path) -> None:
    """Appends the log to a file too, with the error that ends the program, if one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORM))
    logging.getLogger().addHandler(handler)


def checked(work: Callable[[], Any]) -> Any:
    """Runs `work`; an error that the user can mend ends the program with its message.

    The program's status is then `EXIT_ERROR`, or `EXIT_BUDGET` where a budget is spent. With `--traceback`
    such an error is raised.
    """
    traceback = flags.FLAGS["traceback"].value  # a notebook has parsed none
    try:
        return work()
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _unread()
    except BudgetSpent as stopped:
        _end(f"stopped: {stopped}", EXIT_BUDGET)
    except Exception as error:
        if _without_devices(error) and not traceback:
            wanted = os.environ.get("JAX_PLATFORMS")
            error = ValueError(f"Unable to initialize backend: jax has no devices of {wanted!r}")
        advice = next((advice for words, advice in ADVICE.items() if words in str(error)), "")
        if traceback or not (advice or isinstance(error, USER_ERRORS)):
            log.debug("ended by", exc_info=True)
            raise
        # XLA follows its first line with pages of allocations.
        said = str(error).partition("\n")[0] if isinstance(error, jax.errors.JaxRuntimeError) else error
        _end(f"error: {said}\n{advice}".rstrip(), EXIT_ERROR)


def _without_devices(error: Exception) -> bool:
    """Whether jax found none of the devices in JAX_PLATFORMS, which it says with a bare assertion."""
    return isinstance(error, AssertionError) and extract_tb(error.__traceback__)[-1].filename.endswith(
        "xla_bridge.py"
    )


def _unread() -> NoReturn:
    """Whoever read the output has left, as `head` does: ends without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_ERROR)


def _end(said: str, status: int) -> NoReturn:
    print(said, file=sys.stderr)
    log.debug(said)
    sys.exit(status)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments that are no flags; what is wrong with a flag, or in the config file, ends the program.

    A config file is run while its flag is parsed, so its errors show here too.
    """
    arguments = [_own_config(argument) for argument in arguments]
    try:
        rest = flags.FLAGS(arguments)
        if not flags.FLAGS["config"].present:  # programs that need one have said so
            return rest
        file = re.sub(r"\.py:.*$", ".py", config_flags.get_config_filename(flags.FLAGS["config"]))
        if Path(file).is_file():
            return rest
        text = f"no config file {file}"
    except flags.Error as error:
        # ml_collections puts a whole traceback into its message; its last line says what was wrong.
        text = str(error).strip().rpartition("\n")[2]
    except (AttributeError, KeyError) as error:
        text = _unknown_key(arguments, str(error.args[0] if error.args else error).strip("'\""))
    except BrokenPipeError:  # of --help
        _unread()
    except (OSError, TypeError, ValueError) as error:
        text = str(error)
    print(f"error: {text.strip()}", file=sys.stderr)
    sys.exit(1)


def _own_config(argument: str) -> str:
    """`--config=configs/NAME.py` as the package's own file, where the working folder has no such file."""
    given = re.fullmatch(r"(?P<flag>--?config=|)configs/(?P<file>[\w/]+\.py)(?P<rest>:.*|)", argument)
    if not given or Path("configs", given["file"]).exists():
        return argument
    own = Path(configs.__file__).parent / given["file"]
    return f"{given['flag']}{own}{given['rest']}" if own.exists() else argument


def _unknown_key(arguments: Sequence[str], text: str) -> str:
    """ml_collections' words on an unknown key, behind the override that they are about."""
    overrides = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--config.")]
    about = [name for name in overrides if name.rpartition(".")[2] in re.split(r"[^\w]+", text)]
    hint = text.replace("\\n", "\n").rpartition("\n")[2]
    return f"unknown config key '{about[0]}'. {hint}" if about else text


def _workdir(given: str | None, parts: Collection[str] | None) -> AbstractContextManager[Path]:
    """The workdir that the flag names, for as long as the program works on it."""
    if not given:
        sys.exit("error: --workdir is empty; name a directory for the artifacts")
    if parts is None and remote.is_remote(given):
        sys.exit(f"error: --workdir={given}: this program links folders; name a directory on a disk")
    if Path(given).is_file():
        sys.exit(f"error: --workdir={given} is a file; name a directory for the artifacts")
    if _SCRATCH.value:
        os.environ[remote.SCRATCH] = _SCRATCH.value
    hosts = "hosts" in flags.FLAGS and bool(flags.FLAGS.hosts)
    return remote_workdir.workdir(given, parts=parts or (), hosts=hosts)


def main(
    run: Callable[[Any, Path], Any],
    *,
    words: Mapping[str, Callable[[Any, Path], Any]] | None = None,
    of_workdir: Mapping[str, Callable[[Path], Any]] | None = None,
    read: Callable[[Any], Any] = load,
    parts: Collection[str] | None = (),
) -> None:
    """Runs a program that takes --config, which `read` turns into dataclasses, and --workdir.

    A word before the flags names another function than `run`; those of `of_workdir` need no --config.
    Of a workdir in a bucket a program gets a copy: of the top-level names in `parts`, of all if there are
    none, and with None it takes no such workdir.
    """
    words, of_workdir = words or {}, of_workdir or {}
    word = next((argument for argument in sys.argv[1:2] if not argument.startswith("-")), "")
    flags.mark_flags_as_required(["workdir"] if word in of_workdir else ["config", "workdir"])

    def work(arguments: list[str]) -> None:
        set_up_logging()
        if arguments[1:] not in ([], [word]) or (word and word not in {**words, **of_workdir}):
            known = ", ".join((*words, *of_workdir)) or "none"
            sys.exit(f"error: unknown word {arguments[-1]!r}; known before the flags: {known}")

        def within() -> None:
            program = of_workdir.get(word) or functools.partial(words.get(word, run), read(_CONFIG.value))
            with _workdir(_WORKDIR.value, parts) as workdir:
                # In here, so that a bucket gets the last words of the log too.
                checked(lambda: program(workdir))

        checked(within)

    app.run(work, flags_parser=parse_flags)
