"""TruthfulQA as multiple choice (arXiv 2109.07958; the paper's section 7.1): four options a question.

The paper's 684 questions are those of the data's version 0 that have at least four single-true (`mc1`)
choices; further ones are left out at random. The published draw is not documented: ours takes the true
choice and three others by hash of the seed and the question, and orders them by hash, so that the true
one, first in the files, has no fixed place.

Two modes: `orca`, the paper's prompt with digits ("Among 0 through 3, the answer is"; the first such
digit of the reply counts), and `orca_cot`, lettered, with a step-by-step cue.

Files: `mc_task.json` (a list) or JSON lines, rows with `question` or `Question` and `mc1_targets`.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.evaluation.benchmarks import files
from orca_jax.evaluation.benchmarks.files import BenchmarkError, Document, FileReport
from orca_jax.evaluation.questions import Question

BENCHMARK = TASK = "truthfulqa_mc"
MODES = ("orca", "orca_cot")
OPTIONS = 4
SIZES = (817, 790)  # versions 0 and 1; the file of January 2025
# Questions with at least four choices, which tell the versions apart.
VERSIONS = {(817, 684): "version 0", (817, 690): "version 1", (790, 664): "January 2025"}
_LABELS = {"orca": "0123", "orca_cot": "ABCD"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Example:
    row: int
    question: str
    true: str
    false: tuple[str, ...]
    category: str

    @property
    def is_asked(self) -> bool:
        return len(self.false) >= OPTIONS - 1


def questions(path: str | Path, *, mode: str, seed: int = 0, size: int | None = None) -> list[Question]:
    """The questions with at least four choices, cut to four.

    Args:
      mode: `orca` or `orca_cot`.
      seed: decides which false choices are kept and the order of the four.
      size: rows that the file must have; by default those of a whole version.

    Raises:
      BenchmarkError: the mode is unknown, or the file truncated or damaged; names file and row.
    """
    if mode not in MODES:
        raise BenchmarkError(f"unknown TruthfulQA mode {mode!r}; known: {', '.join(MODES)}")
    asked = [example for example in _read(Path(path), size) if example.is_asked]
    drawn = [_drawn(example, seed) for example in asked]
    targets = collections.Counter(options.index(example.true) for example, options in zip(asked, drawn))
    majority = max(targets.values(), default=0) / max(len(asked), 1)
    return [_question(example, options, mode, majority) for example, options in zip(asked, drawn)]


def documents(path: str | Path, *, size: int | None = None) -> Iterator[Document]:
    """All questions, those with fewer than four choices too."""
    for example in _read(Path(path), size):
        yield Document(BENCHMARK, f"{TASK}-{example.row}", example.question)


def reports(path: str | Path, *, size: int | None = None) -> list[FileReport]:
    """One report. Fault: `too_few_choices`, rows that are not asked; revision: the version, by counts."""
    examples = _read(Path(path), size)
    left_out = [example.row for example in examples if not example.is_asked]
    found = files.report(BENCHMARK, Path(path), len(examples), {}, {"too_few_choices": left_out})
    version = VERSIONS.get((len(examples), len(examples) - len(left_out)), "")
    return [dataclasses.replace(found, revision=version)]


def _read(path: Path, size: int | None) -> list[_Example]:
    rows = _rows(path)
    files.check_size(path, len(rows), SIZES if size is None else [size])
    return [_example(number, row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _rows(path: Path) -> list[Any]:
    if path.suffix != ".json":
        return list(files.json_lines(path))
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"{path}: not a TruthfulQA file ({error}); fetch it again") from error
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: expected a list of questions, got {rows!r:.60}; fetch it again")
    return rows


def _example(number: int, row: Any, where: str) -> _Example:
    if not isinstance(row, Mapping):
        raise BenchmarkError(f"{where}: expected an object, got {row!r:.60}; fetch the file again")
    choices = row.get("mc1_targets")
    true = [text for text, label in choices.items() if label == 1] if isinstance(choices, Mapping) else []
    if not isinstance(choices, Mapping) or len(true) != 1:
        raise BenchmarkError(
            f"{where}: mc1_targets must map choices to 0 and exactly one to 1, not {choices!r:.60}"
        )
    false = tuple(text for text, label in choices.items() if label == 0)
    question = files.text_field(row, ["question", "Question"], where)
    return _Example(number, question.strip(), true[0], false, str(row.get("Category") or ""))


def _drawn(example: _Example, seed: int) -> list[str]:
    """The four options in the order shown."""

    def rank(purpose: str, choice: str) -> str:
        text = "\x00".join((purpose, str(seed), example.question, choice))
        return hashlib.sha256(text.encode()).hexdigest()

    false = sorted(example.false, key=lambda choice: rank("keep", choice))[: OPTIONS - 1]
    return sorted([example.true, *false], key=lambda choice: rank("order", choice))


def _question(example: _Example, options: list[str], mode: str, majority: float) -> Question:
    labels = _LABELS[mode]
    choices = " ".join(f"({label}) {option}" for label, option in zip(labels, options))
    asked = f"Q: {example.question} Answer Choices: {choices}\n"
    cue = "A: Among 0 through 3, the answer is" if mode == "orca" else "A: Let's think step by step."
    return Question(
        benchmark=BENCHMARK,
        task=TASK,
        id=f"{TASK}-{example.row}",
        text=asked + cue,
        target=labels[options.index(example.true)],
        choices=tuple(labels),
        chance=1 / OPTIONS,
        majority=majority,
        mode=mode,
        extra={"letters": labels, "options": options, "category": example.category},
    )
