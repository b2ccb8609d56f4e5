"""The command line of programs that `orca_jax.cli` does not start yet."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from orca_jax import cli, config_check, storage
from orca_jax.cli import _own_config, _refuse, _unread, _wrong_override, set_up_logging
from orca_jax.config import load
from orca_jax.experiments import options

options.define_every()


def checked(work: Callable[[], Any]) -> Any:
    """As cli.checked, with `--traceback` as absl has parsed it."""
    return cli.checked(work, traceback=flags.FLAGS["traceback"].value)


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
        wrong = "" if isinstance(error, config_check.ConfigError) else _wrong_override(arguments)
        _refuse(wrong or str(error.args[0] if error.args else error).strip("'\""))
    except (OSError, TypeError, ValueError) as error:
        _refuse(str(error))
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        file = re.sub(r"\.py:.*$", ".py", config_flags.get_config_filename(flags.FLAGS["config"]))
        if not Path(file).is_file():
            _refuse(f"no config file {file}")
    return rest


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
