"""The token store: traces as token ids and loss weights, in order, in the TFDS on-disk format.

A store is a folder of ArrayRecord shards that `tfds.builder_from_directory` reads; beside them stand
`lengths.npy` (what packing needs) and `columns.npz` (what the rows are counted and grouped by). Each
shard has a `.npz` of its own, renamed into place after it, so a killed run goes on with the shard it
was at.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax import artifacts, files, plugins
from orca_jax.data import alternatives, layouts
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.data.traces import Traces
from orca_jax.records import Message, Outcome, Trace, half_pair

Job = tuple[int, Traces]  # a shard's number and its traces
log = logging.getLogger(__name__)
NAME = "traces"
SPLIT = "train"
SHARD_SIZE = 4096
SHARDS_A_PROCESS = 4  # at least: a process starts as long as it writes a shard
BATCH = 512  # traces that are encoded at once
MISFITS = "does not fit the layout"  # why a trace is dropped
COLUMNS = {
    "length": np.int64,
    "first_supervised": np.int64,
    "supervised": np.int64,
    "answers_without_loss": np.int64,
    "collection": np.str_,
    "task": np.str_,
    "teacher": np.str_,
    "system_message_id": np.int64,
}


def features(teacher_ids: Any = None) -> Any:
    """The TFDS features of one example; tokens, weights and, of type `teacher_ids`, alternatives as bytes."""
    import tensorflow_datasets as tfds

    def vector(dtype: Any) -> Any:
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    arrays = {"tokens": np.int32, "weights": np.float32, "roles": np.uint8}
    if teacher_ids is not None:
        arrays |= {"teacher_ids": teacher_ids, "teacher_log_probs": np.float16}
    vectors = {name: vector(kind) for name, kind in arrays.items()}
    return tfds.features.FeaturesDict({"id": tfds.features.Text(), **vectors})


def serializer(teacher_ids: Any = None) -> Callable[[dict[str, Any]], bytes]:
    """TFDS's `serialize_example`, with equal bytes for equal examples in every process; see `features`."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    spec = features(teacher_ids)
    serial = ExampleSerializer(spec.get_serialized_info())
    return lambda example: serial.get_tf_example(spec.encode_example(example)).SerializeToString(
        deterministic=True
    )


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns traces into tokens: the same for every worker.

    Raises:
      LayoutError: nothing can be encoded in this way.
    """

    tokenizer: Tokenizer
    layout: str
    supervise: str = "all"

    def __post_init__(self) -> None:
        layouts.check(self.layout, self.tokenizer)

    def __call__(self, traces: Sequence[Trace]) -> list[layouts.Encoded | layouts.LayoutError]:
        """The tokens of each, or why it does not fit the layout."""
        how = (self.layout, self.tokenizer, self.supervise)
        try:
            return [*layouts.encode_all([learnt(trace) for trace in traces], *how)]
        except layouts.LayoutError as error:
            return [error] if len(traces) == 1 else [self([trace])[0] for trace in traces]


def learnt(trace: Trace) -> tuple[Message, ...]:
    """The messages, without loss on empty answers: silence is not learnt."""
    return tuple(
        dataclasses.replace(message, weight=0.0)
        if message.role == "assistant" and not message.content.strip()
        else message
        for message in trace.messages
    )


def shard_path(directory: Path, index: int, shards: int) -> Path:
    return directory / f"{NAME}-{SPLIT}.array_record-{index:05d}-of-{shards:05d}"


def _sidecar(directory: Path, index: int) -> Path:
    return directory / f".shard-{index:05d}.npz"


def reason(trace: Trace) -> str:
    """Why a trace is not tokenised; empty for one that has an answer, and every text of which is one."""
    if trace.outcome is not Outcome.OK:
        return str(trace.outcome)
    if not trace.answer.strip():
        return "empty"
    texts = (trace.id, *(message.content for message in trace.messages))
    return "half a surrogate pair" if any(map(half_pair, texts)) else ""


def write_shard(
    directory: Path,
    shards: int,
    encode: Encoder,
    job: Job,
    *,
    malformed: float = files.MALFORMED,
    source: alternatives.Source | None = None,
) -> int:
    """Writes one shard and its sidecar, each whole or not at all; returns the number of examples.

    Traces that do not train, see `reason`, or do not fit the layout are counted in the sidecar.

    Raises:
      RecordError: too many conversations do not fit the layout; names the first.
      OSError: the shard cannot be written, the disk being full for example; names the file.
    """
    index, traces = job
    columns, dropped = collections.defaultdict[str, list[Any]](list), list[str]()
    misfits, pairs, seen = files.Tally(malformed), list[tuple[str, str]](), 0
    id_type = source.id_type if source else None
    serialize, every, unmatched, known = serializer(id_type), iter(traces), list[str](), 0
    with shard_writer(shard_path(directory, index, shards)) as writer:
        while batch := list(itertools.islice(every, BATCH)):
            reasons = [reason(trace) for trace in batch]
            dropped += filter(None, reasons)
            kept = [trace for trace, why in zip(batch, reasons) if not why]
            encoded_all = encode(kept)
            fitting = [(t, e) for t, e in zip(kept, encoded_all) if not isinstance(e, layouts.LayoutError)]
            likely = source(*zip(*fitting)) if source and fitting else iter(())
            for trace, encoded in zip(kept, encoded_all):
                seen += 1
                if isinstance(encoded, layouts.LayoutError):
                    pairs.append((f"trace {trace.id!r}", str(encoded)))
                    misfits.refuse(*pairs[-1])
                    files.check_rate(directory, misfits, max(seen, files.MIN_ROWS), seen)
                    continue
                roles = encoded.roles.astype(np.uint8)
                arrays = {"tokens": encoded.tokens, "weights": encoded.weights, "roles": roles}
                if source:
                    found = next(likely)
                    if isinstance(found, str):
                        unmatched.append(found)
                        found = alternatives.Alternatives.unknown(0, source.top)
                    known += found.known
                    arrays["teacher_ids"] = found.ids.astype(id_type).ravel()
                    arrays["teacher_log_probs"] = found.log_probs.astype(np.float16).ravel()
                writer.write(serialize({"id": trace.id, **arrays}))
                supervised = np.flatnonzero(encoded.weights[1:])  # positions of a row, see `rows`
                answers = (message for message in learnt(trace) if message.role == "assistant")
                system = trace.system_message_id
                columns["length"].append(len(encoded.tokens) - 1)
                columns["first_supervised"].append(supervised[0] if len(supervised) else -1)
                columns["supervised"].append(len(supervised))
                columns["answers_without_loss"].append(sum(not answer.weight for answer in answers))
                columns["system_message_id"].append(-1 if system is None else system)
                for name in ("collection", "task", "teacher"):
                    columns[name].append(getattr(trace, name))
    about = {name: np.array(columns[name]) for name in COLUMNS if columns}
    about |= {"dropped": np.array(sorted(dropped)), "misfits": np.array(pairs).reshape(-1, 2)}
    if source:
        about |= {"unmatched": np.array(sorted(unmatched), np.str_), "known": np.array(known)}
    with artifacts.atomic_write(_sidecar(directory, index), "wb") as file:
        np.savez(file, **about)  # type: ignore[arg-type]
    return len(columns["length"])


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Any]:
    """An ArrayRecord file that appears under `path` whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f".{path.name}.tmp")
    # Snappy: of the default, Brotli, a shard is a fifth smaller and takes three times as long to write.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,snappy")
    try:
        yield writer
        writer.close()
        os.replace(temporary, path)
    except RuntimeError as error:  # how the library says that write() failed
        raise OSError(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_store(
    directory: str | os.PathLike[str],
    traces: Traces,
    encode: Encoder,
    *,
    workers: int = 1,
    malformed: float = files.MALFORMED,
    source: alternatives.Source | None = None,
    on_shard: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the shards that are missing, then the store's metadata; returns its counts.

    The bytes written depend on the traces and the encoder alone. Raises as `write_shard`.

    Args:
      workers: processes that write shards; 0: one a core, or fewer where their start would take longer.
      malformed: the share of traces that may not fit the layout; they are left out.
      source: of the teacher's alternatives; None: the store has none.
      on_shard: called with (shards done, shards) as they are written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards, jobs = shard_count(len(traces)), missing_shards(directory, traces)
    work = functools.partial(write_shard, directory, shards, encode, malformed=malformed, source=source)
    for finished, _ in enumerate(in_processes(workers, work, jobs), 1 + shards - len(jobs)):
        if on_shard:
            on_shard(finished, shards)
    return _finish(directory, shards, malformed, source)


def missing_shards(directory: Path, traces: Traces) -> list[Job]:
    """The shards of a store that are not written, with their traces."""
    shards = shard_count(len(traces))
    return [
        (index, traces[index * SHARD_SIZE : (index + 1) * SHARD_SIZE])
        for index in range(shards)
        if not (_sidecar(directory, index).exists() and shard_path(directory, index, shards).exists())
    ]


def shard_count(traces: int) -> int:
    return max(1, math.ceil(traces / SHARD_SIZE))


def _begin_worker(places: Sequence[str]) -> None:
    """Imports plugins, and ends a worker with its program; else that of a killed one would wait for ever."""
    plugins.load(places)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def in_processes(workers: int, work: Callable[[Job], int], jobs: Sequence[Job]) -> Iterator[int]:
    """Does jobs in up to `workers` processes, see `write_store`; in this one where one is enough."""
    workers = min(workers or min(len(cores()), len(jobs) // SHARDS_A_PROCESS), len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(plugins.loaded(),)
    )
    with pool:
        yield from pool.map(work, jobs)


def _finish(
    directory: Path, shards: int, malformed: float, source: alternatives.Source | None
) -> dict[str, Any]:
    """Joins the sidecars and writes TFDS's metadata; raises RecordError where too many traces do not fit."""
    import tensorflow_datasets as tfds

    parts = [dict(np.load(_sidecar(directory, index))) for index in range(shards)]
    dropped = collections.Counter[str]()
    misfits = files.Tally(malformed)
    for part in parts:
        dropped.update(part["dropped"].tolist())
        for where, why in part.get("misfits", ()):
            misfits.refuse(str(where), why)
    lengths = [len(part.get("length", ())) for part in parts]
    seen = sum(lengths) + misfits.malformed
    files.check_rate(directory, misfits, seen, seen)
    if misfits.malformed:
        dropped[MISFITS] = misfits.malformed
        log.warning("%s: %s: %s", directory, MISFITS, "; ".join(misfits.places))
    columns = {
        name: np.concatenate([part.get(name, np.zeros(0, kind)) for part in parts])
        for name, kind in COLUMNS.items()
    }
    with artifacts.atomic_write(directory / "lengths.npy", "wb") as file:
        np.save(file, columns.pop("length"))
    with artifacts.atomic_write(directory / "columns.npz", "wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
    size = sum(shard_path(directory, index, shards).stat().st_size for index in range(shards))
    split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=size)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(source.id_type if source else None),
        split_infos=[split],
        check_data=False,
    )
    counts = {
        "examples": sum(lengths),
        "shards": shards,
        "dropped": dict(sorted(dropped.items())),
        "answers_without_loss": int(columns["answers_without_loss"].sum()),
    }
    if source:
        unmatched = collections.Counter(why for part in parts for why in part["unmatched"].tolist())
        counts["alternatives"] = {
            "top": source.top,
            "examples": sum(lengths) - unmatched.total(),
            "tokens": sum(int(part["known"]) for part in parts),
            "bytes_a_token": source.bytes_a_token,
            "left_out": dict(sorted(unmatched.items())),
        }
    return counts


class TokenStore:
    """Random access to a finished store, and the columns beside it.

    Attributes:
      lengths: int64 [n], positions an example fills in a row (its tokens less one).
      columns: arrays [n] by the other names in COLUMNS.
      top: the teacher's likeliest tokens that it holds for each supervised one; 0: it holds none.
    """

    top = 0

    def __init__(self, directory: str | os.PathLike[str]):
        import tensorflow_datasets as tfds

        self.directory = Path(directory)
        self.manifest = artifacts.read_manifest(directory)
        self.top = self.manifest.get("counts", {}).get("alternatives", {}).get("top", 0)
        self.lengths = np.load(self.directory / "lengths.npy")
        with np.load(self.directory / "columns.npz") as columns:
            self.columns = {name: columns[name] for name in columns.files}
        # TFDS opens no source without examples.
        builder = tfds.builder_from_directory(os.fspath(directory))
        self._source = builder.as_data_source(SPLIT) if len(self.lengths) else ()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`id` (str), `tokens` int32 [n], `weights` float32 [n], `roles` uint8 [n].

        With alternatives, of m supervised tokens or of none: `teacher_ids` [m, top], and float16
        `teacher_log_probs` [m, top + 1], see `alternatives.Alternatives`.
        """
        example = self._source[int(index)]
        example = {**example, "id": example["id"].decode()}
        if self.top:
            lines = {"teacher_ids": self.top, "teacher_log_probs": self.top + 1}
            example |= {name: example[name].reshape(-1, width) for name, width in lines.items()}
        return example

    def effective_lengths(self, row_length: int, overlong: str) -> np.ndarray:
        """Lengths int64 [n] as they are packed: 0 for what is left out.

        Args:
          overlong: `truncate` cuts the answer's end off what exceeds a row, `drop` leaves it out. An
            example that has nothing supervised left is left out too.
        """
        longest = row_length if overlong == "truncate" else 0
        cut = np.where(self.lengths > row_length, longest, self.lengths)
        first = self.columns["first_supervised"]
        return np.where((first >= 0) & (first < cut), cut, 0)

    def fates(self, row_length: int, overlong: str) -> dict[str, int]:
        """How many examples there are, how many of them train, are cut at a row's end, and never train.

        Args:
          overlong: as in `effective_lengths`. With `drop` what is longer than a row is `too_long`, with
            `truncate` it is `cut`, or `answer_cut_away` where nothing supervised is left.
        """
        trains = self.effective_lengths(row_length, overlong) > 0
        answered, fits = self.columns["first_supervised"] >= 0, self.lengths <= row_length
        long = "too_long" if overlong == "drop" else "answer_cut_away"
        counts = {"trained": trains, "cut": trains & ~fits, long: answered & ~trains}
        counts["nothing_supervised"] = ~answered
        return {"examples": len(self), **{name: int(found.sum()) for name, found in counts.items()}}


# What to do about examples that do not train, or not whole, by the names of `TokenStore.fates`.
ADVICE = {
    "cut": "cut at a row's end (raise data.row_length, or data.overlong='drop' leaves them out)",
    "too_long": "longer than a row, left out (raise data.row_length, or data.overlong='truncate' cuts them)",
    "answer_cut_away": "left out, as nothing supervised stands in a row's length (raise data.row_length)",
    "nothing_supervised": "without a supervised token (the weights of their turns, or data.supervise)",
}


def warning(fates: Mapping[str, int], left_out: Mapping[str, int] | None = None) -> str:
    """What does not train, or not whole, of how many, and what to change; empty where all does.

    Args:
      fates: as of `TokenStore.fates`.
      left_out: reason to traces that are no examples.
    """
    total = fates["examples"] + sum((left_out or {}).values())
    found = [(fates.get(name, 0), said) for name, said in ADVICE.items()]
    found += [(count, f"left out: {reason}") for reason, count in (left_out or {}).items()]
    parts = [f"{count} ({100 * count / total:.1f} %) {said}" for count, said in found if count]
    return f"{fates['trained']} of {total} train; {'; '.join(parts)}" if parts else ""
