"""TruthfulQA as multiple choice (arXiv 2109.07958; the paper's section 7.1): four options a question.

The paper's 684 questions are those of the data's version 0 that have at least four single-true (`mc1`)
choices; further ones are left out at random. The published draw is not documented: ours takes the true
choice and three others by hash of the seed and the question, and orders them by hash, so that the true one,
first in the files, has no fixed place.

Modes: `orca` and `robust` have the paper's prompt with digits ("Among 0 through 3, the answer is"),
`orca_cot` letters and a step-by-step cue.

Files: `mc_task.json` (a list) or JSON lines, rows with `question` or `Question` and `mc1_targets`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question

log = logging.getLogger(__name__)
BENCHMARK = "truthfulqa_mc"
OPTIONS = 4
SEED = "0"  # decides which false choices are kept and the order of the four
SIZES = (817, 790)  # versions 0 and 1; the file of January 2025
USED = (684, 690, 664)  # questions with at least four choices: of version 0, version 1, January 2025


def questions(path: str | Path, *, mode: str, size: int | None = None) -> list[Question]:
    """The questions with at least four choices, cut to four.

    Args:
      size: rows that the file must have; by default those of a whole version.
    """
    labels = "ABCD" if mode == "orca_cot" else "0123"
    made = []
    for number, (where, row) in enumerate(base.rows(path, SIZES if size is None else [size])):
        question, (true, *false) = _parsed(row, f"{where}, row {number}")
        if len(false) < OPTIONS - 1:
            continue
        kept = sorted(false, key=partial(_rank, "keep", question))[: OPTIONS - 1]
        options = sorted([true, *kept], key=partial(_rank, "order", question))
        choices = " ".join(f"({label}) {option}" for label, option in zip(labels, options))
        made.append(
            Question(
                benchmark=BENCHMARK,
                task=BENCHMARK,
                id=f"{BENCHMARK}-{number}",
                text=f"Q: {question} Answer Choices: {choices}\nA: {base.choice_cue(mode, labels)}",
                target=labels[options.index(true)],
                choices=tuple(labels),
                chance=1 / OPTIONS,
                mode=mode,
                extra={"letters": labels, "options": options, "category": str(row.get("Category") or "")},
            )
        )
    return base.with_majority(made)


def _rank(purpose: str, question: str, choice: str) -> str:
    text = "\x00".join((purpose, SEED, question, choice))
    return hashlib.sha256(text.encode()).hexdigest()


def documents(path: str | Path) -> Iterator[Document]:
    """All questions, those with fewer than four choices too; of a part of the set with a warning."""
    rows = base.rows(path)
    if len(rows) not in SIZES:
        log.warning("%s: %d questions, a part of TruthfulQA: the others are not kept out", path, len(rows))
    for number, (where, row) in enumerate(rows):
        yield Document(BENCHMARK, f"{BENCHMARK}-{number}", _parsed(row, f"{where}, row {number}")[0])


def _parsed(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    """The question and its choices, the true one first."""
    choices = row.get("mc1_targets")
    if not isinstance(choices, dict) or list(choices.values()).count(1) != 1:
        raise BenchmarkError(
            f"{where}: mc1_targets must map choices to 0 and exactly one to 1, not {choices!r:.60}"
        )
    question = base.text_field(row, ["question", "Question"], where)
    by_label = [[text for text, label in choices.items() if label == wanted] for wanted in (1, 0)]
    return question.strip(), by_label[0] + by_label[1]
