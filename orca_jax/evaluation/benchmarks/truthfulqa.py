"""TruthfulQA as multiple choice (arXiv 2109.07958; the paper's section 7.1): four options a question.

The paper's 684 questions are those of the data's version 0 that have at least four single-true (`mc1`)
choices; further ones are left out at random. The published draw is not documented: ours takes the true
choice and three others by hash of the seed and the question, and orders them by hash, so that the true
one, first in the files, has no fixed place.

Modes (how replies are read: `evaluation.modes`): `orca`, the paper's prompt with digits ("Among 0 through
3, the answer is"; the first such digit of the reply counts); `robust`, the same, the last well-formed
answer counting; `orca_cot`, lettered, with a step-by-step cue. By likelihood, over all questions and
choices, accuracy being mc1 and its metric mc2: `loglik`, the bare question; `lm_eval_loglik`, behind the
primer of six questions, which is read from `primer.txt` beside the data.

Files: `mc_task.json` (a list) or JSON lines, rows with `question` or `Question`, `mc1_targets` and, for
likelihoods, `mc2_targets`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question
from orca_jax.evaluation.modes import LIKELIHOOD

log = logging.getLogger(__name__)
BENCHMARK = TASK = "truthfulqa_mc"
MODES = BENCHMARK_MODES["truthfulqa_mc"]
PRIMER = "primer.txt"
OPTIONS = 4
SIZES = (817, 790)  # versions 0 and 1; the file of January 2025
USED = (684, 690, 664)  # questions with at least four choices: of version 0, version 1, January 2025
_DIGITS, _LETTERS = "0123", "ABCD"


@dataclasses.dataclass(frozen=True, slots=True)
class _Example:
    row: int
    question: str
    true: str
    false: tuple[str, ...]
    category: str
    several: Mapping[str, int]  # mc2's choices, several of which are true


def questions(path: str | Path, *, mode: str, seed: int = 0, size: int | None = None) -> list[Question]:
    """The questions with at least four choices, cut to four; by likelihood all questions and choices.

    Args:
      mode: one of `MODES`.
      seed: decides which false choices are kept and the order of the four.
      size: rows that the file must have; by default those of a whole version.

    Raises:
      BenchmarkError: the mode is unknown, or the file truncated or damaged; names file and row.
    """
    if mode not in MODES:
        raise BenchmarkError(f"unknown TruthfulQA mode {mode!r}; known: {', '.join(MODES)}")
    examples = _read(Path(path), size)
    if mode in LIKELIHOOD:
        before, primer = "", Path(path).parent / PRIMER
        if mode == "lm_eval_loglik":
            if not primer.is_file():
                raise BenchmarkError(
                    f"mode lm_eval_loglik needs lm-eval's primer of six questions: put {primer} there"
                )
            before = primer.read_text(encoding="utf-8").strip() + "\n\n"
        return [_likelihood_question(example, before, mode, str(path)) for example in examples]
    used = [example for example in examples if len(example.false) >= OPTIONS - 1]
    drawn = [_drawn(example, seed) for example in used]
    majority = base.majority(str(options.index(example.true)) for example, options in zip(used, drawn))
    return [_question(example, options, mode, majority) for example, options in zip(used, drawn)]


def documents(path: str | Path) -> Iterator[Document]:
    """All questions, those with fewer than four choices too; of a part of the set with a warning."""
    rows = _rows(Path(path))
    if len(rows) not in SIZES:
        log.warning("%s: %d questions, a part of TruthfulQA: the others are not kept out", path, len(rows))
    for number, row in enumerate(rows):
        yield Document(BENCHMARK, f"{TASK}-{number}", _example(number, row, f"{path}, row {number}").question)


def _read(path: Path, size: int | None) -> list[_Example]:
    rows = _rows(path)
    base.check_size(path, len(rows), SIZES if size is None else [size])
    return [_example(number, row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _rows(path: Path) -> list[Any]:
    if path.suffix != ".json":
        return list(base.json_lines(path))
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
    question = base.text_field(row, ["question", "Question"], where)
    several = row.get("mc2_targets")
    if several is not None and not (isinstance(several, Mapping) and 1 in several.values()):
        raise BenchmarkError(f"{where}: mc2_targets must map choices to 0 and some to 1, not {several!r:.60}")
    return _Example(number, question.strip(), true[0], false, str(row.get("Category") or ""), several or {})


def _drawn(example: _Example, seed: int) -> list[str]:
    """The four options in the order shown."""

    def rank(purpose: str, choice: str) -> str:
        text = "\x00".join((purpose, str(seed), example.question, choice))
        return hashlib.sha256(text.encode()).hexdigest()

    false = sorted(example.false, key=lambda choice: rank("keep", choice))[: OPTIONS - 1]
    return sorted([example.true, *false], key=lambda choice: rank("order", choice))


def _question(example: _Example, options: list[str], mode: str, majority: float) -> Question:
    labels = _LETTERS if mode == "orca_cot" else _DIGITS
    choices = " ".join(f"({label}) {option}" for label, option in zip(labels, options))
    prompt = f"Q: {example.question} Answer Choices: {choices}\n"
    cue = "A: Let's think step by step." if mode == "orca_cot" else "A: Among 0 through 3, the answer is"
    return Question(
        benchmark=BENCHMARK,
        task=TASK,
        id=f"{TASK}-{example.row}",
        text=prompt + cue,
        target=labels[options.index(example.true)],
        choices=tuple(labels),
        chance=1 / OPTIONS,
        majority=majority,
        mode=mode,
        extra={"letters": labels, "options": options, "category": example.category},
    )


def _likelihood_question(example: _Example, before: str, mode: str, where: str) -> Question:
    """`continuations` are mc1's choices, the true one first, and mc2's behind them."""
    if not example.several:
        raise BenchmarkError(
            f"{where}, row {example.row}: mode {mode} needs mc2_targets; give a file with them"
        )
    single = (example.true, *example.false)
    return Question(
        benchmark=BENCHMARK,
        task=TASK,
        id=f"{TASK}-{example.row}",
        text=f"{before}Q: {example.question}\nA:",
        target="0",
        chance=1 / len(single),
        majority=None,  # the true choice has no place of its own
        mode=mode,
        extra={
            "labels": [str(number) for number in range(len(single))],
            "continuations": [*single, *example.several],
            "mc2": [label == 1 for label in example.several.values()],
            "category": example.category,
        },
    )
