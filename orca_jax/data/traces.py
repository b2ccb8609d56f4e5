"""Traces in files, counted and sliced without being read, to be handed to what writes a shard.

Few-shot prompts are made as they are read: solved examples before the question, as Orca 2 (arXiv 2311.11045)
has them. A trace's examples are the prompts and answers of others of its task and system message, which were
collected without examples, so nothing is collected for them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from orca_jax import files
from orca_jax.records import Message, Trace

NO_SHOT = -1  # in the place of an example where a trace has fewer


class Traces(Protocol):
    """A list of traces, or `PlacedTraces`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Trace]: ...

    def __getitem__(self, part: slice, /) -> Traces: ...


@dataclasses.dataclass(frozen=True)
class PlacedTraces:
    """Traces by the places of their lines; reads them when iterated over.

    Attributes:
      paths: files of JSON lines.
      file: int32 [traces], into `paths`.
      offsets: int64 [traces], the byte at which each line begins.
    """

    paths: tuple[Path, ...]
    file: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, parts: dict[str | os.PathLike[str], list[int]]) -> Self:
        """From files and the bytes of their lines, file after file."""
        file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts.values()])
        offsets = np.array([offset for part in parts.values() for offset in part], np.int64)
        return cls(tuple(map(Path, parts)), file, offsets)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, part: slice, /) -> PlacedTraces:
        return dataclasses.replace(self, file=self.file[part], offsets=self.offsets[part])

    def __iter__(self) -> Iterator[Trace]:
        for number, path in enumerate(self.paths):
            if len(offsets := self.offsets[self.file == number]):
                yield from files.read_at(path, offsets.tolist(), Trace)


# Few-shot prompts


class Candidate(NamedTuple):
    """A trace that gets examples: its line's byte, its query, and what its examples share with it.

    `serves` says whether it may be an example itself.
    """

    offset: int
    query_id: str
    kind: Any
    serves: bool


def draw_shots(candidates: Sequence[Candidate], shots: int, seed: int) -> NDArray[np.int64]:
    """The examples of every trace, each of another query of its kind and none of its own.

    Returns:
      int64 [traces, shots], the bytes at which their lines begin; `NO_SHOT` where there are too few. They
      depend on the seed, the trace's place and the candidates.
    """
    pools: dict[Any, dict[str, int]] = {}
    for one in candidates:
        if one.serves:
            pools.setdefault(one.kind, {}).setdefault(one.query_id, one.offset)
    drawn = np.full((len(candidates), shots), NO_SHOT, np.int64)
    listed = {kind: list(pool.items()) for kind, pool in pools.items()}
    for row, one in zip(drawn, candidates):
        pool = listed.get(one.kind, [])
        some = random.Random(f"{seed} {one.offset}").sample(pool, min(shots + 1, len(pool)))
        others = [offset for query_id, offset in some if query_id != one.query_id][:shots]
        row[: len(others)] = others
    return drawn


def with_examples(trace: Trace, examples: Sequence[Trace]) -> Trace:
    """The trace with the examples' questions and answers before its last question."""
    place = max((at for at, message in enumerate(trace.messages) if message.role == "user"), default=None)
    if not examples or place is None:
        return trace
    solved = [f"Example:\n{_question(one)}\nAnswer: {one.answer}" for one in examples]
    text = "\n\n".join([*solved, f"Your turn:\n{_question(trace)}"])
    messages = (*trace.messages[:place], Message("user", text), *trace.messages[place + 1 :])
    return dataclasses.replace(trace, messages=messages)


def _question(trace: Trace) -> str:
    return next((one.content for one in reversed(trace.messages) if one.role == "user"), "")


@dataclasses.dataclass(frozen=True)
class FewShotTraces(PlacedTraces):
    """Placed traces that are read with their examples.

    Attributes:
      shots: int64 [traces, shots] as of `draw_shots`, into the trace's own file.
    """

    shots: NDArray[np.int64]

    @classmethod
    def over(cls, traces: PlacedTraces, shots: Iterable[NDArray[np.int64]]) -> Self:
        """With each file's examples, file after file; they may have unlike numbers of them."""
        every = list(shots)
        widest = max((each.shape[1] for each in every), default=0)
        wide = [
            np.pad(each, ((0, 0), (0, widest - each.shape[1])), constant_values=NO_SHOT) for each in every
        ]
        joined = np.concatenate([np.empty((0, widest), np.int64), *wide])
        return cls(traces.paths, traces.file, traces.offsets, joined)

    def __getitem__(self, part: slice, /) -> FewShotTraces:
        file, offsets, shots = self.file[part], self.offsets[part], self.shots[part]
        return dataclasses.replace(self, file=file, offsets=offsets, shots=shots)

    def __iter__(self) -> Iterator[Trace]:
        places = np.column_stack([self.shots, self.offsets])
        for number, path in enumerate(self.paths):
            own = places[self.file == number]
            if len(own):
                read = files.read_at(path, own[own != NO_SHOT].tolist(), Trace)
                for many in (own != NO_SHOT).sum(1).tolist():
                    *examples, trace = itertools.islice(read, many)
                    yield with_examples(trace, examples)
