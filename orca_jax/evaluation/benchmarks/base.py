"""The base of all benchmarks: questions, groups of tasks, texts kept out of training, and files."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orca_jax.records import Message

Conversation = tuple[Message, ...]


class EvaluationError(RuntimeError):
    """The replies on disk do not belong to this evaluation, or the model did not answer every question."""

    explained = True  # cli.checked adds no advice


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One scored question of a benchmark; (benchmark, task, id) is unique.

    Attributes:
      text: the whole user prompt.
      target: the right answer; one of `choices` where there are any.
      choices: the labels a reply may choose from ("A", "B", ... or "Yes", "No"); empty for free answers.
      chance: probability that a blind guess is right; 0 for free answers, None where it is not known.
      majority: accuracy, over the task, of always giving its most frequent target.
      mode: names the prompt form and the way its reply is parsed (`orca_jax.evaluation.modes.MODES`).
      extra: what a mode's extractor needs besides, and keys to group by; JSON values.
    """

    benchmark: str
    task: str
    id: str
    text: str
    target: str
    choices: tuple[str, ...] = ()
    chance: float | None = 0.0
    majority: float | None = None
    mode: str = "robust"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.choices and self.target not in self.choices:
            raise ValueError(
                f"{self.benchmark}/{self.task}, question {self.id}: target {self.target!r} is not "
                f"one of its choices {', '.join(self.choices)}"
            )

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.task, self.id


def conversation(question: Question, system_text: str) -> Conversation:
    """What is sent to the model. An empty `system_text` (message 1) means no system message at all."""
    user = Message("user", question.text)
    return (Message("system", system_text), user) if system_text else (user,)


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A benchmark's named aggregate: unweighted over tasks (`macro`) or weighted by size (`micro`)."""

    name: str
    tasks: tuple[str, ...]
    kind: Literal["macro", "micro"]


def majority(targets: Iterable[str]) -> float:
    """The accuracy of always giving the most frequent target; 0 of none."""
    counts = collections.Counter(targets)
    return max(counts.values(), default=0) / max(counts.total(), 1)


# Files


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
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BenchmarkError(f"{where}: not JSON ({error}); fetch the file again") from error
        if not isinstance(row, dict):
            raise BenchmarkError(f"{where}: expected a JSON object, got {row!r:.60}; fetch the file again")
        found.append((number, row))
    return found


def read_text(path: Path) -> str:
    """Raises BenchmarkError where the file is absent or not UTF-8."""
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
