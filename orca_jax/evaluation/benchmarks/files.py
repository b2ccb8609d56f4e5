"""Shared by the readers of benchmark files: checks of sizes and fields, errors, texts not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class BenchmarkError(ValueError):
    """A benchmark's file is missing, incomplete or not what it should be; the message names it."""


class Document(NamedTuple):
    """A text that must not be trained on, in the form that contamination takes."""

    benchmark: str
    id: str
    text: str


def check_size(path: Path, found: int, known: Iterable[int]) -> None:
    """Raises BenchmarkError, naming the file and both sizes, unless `found` is one of the known sizes."""
    sizes = sorted(set(known))
    if found not in sizes:
        expected = " or ".join(map(str, sizes))
        raise BenchmarkError(f"{path}: expected {expected} rows, found {found}; fetch the file again")


def find(directory: str | Path, names: Iterable[str], suffix: str, benchmark: str) -> list[Path]:
    """The files NAME+suffix that `directory` holds, in the order of `names`.

    Raises:
      BenchmarkError: there is none.
    """
    expected = [f"{name}{suffix}" for name in names]
    found = [path for name in expected if (path := Path(directory) / name).is_file()]
    if not found:
        raise BenchmarkError(f"{directory} holds no {benchmark} file; expected some of {', '.join(expected)}")
    return found


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; blank lines do not count.

    Raises:
      BenchmarkError: a line is not a JSON object, or the file is absent or not UTF-8; names file and line.
    """
    return [row for _, row in numbered_json_lines(path)]


def numbered_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """As `json_lines`, each with its line's number from 1."""
    lines = enumerate(_text(path).split("\n"), 1)
    return [(number, _object(line, f"{path}:{number}")) for number, line in lines if line.strip()]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BenchmarkError(f"{where}: not JSON ({error}); fetch the file again") from error
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected a JSON object, got {row!r:.60}; fetch the file again")
    return row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: not UTF-8 at byte {error.start}; fetch the file again") from error


def text_field(row: Mapping[str, Any], names: Iterable[str], where: str) -> str:
    """The first of the named fields that the row has, which must be text that is not blank.

    Raises:
      BenchmarkError: there is none such; names the place and the fields.
    """
    names = list(names)
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise BenchmarkError(f"{where}: {' or '.join(names)} must be text, not {value!r:.60}")
    return value
