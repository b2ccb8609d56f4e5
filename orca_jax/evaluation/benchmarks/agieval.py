"""AGIEval's English multiple-choice sets (arXiv 2304.06364): reader and prompts.

Modes (how replies are read: `evaluation.modes`):
  `orca`      AGIEval's zero-shot prompt, which the paper uses (section 4.2.2): passage, "Q:", question,
              "Answer Choices:", options, "A: Among A through E, the answer is"; the first capital counts.
  `orca_cot`  the same question with a step-by-step cue; the last well-formed answer counts.
  `robust`    the prompt of `orca`; the last well-formed answer counts.
  `agieval_upstream`  AGIEval's own two stages: that prompt, then prompt, reply and `UPSTREAM_CUE` again
              (A through E for every set, as there); the first of A to F in the second reply counts.
  `lm_eval_loglik`    the prompt of `orca`; the options, as the file has them, are compared by likelihood.

Questions about one passage are a cluster (`extra["cluster"]`).

Options are identified by their letter, not their position: 19 rows of logiqa-en list A, C, B, D. Options
without a letter (nine rows of logiqa-en show none, or none in brackets) get the missing one, and all are
written "(A)".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Group, Question

BENCHMARK = "agieval"
MODES = BENCHMARK_MODES["agieval"]
UPSTREAM_CUE = "Therefore, among A through E, the answer is"
UPSTREAM_SYSTEM = "You are a helpful AI assistant."


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """`letters` are the labels of its options."""

    name: str
    size: int
    letters: str


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("aqua-rat", 254, "ABCDE"),
        Task("logiqa-en", 651, "ABCD"),
        Task("lsat-ar", 230, "ABCDE"),
        Task("lsat-lr", 510, "ABCDE"),
        Task("lsat-rc", 269, "ABCDE"),
        Task("sat-math", 220, "ABCD"),
        Task("sat-en", 206, "ABCD"),
        Task("sat-en-without-passage", 206, "ABCD"),
    )
}
GROUPS = (Group("paper8", tuple(TASKS), "macro"), Group("all8", tuple(TASKS), "micro"))

_BRACKETED = re.compile(r"\s*\(([A-E])\)\s*(.*)", re.DOTALL)
_BARE = re.compile(r"\s*([A-E])[ .)]\s*(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class _Example:
    """One row, options in the file's order; `verbatim` are the options as it has them."""

    task: Task
    row: int
    passage: str
    question: str
    letters: tuple[str, ...]
    options: tuple[str, ...]
    verbatim: tuple[str, ...]
    target: str

    @property
    def id(self) -> str:
        return f"{self.task.name}-{self.row}"

    @property
    def choices(self) -> str:
        return " ".join(f"({letter}){option}" for letter, option in zip(self.letters, self.options))


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The questions of every AGIEval file (<task>.jsonl) in `directory`, in the order of `TASKS`.

    Raises:
      BenchmarkError: the mode is unknown, there is no file, or one is truncated, damaged or has a label
        that is not an option; the message names file and row.
    """
    if mode not in MODES:
        raise BenchmarkError(f"unknown AGIEval mode {mode!r}; known: {', '.join(MODES)}")
    made: list[Question] = []
    for examples in map(_read, _files(directory)):
        majority = base.majority(example.target for example in examples)
        made += [_question(example, mode, majority) for example in examples]
    return made


def documents(directory: str | Path) -> Iterator[Document]:
    """Each question with its options, and each passage once, by the id of the first row that has it."""
    for path in _files(directory):
        passages: set[str] = set()
        for example in _read(path):
            yield Document(BENCHMARK, example.id, f"{example.question}\n{example.choices}")
            if example.passage and example.passage not in passages:
                passages.add(example.passage)
                yield Document(BENCHMARK, f"{example.id}/passage", example.passage)


def _files(directory: str | Path) -> list[Path]:
    return base.find(directory, TASKS, ".jsonl", "AGIEval")


def _read(path: Path) -> list[_Example]:
    task, rows = TASKS[path.stem], base.json_lines(path)
    base.check_size(path, len(rows), [task.size])
    return [_example(task, number, row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _example(task: Task, number: int, row: Mapping[str, Any], where: str) -> _Example:
    question = base.text_field(row, ["question"], where)
    options = row.get("options")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise BenchmarkError(f"{where}: options must be a list of texts, not {options!r:.60}; fetch it again")
    shown = [_shown(option, place) for place, option in enumerate(options)]
    letters = _completed([letter for letter, _ in shown], task.letters, where)
    if row.get("label") not in letters:
        raise BenchmarkError(f"{where}: label {row.get('label')!r} is not an option; fetch the file again")
    texts = tuple(text for _, text in shown)
    passage = row.get("passage") or ""
    return _Example(task, number, passage, question, letters, texts, tuple(options), row["label"])


def _shown(option: str, place: int) -> tuple[str | None, str]:
    """The letter an option shows and its text; a letter without brackets counts in its own place only."""
    if match := _BRACKETED.match(option):
        return match[1], match[2]
    match = _BARE.match(option)
    if match and match[1] == "ABCDE"[place : place + 1]:
        return match[1], match[2]
    return None, option


def _completed(shown: list[str | None], letters: str, where: str) -> tuple[str, ...]:
    """The options' letters, the missing ones filled in in order."""
    missing = iter([letter for letter in letters if letter not in shown])
    completed = tuple(next(missing, "") if letter is None else letter for letter in shown)
    if sorted(completed) != list(letters):
        found = ", ".join(str(letter) for letter in shown)
        raise BenchmarkError(f"{where}: options show {found}, expected {letters}; fetch the file again")
    return completed


def _question(example: _Example, mode: str, majority: float) -> Question:
    letters = example.task.letters
    cue = (
        "Let's think step by step." if mode == "orca_cot" else f"Among A through {letters[-1]}, the answer is"
    )
    extra: dict[str, Any] = {"cluster": example.passage} if example.passage else {}
    if mode == "lm_eval_loglik":
        extra |= {"labels": list(example.letters), "continuations": list(example.verbatim)}
    else:
        by_letter = dict(zip(example.letters, example.options))
        options = [by_letter[letter].strip() for letter in letters]
        extra |= {"letters": extraction.PAPER_LETTERS, "options": options}
    if mode == "agieval_upstream":
        extra["second_cue"] = UPSTREAM_CUE
    return Question(
        benchmark=BENCHMARK,
        task=example.task.name,
        id=example.id,
        text=f"{example.passage}Q: {example.question} Answer Choices: {example.choices}\nA: {cue}",
        target=example.target,
        choices=tuple(letters),
        chance=1 / len(example.options),
        majority=majority,
        mode=mode,
        extra=extra,
    )
