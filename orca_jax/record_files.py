"""The file formats of records: JSON lines, and the schemas in which traces are exchanged.

Traces are read from and written to JSON lines or Parquet, by the file's suffix, in four schemas:

  native      the fields of `Trace`; keeps everything
  openorca    id, system_prompt, question, response; an id's prefix before the dot is its collection
  messages    id, messages [{role, content}]
  sharegpt    id, conversations [{from: system, human or gpt, value}]

The last three hold the conversation and `extra` only. `extra` holds the columns of no schema.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from orca_jax.artifacts import atomic_write
from orca_jax.records import ROLES, Message, Outcome, RecordError, Sampling, Trace, from_json, to_json

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIX = ".parquet"
ROW_GROUP = 1000  # rows; what is held in memory while Parquet is written
BATCH = 256  # rows; the same while it is read
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
SHAREGPT_NAMES = {role: name for name, role in SHAREGPT_ROLES.items()}
SCHEMAS = {
    "native": ("id", "query_id", "sample", "messages"),
    "openorca": ("id", "system_prompt", "question", "response"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}
ACCEPTED = "accepted: " + "; ".join(f"{schema} ({', '.join(columns)})" for schema, columns in SCHEMAS.items())

Record = TypeVar("Record")
Recognise = Callable[[str], int | None]
log = logging.getLogger(__name__)


class _Row(NamedTuple):
    """One row of a file; `where` names file and line or row, `number` counts from 0.

    `offset` is the byte at which a line begins.
    """

    where: str
    number: int
    values: Any
    offset: int = 0


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
    for row in _json_rows(path):
        with _located(row.where):
            record = from_json(record_type, row.values)
        yield row.offset, record


def read_at(
    path: str | os.PathLike[str], offsets: Iterable[int], record_type: type[Record]
) -> Iterator[Record]:
    """The records whose lines begin at these bytes; raises as `read_jsonl`."""
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            with _located(f"{path}: byte {offset}"):
                record = from_json(record_type, _parse(file.readline()))
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
    path: str | os.PathLike[str], *, teacher: str = "", recognise: Recognise = lambda text: None
) -> Iterator[Trace]:
    """Reads traces of any schema, row by row, from JSON lines or Parquet.

    A null or empty system text means no system message, a null or empty answer `Outcome.EMPTY`.

    Args:
      path: a file ending in .jsonl, .json, .ndjson (one JSON object a line) or .parquet.
      teacher: who answered; native rows name their own.
      recognise: gives a system text's id; called with the empty string where there is none.

    Raises:
      RecordError: a row cannot be read; the message names file, row, column and accepted schemas.
    """
    path = Path(path)
    rows = _parquet_rows(path) if _is_parquet(path) else _json_rows(path)
    for row in rows:
        with _located(row.where):
            trace = _trace(row, path.stem, teacher, recognise)
        yield trace


def write_traces(path: str | os.PathLike[str], traces: Iterable[Trace], schema: str = "native") -> int:
    """Writes traces as JSON lines or Parquet, whole or not at all.

    In Parquet `extra` is a column of JSON.

    Returns:
      How many were written.

    Raises:
      RecordError: the schema is unknown, or cannot hold a trace; the message names the trace.
    """
    if schema not in SCHEMAS:
        raise RecordError(f"unknown schema {schema!r}; {ACCEPTED}")
    path = Path(path)
    rows = (_WRITERS[schema](trace) for trace in traces)
    return _write_parquet_rows(path, rows, schema) if _is_parquet(path) else _write_json_rows(path, rows)


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (*JSON_SUFFIXES, PARQUET_SUFFIX):
        raise RecordError(f"{path}: unknown suffix; name it {', '.join(JSON_SUFFIXES)} or {PARQUET_SUFFIX}")
    return path.suffix == PARQUET_SUFFIX


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


def _json_rows(path: str | os.PathLike[str]) -> Iterator[_Row]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if line.strip():
                where = f"{path}:{number + 1}"
                with _located(where):
                    values = _parse(line)
                yield _Row(where, number, values, offset)
            offset += len(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 (byte {error.start + 1} of the line); convert the file") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"not a JSON object on one line ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise RecordError(f"JSON beyond the reader's limits ({error})") from error


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


def _parquet_rows(path: Path) -> Iterator[_Row]:
    with open(path, "rb") as file:
        rows = itertools.chain.from_iterable(_batches(path, file))
        for number, values in enumerate(rows):
            yield _Row(f"{path}: row {number}", number, {**values, **_unpacked(values.get("extra"))})


def _batches(path: Path, file: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH):
            yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: damaged or no Parquet file ({error}); fetch or write it again") from error


def _unpacked(extra: Any) -> dict[str, Any]:
    """The column `extra` as a JSON object, where it is one."""
    if isinstance(extra, str):
        with contextlib.suppress(ValueError):
            values = json.loads(extra)
            return {"extra": values} if isinstance(values, dict) else {}
    return {}


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
    message = pa.struct({"role": text, "content": text})
    turn = pa.struct({"from": text, "value": text})
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


def _trace(row: _Row, stem: str, teacher: str, recognise: Recognise) -> Trace:
    if not isinstance(row.values, dict):
        raise RecordError(f"a row must be a JSON object, not {row.values!r:.60}; {ACCEPTED}")
    if "query_id" in row.values and "outcome" in row.values:
        return from_json(Trace, row.values)
    return _foreign_trace(row, stem, teacher, recognise)


def _foreign_trace(row: _Row, stem: str, teacher: str, recognise: Recognise) -> Trace:
    schema, messages = _conversation(row.values)
    id = str(row.values["id"]) if row.values.get("id") is not None else f"{stem}-{row.number}"
    system = next((message.content for message in messages if message.role == "system"), "")
    answered = messages[-1:] and messages[-1].role == "assistant" and messages[-1].content.strip()
    return Trace(
        id=id,
        query_id=id,
        sample=0,
        messages=tuple(messages),
        collection=id.split(".")[0] if schema == "openorca" and "." in id else "",
        task="",
        system_message_id=recognise(system),
        teacher=teacher,
        sampling=Sampling(),
        outcome=Outcome.OK if answered else Outcome.EMPTY,
        extra=_rest(row.values, schema),
    )


def _rest(row: Mapping[str, Any], schema: str) -> dict[str, Any]:
    """The columns that are not the schema's, those inside `extra` among them."""
    rest = {key: value for key, value in row.items() if key not in (*SCHEMAS[schema], "id")}
    return {**rest.pop("extra"), **rest} if isinstance(rest.get("extra"), dict) else rest


def _conversation(row: dict[str, Any]) -> tuple[str, list[Message]]:
    """The row's schema and its conversation."""
    if "question" in row or "response" in row:
        return "openorca", _openorca_messages(row)
    if "messages" in row:
        return "messages", _turns(row, "messages", "role", "content", dict(zip(ROLES, ROLES)))
    if "conversations" in row:
        return "sharegpt", _turns(row, "conversations", "from", "value", SHAREGPT_ROLES)
    raise RecordError(f"column 'messages' is missing, among {', '.join(row) or 'none'}; {ACCEPTED}")


def _openorca_messages(row: dict[str, Any]) -> list[Message]:
    missing = [column for column in SCHEMAS["openorca"] if column not in row]
    if missing:
        raise RecordError(f"column {', '.join(map(repr, missing))} is missing; {ACCEPTED}")
    texts = [_text(row, column) for column in ("system_prompt", "question", "response")]
    if not texts[1]:
        raise RecordError("column 'question' is empty; drop the row")
    return _said(zip(("system", "user", "assistant"), texts))


def _turns(row: dict[str, Any], column: str, role: str, text: str, roles: Mapping[str, str]) -> list[Message]:
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"column {column!r} must be a list of turns, not {turns!r:.60}; {ACCEPTED}")
    said = []
    for number, turn in enumerate(turns):
        with _located(f"{column}[{number}]"):
            said.append(_turn(turn, role, text, roles))
    return _said(said)


def _turn(turn: Any, role: str, text: str, roles: Mapping[str, str]) -> tuple[str, str]:
    missing = [key for key in (role, text) if not isinstance(turn, dict) or key not in turn]
    if missing:
        raise RecordError(f"{', '.join(map(repr, missing))} is missing; {ACCEPTED}")
    if not isinstance(turn[role], str) or turn[role] not in roles:
        raise RecordError(f"unknown {role!r} {turn[role]!r}; known: {', '.join(roles)}")
    return roles[turn[role]], _text(turn, text)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise RecordError(f"column {column!r} must be text, not {value!r:.60}")
    return value or ""


def _said(turns: Iterable[tuple[str, str]]) -> list[Message]:
    """The messages without empty system texts and an empty last answer, which mean that there is none."""
    messages = [Message(role, text) for role, text in turns if role != "system" or text]
    if messages and messages[-1].role == "assistant" and not messages[-1].content:
        messages.pop()
    return messages


def _as_openorca(trace: Trace) -> dict[str, Any]:
    messages = list(trace.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise RecordError(
            f"trace {trace.id!r}: openorca holds one question and one answer, "
            f"not {', '.join(roles) or 'nothing'}; write the schema messages"
        )
    question, response = messages[0].content, messages[1].content if len(messages) == 2 else ""
    texts = {"system_prompt": system, "question": question, "response": response}
    return {"id": trace.id, **texts, **_extra(trace)}


def _as_messages(trace: Trace) -> dict[str, Any]:
    return {"id": trace.id, "messages": [to_json(message) for message in trace.messages], **_extra(trace)}


def _as_sharegpt(trace: Trace) -> dict[str, Any]:
    turns = [{"from": SHAREGPT_NAMES[message.role], "value": message.content} for message in trace.messages]
    return {"id": trace.id, "conversations": turns, **_extra(trace)}


def _extra(trace: Trace) -> dict[str, Any]:
    return {"extra": dict(trace.extra)} if trace.extra else {}


_WRITERS: dict[str, Callable[[Trace], dict[str, Any]]] = {
    "native": to_json,
    "openorca": _as_openorca,
    "messages": _as_messages,
    "sharegpt": _as_sharegpt,
}
