"""What every program's main does: flags, logging, errors without a traceback where the user can mend them."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from traceback import extract_tb, format_exception
from types import TracebackType
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from orca_jax import configs, settings, storage
from orca_jax.evaluation.run import EvaluationError
from orca_jax.experiments import options
from orca_jax.experiments.config import load
from orca_jax.teachers.budget import BudgetSpent
from orca_jax.teachers.endpoint import AskingStopped
from orca_jax.teachers.scrubbing import scrub

log = logging.getLogger(__name__)
FORM = "%(asctime)s %(levelname)s %(message)s"
# What to do about an error from below, by its words; the first that fits counts.
ADVICE = {
    os.strerror(errno.ENOSPC): "The disk is full: free some space and run the same command again to go on",
    os.strerror(errno.ENOENT): "Correct the path; a relative one starts at the folder of the command",
    os.strerror(errno.EADDRINUSE): "Another program listens there: give another port (0: any that is free)",
    "Unable to initialize backend": "Unset JAX_PLATFORMS, or install the extra for these devices: tpu, cuda",
}

XLA_ADVICE = {"RESOURCE_EXHAUSTED": "Too little memory on the devices: see docs/troubleshooting.md#memory"}

EXIT_ERROR, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 3, 130
options.define_every()


class _Formatter(logging.Formatter):
    """Takes secrets out of every line, and of its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return str(scrub(super().format(record)))


def set_up_logging() -> None:
    from rich.logging import RichHandler

    terminal = sys.stderr.isatty()
    handler: logging.Handler = RichHandler(show_path=False) if terminal else logging.StreamHandler()
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Formatter("%(message)s" if terminal else FORM, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    log.setLevel(logging.DEBUG)  # how a program ended: printed, and for the files of `keep_log`
    for noisy in ("orbax", "jax", "grain", "tensorboardX", "httpx2", "openai", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs every error of its threads through these, with a traceback a thread, and raises it too.
    # gcsfs says of every file what it could not find out about its bucket.
    for raised in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(raised).setLevel(logging.CRITICAL)
    sys.unraisablehook = _untidy
    sys.excepthook = _uncaught


def _untidy(left: Any) -> None:
    """Orbax leaves tasks behind when a read fails; Python prints tracebacks as it collects them."""
    log.debug("left behind: %r", left.exc_value)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback without secrets."""
    print(scrub("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)


def keep_log(path: Path) -> None:
    """Appends the log to a file too, with the error that ends the program, if one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter(FORM))
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
        of_xla = type(error).__name__ == "JaxRuntimeError"
        # What an API says is no word of this machine's, and such errors say themselves what to do.
        of_api = isinstance(error, AskingStopped | EvaluationError)
        known = {} if of_api else {**ADVICE, **(XLA_ADVICE if of_xla else {})}
        advice = next((advice for words, advice in known.items() if words in str(error)), "")
        if traceback or not (advice or _mendable(error)):
            log.debug("ended by", exc_info=True)
            raise
        # XLA follows its first line with pages of allocations.
        said = str(error).partition("\n")[0] if of_xla else error
        _end(f"error: {said}\n{advice}".rstrip(), EXIT_ERROR)


def _mendable(error: Exception) -> bool:
    """Whether the user can mend it: an error of this package's own, or one of values and files."""
    own = type(error).__module__.partition(".")[0] == "orca_jax"
    return own or isinstance(error, FloatingPointError | OSError | ValueError)


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
    said = scrub(said)
    print(said, file=sys.stderr)
    log.debug(said)
    sys.exit(status)


_experiment: Any = None  # what `start` has read for `main`


def start(program: str, *, read: Callable[[Any], Any] = load) -> None:
    """Reads the command line, and the config by `read`, before what takes seconds to import.

    Ends the program with help (status 0) or with what is wrong with the command line (status 1, or 2 from
    argparse).
    """
    arguments = [_own_config(argument) for argument in sys.argv[1:]]
    word = next((argument for argument in arguments[:1] if not argument.startswith("-")), "")
    if file := options.parsed_by(program, arguments):
        options.parser(file).parse_args(arguments[1:] if file != program else arguments)
        return
    global _experiment
    names = options.define(program)
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(arguments):
        _help(program, names)
    words = options.WORDS.get(program, ())
    if word not in words and (word or options.needs_word(program)):
        what = f"unknown word {word!r}" if word else "a word is missing"
        _refuse(f"{what}; known before the flags: {', '.join(words) or 'none'}")
    rest = _parsed([program, *arguments])[1:]
    if extra := [argument for argument in rest if argument != word]:
        _refuse(f"{extra[0]!r} is no flag; flags begin with --")
    missing = [name for name in options.required(program, word) if not flags.FLAGS[name].value]
    if missing:
        _refuse(f"give {', '.join(f'--{name}' for name in missing)}; --help says what they are")
    if "config" in names and flags.FLAGS["config"].value:
        _experiment = checked(lambda: read(flags.FLAGS["config"].value))


def experiment() -> Any:
    """The config of the command line, as `start` has read it."""
    return _experiment


def _help(program: str, names: Sequence[str]) -> NoReturn:
    """Prints a program's docstring and its flags, a line each."""
    try:
        print(f"{options.doc(program)}\n")
        for name in names:
            flag = flags.FLAGS[name]
            default = f" [{flag.default}]" if flag.default not in (None, "", False, []) else ""
            print(f"  --{name:20} {flag.help}{default}")
        if "config" in names:
            print("  --config.KEY=VALUE     One key of the config otherwise than in its file.")
        sys.stdout.flush()
    except BrokenPipeError:
        _unread()
    sys.exit()


def _refuse(text: str) -> NoReturn:
    print(f"error: {text.strip()}", file=sys.stderr)
    sys.exit(EXIT_ERROR)


def _parsed(arguments: Sequence[str]) -> list[str]:
    """The arguments that are no flags; what is wrong with a flag, or in the config file, ends the program.

    A config file is run while its flag is parsed, so its errors show here too.
    """
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        # ml_collections puts a whole traceback into its message; its last line says what was wrong.
        _refuse(str(error).strip().rpartition("\n")[2])
    except (AttributeError, IndexError, KeyError) as error:
        wrong = "" if isinstance(error, settings.SettingsError) else _wrong_override(arguments)
        _refuse(wrong or str(error.args[0] if error.args else error).strip("'\""))
    except (OSError, TypeError, ValueError) as error:
        _refuse(str(error))
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        file = re.sub(r"\.py:.*$", ".py", config_flags.get_config_filename(flags.FLAGS["config"]))
        if not Path(file).is_file():
            _refuse(f"no config file {file}")
    return rest


def _own_config(argument: str) -> str:
    """`--config=configs/NAME.py` as the package's own file, where the working folder has no such file."""
    given = re.fullmatch(r"(?P<flag>--?config=|)configs/(?P<file>[\w/]+\.py)(?P<rest>:.*|)", argument)
    if not given or Path("configs", given["file"]).exists():
        return argument
    own = Path(configs.__file__).parent / given["file"]
    return f"{given['flag']}{own}{given['rest']}" if own.exists() else argument


def _wrong_override(arguments: Sequence[str]) -> str:
    """What is said of the first `--config.PATH=VALUE` that the config has no place for; empty: of none."""
    given_as = re.search(r"(?:^|\n)--?config[=\n](.+)", "\n".join(arguments))
    if not given_as:
        return ""
    file, _, given = given_as[1].partition(".py:")
    try:
        config = runpy.run_path(f"{file.removesuffix('.py')}.py")["get_config"](*[given] if given else [])
    except (AttributeError, IndexError, KeyError):
        return ""  # the file itself is wrong
    for path in (match[1] for a in arguments if (match := re.match(r"--?config\.([^=]+)", a))):
        part, done = config, ""
        for key in re.findall(r"[^.\[\]]+", path):
            if isinstance(part, Mapping | ConfigDict):
                done = f"{done}.{key}" if done else key
                if key not in part:
                    return settings.unknown(done, part)
                part = part[key]
            elif isinstance(part, list | tuple) and key.isdecimal() and int(key) < len(part):
                done, part = f"{done}[{key}]", part[int(key)]
            elif not isinstance(part, list | tuple):
                return f"config key '{done}' is {part!r:.60}, and has no '{key}'"
            else:
                return f"config key '{done}' has {len(part)} entries, counted from 0; there is no [{key}]"
    return ""


def _workdir(given: str, parts: Collection[str] | None) -> AbstractContextManager[Path]:
    """The workdir that the flag names, for as long as the program works on it."""
    if parts is None and storage.is_remote(given):
        _refuse(f"--workdir={given}: this program links folders; name a directory on a disk")
    if Path(given).is_file():
        _refuse(f"--workdir={given} is a file; name a directory for the artifacts")
    if flags.FLAGS.scratch:
        os.environ[storage.SCRATCH] = flags.FLAGS.scratch
    hosts = "hosts" in flags.FLAGS and bool(flags.FLAGS.hosts)
    return storage.workdir(given, parts=parts or (), hosts=hosts)


def main(
    run: Callable[[Any, Path], Any],
    *,
    words: Mapping[str, Callable[[Any, Path], Any]] | None = None,
    of_workdir: Mapping[str, Callable[[Path], Any]] | None = None,
    parts: Collection[str] | None = (),
) -> None:
    """Runs a program on the config and in the workdir of the command line that `start` has read.

    A word before the flags names another function than `run`; those of `of_workdir` take no config.
    Of a workdir in a bucket a program gets a copy: of the top-level names in `parts`, of all if there are
    none, and with None it takes no such workdir.
    """
    word = next((argument for argument in sys.argv[1:2] if not argument.startswith("-")), "")
    set_up_logging()

    def within() -> None:
        program = (of_workdir or {}).get(word) or functools.partial((words or {}).get(word, run), _experiment)
        with _workdir(flags.FLAGS.workdir, parts) as workdir:
            # In here, so that a bucket gets the last words of the log too.
            checked(lambda: program(workdir))

    checked(within)
