"""Traces in files, counted and sliced without being read: what is handed to whoever writes a shard."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from orca_jax import files
from orca_jax.records import Trace


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
