"""Names of a user's own beside the package's: benchmarks, layouts, teachers, puzzles and curricula.

A plugin is a Python file, or a module, that calls the functions below while it is imported. A config lists it
in `plugins`, and may then use its names wherever it may use the package's:

    from orca_jax import plugins

    plugins.layout("brackets", brackets)

What a plugin makes depends on its source, so the manifest of what is made with one of its names has the
source's sha256. Of a package it is that of all its .py files; what else a plugin imports does not count.
docs/extending.md has an example of each function.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from orca_jax.config_check import ConfigError


class PluginError(ConfigError):
    """A plugin is missing, fails, or registers a name that is taken; the message names file and name."""


class Plugin(NamedTuple):
    name: str  # a file's without suffix, or the module's
    place: str  # the file or the module
    digest: str  # sha256 of its source


class Table:
    """What plugins have registered as one kind of thing, by name; an annotation of config keys too.

    Attributes:
      own: the names of the package's, which no plugin may take; those who know them set them.
    """

    every: ClassVar[list[Table]] = []

    def __init__(self, kind: str, *own: str):
        self.kind, self.own = kind, own
        self.entries: dict[str, Any] = {}
        self.sources: dict[str, Plugin] = {}
        self.every.append(self)

    def beside(self, *own: str) -> Table:
        """The table, with the names of the package's."""
        self.own = own
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All that a config may say."""
        return (*self.own, *self.entries)

    def add(self, name: str, entry: Any) -> None:
        """Registers an entry, while a plugin is imported by `load`; else nothing happens.

        Raises:
          PluginError: the name is taken, or none.
        """
        if _importing is None:
            return
        where = f"plugin {_importing.place} registers the {self.kind} {name!r}"
        if not re.fullmatch(r"\w[\w-]*", name):
            raise PluginError(f"{where}: give it a name of letters, digits, _ and -")
        if name in self.own:
            raise PluginError(f"{where}, which is the name of one of orca_jax's own; give it another name")
        if name in self.entries:
            raise PluginError(
                f"{where}, which {self.sources[name].place} has registered; give one of the two another name"
            )
        self.entries[name], self.sources[name] = entry, _importing

    def forget(self, plugin: str) -> None:
        for name in [name for name, source in self.sources.items() if source.name == plugin]:
            del self.entries[name], self.sources[name]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def check(name: str) -> str:
            if name in self.names:
                return name
            *others, last = (repr(name) for name in self.names)  # as pydantic says it of a Literal
            known = " or ".join(filter(None, [", ".join(others), last]))
            raise PydanticCustomError("literal_error", f"Input should be {known}")

        return core_schema.no_info_after_validator_function(check, handler(source))


BENCHMARKS, MODES_OF, PARSERS = Table("benchmark"), Table("modes of benchmark"), Table("mode")
LAYOUTS, CONTROL_TOKENS = Table("layout"), Table("control tokens of layout")
TEACHERS, PUZZLES, CURRICULA = (
    Table("kind of teacher"),
    Table("family of puzzles"),
    Table("kind of curriculum"),
)
folder = Path()  # of the config file: relative paths are looked up there first, then in the working folder
_loaded: dict[str, Plugin] = {}
_importing: Plugin | None = None


# What a plugin may register


class Benchmark(NamedTuple):
    """A benchmark by its functions, which take its folder, or its file where it is one file."""

    questions: Callable[..., list[Any]]  # in a `mode`
    documents: Callable[..., Iterable[Any]]  # its texts, not to be trained on
    groups: tuple[Any, ...] = ()  # its named aggregates
    scored: bool = True  # replies are right or wrong; else a judge or a classifier reads them
    part: bool = False  # its file may be a part of the published one, if its `size` is given
    sizes: Mapping[str, int] = {}  # task to the number of its questions, of a plugin's


def benchmark(
    name: str,
    questions: Callable[..., list[Any]],
    documents: Callable[[str | Path], Iterable[Any]],
    *,
    modes: Sequence[str],
    parsers: Mapping[str, Callable[[Any, Any], str | None]] | None = None,
    groups: Sequence[Any] = (),
    sizes: Mapping[str, int] | None = None,
) -> None:
    """A benchmark, named in `benchmarks` and `evaluation.modes`.

    Args:
      questions: (path, *, mode) to a list of `evaluation.benchmarks.base.Question`, of benchmark `name`.
      documents: (path) to a `base.Document` for each text that must not be trained on.
      modes: of `evaluation.scoring.MODES` or `parsers`; the first is used where a config names none.
      parsers: by mode: (question, reply) to the reply's answer, which is right if it is the question's
        target; None: there is none.
      groups: `base.Group`s, its named aggregates.
      sizes: task to the number of its questions, so that tables mark results of a part of them.
    """
    BENCHMARKS.add(name, Benchmark(questions, documents, tuple(groups), sizes=dict(sizes or {})))
    for mode, parse in (parsers or {}).items():
        PARSERS.add(mode, parse)
    if unknown := [mode for mode in modes if mode not in PARSERS.names] or not modes:
        raise PluginError(
            f"benchmark {name!r} needs known modes, got {unknown if modes else 'none'}; known: "
            f"{', '.join(PARSERS.names)}"
        )
    MODES_OF.add(name, tuple(modes))


def layout(
    name: str, pieces: Callable[[Sequence[Any]], list[Any]], *, control_tokens: Sequence[str] = ()
) -> None:
    """A prompt layout, named in `data.layout` and `--layout`.

    Args:
      pieces: a sequence of `records.Message` to a list of `data.chat_template.Piece`, as `data.layouts.orca`.
        What it writes of a prompt begins what it writes of the same prompt with its answer.
      control_tokens: those that it writes beside beginning and end of sequence.
    """
    LAYOUTS.add(name, pieces)
    CONTROL_TOKENS.add(name, ("[[PAD]]", *control_tokens))


def teacher(name: str, make: Callable[..., Any]) -> None:
    """A kind of teacher, named in `teachers[].kind`.

    Args:
      make: (ExperimentConfig, TeacherConfig, iterator of `records.Query`) to an object with
        `async reply(messages, sampling)`, as `teachers.endpoint.Endpoint` has it. The teacher's `path` may
        name a file of its own, whose content counts.
    """
    TEACHERS.add(name, make)


def puzzles(family: Any) -> None:
    """A family of puzzles, named in `puzzles.families` by its `name`: a `queries.puzzles.base.Family`."""
    PUZZLES.add(family.name, family)


class Curriculum(NamedTuple):
    weights: Callable[[Any, float], Mapping[str, float]] | None
    rate: Callable[[Any, float], float] | None


def curriculum(
    name: str,
    *,
    weights: Callable[[Any, float], Mapping[str, float]] | None = None,
    rate: Callable[[Any, float], float] | None = None,
) -> None:
    """A kind of curriculum, named in `curriculum[].kind`: what a stage trains on, and at which rate.

    Args:
      weights: (stage, share of its rows that are done, 0 to 1) to the weights of its data sets then, in place
        of `datasets` and `anneal_to`, which still say which data sets there are.
      rate: (stage, share of its steps after the warm-up, 0 to 1) to a factor of the stage's `learning_rate`,
        in place of `schedule` and `final_fraction`.
    """
    CURRICULA.add(name, Curriculum(weights, rate))


# Importing plugins


def resolved(place: str) -> str:
    """A plugin's place, its path beside the config file where it is there."""
    return str(folder / place) if place.endswith(".py") and (folder / place).is_file() else place


def load(places: Iterable[str]) -> None:
    """Imports plugins, each once; one whose source has changed since is imported again.

    Raises:
      PluginError: one is not there, fails, or registers a name that is taken; names it.
    """
    global _importing
    for place in map(resolved, places):
        name = Path(place).stem if place.endswith(".py") else place
        files = _files(place)
        sources = [file.read_bytes() for file in files]
        made = Plugin(name, place, hashlib.sha256(b"\0".join(sources)).hexdigest())
        there = _loaded.get(name)
        if there and there.digest == made.digest:
            continue
        if there and os.path.abspath(there.place) != os.path.abspath(place):
            raise PluginError(f"two plugins are called {name!r}: {there.place} and {place}; rename one")
        _forget(name)
        before, _importing = _importing, made
        try:
            _run(place, name, files[0], sources[0])
        except BaseException as error:
            _forget(name)
            if isinstance(error, PluginError) or not isinstance(error, Exception):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f":{one.lineno}" for one in frames[::-1] if one.filename == str(files[0])), "")
            raise PluginError(f"plugin {place}{line} fails: {type(error).__name__}: {error}") from error
        finally:
            _importing = before
        _loaded[name] = made


def _forget(plugin: str) -> None:
    _loaded.pop(plugin, None)
    for table in Table.every:
        table.forget(plugin)


def _files(place: str) -> list[Path]:
    """The source files of a plugin, first the one that is run."""
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise PluginError(
                f"no plugin {place}; its path is relative to the config file or to the working folder"
            )
        return [Path(place)]
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if not spec or not spec.origin or not spec.origin.endswith(".py"):
        raise PluginError(f"no plugin {place!r}: there is no such module; a file's name ends with .py")
    first = Path(spec.origin)
    more = first.parent.rglob("*.py") if spec.submodule_search_locations else ()
    return [first, *(file for file in sorted(more) if file != first)]


def _run(place: str, name: str, file: Path, source: bytes) -> None:
    if not place.endswith(".py"):
        if place in sys.modules:
            importlib.reload(sys.modules[place])
        else:
            importlib.import_module(place)
        return
    module = types.ModuleType(f"orca_jax_plugin_{name}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    exec(compile(source, str(file), "exec"), module.__dict__)


def loaded() -> list[str]:
    """The places of all plugins, for `load` in another process."""
    return [plugin.place for plugin in _loaded.values()]


# Provenance


def provenance(*used: tuple[Table, str]) -> dict[str, dict[str, str]]:
    """`plugins` of a manifest's provenance: sha256 by name of those that have registered what is used."""
    sources = [table.sources[name] for table, name in used if name in table.sources]
    return {"plugins": {source.name: source.digest for source in sources}} if sources else {}


def places(provenance: Mapping[str, Any]) -> dict[str, str]:
    """By name where the plugins of a provenance are, for those who open its directory later."""
    found = {name: _loaded[name].place for name in provenance.get("plugins", ()) if name in _loaded}
    return {name: os.path.abspath(place) if place.endswith(".py") else place for name, place in found.items()}


def reopen_layout(directory: str | Path, manifest: Mapping[str, Any]) -> None:
    """Imports the plugin whose layout a student was trained in, if it is a plugin's.

    Raises:
      PluginError: it is not there, or its source is another by now.
    """
    provenance, said = manifest["provenance"], ""
    layout, made_with = provenance.get("layout", ""), provenance.get("plugins", {})
    for place in manifest.get("plugins", {}).values():
        if layout not in LAYOUTS.names:
            try:
                load([place])
            except PluginError as error:
                said += f": {error}"
    if layout not in LAYOUTS.names:
        raise PluginError(f"{directory} has the layout {layout!r} of a plugin{said}; name it with --plugins")
    source = LAYOUTS.sources.get(layout)
    if source and source.digest not in made_with.values():
        raise PluginError(
            f"{directory} was made with another source of layout {layout!r} than {source.place} has now; put "
            "that one back, or train again"
        )
