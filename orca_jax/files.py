"""Rows of files: JSON lines or Parquet, read a row at a time, or a JSON array; records as JSON lines.

Malformed rows of files from elsewhere are left out and counted in a `Tally`; too many of them end the run.
All readers do this through `counted`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import itertools
import json
import logging
import mmap
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orca_jax.artifacts import atomic_write
from orca_jax.records import RecordError, from_json, to_json

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIX = ".parquet"
BATCH = 256  # rows; what is held in memory while Parquet is read
MALFORMED = 0.05  # the share of a file's rows that may be malformed
MIN_ROWS = 1000  # what that share is taken of until a file is read to its end
KEPT_PLACES = 20  # of malformed rows, with reasons
# What stands in a JSON array before its first element, between two, after the last, and where it has none.
BEFORE, BETWEEN, AFTER, EMPTY = map(re.compile, (r"\s*\[\s*", r"\s*,\s*", r"\s*\]\s*", r"\s*\[\s*\]\s*"))

StrPath = str | os.PathLike[str]
Read = TypeVar("Read")
Record = TypeVar("Record")
log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row of a file, or why there is none; `where` names file and line or row, `number` counts from 0."""

    where: str
    number: int
    values: Any


@dataclasses.dataclass
class Tally:
    """Counts rows, and the malformed ones with their places; several files may share one."""

    max_rate: float = MALFORMED  # the share of a file's rows that may be malformed; one more stops the run
    setting: str = "teachers[].malformed"  # the config's key that says so
    read: int = 0
    malformed: int = 0  # rows left out
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    places: list[str] = dataclasses.field(default_factory=list)  # the first ones, each "file:line: reason"

    def refuse(self, where: str, reason: object) -> None:
        self.malformed += 1
        # A reason may quote half a surrogate pair, which no log and no manifest can hold.
        text = str(reason).encode("utf-8", "backslashreplace").decode()
        # Counted without what differs from row to row: places in the row, values, advice.
        kind = re.split(r"; | \(|, not |, got |, among | \d", re.sub(r"\[\d+\]", "", text), maxsplit=1)[0]
        self.reasons[kind[:80].rstrip(": ")] += 1
        if len(self.places) < KEPT_PLACES:
            self.places.append(f"{where}: {text}")

    def summary(self) -> dict[str, Any]:
        """The counts, for a manifest."""
        counts = {"read": self.read, "malformed": self.malformed}
        return {**counts, "malformed_reasons": dict(self.reasons), "malformed_places": list(self.places)}


def counted(path: StrPath, rows: Iterable[Row], read: Callable[[Row], Read], tally: Tally) -> Iterator[Read]:
    """Applies `read` to a file's rows; rows for which it raises RecordError are left out and counted.

    Raises:
      RecordError: too many are malformed; names the first by file and row, and counts them by reason.
    """
    own, seen = Tally(tally.max_rate, tally.setting), 0
    for seen, row in enumerate(rows, 1):
        try:
            if isinstance(row.values, RecordError):
                raise row.values
            made = read(row)
        except RecordError as error:
            own.refuse(row.where, error)
            tally.refuse(row.where, error)
            check_rate(path, own, max(seen, MIN_ROWS), seen)
            continue
        tally.read += 1
        yield made
    check_rate(path, own, seen, seen)
    if own.malformed:
        log.warning(
            "%s: left out %d malformed rows of %d (%.2g %%): %s; the first: %s",
            path, own.malformed, seen, 100 * own.malformed / seen, _listed(own), own.places[0],
        )  # fmt: skip


def check_rate(path: StrPath, own: Tally, of: int, seen: int) -> None:
    """Raises RecordError where more of `of` rows are malformed than may be; `seen` were read."""
    if own.malformed > own.max_rate * of:
        first, *others = own.places[:5]
        _, semicolon, advice = first.partition("; ")
        # What is the same advice is said once.
        places = "\n  ".join([first, *(one.removesuffix(semicolon + advice) for one in others)])
        raise RecordError(
            f"{path}: {own.malformed} rows are malformed of {seen} read, more than the share {own.max_rate} "
            f"that {own.setting} allows; mend the file or allow more. {_listed(own)}. The first:\n  {places}"
        )


def _listed(tally: Tally) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in tally.reasons.most_common(10))


def rows(path: StrPath) -> Iterator[Row]:
    """The rows of a Parquet file, or of a .jsonl, .json or .ndjson (.gz too): an object a line, or an array.

    Raises:
      RecordError: the suffix is another, or the file is damaged; names it. A line that is no JSON is a Row.
    """
    path = Path(path)
    return _parquet_rows(path) if is_parquet(path) else _json_rows(path)


def is_parquet(path: Path) -> bool:
    """Whether the suffix says so. Raises RecordError for one that no reader knows."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (*JSON_SUFFIXES, PARQUET_SUFFIX):
        raise RecordError(f"{path}: unknown suffix; name it {', '.join(JSON_SUFFIXES)} or {PARQUET_SUFFIX}")
    return suffix == PARQUET_SUFFIX


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        begun = b""
        while not begun and (block := file.read(1 << 12)):
            begun = block.removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if begun.startswith(b"["):
            yield from _array_rows(path, file.read())
            return
    yield from line_rows(path, parse)


def line_rows(path: Path, read: Callable[[bytes], Any]) -> Iterator[Row]:
    """The lines of a file (.gz too) that are not blank; `read` raises RecordError for one that is no row."""
    with _opened(path) as file:
        for number, line in enumerate(file):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                try:
                    values = read(line)
                except RecordError as error:
                    values = error
                yield Row(f"{path}:{number + 1}", number, values)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path}: damaged or cut off ({error}); fetch the file again") from error


def _array_rows(path: Path, data: bytes) -> Iterator[Row]:
    """The elements of a JSON array; `where` names the line in which each begins."""
    at, line, decode = 0, 1, json.JSONDecoder().raw_decode
    try:
        text = data.decode("utf-8-sig")
        for number in itertools.count():
            before, after = (BETWEEN, AFTER) if number else (BEFORE, EMPTY)
            ended = after.match(text, at)
            begun = ended or before.match(text, at)
            start = begun.end() if begun else len(text) - len(text[at:].lstrip())
            line, at = line + text.count("\n", at, start), start
            if ended and start == len(text):
                return
            if ended:
                raise ValueError("there is something after its end")
            if not begun and start < len(text):
                raise ValueError(f"{text[start]!r} where ',' or ']' was expected")
            values, at = decode(text, start)
            yield Row(f"{path}:{line}", number, values)
            line += text.count("\n", start, at)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}:{line}: the JSON array is damaged or cut off ({getattr(error, 'msg', error)}); mend it, "
            "or write an object a line"
        ) from error


def parse(line: bytes) -> Any:
    """The values of a line of JSON. Raises RecordError."""
    text = decoded(line)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"not a JSON object on one line ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise RecordError(f"JSON beyond the reader's limits ({error})") from error


def decoded(line: bytes) -> str:
    """A line's text. Raises RecordError where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 (byte {error.start + 1} of the line); convert the file") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet  # JSON lines do without it

    number = itertools.count()
    with open(path, "rb") as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH):
                for values in batch.to_pylist():
                    with contextlib.suppress(TypeError, ValueError):  # JSON, or a text of somebody's own
                        extra = json.loads(values.get("extra"))
                        values |= {"extra": extra} if isinstance(extra, dict) else {}
                    at = next(number)
                    yield Row(f"{path}: row {at}", at, values)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path}: damaged or no Parquet file ({error}); fetch or write it again"
            ) from error


# Records as JSON lines


def write_jsonl(path: StrPath, records: Iterable[Any]) -> int:
    """Writes records, one JSON object a line, and returns how many; the file appears whole or not at all."""
    return write_json_rows(path, map(to_json, records))


def read_jsonl(path: StrPath, record_type: type[Record]) -> Iterator[Record]:
    """Reads the records that `write_jsonl` or `JsonlAppender` wrote, one at a time.

    Raises:
      RecordError: a line is no such record; the message names file, line and field.
    """
    return (record for _, record in read_placed(path, record_type))


def read_placed(path: StrPath, record_type: type[Record]) -> Iterator[tuple[int, Record]]:
    """As `read_jsonl`, each record with the byte at which its line begins, for `read_at`."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield offset, _record(line, record_type, f"{path}:{number}")
            offset += len(line)


def read_at(path: StrPath, offsets: Iterable[int], record_type: type[Record]) -> Iterator[Record]:
    """The records whose lines begin at these bytes; raises as `read_jsonl`."""
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield _record(file.readline(), record_type, f"{path}: byte {offset}")


def _record(line: bytes, record_type: type[Record], where: str) -> Record:
    try:
        return from_json(record_type, parse(line))
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error


class JsonlAppender(contextlib.AbstractContextManager["JsonlAppender"]):
    """Appends records to a file and flushes each: a killed process leaves at most the last line torn.

    A torn last line is dropped when the file is opened again, with a warning in the log, and the file is
    synced to disk at the end. For one writer at a time.
    """

    def __init__(self, path: StrPath):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+")  # noqa: SIM115
        if not self._file.tell():
            return
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = text.rfind(b"\n") + 1
            last = text[start:]
        try:
            json.loads(last or b"0")
        except ValueError:
            self._file.truncate(start)
            log.warning("%s: dropped a torn last line of %d bytes", path, len(last))
        else:
            self._file.write(b"\n" if last else b"")  # which is all that it lacks

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, record: Any) -> None:
        self._file.write(_line(to_json(record)))
        self._file.flush()


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a character pair, which UTF-8 cannot hold but an escape can
        return json.dumps(row, default=str).encode() + b"\n"


def write_json_rows(path: StrPath, rows: Iterable[Mapping[str, Any]]) -> int:
    """As `write_jsonl`, of rows that are JSON objects already."""
    count = 0
    with atomic_write(path, "wb") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(_line(row))
    return count
