"""Evaluation modes by name: how the answer of a reply is parsed, and when it is right.

orca                the paper's parser: the first capital letter in the task's range (section 4.2.2)
orca_cot, robust    the last well-formed answer (`extraction.robust`); the prompts differ
answer_is           what follows the last "answer is", compared letter by letter with the target
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Outcome, Reply

# What replies say for the labels of two BBH tasks.
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "sports_understanding": {"plausible": "yes", "implausible": "no"},
    "web_of_lies": {
        **dict.fromkeys(("tell the truth", "tells the truth", "telling the truth"), "Yes"),
        **dict.fromkeys(("lies", "lying"), "No"),
    },
}


def _first_capital(question: Question, reply: Reply) -> str | None:
    return extraction.first_capital(reply.text, question.extra.get("letters", extraction.PAPER_LETTERS))


def _robust(question: Question, reply: Reply) -> str | None:
    return extraction.robust(
        reply.text,
        question.choices,
        options=question.extra.get("options", ()),
        synonyms=_SYNONYMS.get(question.task, {}),
        form=extraction.form(question.target),
        finished=reply.outcome != Outcome.LENGTH,
    )


class Mode(NamedTuple):
    """`answer` gives None for a reply that has none; `alike` says whether a free answer equals a target."""

    answer: Callable[[Question, Reply], str | None]
    alike: Callable[[str, str], bool] = operator.eq

    def is_correct(self, answer: str, question: Question) -> bool:
        return (operator.eq if question.choices else self.alike)(answer, question.target)


MODES: Mapping[str, Mode] = {
    "orca": Mode(_first_capital),
    "orca_cot": Mode(_robust, extraction.same_answer),
    "robust": Mode(_robust, extraction.same_answer),
    "answer_is": Mode(lambda question, reply: extraction.answer_is(reply.text)),
}


def mode(name: str) -> Mode:
    """Raises ValueError, naming all modes, if there is no such one."""
    if name not in MODES:
        raise ValueError(f"unknown evaluation mode {name!r}; known: {', '.join(MODES)}")
    return MODES[name]
