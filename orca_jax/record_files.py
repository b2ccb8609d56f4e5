"""The file formats of records: JSON lines, and the schemas in which traces are exchanged.

Traces are read from JSON lines, a JSON array or Parquet, by the file's suffix, in the fields of `Trace`
(native) or in the columns of `orca_jax.conversations`. They are written in four schemas, as JSON lines or
Parquet:

  native      the fields of `Trace`; keeps everything
  openorca    id, system_prompt, question, response; an id's prefix before the dot is its collection
  messages    id, messages [{role, content}]
  sharegpt    id, conversations [{from: system, human or gpt, value}]

The last three hold the conversation and `extra` only. A turn has a `weight` too where that is not 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from orca_jax import conversations, row_files
from orca_jax.artifacts import atomic_write
from orca_jax.records import Outcome, RecordError, Sampling, Trace, from_json, half_pair, to_json

ROW_GROUP = 1000  # rows; what is held in memory while Parquet is written
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SCHEMAS = {
    "native": ("id", "query_id", "sample", "messages"),
    "openorca": ("id", "system_prompt", "question", "response"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}

Record = TypeVar("Record")
Recognise = Callable[[str], int | None]
log = logging.getLogger(__name__)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Any]) -> int:
    """Writes records, one JSON object a line; the file appears whole or not at all.

    Returns:
      How many were written.
    """
    return _write_json_rows(path, map(to_json, records))


def read_jsonl(path: str | os.PathLike[str], record_type: type[Record]) -> Iterator[Record]:
    """Reads the records that `write_jsonl` or `JsonlAppender` wrote, one at a time.

    Raises:
      RecordError: a line is no such record; the message names file, line and field.
    """
    return (record for _, record in read_placed(path, record_type))


def read_placed(path: str | os.PathLike[str], record_type: type[Record]) -> Iterator[tuple[int, Record]]:
    """As `read_jsonl`, each record with the byte at which its line begins, for `read_at`."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                with _located(f"{path}:{number}"):
                    record = from_json(record_type, row_files.parse(line))
                yield offset, record
            offset += len(line)


def read_at(
    path: str | os.PathLike[str], offsets: Iterable[int], record_type: type[Record]
) -> Iterator[Record]:
    """The records whose lines begin at these bytes; raises as `read_jsonl`."""
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            with _located(f"{path}: byte {offset}"):
                record = from_json(record_type, row_files.parse(file.readline()))
            yield record


class JsonlAppender:
    """Appends records to a file, each one flushed at once: a kill tears the last line at most.

    A torn last line is dropped when the file is opened again, with a warning in the log. A context
    manager; for one writer at a time.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.path)
        self._file = open(self.path, "ab")  # noqa: SIM115

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, record: Any) -> None:
        self._file.write(_line(to_json(record)))
        self._file.flush()

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_traces(
    path: str | os.PathLike[str],
    *,
    teacher: str = "",
    recognise: Recognise = lambda text: None,
    tally: row_files.Tally | None = None,
    join_turns: bool = False,
) -> Iterator[Trace]:
    """Reads traces of any schema, row by row, from JSON lines, a JSON array or Parquet.

    A null or empty system text means no system message, a null or empty last answer `Outcome.EMPTY`.

    Args:
      path: a file that `row_files.rows` reads.
      teacher: who answered; native rows name their own.
      recognise: gives a system text's id; called with the empty string where there is none.
      tally: counts the malformed rows, which are left out, and says how many there may be.
      join_turns: consecutive turns of one role become one.

    Raises:
      RecordError: too many rows are malformed, or the file is damaged; names file, row, column.
    """
    path = Path(path)

    def read(row: row_files.Row) -> Trace:
        return _trace(row, path.stem, teacher, recognise, join_turns)

    return row_files.counted(path, row_files.rows(path), read, tally or row_files.Tally())


def write_traces(path: str | os.PathLike[str], traces: Iterable[Trace], schema: str = "native") -> int:
    """Writes traces as JSON lines or Parquet, whole or not at all.

    In Parquet `extra` is a column of JSON.

    Returns:
      How many were written.

    Raises:
      RecordError: the schema is unknown, or cannot hold a trace; the message names the trace.
    """
    if schema not in SCHEMAS:
        raise RecordError(f"unknown schema {schema!r}; known: {', '.join(SCHEMAS)}")
    path = Path(path)
    if path.suffix == ".gz":
        raise RecordError(f"{path}: packed files are read and not written; name it {path.stem}")
    made = (_WRITERS[schema](trace) for trace in traces)
    return (
        _write_parquet_rows(path, made, schema)
        if row_files.is_parquet(path)
        else _write_json_rows(path, made)
    )


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error


# JSON lines


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a character pair, which UTF-8 cannot hold but an escape can
        return json.dumps(row, default=str).encode() + b"\n"


def _write_json_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with atomic_write(path, "wb") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(_line(row))
    return count


def _mend(path: Path) -> None:
    """Drops a torn last line; one that lacks no more than its end gets that."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        start = _last_line(file)
        file.seek(start)
        rest = file.read()
        if not rest:
            return
        try:
            json.loads(rest)
        except ValueError:
            file.truncate(start)
            log.warning("%s: dropped a torn last line of %d bytes", path, len(rest))
        else:
            file.write(b"\n")


def _last_line(file: IO[bytes], block: int = 1 << 16) -> int:
    """Where the text after the last line end begins."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


# Parquet. pyarrow is imported where it is needed: JSON lines do without it.


def _packed(row: dict[str, Any]) -> dict[str, Any]:
    """`extra` as text, and what JSON leaves out of a sampling: a column's null would not be read back."""
    sampling = {"sampling": {"top_logprobs": 0, **row["sampling"]}} if "sampling" in row else {}
    return {**row, **sampling, "extra": json.dumps(row.get("extra", {}), default=str)}


def _write_parquet_rows(path: Path, rows: Iterable[dict[str, Any]], schema: str) -> int:
    import pyarrow
    import pyarrow.parquet

    columns = _columns(schema)
    count = 0
    packed = map(_packed, rows)
    with atomic_write(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, columns) as writer:
        while group := list(itertools.islice(packed, ROW_GROUP)):
            try:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=columns))
            except UnicodeEncodeError as error:
                raise RecordError(f"{path}: {_unencodable(group)}; write JSON lines") from error
            count += len(group)
    return count


def _unencodable(rows: Iterable[Mapping[str, Any]]) -> str:
    for row in rows:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"trace {row['id']!r} holds half a character pair, which Parquet cannot"
    return "a text holds half a character pair, which Parquet cannot"


def _columns(schema: str) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    message = pa.struct({"role": text, "content": text, "weight": pa.float64()})
    turn = pa.struct({"from": text, "value": text, "weight": pa.float64()})
    drawn = {"temperature": pa.float64(), "top_p": pa.float64(), "max_tokens": number}
    typed = {
        "messages": pa.list_(message),
        "conversations": pa.list_(turn),
        "sample": number,
        "system_message_id": number,
        "sampling": pa.struct({**drawn, "stop": pa.list_(text), "seed": number, "top_logprobs": number}),
        "usage": pa.struct({"prompt_tokens": number, "completion_tokens": number}),
    }
    names = Trace.__dataclass_fields__ if schema == "native" else ["id", *SCHEMAS[schema], "extra"]
    return pa.schema([(name, typed.get(name, text)) for name in dict.fromkeys(names)])


# Schemas


def _trace(row: row_files.Row, stem: str, teacher: str, recognise: Recognise, join_turns: bool) -> Trace:
    if not isinstance(row.values, dict):
        raise RecordError(f"a row must be a JSON object, not {row.values!r:.60}; {conversations.ACCEPTED}")
    if "query_id" in row.values and "outcome" in row.values:
        trace = from_json(Trace, row.values)
        messages = conversations.checked(trace.messages, join_turns=join_turns)
        trace = dataclasses.replace(trace, messages=messages)
    else:
        trace = _foreign_trace(row, stem, teacher, recognise, join_turns)
    if half := half_pair(f"{trace.id}{trace.query_id}{trace.collection}{trace.task}{trace.teacher}"):
        raise RecordError(f"an id or name has half a surrogate pair ({half}), which is no character")
    return trace


def _foreign_trace(
    row: row_files.Row, stem: str, teacher: str, recognise: Recognise, join_turns: bool
) -> Trace:
    messages, columns, extra = conversations.read(row.values, join_turns=join_turns)
    id = str(row.values["id"]) if row.values.get("id") is not None else f"{stem}-{row.number}"
    answered = messages[-1].role == "assistant" and messages[-1].content.strip()
    return Trace(
        id=id,
        query_id=id,
        sample=0,
        messages=messages,
        collection=id.split(".")[0] if "question" in columns and "." in id else "",
        task="",
        system_message_id=recognise(messages[0].content if messages[0].role == "system" else ""),
        teacher=teacher,
        sampling=Sampling(),
        outcome=Outcome.OK if answered else Outcome.EMPTY,
        extra=extra,
    )


def _as_openorca(trace: Trace) -> dict[str, Any]:
    messages = list(trace.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise RecordError(
            f"trace {trace.id!r}: openorca holds one question and one answer, "
            f"not {', '.join(roles) or 'nothing'}; write the schema messages"
        )
    if messages[-1].weight != 1:
        raise RecordError(f"trace {trace.id!r}: openorca holds no weights; write the schema messages")
    question, response = messages[0].content, messages[1].content if len(messages) == 2 else ""
    texts = {"system_prompt": system, "question": question, "response": response}
    return {"id": trace.id, **texts, **_extra(trace)}


def _as_messages(trace: Trace) -> dict[str, Any]:
    return {"id": trace.id, "messages": [to_json(message) for message in trace.messages], **_extra(trace)}


def _as_sharegpt(trace: Trace) -> dict[str, Any]:
    turns = [
        {"from": SHAREGPT_NAMES[turn.pop("role")], "value": turn.pop("content"), **turn}
        for turn in map(to_json, trace.messages)
    ]
    return {"id": trace.id, "conversations": turns, **_extra(trace)}


def _extra(trace: Trace) -> dict[str, Any]:
    return {"extra": dict(trace.extra)} if trace.extra else {}


_WRITERS: dict[str, Callable[[Trace], dict[str, Any]]] = {
    "native": to_json,
    "openorca": _as_openorca,
    "messages": _as_messages,
    "sharegpt": _as_sharegpt,
}
