"""Traces as a TFDS data set: a folder that `tfds.builder_from_directory` reads, without TensorFlow."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orca_jax.data import tokens
from orca_jax.records import Trace, to_json

SHARD_SIZE = 50_000  # traces
TEXTS = ("id", "query_id", "collection", "task", "teacher", "outcome", "created")


def features() -> Any:
    """A trace's fields; an unknown message id is -1, no target is empty, and the rest is JSON in `extra`."""
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            **dict.fromkeys((*TEXTS, "target", "extra"), text),
            "sample": tfds.features.Scalar(np.int64),
            "system_message_id": tfds.features.Scalar(np.int64),
            "messages": tfds.features.Sequence(
                {"role": text, "content": text, "weight": tfds.features.Scalar(np.float32)}
            ),
        }
    )


def as_example(trace: Trace) -> dict[str, Any]:
    """A trace in the form of `features`."""
    row = to_json(trace)
    rest = {name: row[name] for name in ("sampling", "usage")}
    return {
        **{name: row[name] for name in (*TEXTS, "sample")},
        "target": trace.target or "",
        "system_message_id": -1 if trace.system_message_id is None else trace.system_message_id,
        "messages": [{"weight": 1.0, **message} for message in row["messages"]],
        "extra": json.dumps({**rest, **row.get("extra", {})}, default=str),
    }


def write_tfds(directory: str | os.PathLike[str], traces: Iterable[Trace]) -> int:
    """Writes the split `train` in shards of ArrayRecord; returns the number of traces.

    Raises:
      FileExistsError: the folder holds something already.
    """
    import tensorflow_datasets as tfds

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name another folder")
    lengths = [_write_shard(directory, index, part) for index, part in enumerate(_parts(traces))]
    paths = [_final(directory, index, len(lengths)) for index in range(len(lengths))]
    split = tfds.core.SplitInfo(
        name=tokens.SPLIT, shard_lengths=lengths, num_bytes=sum(path.stat().st_size for path in paths)
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features(), split_infos=[split], check_data=False
    )
    return sum(lengths)


def _parts(traces: Iterable[Trace]) -> Iterable[Iterable[Trace]]:
    """Runs of SHARD_SIZE traces; one that is empty where there are none."""
    source = iter(traces)
    first = next(source, None)
    if first is None:
        yield ()
    while first is not None:
        yield itertools.chain([first], itertools.islice(source, SHARD_SIZE - 1))
        first = next(source, None)


def _write_shard(directory: Path, index: int, traces: Iterable[Trace]) -> int:
    """Writes a shard under a name without the number of shards, which is not known yet."""
    serialize, count = tokens.serializer(features()), 0
    with tokens.shard_writer(_unnamed(directory, index)) as writer:
        for count, trace in enumerate(traces, 1):  # noqa: B007
            writer.write(serialize(as_example(trace)))
    return count


def _unnamed(directory: Path, index: int) -> Path:
    return directory / f"{index:05d}.array_record"


def _final(directory: Path, index: int, shards: int) -> Path:
    return _unnamed(directory, index).rename(tokens.shard_path(directory, index, shards))
