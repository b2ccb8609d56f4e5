"""Every way of reading a reply, by name: what its answer is, and whether that is right.

orca                the paper's parser: the first capital letter in the task's range (section 4.2.2)
orca_cot, robust    the last well-formed answer (`extraction.robust`); the prompts differ
answer_is           what follows the last "answer is", compared letter by letter with the target
agieval_upstream    AGIEval's own: the first of A to F in the reply to its second question
lm_eval_zeroshot, lm_eval_cot    lm-eval's filter `flexible-extract` for BBH; with `_strict`, `strict-match`
lm_eval_loglik      the likeliest choice by summed log-likelihood, a tie going to the first, as lm-eval has
                    it; beside it `acc_norm` (likelihood a character) or TruthfulQA's `mc2`
loglik              the same, a tie being no answer
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from orca_jax.evaluation import extraction, lm_eval_filters
from orca_jax.evaluation.lm_eval_filters import FIRST, LAST
from orca_jax.evaluation.questions import Question
from orca_jax.records import Outcome, Reply

# What replies say for the labels of two BBH tasks.
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "sports_understanding": {"plausible": "yes", "implausible": "no"},
    "web_of_lies": {
        **dict.fromkeys(("tell the truth", "tells the truth", "telling the truth"), "Yes"),
        **dict.fromkeys(("lies", "lying"), "No"),
    },
}
LOG_LIKELIHOODS = "log_likelihoods"  # a reply's `raw` holds them in the order of the question's continuations


def _same(answer: str, question: Question) -> bool:
    return answer == question.target


def _same_or_alike(answer: str, question: Question) -> bool:
    return _same(answer, question) if question.choices else extraction.same_answer(answer, question.target)


def _no_metrics(question: Question, reply: Reply) -> Mapping[str, float]:
    return {}


class Mode(NamedTuple):
    """`answer` is None where the reply has none; `metrics` are numbers beside right or wrong."""

    answer: Callable[[Question, Reply], str | None]
    is_correct: Callable[[str, Question], bool] = _same
    metrics: Callable[[Question, Reply], Mapping[str, float]] = _no_metrics


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


def _answer_is(question: Question, reply: Reply) -> str | None:
    return extraction.answer_is(reply.text)


def _flexible(question: Question, reply: Reply, *, place: int) -> str | None:
    given = question.extra.get("input", "")
    if not given and question.task == "word_sorting":
        given = f"List: {question.target}"  # has the same words
    return lm_eval_filters.flexible(question.task, reply.text, given, place=place)


def _strict(question: Question, reply: Reply, *, step_by_step: bool) -> str | None:
    return lm_eval_filters.strict(reply.text, step_by_step=step_by_step)


def _exact_match(answer: str, question: Question) -> bool:
    return lm_eval_filters.exact_match(answer, question.target)


def _likeliest(question: Question, reply: Reply, *, ties: bool) -> str | None:
    """The likeliest of the labelled continuations, which come first."""
    labels = question.extra["labels"]
    scores = np.asarray(reply.raw[LOG_LIKELIHOODS][: len(labels)], float)
    best = np.flatnonzero(scores == scores.max())
    return str(labels[best[0]]) if ties or len(best) == 1 else None


def _likelihood_metrics(question: Question, reply: Reply) -> Mapping[str, float]:
    scores = np.asarray(reply.raw[LOG_LIKELIHOODS], float)
    if true := question.extra.get("mc2"):
        return {"mc2": _true_share(scores[-len(true) :], np.asarray(true, bool))}
    sizes = [len(text) for text in question.extra["continuations"]]
    return {"acc_norm": float(question.extra["labels"][int(np.argmax(scores / sizes))] == question.target)}


def _true_share(scores: np.ndarray, true: np.ndarray) -> float:
    """The probability of the true choices among all of them; both [choices]."""
    shares = np.exp(scores - scores.max())
    return float(shares[true].sum() / shares.sum())


_FLEXIBLE_FIRST = functools.partial(_flexible, place=FIRST)
_FLEXIBLE_LAST = functools.partial(_flexible, place=LAST)
_STRICT_WHOLE = functools.partial(_strict, step_by_step=False)
_STRICT_STEPS = functools.partial(_strict, step_by_step=True)

LM_EVAL_BBH = ("lm_eval_zeroshot", "lm_eval_cot", "lm_eval_zeroshot_strict", "lm_eval_cot_strict")
LIKELIHOOD = ("lm_eval_loglik", "loglik")
VERBATIM = ("answer_is", *LM_EVAL_BBH)  # the target is compared as the files have it, "(B)"
MODES: Mapping[str, Mode] = {
    "orca": Mode(_first_capital),
    "orca_cot": Mode(_robust, _same_or_alike),
    "robust": Mode(_robust, _same_or_alike),
    "answer_is": Mode(_answer_is),
    "agieval_upstream": Mode(_first_capital),
    "lm_eval_zeroshot": Mode(_FLEXIBLE_FIRST, _exact_match),
    "lm_eval_cot": Mode(_FLEXIBLE_LAST, _exact_match),
    "lm_eval_zeroshot_strict": Mode(_STRICT_WHOLE, _exact_match),
    "lm_eval_cot_strict": Mode(_STRICT_STEPS, _exact_match),
    "lm_eval_loglik": Mode(functools.partial(_likeliest, ties=True), _same, _likelihood_metrics),
    "loglik": Mode(functools.partial(_likeliest, ties=False), _same, _likelihood_metrics),
}


def mode(name: str) -> Mode:
    """Raises ValueError, naming all modes, if there is no such one."""
    if name not in MODES:
        raise ValueError(f"unknown evaluation mode {name!r}; known: {', '.join(MODES)}")
    return MODES[name]
