"""Traces in other forms: Parquet or JSON lines in several schemas, or a TFDS data set.

A TFDS data set is a folder that `tfds.builder_from_directory` reads; it is written without TensorFlow.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orca_jax import conversations, files
from orca_jax.data import prepared, tokens
from orca_jax.records import Outcome, RecordError, Trace, to_json
from orca_jax.teachers.collection import TRACES

SHARD_SIZE = 50_000  # traces
TEXTS = ("id", "query_id", "collection", "task", "teacher", "outcome", "created")


def export(source: str | Path, schema: str, out: str | Path, *, kept: bool = False) -> int:
    """Writes the traces of a folder WORKDIR/traces/NAME, or of a file, to `out`; returns how many.

    The data card goes along, to NAME-card beside it.

    Args:
      schema: `native`, `openorca`, `messages` or `sharegpt`; a TFDS data set has its own. Those that do not
        say how a request ended get the `ok` traces only.
      out: a file, whose suffix is its form, or a folder for a TFDS data set.
      kept: only what the teacher's filters keep.

    Raises:
      RecordError: the schema is unknown or cannot hold a trace; names it.
      FileExistsError: the folder is not empty.
    """
    source, out = Path(source), Path(out)
    workdir, name = source.parent.parent, source.name
    if kept:
        if not (workdir / "quality" / name).is_dir():
            raise RecordError(f"{source}: filters have not been applied; run experiments.prepare first")
        places = [entry.offset for entry in prepared.flagged(workdir, name) if entry.left_out is None]
        traces = files.read_at(source / TRACES, places, Trace)
    elif source.is_dir():
        traces = files.read_jsonl(source / TRACES, Trace)
    else:
        traces = conversations.read_traces(source)
    if out.suffix:
        chosen = (trace for trace in traces if schema == "native" or trace.outcome is Outcome.OK)
        count = conversations.write_traces(out, chosen, schema)
    else:
        count = write_tfds(out, traces)
    card = workdir / "cards" / name
    if card.is_dir():
        shutil.copytree(card, out.with_name(f"{out.stem}-card"), dirs_exist_ok=True)
    return count


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


def write_tfds(directory: str | os.PathLike[str], traces: Iterable[Trace]) -> int:
    """Writes the split `train` in shards of ArrayRecord; returns the number of traces.

    Raises:
      FileExistsError: the folder holds something already.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name another folder")
    serialize, source = tokens.serializer(features()), iter(traces)
    lengths = list[int]()
    while (shard := [*itertools.islice(source, SHARD_SIZE)]) or not lengths:
        # The name of a shard says how many there are, which is not known yet.
        with tokens.shard_writer(directory / f"{len(lengths):05d}") as writer:
            for trace in shard:
                row = to_json(trace)
                rest = {"sampling": row["sampling"], "usage": row["usage"], **row.get("extra", {})}
                example = {
                    **{name: row[name] for name in (*TEXTS, "sample")},
                    "target": trace.target or "",
                    "system_message_id": -1 if trace.system_message_id is None else trace.system_message_id,
                    "messages": [{"weight": 1.0, **message} for message in row["messages"]],
                    "extra": json.dumps(rest, default=str),
                }
                writer.write(serialize(example))
        lengths.append(len(shard))
    for index in range(len(lengths)):
        (directory / f"{index:05d}").rename(tokens.shard_path(directory, index, len(lengths)))
    tokens.write_metadata(directory, features(), lengths)
    return sum(lengths)
