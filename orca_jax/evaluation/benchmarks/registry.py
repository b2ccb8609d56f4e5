"""All benchmarks by the name a config gives them: questions, texts for contamination, file reports."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax.evaluation.benchmarks import agieval, bbh, gsm8k, open_ended, toxigen, truthfulqa
from orca_jax.evaluation.benchmarks.files import BenchmarkError, Document, FileReport
from orca_jax.evaluation.questions import Question
from orca_jax.evaluation.scoring import Group


class Reader(NamedTuple):
    """All three take the benchmark's folder, or its file where it is one file.

    Attributes:
      questions: with `mode`, and some with the `size` that a file must have.
      modes: what it can be asked in; the first is the one asked where a config names none.
      groups: its named aggregates.
      scored: replies are right or wrong; else a judge or a classifier reads them.
    """

    documents: Callable[[str | Path], Iterator[Document]]
    reports: Callable[[str | Path], list[FileReport]]
    questions: Callable[..., list[Question]]
    modes: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    scored: bool = True


def _open_ended(source: str) -> Reader:
    def questions(path: str | Path, *, mode: str) -> list[Question]:
        return open_ended.questions(path, source=source)

    documents, reports = open_ended.documents, open_ended.reports
    modes = (open_ended.MODE,)
    return Reader(
        partial(documents, source=source), partial(reports, source=source), questions, modes, scored=False
    )


READERS: Mapping[str, Reader] = {
    "bbh": Reader(bbh.documents, bbh.reports, bbh.questions, bbh.MODES, bbh.GROUPS),
    "agieval": Reader(
        agieval.documents, agieval.reports, agieval.questions, agieval.MODES, agieval.GROUPS
    ),
    "truthfulqa_mc": Reader(
        truthfulqa.documents, truthfulqa.reports, truthfulqa.questions, truthfulqa.MODES
    ),
    "toxigen": Reader(
        toxigen.documents, toxigen.reports, toxigen.questions, toxigen.MODES,
        scored=False,
    ),
    "gsm8k": Reader(gsm8k.documents, gsm8k.reports, gsm8k.questions, gsm8k.MODES),
    **{source: _open_ended(source) for source in open_ended.SOURCES},
}  # fmt: skip


def questions(name: str, path: str | Path, *, mode: str, size: int | None = None) -> list[Question]:
    """What a benchmark asks in a mode.

    Args:
      name: a key of `READERS`.
      size: rows that its file must have, where the reader can be told.

    Raises:
      BenchmarkError: name or mode is unknown, or a file is not what it should be.
    """
    reader = _reader(name)
    if mode not in reader.modes:
        raise BenchmarkError(f"{name} has no mode {mode!r}; its modes: {', '.join(reader.modes)}")
    options: dict[str, Any] = {}
    if size is not None:
        if "size" not in inspect.signature(reader.questions).parameters:
            raise BenchmarkError(f"{name}: the sizes of its files are known, and cannot be given")
        options = {"size": size}
    return reader.questions(path, mode=mode, **options)


def documents(sources: Mapping[str, str | Path]) -> Iterator[Document]:
    """The texts of all named benchmarks, for `queries.contamination`.

    Args:
      sources: benchmark (a key of `READERS`) to its folder or file.

    Raises:
      BenchmarkError: a name is unknown, or a file not what it should be.
    """
    return itertools.chain.from_iterable(_reader(name).documents(path) for name, path in sources.items())


def reports(sources: Mapping[str, str | Path]) -> list[FileReport]:
    """What was found in the files of all named benchmarks, for a manifest; raises as `documents`."""
    return [report for name, path in sources.items() for report in _reader(name).reports(path)]


def _reader(name: str) -> Reader:
    if name not in READERS:
        raise BenchmarkError(f"unknown benchmark {name!r}; known: {', '.join(READERS)}")
    return READERS[name]
