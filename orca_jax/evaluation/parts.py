"""An evaluation spread over hosts: which requests are a host's part, and the files of its answers.

A part is (which, of how many), from 1. Each part writes a file of its own beside that of the whole, and
whoever then asks the whole reads them all, and asks what is missing.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orca_jax import files
from orca_jax.artifacts import digest

Part = tuple[int, int]
WHOLE: Part = (1, 1)


def own(file: Path, part: Part) -> Path:
    """The file of a part: `replies-2-of-4.jsonl` beside `replies.jsonl`."""
    return file if part == WHOLE else file.with_stem("{}-{}-of-{}".format(file.stem, *part))


def others(file: Path, part: Part) -> list[Path]:
    """The files of all parts that there are, where the whole is asked."""
    return sorted(file.parent.glob(f"{file.stem}-*-of-*{file.suffix}")) if part == WHOLE else []


def numbers(count: int, part: Part) -> range:
    """Which of `count` requests are the part's."""
    return range(part[0] - 1, count, part[1])


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer, a JSON value, by the hash of all that it depends on."""

    request: str
    answer: Any


def answered(
    requests: Sequence[Any],
    file: Path,
    part: Part,
    answer: Callable[[Sequence[int]], Iterable[tuple[int, Any]]],
    progress: Callable[[int], object] = lambda done: None,
) -> dict[int, Any]:
    """The answers there are, by their requests' numbers: to all requests, unless a part is asked.

    Args:
      requests: all that each answer depends on, as JSON values. Equal ones are told apart by their order.
      file: that of the whole. Answers to other requests may stand in it.
      answer: takes the numbers of requests that are missing, and yields each with its answer, a JSON value.
      progress: called with the number of the part's answers that there are.

    Raises:
      RecordError: a line of a file is damaged; names file, line and field.
    """
    places = collections.defaultdict[str, Iterator[int]](itertools.count)
    keys = [digest([text, next(places[text])]) for text in map(digest, requests)]
    path = own(file, part)
    with files.JsonlAppender(path) as appender:
        known: dict[str, Any] = {}
        for there in (*others(file, part), path):
            known.update((one.request, one.answer) for one in files.read_jsonl(there, RecordedAnswer))
        asked = numbers(len(keys), part)
        missing = [number for number in asked if keys[number] not in known]
        for done, (number, found) in enumerate(answer(missing), len(asked) - len(missing) + 1):
            known[keys[number]] = found
            appender.append(RecordedAnswer(keys[number], found))
            progress(done)
    return {number: known[key] for number, key in enumerate(keys) if key in known}
