"""GSM8K (arXiv 2110.14168): grade-school word problems; the answer follows "####".

The paper does not report it; its successors do. Files: test.jsonl (1,319 rows) and train.jsonl (7,473).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import STEP_BY_STEP, BenchmarkError, Document, Question

BENCHMARK = "gsm8k"
SIZES = {"test": 1319, "train": 7473}
_ANSWER = re.compile(r"####\s*(-?[\d,]+(?:\.\d+)?)\s*\Z")


def questions(path: str | Path, *, mode: str = "orca_cot", size: int | None = None) -> list[Question]:
    """All problems with a step-by-step cue; targets are numbers without commas.

    Args:
      size: rows that the file must have; by default those of test.jsonl or train.jsonl, by its name.
    """
    if size is None and Path(path).stem not in SIZES:
        known = ", ".join(f"{name}.jsonl ({rows} rows)" for name, rows in SIZES.items())
        raise BenchmarkError(f"{path}: how many rows it must have is known for {known}; give the size")
    made = []
    for number, (where, row) in enumerate(base.rows(path, [size or SIZES[Path(path).stem]])):
        problem = base.text_field(row, ["question"], where)
        answer = _ANSWER.search(base.text_field(row, ["answer"], where))
        if not answer:
            raise BenchmarkError(f"{where}: the answer does not end with '#### number'; fetch the file again")
        text, target = f"Q: {problem}\nA: {STEP_BY_STEP}", answer[1].replace(",", "")
        made.append(Question(BENCHMARK, BENCHMARK, f"{BENCHMARK}-{number}", text, target, mode=mode))
    return made


def documents(path: str | Path) -> Iterator[Document]:
    """The problems without cue or answer."""
    for question in questions(path):
        text = question.text.removeprefix("Q: ").removesuffix(f"\nA: {STEP_BY_STEP}")
        yield Document(BENCHMARK, question.id, text)
