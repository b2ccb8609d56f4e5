"""All benchmarks by the name a config gives them: their texts for contamination and their file reports."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orca_jax.evaluation.benchmarks import agieval, bbh, gsm8k, open_ended, toxigen, truthfulqa
from orca_jax.evaluation.benchmarks.files import BenchmarkError, Document, FileReport


class Reader(NamedTuple):
    """Both take the benchmark's folder, or its file where it is one file."""

    documents: Callable[[str | Path], Iterator[Document]]
    reports: Callable[[str | Path], list[FileReport]]


def _open_ended(source: str) -> Reader:
    return Reader(partial(open_ended.documents, source=source), partial(open_ended.reports, source=source))


READERS: Mapping[str, Reader] = {
    "bbh": Reader(bbh.documents, bbh.reports),
    "agieval": Reader(agieval.documents, agieval.reports),
    "truthfulqa_mc": Reader(truthfulqa.documents, truthfulqa.reports),
    "toxigen": Reader(toxigen.documents, toxigen.reports),
    "gsm8k": Reader(gsm8k.documents, gsm8k.reports),
    **{source: _open_ended(source) for source in open_ended.SOURCES},
}


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
