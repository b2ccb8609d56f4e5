"""Traces in files, counted and sliced without being read, to be handed to what writes a shard.

Few-shot prompts are made as they are read: solved examples before the question, as Orca 2 (arXiv 2311.11045)
has them. A trace's examples are the prompts and answers of others of its task and system message, which were
collected without examples, so nothing is collected for them.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from orca_jax import files
from orca_jax.records import Message, Trace

NO_SHOT = -1  # in the place of an example where a trace has fewer


@dataclasses.dataclass(frozen=True)
class PlacedTraces:
    """Traces by the places of their lines; reads them, with their examples, when iterated over.

    Attributes:
      paths: files of JSON lines.
      file: int32 [traces], into `paths`.
      places: int64 [traces, 1 + shots], the byte at which each line begins, and those at which the lines of
        its examples do, in the same file; `NO_SHOT` where there are fewer.
    """

    paths: tuple[Path, ...]
    file: NDArray[np.int32]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Mapping[Any, Sequence[int] | NDArray[np.int64]]) -> Self:
        """From files and the bytes of their lines, or tables as of `draw_shots`, file after file."""
        tables = [np.array(part, np.int64) for part in parts.values()]
        tables = [table if table.ndim == 2 else table[:, None] for table in tables]
        widest = max((table.shape[1] for table in tables), default=1)
        wide = [
            np.pad(table, ((0, 0), (0, widest - table.shape[1])), constant_values=NO_SHOT) for table in tables
        ]
        file = np.repeat(np.arange(len(parts), dtype=np.int32), [len(table) for table in tables])
        return cls(tuple(map(Path, parts)), file, np.concatenate([np.empty((0, widest), np.int64), *wide]))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, part: slice, /) -> PlacedTraces:
        return dataclasses.replace(self, file=self.file[part], places=self.places[part])

    def __iter__(self) -> Iterator[Trace]:
        for number, path in enumerate(self.paths):
            own = self.places[self.file == number]
            if len(own):
                read = files.read_at(path, own[own != NO_SHOT].tolist(), Trace)
                for many in (own != NO_SHOT).sum(1).tolist():
                    trace, *examples = itertools.islice(read, many)
                    yield with_examples(trace, examples)


Traces = Sequence[Trace] | PlacedTraces


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
      int64 [traces, 1 + shots], the bytes at which the lines of the trace and of its examples begin;
      `NO_SHOT` where there are too few. They depend on the seed, the trace's place and the candidates.
    """
    pools: dict[Any, dict[str, int]] = {}
    for one in candidates:
        if one.serves:
            pools.setdefault(one.kind, {}).setdefault(one.query_id, one.offset)
    drawn = np.full((len(candidates), 1 + shots), NO_SHOT, np.int64)
    listed = {kind: list(pool.items()) for kind, pool in pools.items()}
    for row, one in zip(drawn, candidates):
        pool = listed.get(one.kind, [])
        some = random.Random(f"{seed} {one.offset}").sample(pool, min(shots + 1, len(pool)))
        others = [offset for query_id, offset in some if query_id != one.query_id][:shots]
        row[: 1 + len(others)] = [one.offset, *others]
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
