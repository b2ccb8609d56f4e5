"""The command line of every program: options, commands, help, the log, and errors without a traceback.

A program declares its options at the top of its file, parses them before its slow imports, and runs last:

    from orca_jax import cli

    LIMIT = cli.Option("limit", 0, "Questions of each task; 0: all.", lower_bound=0)
    PROGRAM = cli.Program(__doc__, *cli.EXPERIMENT, LIMIT)
    if __name__ == "__main__":
        PROGRAM.start()  # before the imports below, which take seconds

    import jax

    def main() -> None:
        PROGRAM.main(lambda options: run(options.config, options.workdir, options.limit))

    if __name__ == "__main__":
        main()

With several commands: `Program(__doc__, commands={"run": cli.Command("What it does.", *options), ...})` and
`PROGRAM.main(run=run, score=score)`. Options are absl flags in a `FlagValues` of their own, so that programs
can import one another. One thing has one name in all programs: take CONFIG, MODEL and so on from here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import importlib.util
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from traceback import extract_tb, format_exception
from typing import Any, NoReturn, get_args

from absl import flags

from orca_jax import config, plugins, storage
from orca_jax.config import DType
from orca_jax.config_check import ConfigError, set_key
from orca_jax.scrubbing import scrub

log = logging.getLogger(__name__)
FORMAT = "%(asctime)s %(levelname)s %(message)s"
WIDTH, NARROW = 100, 60  # columns of help, at most; in fewer than NARROW what a name is stands below it
NO_OPTION = "options begin with --"
OVERRIDE = re.compile(r"--?config\.([^=]+)=(.*)", re.DOTALL)
EXIT_ERROR, EXIT_INTERRUPTED = 1, 130  # all statuses: docs/troubleshooting.md#exit-codes
COMPILED_BYTES = 2 << 30  # of compiled programs that are kept
# What to do about an error of a library, by its words; the first that fits counts.
ADVICE = {
    os.strerror(errno.ENOSPC): "The disk is full: free some space and run the same command again to go on",
    os.strerror(errno.ENOENT): "Correct the path; a relative one starts at the folder of the command",
    os.strerror(errno.EISDIR): "That is a folder: name the file in it",
    os.strerror(errno.EADDRINUSE): "Another program listens there: give another port (0: any that is free)",
    "Unable to initialize backend": "Unset JAX_PLATFORMS, or install the extra for these devices: tpu, cuda",
}
XLA_ADVICE = {"RESOURCE_EXHAUSTED": "Too little memory on the devices: see docs/troubleshooting.md#memory"}
DEFINE: Mapping[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    list: flags.DEFINE_list,
    tuple: flags.DEFINE_multi_string,
}
Options = types.SimpleNamespace  # an attribute an option; `config` is loaded, `workdir` is a local path
Work = Callable[[Options], Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option `--name`."""

    name: str
    # Its value where it is not given, and its type: str, bool, int, float, list (`a,b`) or tuple (given more
    # than once). A type itself: None where it is not given.
    default: Any
    help: str
    _: dataclasses.KW_ONLY
    required: bool = False
    choices: Sequence[str] | plugins.Table = ()
    lower_bound: float | None = None
    upper_bound: float | None = None

    @property
    def absent(self) -> Any:
        """The value where it is not given."""
        return None if isinstance(self.default, type) else self.default

    @property
    def known(self) -> Sequence[str]:
        """The choices; empty: it takes any value."""
        return self.choices.names if isinstance(self.choices, plugins.Table) else self.choices

    def define(self, values: flags.FlagValues) -> None:
        kind = self.default if isinstance(self.default, type) else type(self.default)
        more: dict[str, Any] = {"flag_values": values}
        if self.choices and not isinstance(self.choices, plugins.Table):
            absent = None if self.required else self.absent  # "" is none of the choices
            flags.DEFINE_enum(self.name, absent, self.choices, self.help, **more)
        else:
            if kind in (int, float):
                more |= {"lower_bound": self.lower_bound, "upper_bound": self.upper_bound}
            DEFINE[kind](self.name, self.absent, self.help, **more)

    def line(self) -> str:
        """The option in the help."""
        text = f"{self.help} One of: {', '.join(filter(None, self.known))}." if self.known else self.help
        shown = ",".join(self.absent) if isinstance(self.absent, list | tuple) else self.absent
        usual = " [required]" if self.required else f" [{shown}]" if shown not in (None, "", False) else ""
        return _row(f"--{self.name}", text + usual)


def _row(name: str, text: str) -> str:
    if (width := _width()) < NARROW:
        return f"  {name}\n{textwrap.indent(textwrap.fill(text, width - 4), ' ' * 4)}"
    return textwrap.fill(f"  {name:21} {text}", width, subsequent_indent=" " * 24)


def _width() -> int:
    """Columns of the terminal, as COLUMNS says where it is set."""
    return max(20, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


CONFIG = Option("config", "", "The experiment, for example configs/mini.py.", required=True)
WORKDIR = Option("workdir", "", "Where all artifacts go, also a bucket; run again to go on.", required=True)
SCRATCH = Option("scratch", "", "Where copies of a bucket's files go; empty: the user's cache.")
EXPERIMENT = (CONFIG, WORKDIR, SCRATCH)
MODEL = Option(
    "model",
    "",
    "A workdir, an imported student, a Hugging Face folder, a GGUF file, or hf://OWNER/NAME.",
    required=True,
)
LAYOUT = Option("layout", "", "The prompt layout; empty: the model's own.", choices=plugins.LAYOUTS)
DTYPE = Option(
    "dtype",
    "auto",
    "Computed in; auto: bfloat16 on TPUs and GPUs, float32 on CPUs.",
    choices=get_args(DType),
)
OUT = Option("out", "", "The folder to write.", required=True)
WORKERS = Option("workers", 0, "Processes that tokenise; 0: one a core.", lower_bound=0)
TRAIN = (
    Option("hosts", "", "Several hosts: 'auto' (TPU pod, Slurm, GKE), or ADDRESS:PORT,PROCESSES,PROCESS."),
    Option("peak_tflops", 0.0, "Of one device, for the metric mfu; 0: of chips.csv."),
    Option("profile_steps", "", "FIRST:LAST, to trace for TensorBoard's profiler."),
)
PLUGINS = Option("plugins", [], "Files with names of your own, see docs/extending.md.")
TRACEBACK = Option("traceback", False, "Show the traceback of errors in config or input.")


class Command:
    """A command.

    Args:
      help: of which the first line stands in the program's.
      made: what it leaves, as "{workdir}/tokens" of its options, and `then`: what to run next, as
        "train {same}", which is config and workdir again. Both are said at its end.
    """

    def __init__(
        self,
        help: str,
        *options: Option,
        made: Sequence[str] = (),
        then: str | Callable[[Options], str] = "",
    ):
        self.help, self.made, self.then = help, made, then
        listed = () if any(option.name == "config" for option in options) else (PLUGINS,)
        self.options = (*options, *listed, TRACEBACK)  # a config lists them itself
        self.names = {option.name: option for option in self.options}


class Program:
    """A program's command line; the module's docstring says how to use this class.

    Args:
      doc: the program's docstring, which begins its help.
      options: of a program without commands.
      commands: the commands by name, `default` the one that may be left out.
      load: turns the config into dataclasses.
      parts: top-level names of a bucket's workdir that are copied; empty: all; None: no bucket is taken.
      made, then: of a program without commands, see `Command`.
    """

    def __init__(
        self,
        doc: str | None,
        *options: Option,
        commands: Mapping[str, Command] | None = None,
        default: str = "",
        load: Callable[[Mapping[str, Any]], Any] = config.load,
        parts: Collection[str] | None = (),
        made: Sequence[str] = (),
        then: str = "",
    ):
        self.doc, self.default, self.load, self.parts = doc or "", default, load, parts
        self.commands = commands or {"": Command("", *options, made=made, then=then)}
        self.name, self.given, self.same = default, Options(), ""

    def options(self, **values: Any) -> Options:
        """The options where only these are given: for notebooks and tests, which have no command line."""
        declared = self.commands[self.default].options
        return Options(**{option.name: option.absent for option in declared} | values)

    def start(self, arguments: Sequence[str] | None = None) -> None:
        """Parses the command line, `sys.argv` unless given.

        Ends the program after help (status 0), or with what is wrong with the command line (status 1).
        """
        rest = list(sys.argv[1:] if arguments is None else arguments)
        word = rest.pop(0) if rest and not rest[0].startswith("-") else ""
        self.name, known = word or self.default, list(filter(None, self.commands))
        if word and word not in known:
            near = difflib.get_close_matches(word, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            _refuse(f"unknown command {word!r}; {hint}" if known else f"{word!r} is no option; {NO_OPTION}")
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(rest):
            checked(lambda: print(self.help(word), flush=True))
            sys.exit()
        if self.name not in self.commands:
            _refuse(f"a command is missing; known: {', '.join(known)}")
        command = self.commands[self.name]
        takes_keys = "config" in command.names
        keys = [found.groups() for one in rest if takes_keys and (found := OVERRIDE.fullmatch(one))]
        rest = [one for one in rest if not (takes_keys and OVERRIDE.fullmatch(one))]
        values = flags.FlagValues()
        for option in command.options:
            option.define(values)
        try:
            words = values(["", *rest])
        except flags.UnrecognizedFlagError as error:
            if takes_keys and error.flagname.startswith("config."):
                _refuse(f"--{error.flagname} lacks its value; write --{error.flagname}=VALUE")
            others = [name for name, other in self.commands.items() if error.flagname in other.names]
            _refuse(f"--{error.flagname} is an option of {others[0]}" if others else str(error))
        except flags.Error as error:
            _refuse(str(error))
        if words[1:]:
            _refuse(f"{words[1]!r} is no option; {NO_OPTION}")
        given: dict[str, Any] = {name: values[name].value for name in command.names}
        missing = [name for name, option in command.names.items() if option.required and not given[name]]
        if missing:
            _refuse(f"give {', '.join(f'--{name}' for name in missing)}; --help says what they are")
        same = [f"--{name}={given[name]}" for name in ("config", "workdir") if given.get(name)]
        self.same = shlex.join(same + [f"--config.{key}={value}" for key, value in keys])
        checked(lambda: plugins.load(given.get("plugins", ())), traceback=given["traceback"])
        for option in command.options:
            if isinstance(option.choices, plugins.Table) and given[option.name] not in option.known:
                wrong = f"--{option.name}={given[option.name]}: unknown {option.choices.kind}"
                _refuse(f"{wrong}; known: {', '.join(filter(None, option.known))}")
        if file := given.get("config"):
            given["config"] = checked(lambda: self.load(_config(file, keys)), traceback=given["traceback"])
        self.given = Options(**given)

    def main(self, work: Work | None = None, **works: Work) -> None:
        """Runs `work`, or the one named as the command, on the options that `start` has parsed.

        In `options.workdir` it gets a local folder, which is a copy where the workdir is in a bucket.
        """
        chosen, given = works[self.name] if works else work, self.given
        assert chosen is not None
        set_up_logging()
        keep_compiled()

        def within() -> None:
            with self._workdir(given) as options:
                # The errors are caught in here too, so that a bucket gets the last words of the log.
                checked(lambda: chosen(options), traceback=given.traceback)

        checked(within, traceback=given.traceback)
        if said := self.summary():
            print(scrub(said), file=sys.stderr, flush=True)

    def summary(self) -> str:
        """The line that ends a program: where things are, and what to run next; empty: it left nothing."""
        command, given = self.commands[self.name], vars(self.given)
        made = list(filter(None, (one.format(**given) for one in command.made)))
        then = command.then(self.given) if callable(command.then) else command.then
        quoted = {name: shlex.quote(str(value)) for name, value in given.items()} | {"same": self.same}
        parts = [f"done: {', '.join(made)}"] if made else []
        parts += [f"next: python -m {_package()}.{then.format(**quoted)}"] if then else []
        return "; ".join(parts)

    def help(self, word: str = "") -> str:
        """The help of the program, or of one of its commands."""
        command = self.commands.get(word or self.default, Command(""))
        text = (command.help if word else self.doc).replace("-m experiments.", f"-m {_package()}.")
        paragraphs = text.strip().split("\n\n")
        parts = [
            "\n".join(map(_command, text.splitlines()))
            if text.startswith((" ", "python"))
            else textwrap.fill(text, _width())
            for text in paragraphs
        ]
        if not word and "" not in self.commands:
            lines = [_row(name, each.help.splitlines()[0]) for name, each in self.commands.items()]
            title = textwrap.fill("Commands, which have a --help of their own:", _width())
            parts.append("\n".join([title, *lines]))
        if word or self.default or "" in self.commands:
            lines = [option.line() for option in command.options]
            if "config" in command.names:
                lines.insert(1, _row("--config.KEY=VALUE", "Sets a key of the config."))
            title = f"Options of `{self.default}`:" if self.default and not word else "Options:"
            parts.append("\n".join([title, *lines]))
        return "\n\n".join(parts)

    @contextlib.contextmanager
    def _workdir(self, given: Options) -> Iterator[Options]:
        """The options, with the workdir as a local folder for as long as the program works on it."""
        if not getattr(given, "workdir", ""):
            yield given
            return
        if self.parts is None and storage.is_remote(given.workdir):
            _refuse(f"--workdir={given.workdir}: this program links folders; name a directory on a disk")
        if Path(given.workdir).is_file():
            _refuse(f"--workdir={given.workdir} is a file; name a directory for the artifacts")
        if given.scratch:
            os.environ[storage.SCRATCH] = given.scratch
        hosts = bool(getattr(given, "hosts", ""))
        with storage.workdir(given.workdir, parts=self.parts or (), hosts=hosts) as folder:
            yield Options(**vars(given) | {"workdir": folder})


def _package() -> str:
    """Where the programs are as they were started: `experiments` is in a clone alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.rpartition(".")[0] if spec else "orca_jax.experiments"


def _command(line: str) -> str:
    """A command of the help, on several lines where it is wider than the terminal."""
    words = textwrap.wrap(line, _width() - 2, break_long_words=False, break_on_hyphens=False)
    return line if len(line) <= _width() else " \\\n        ".join(words)


def _refuse(text: str) -> NoReturn:
    _end(f"error: {text.strip()}", EXIT_ERROR)


def _config(given: str, changes: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The values of a config `FILE.py` or `FILE.py:ARGUMENT`, with each (key, text) of the command line set.

    The package's own configs/NAME.py is taken where the working folder has no such file; NAME is enough.
    """
    name, _, argument = given.partition(".py:" if ".py:" in given else ":")
    file = Path(f"{name.removesuffix('.py')}.py")
    spec = importlib.util.find_spec("orca_jax.configs")
    own = Path(str(spec and spec.origin)).parent
    if not file.exists() and not file.is_absolute():
        file = own / (Path(*file.parts[1:]) if file.parts[0] == own.name else file)
    if not file.is_file():
        known = sorted({path.stem for path in own.glob("*.py")} - {"__init__", "arguments"})
        hint = "" if file.parent != own else f"; the package has {', '.join(known)}"
        raise ConfigError(f"no config file {given}{hint}")
    plugins.folder = file.parent
    try:
        made = runpy.run_path(str(file))["get_config"](*[argument] if argument else [])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: {error.args[0] if error.args else error}") from error
    values: dict[str, Any] = json.loads(made.to_json_best_effort())
    for path, text in changes:
        set_key(values, re.findall(r"[^.\[\]]+", path), text)
    return values


# Errors and the log


def checked(work: Callable[[], Any], *, traceback: bool = False) -> Any:
    """Runs `work`; an error that the user can mend ends the program with its message.

    The status is that of the error's class where it has an `exit_status`, else `EXIT_ERROR`. A class with
    `explained` says itself what to do, and gets no advice from here. With `traceback` errors are raised.
    """
    try:
        return work()
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has left, as `head` does: no word of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if status := getattr(error, "exit_status", 0):
            _end(f"stopped: {error}", status)
        place = extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, AssertionError) and place.endswith("xla_bridge.py") and not traceback:
            wanted = os.environ.get("JAX_PLATFORMS")  # of which jax found none
            error = ValueError(f"Unable to initialize backend: jax has no devices of {wanted!r}")
        of_xla = type(error).__name__ == "JaxRuntimeError"
        known = {} if hasattr(error, "explained") else ADVICE | (XLA_ADVICE if of_xla else {})
        advice = next((advice for words, advice in known.items() if words in str(error)), "")
        own = type(error).__module__.partition(".")[0] == "orca_jax"
        mendable = own or isinstance(error, FloatingPointError | OSError | ValueError)
        if traceback or not (advice or mendable):
            log.debug("ended by", exc_info=True)
            raise
        # XLA follows its first line with pages of allocations.
        said = str(error).partition("\n")[0] if of_xla else error
        _end(f"error: {said}\n{advice}".rstrip(), EXIT_ERROR)


def _end(said: str, status: int) -> NoReturn:
    said = scrub(said)
    print(said, file=sys.stderr)
    log.debug(said)
    sys.exit(status)


class _Formatter(logging.Formatter):
    """Takes secrets out of every line, and of its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return str(scrub(super().format(record)))


def set_up_logging() -> None:
    """Logs to the terminal, without the noise of libraries and without secrets."""
    from rich.console import Console
    from rich.logging import RichHandler

    terminal = sys.stderr.isatty()
    handler: logging.Handler = logging.StreamHandler()
    if terminal:
        handler = RichHandler(console=Console(stderr=True), show_path=False)
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Formatter("%(message)s" if terminal else FORMAT, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    log.setLevel(logging.DEBUG)  # how a program ended: printed, and for the files of `keep_log`
    for noisy in ("orbax", "jax", "grain", "tensorboardX", "httpx2", "openai", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs every error of its threads through these, with a traceback a thread, and raises it too.
    # gcsfs says of every file what it could not find out about its bucket.
    for raised in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(raised).setLevel(logging.CRITICAL)
    # Orbax leaves tasks behind when a read fails; Python prints tracebacks as it collects them.
    sys.unraisablehook = lambda left: log.debug("left behind: %r", left.exc_value)
    sys.excepthook = lambda *error: print(scrub("".join(format_exception(*error))), end="", file=sys.stderr)


def keep_compiled() -> None:
    """JAX keeps compiled programs from run to run in the user's cache folder, least used ones leave first.

    What the environment says counts: `JAX_COMPILATION_CACHE_DIR` names another folder, or is empty for none.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orca_jax" / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": COMPILED_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)  # for the processes that are started from here
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)


def keep_log(path: Path) -> None:
    """Appends the log to a file too, with the error that ends the program, if one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter(FORMAT))
    logging.getLogger().addHandler(handler)
