"""GSM8K (arXiv 2110.14168): grade-school word problems; the answer follows "####".

The paper does not report it; its successors do. Files: test.jsonl (1,319 rows) and train.jsonl (7,473).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question

BENCHMARK = TASK = "gsm8k"
MODES = BENCHMARK_MODES["gsm8k"]
SIZES = {"test": 1319, "train": 7473}
_ANSWER = re.compile(r"####\s*(-?[\d,]+(?:\.\d+)?)\s*\Z")


def questions(path: str | Path, *, mode: str = "orca_cot", size: int | None = None) -> list[Question]:
    """All problems with a step-by-step cue; targets are numbers without commas.

    Args:
      size: rows that the file must have; by default those of test.jsonl or train.jsonl, by its name.

    Raises:
      BenchmarkError: the file is truncated or damaged, or a row has no answer; names file and row.
    """
    if mode not in MODES:
        raise BenchmarkError(f"unknown GSM8K mode {mode!r}; known: {', '.join(MODES)}")
    return [
        Question(
            benchmark=BENCHMARK,
            task=TASK,
            id=f"{TASK}-{number}",
            text=f"Q: {problem}\nA: Let's think step by step.",
            target=target,
            mode="orca_cot",
        )
        for number, (problem, target) in enumerate(_read(Path(path), size))
    ]


def documents(path: str | Path, *, size: int | None = None) -> Iterator[Document]:
    """The problems without cue or answer."""
    for number, (problem, _) in enumerate(_read(Path(path), size)):
        yield Document(BENCHMARK, f"{TASK}-{number}", problem)


def _read(path: Path, size: int | None) -> list[tuple[str, str]]:
    if size is None and path.stem not in SIZES:
        known = ", ".join(f"{name}.jsonl ({rows} rows)" for name, rows in SIZES.items())
        raise BenchmarkError(f"{path}: how many rows it must have is known for {known}; give the size")
    rows = base.json_lines(path)
    base.check_size(path, len(rows), [SIZES[path.stem] if size is None else size])
    found = []
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        problem = base.text_field(row, ["question"], where)
        answer = _ANSWER.search(base.text_field(row, ["answer"], where))
        if not answer:
            raise BenchmarkError(f"{where}: the answer does not end with '#### number'; fetch the file again")
        found.append((problem, answer[1].replace(",", "")))
    return found
