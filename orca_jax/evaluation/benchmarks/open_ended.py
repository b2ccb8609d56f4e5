"""Open questions that a judge scores (the paper's section 4.2.1): Vicuna, Awesome and WizardLM prompts.

  vicuna_prompts    question.jsonl, 80 rows (`question_id`, `text` or `turns`, `category`)
  awesome_prompts   prompts.csv (`act`, `prompt`), 163 rows until June 2023, then 164; the paper has 164
  wizardlm_prompts  WizardLM_testset.jsonl, 218 rows (`idx`, `Skill`, `Difficulty`, `Instruction`)
  own_prompts       any JSON lines with `question`, `prompt`, `instruction` or `text`

There is no target. The benchmark's name is that of the paper's scores in `published.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Document, Question

BENCHMARK = "gpt4_judge"
MODE = "open_ended"


class PromptSource(NamedTuple):
    """`sizes` of known files (none: any), the fields that may hold the `text`, and fields kept as `extra`."""

    sizes: tuple[int, ...]
    text: tuple[str, ...]
    extra: tuple[str, ...]


SOURCES: Mapping[str, PromptSource] = {
    "vicuna_prompts": PromptSource((80,), ("text", "turns"), ("category", "question_id")),
    "awesome_prompts": PromptSource((164, 163), ("prompt",), ("act",)),
    "wizardlm_prompts": PromptSource((218,), ("Instruction",), ("Skill", "Difficulty", "idx")),
    "own_prompts": PromptSource(
        (), ("question", "prompt", "instruction", "text"), ("category", "question_id")
    ),
}


def questions(path: str | Path, *, source: str, mode: str = MODE) -> list[Question]:
    """The prompts of one of `SOURCES`, in file order."""
    sizes, names, kept = SOURCES[source]
    path, made = Path(path), list[Question]()
    for number, (where, row) in enumerate(base.rows(path)):
        turns = row.get("turns")
        first = {"turns": turns[0]} if isinstance(turns, list) and turns else {}
        text = base.text_field(row | first, names, where)
        extra = {key: row[key] for key in kept if key in row}
        made.append(Question(BENCHMARK, source, f"{source}-{number}", text, "", mode=mode, extra=extra))
    base.check_size(path, len(made), sizes or [max(len(made), 1)])
    return made


def documents(path: str | Path, *, source: str) -> Iterator[Document]:
    """The prompts of one source; the benchmark is the source's name."""
    for question in questions(path, source=source):
        yield Document(source, question.id, question.text)
