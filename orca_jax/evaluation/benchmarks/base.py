"""What all benchmarks share: questions, groups of tasks, texts kept out of training, and rows of files."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orca_jax import files
from orca_jax.records import Message, RecordError

Conversation = tuple[Message, ...]
STEP_BY_STEP = "Let's think step by step."


class EvaluationError(RuntimeError):
    """The replies on disk do not belong to this evaluation, or the model did not answer every question."""

    explained = True  # cli.checked adds no advice


class BenchmarkError(ValueError):
    """A benchmark's file is missing, incomplete or not what it should be; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One scored question of a benchmark; (benchmark, task, id) is unique."""

    benchmark: str
    task: str
    id: str
    text: str  # the whole user prompt
    target: str  # the right answer; one of `choices` where there are any
    choices: tuple[str, ...] = ()  # labels ("A", "B", ... or "Yes", "No"); empty for free answers
    chance: float | None = 0.0  # probability that a blind guess is right; None where it is not known
    majority: float | None = None  # accuracy, over the task, of always giving its most frequent target
    mode: str = "robust"  # the form of the prompt and how its reply is parsed (`evaluation.scoring`)
    # What a mode's parser needs besides, and keys to group by; JSON values.
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    details: Callable[[str], Mapping[str, Any]] | None = None  # of a reply's text, for its item's `extra`

    def __post_init__(self) -> None:
        if self.choices and self.target not in self.choices:
            raise ValueError(
                f"{self.benchmark}/{self.task}, question {self.id}: target {self.target!r} is not "
                f"one of its choices {', '.join(self.choices)}"
            )

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.task, self.id


class Group(NamedTuple):
    """A benchmark's named aggregate: unweighted over tasks (`macro`) or weighted by size (`micro`); for
    `harmonic` see `statistics.harmonic_mean`."""

    name: str
    tasks: tuple[str, ...]
    kind: Literal["macro", "micro", "harmonic"]


class Document(NamedTuple):
    """A text that must not be trained on, in the form that contamination takes."""

    benchmark: str
    id: str
    text: str


def conversation(question: Question, system_text: str) -> Conversation:
    """What is sent to the model. An empty `system_text` (message 1) means no system message at all."""
    user = Message("user", question.text)
    return (Message("system", system_text), user) if system_text else (user,)


def choice_cue(mode: str, labels: Sequence[str]) -> str:
    """How a multiple-choice prompt of AGIEval's form ends."""
    return STEP_BY_STEP if mode == "orca_cot" else f"Among {labels[0]} through {labels[-1]}, the answer is"


def with_majority(questions: Collection[Question]) -> list[Question]:
    """The questions with `majority`, which needs all questions of a task."""
    targets = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    for question in questions:
        targets[question.task][question.target] += 1
    rates = {task: max(counts.values()) / counts.total() for task, counts in targets.items()}
    return [dataclasses.replace(question, majority=rates[question.task]) for question in questions]


def rows(
    path: str | Path, sizes: Collection[int] = (), read: Callable[[bytes], Any] = files.parse
) -> list[tuple[str, Any]]:
    """The rows of a file, each behind its place "FILE:LINE"; blank lines do not count.

    Args:
      sizes: how many rows there may be; empty: any number.
      read: of a line; by default each is a JSON object, a .json file may hold one array of such, and .csv
        and .parquet files are read too.

    Raises:
      BenchmarkError: the file is absent, truncated, not UTF-8 or not JSON; names file and line.
    """
    path = Path(path)
    try:
        if path.suffix == ".csv":
            return _csv_rows(path)
        found = list(
            files.rows(path) if path.suffix in (".json", ".parquet") else files.line_rows(path, read)
        )
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: no such file") from None
    except RecordError as error:
        raise BenchmarkError(str(error)) from error
    for row in found:
        if isinstance(row.values, RecordError):
            raise BenchmarkError(f"{row.where}: {row.values}; fetch the file again")
        if read is files.parse and not isinstance(row.values, dict):
            raise BenchmarkError(f"{row.where}: expected a JSON object, got {row.values!r:.60}")
    check_size(path, len(found), sizes)
    return [(row.where, row.values) for row in found]


def _csv_rows(path: Path) -> list[tuple[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        return [(f"{path}:{reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{path}: not a CSV file ({error}); fetch it again") from error


def examples(path: Path, size: int) -> list[tuple[str, str]]:
    """Input and target of each example of a BIG-Bench file; raises BenchmarkError unless it has `size`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["examples"]
        rows = [(str(example["input"]), str(example["target"])) for example in found]
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a BIG-Bench file ({error!r}); fetch it again") from error
    check_size(path, len(rows), [size])
    return rows


def check_size(path: Path, found: int, sizes: Collection[int]) -> None:
    """Raises BenchmarkError, naming the file and both sizes, unless `found` is one of the known sizes."""
    if sizes and found not in sizes:
        expected = " or ".join(map(str, sorted(sizes)))
        raise BenchmarkError(f"{path}: expected {expected} rows, found {found}; fetch the file again")


def find(directory: str | Path, names: Iterable[str], benchmark: str) -> list[Path]:
    """The files of these names that `directory` holds. Raises BenchmarkError if there is none."""
    names = list(names)
    if not (found := [path for name in names if (path := Path(directory) / name).is_file()]):
        known = ", ".join(names)
        raise BenchmarkError(f"{directory} holds no {benchmark} file; expected some of {known}")
    return found


def text_field(row: Mapping[str, Any], names: Collection[str], where: str) -> str:
    """The first of the named fields that the row has; raises BenchmarkError unless it is text, not blank."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise BenchmarkError(f"{where}: {' or '.join(names)} must be text, not {value!r:.60}")
    return value
