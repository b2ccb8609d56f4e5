"""The tensors of a Hugging Face model folder: only `.safetensors`, read by slices.

Files are chosen as transformers chooses them: `model.safetensors` goes before an index, and an index names
files only. Which file holds a tensor is read from the files, whose headers cannot be out of date.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

log = logging.getLogger(__name__)
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
DTYPES = ("BF16", "F16", "F32", "F64")  # others are codes of a quantisation, and no weights
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK_ROWS = 4096  # rows of an embedding read at a time


class UnsupportedModelError(ValueError):
    """A model folder asks for what no student here does, or is damaged; names the field, file or tensor."""


class Folder:
    """The tensors of a model folder. `files` says which file holds each.

    Raises:
      UnsupportedModelError: it has no safetensors, one cannot be read, or two hold the same tensor.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        self._index: Mapping[str, str] = {}
        self.files = self._held(self._shards())

    def _shards(self) -> Iterable[Path]:
        index, single = self.directory / INDEX, self.directory / SINGLE
        if (self.directory / ADAPTER).is_file():
            raise UnsupportedModelError(
                f"{self.directory} has an {ADAPTER}: adapters are not read here; merge them into their "
                "model first (PEFT's merge_and_unload), or remove its files"
            )
        if single.is_file():
            if index.is_file():
                log.warning("%s is not read, since %s is there, as transformers does it", index, SINGLE)
            return [single]
        if index.is_file():
            self._index = _weight_map(index)
            return [self.directory / name for name in sorted(set(self._index.values()))]
        pickled = sorted(path.name for path in self.directory.glob("*.bin"))
        advice = f"; {pickled[0]} is a pickle, never read here: see docs/students.md" if pickled else ""
        raise UnsupportedModelError(f"{self.directory} has neither {SINGLE} nor {INDEX}{advice}")

    def _held(self, shards: Iterable[Path]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for shard in shards:
            with self._open(shard) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping, and cannot be iterated)
                    if name in files:
                        raise UnsupportedModelError(
                            f"{files[name]} and {shard.name} both hold {name!r}; fetch the folder again"
                        )
                    files[name] = shard
        return files

    def _open(self, path: Path) -> Any:
        try:
            return safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError) as error:
            raise UnsupportedModelError(f"{path} cannot be read ({error}); fetch it again") from error

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
          UnsupportedModelError: there is none of that name, or its numbers are not floats.
        """
        if tensor not in self.files:
            where = f", though {INDEX} names {self._index[tensor]} for it" if tensor in self._index else ""
            raise UnsupportedModelError(f"{self.directory} has no tensor {tensor!r}{where}")
        with self._open(self.files[tensor]) as file:
            found = file.get_slice(tensor)
            if found.get_dtype() not in DTYPES:
                raise UnsupportedModelError(
                    f"{self.files[tensor]}: {tensor!r} is of type {found.get_dtype()}, not one of "
                    f"{', '.join(DTYPES)}; quantised weights are not read, fetch those that were not"
                )
            return tuple(found.get_shape())

    def read(self, tensor: str, *index: slice) -> np.ndarray:
        """A slice of a tensor, in the file's type. The file is closed again, and its pages given back."""
        with self._open(self.files[tensor]) as file:
            return np.asarray(file.get_slice(tensor)[index if len(index) > 1 else index[0]])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{index} has no weight_map ({error!r}); fetch it again") from error


def has_own_head(directory: str | os.PathLike[str]) -> bool:
    """Whether the folder's output head has numbers of its own, not those of the embedding."""
    if not any((Path(directory) / name).is_file() for name in (SINGLE, INDEX)):
        return False
    folder = Folder(directory)
    if not {EMBEDDING, HEAD} <= set(folder.files):
        return False
    rows = folder.shape(EMBEDDING)[0]
    blocks = (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))
    return folder.shape(HEAD) != folder.shape(EMBEDDING) or not all(
        np.array_equal(folder.read(EMBEDDING, block), folder.read(HEAD, block)) for block in blocks
    )
