"""AGIEval's English multiple-choice sets (arXiv 2304.06364): reader and prompts.

Modes: `orca` and `robust` have AGIEval's zero-shot prompt, which the paper uses (section 4.2.2): passage,
"Q:", question, "Answer Choices:", options, "A: Among A through E, the answer is"; `orca_cot` has a
step-by-step cue instead.

Questions about one passage are a cluster (`extra["cluster"]`).

Options are identified by their letter, not their position: 19 rows of logiqa-en list A, C, B, D. Options
without a letter (nine rows of logiqa-en show none, or none in brackets) get the missing one, and all are
written "(A)".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Group, Question

BENCHMARK = "agieval"
# Task to its number of questions and its options' letters.
TASKS: Mapping[str, tuple[int, str]] = {
    "aqua-rat": (254, "ABCDE"),
    "logiqa-en": (651, "ABCD"),
    "lsat-ar": (230, "ABCDE"),
    "lsat-lr": (510, "ABCDE"),
    "lsat-rc": (269, "ABCDE"),
    "sat-math": (220, "ABCD"),
    "sat-en": (206, "ABCD"),
    "sat-en-without-passage": (206, "ABCD"),
}
GROUPS = (Group("paper8", tuple(TASKS), "macro"), Group("all8", tuple(TASKS), "micro"))
_BRACKETED = re.compile(r"\s*\(([A-E])\)\s*(.*)", re.DOTALL)
_BARE = re.compile(r"\s*([A-E])[ .)]\s*(.*)", re.DOTALL)


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The questions of every AGIEval file (<task>.jsonl) in `directory`, in the order of `TASKS`."""
    rows = _rows(directory)
    made = [_question(task, id, row, mode=mode, where=where) for task, id, where, row in rows]
    return base.with_majority(made)


def documents(directory: str | Path) -> Iterator[Document]:
    """Each question with its options, and each passage once, by the id of the first row that has it."""
    passages = set[tuple[str, str]]()
    for task, id, where, row in _rows(directory):
        passage, question, options = _parsed(task, row, where)
        yield Document(BENCHMARK, id, f"{question}\n{_shown(options)}")
        if passage and (task, passage) not in passages:
            passages.add((task, passage))
            yield Document(BENCHMARK, f"{id}/passage", passage)


def _rows(directory: str | Path) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Task, id, place and values of each row."""
    for path in base.find(directory, [f"{task}.jsonl" for task in TASKS], "AGIEval"):
        task = path.stem
        for number, (where, row) in enumerate(base.rows(path, [TASKS[task][0]])):
            yield task, f"{task}-{number}", where, row


def _parsed(task: str, row: Mapping[str, Any], where: str) -> tuple[str, str, dict[str, str]]:
    """Passage, question, and options by letter in the file's order.

    A letter without brackets counts in its own place only; the missing letters are filled in in order.
    """
    question, given = base.text_field(row, ["question"], where), row.get("options")
    if not isinstance(given, list) or not all(isinstance(option, str) for option in given):
        raise BenchmarkError(f"{where}: options must be a list of texts, not {given!r:.60}; fetch it again")
    letters = TASKS[task][1]
    shown: list[str | None] = []
    texts: list[str] = []
    for place, option in enumerate(given):
        match = _BRACKETED.match(option) or _BARE.match(option)
        if match and (match.re is _BRACKETED or match[1] == letters[place : place + 1]):
            shown.append(match[1])
            texts.append(match[2])
        else:
            shown.append(None)
            texts.append(option)
    missing = iter([letter for letter in letters if letter not in shown])
    completed = [letter or next(missing, "") for letter in shown]
    if sorted(completed) != list(letters):
        found = ", ".join(map(str, shown))
        raise BenchmarkError(f"{where}: options show {found}, expected {letters}; fetch the file again")
    return row.get("passage") or "", question, dict(zip(completed, texts))


def _shown(options: Mapping[str, str]) -> str:
    return " ".join(f"({letter}){option}" for letter, option in options.items())


def _question(task: str, id: str, row: Mapping[str, Any], *, mode: str, where: str) -> Question:
    passage, question, options = _parsed(task, row, where)
    letters, label = TASKS[task][1], row.get("label")
    if label not in options:
        raise BenchmarkError(f"{where}: label {label!r} is not an option; fetch the file again")
    extra: dict[str, Any] = {"cluster": passage} if passage else {}
    extra |= {"letters": extraction.PAPER_LETTERS, "options": [options[letter].strip() for letter in letters]}
    cue = base.choice_cue(mode, letters)
    return Question(
        benchmark=BENCHMARK,
        task=task,
        id=id,
        text=f"{passage}Q: {question} Answer Choices: {_shown(options)}\nA: {cue}",
        target=label,
        choices=tuple(letters),
        chance=1 / len(options),
        mode=mode,
        extra=extra,
    )
