"""Scores pairs of answers to open questions by a judge model (the paper's section 4.2.1).

The paper's form, which is Vicuna's: the judge sees the question, the reference's answer and the candidate's,
and writes two scores from 1 to 10 on its first line; the result is the candidate's total as a share of the
reference's. The paper always shows the reference first, and judges are biased by position; here both orders
are judged, and their average, the verdicts that flip with the order and a rate at equal length are reported.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from orca_jax.artifacts import atomic_write
from orca_jax.config import OpenAIConfig
from orca_jax.evaluation import model, scoring, statistics
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Question
from orca_jax.progress import progress
from orca_jax.records import Message, Sampling
from orca_jax.teachers.endpoint import Request

BENCHMARK, REVIEWS = "judged", "reviews.jsonl"
REFERENCE_FIRST, CANDIDATE_FIRST = "reference_first", "candidate_first"
ORDERS = (REFERENCE_FIRST, CANDIDATE_FIRST)
SAMPLING = Sampling(temperature=0.2, max_tokens=1024)  # as Vicuna's review program; the paper names none
TIE = 0.1  # scores this close are a tie
GENERAL = "general"
_PLACE = re.compile(r"\{(question|answer_1|answer_2)\}")
FEWEST_LENGTHS = 10  # below, no rate at equal length is fitted


class Form(NamedTuple):
    """The prompt of a judge: `template` has {question}, {answer_1} and {answer_2}."""

    system: str
    template: str


DEFAULT_FORM = Form(
    "You grade answers of assistants with care and without favour.",
    "[Question]\n{question}\n\n[Answer of assistant 1]\n{answer_1}\n\n[Answer of assistant 2]\n{answer_2}\n\n"
    "[Task]\nGrade each of the two answers on a scale of 1 to 10 by how helpful, relevant, correct and "
    "detailed it is; higher is better. Your first line must hold nothing but the two grades, that of "
    "assistant 1 first, with a space between them. From the second line on, give your reasons. Which answer "
    "stands first must not matter.",
)


def read_forms(path: str | Path) -> dict[str, Form]:
    """The forms of a file in FastChat's `prompt.jsonl` format, by category; one must be `general`.

    Raises:
      BenchmarkError: a row lacks a field, or there is no general form; names file and line.
    """
    forms = {}
    for where, row in base.rows(path):
        names = ("category", "system_prompt", "prompt_template")
        category, system, template = (base.text_field(row, [name], where) for name in names)
        for name, text in (row.get("defaults") or {}).items():
            template = template.replace(f"{{{name}}}", text)
        forms[category] = Form(system, template)
    if GENERAL not in forms:
        raise BenchmarkError(f"{path}: no form of category {GENERAL!r}, which is for all other questions")
    return forms


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One request to the judge; `lengths` are the answers' characters, the reference's first."""

    question: Question
    order: str
    messages: tuple[Message, ...]
    lengths: tuple[int, int]


def comparisons(
    questions: Iterable[Question],
    reference: Mapping[str, str],
    candidate: Mapping[str, str],
    forms: Mapping[str, Form] | None = None,
    orders: Sequence[str] = ORDERS,
) -> list[Comparison]:
    """The requests to the judge: every question in every order.

    Args:
      reference, candidate: answers by the question's id, or by its file's own number.
      forms: by the question's category; by default `DEFAULT_FORM` for all.

    Raises:
      ValueError: an answer is missing, or an order is unknown.
    """
    if unknown := sorted(set(orders) - set(ORDERS)):
        raise ValueError(f"orders has {unknown[0]!r}; known: {', '.join(ORDERS)}")
    made, forms = [], forms or {GENERAL: DEFAULT_FORM}
    for question in questions:
        answers = (_answer(reference, question, "reference"), _answer(candidate, question, "candidate"))
        form = forms.get(str(question.extra.get("category")), forms[GENERAL])
        for order in orders:
            shown = answers if order == REFERENCE_FIRST else answers[::-1]
            messages = (Message("system", form.system), Message("user", _filled(form, question, *shown)))
            made.append(Comparison(question, order, messages, (len(answers[0]), len(answers[1]))))
    return made


def _filled(form: Form, question: Question, first: str, second: str) -> str:
    values = {"question": question.text, "answer_1": first, "answer_2": second}
    return _PLACE.sub(lambda place: values[place[1]], form.template)


def _answer(answers: Mapping[str, str], question: Question, side: str) -> str:
    for name in (question.id, str(question.extra.get("question_id")), str(question.extra.get("idx"))):
        if name in answers:
            return answers[name]
    raise ValueError(f"the {side} has no answer to {question.id}; give all answers, or fewer questions")


def read_answers(path: str | Path) -> dict[str, str]:
    """Answers by question id: our `replies.jsonl`, or lines {"question_id", "text"}.

    Raises:
      BenchmarkError: a line has no id or text, or an id occurs twice; names file and line.
    """
    found: dict[str, str] = {}
    for where, row in base.rows(path):
        name = str(row.get("id", row.get("question_id", "")))
        if not name or not isinstance(row.get("text"), str):
            raise BenchmarkError(f"{where}: needs 'id' or 'question_id', and 'text'; has {', '.join(row)}")
        if name in found:
            raise BenchmarkError(f"{where}: a second answer to {name}; keep one")
        found[name] = row["text"]
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """A judge's scores for the reference and the candidate, whatever the order; None if not well-formed."""

    question: str
    order: str
    scores: tuple[float, float] | None
    lengths: tuple[int, int] | None = None


def parse_scores(text: str) -> tuple[float, float] | None:
    """The two scores on the first line, in the order shown; None if it holds anything else."""
    words = text.strip().partition("\n")[0].replace(",", " ").split()
    try:
        scores = [float(word) for word in words]
    except ValueError:
        return None
    return _valid(scores)


def _valid(scores: Sequence[float]) -> tuple[float, float] | None:
    well_formed = len(scores) == 2 and all(math.isfinite(score) and score >= 0 for score in scores)
    return (float(scores[0]), float(scores[1])) if well_formed else None


def read_reviews(path: str | Path) -> list[Review]:
    """Reviews in Vicuna's form: lines with `question_id` and `score`, a pair as shown, or `text` instead.

    `order` and `lengths` may be given as `review_line` writes them; by default the reference is first. A pair
    below 0 means, there as here, that the review was not well-formed.

    Raises:
      BenchmarkError: the file is empty, a line is torn or has neither, or a question is reviewed twice in one
        order; names file and line.
    """
    found: dict[tuple[str, str], Review] = {}
    for where, row in base.rows(path):
        review = _review(row, where)
        if (review.question, review.order) in found:
            raise BenchmarkError(f"{where}: question {review.question} is reviewed twice ({review.order})")
        found[review.question, review.order] = review
    if not found:
        raise BenchmarkError(f"{path}: no review in it")
    return list(found.values())


def _review(row: Mapping[str, Any], where: str) -> Review:
    name, order = row.get("question_id", row.get("id")), row.get("order", REFERENCE_FIRST)
    scores, text, lengths = row.get("score"), row.get("text"), row.get("lengths")
    if isinstance(name, bool) or not isinstance(name, str | int) or order not in ORDERS:
        raise BenchmarkError(
            f"{where}: needs 'question_id', and 'order', if given, one of {', '.join(ORDERS)}"
        )
    if scores is None and not isinstance(text, str):
        raise BenchmarkError(f"{where}: a review needs 'score' (two numbers) or 'text'; has {', '.join(row)}")
    if scores is None:
        shown = parse_scores(str(text))
    elif isinstance(scores, list) and [type(score) in (int, float) for score in scores] == [True, True]:
        shown = _valid(scores)
    else:
        raise BenchmarkError(f"{where}: 'score' must be two numbers, not {scores!r:.60}")
    return Review(
        str(name),
        order,
        shown if shown is None or order == REFERENCE_FIRST else shown[::-1],
        (int(lengths[0]), int(lengths[1])) if isinstance(lengths, list) and len(lengths) == 2 else None,
    )


def review_line(comparison: Comparison, text: str) -> dict[str, Any]:
    """A judge's reply as a line that `read_reviews` reads."""
    return {
        "question_id": comparison.question.id,
        "order": comparison.order,
        "score": list(parse_scores(text) or (-1, -1)),
        "text": text,
        "lengths": list(comparison.lengths),
    }


def summarise(reviews: Sequence[Review]) -> dict[str, Any]:
    """What the reviews say of the candidate; rates are fractions, `per_cent` figures as the paper prints.

    {"questions", "reviews", "unparsed",
     "per_cent": {order: the candidate's total over the reference's, "both": over both orders},
     "interval": of the figure over all reviews, 95 %, by bootstrap over questions,
     "win", "tie", "loss", "win_rate": wins and half the ties, "stderr", "flips", "length_controlled"}

    A question's verdict is that of its orders if they agree, else a tie; `flips` is the share of those asked
    in both orders that disagree. `length_controlled` is the win rate that a logistic regression on the
    logarithm of the answers' lengths gives for answers of equal length. None: there is nothing to count.
    """
    parsed = [review for review in reviews if review.scores]
    verdicts: dict[str, list[int]] = collections.defaultdict(list)
    totals: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    for review in parsed:
        reference, candidate = review.scores or (0.0, 0.0)
        tie = abs(candidate - reference) <= TIE
        verdicts[review.question].append(0 if tie else int(np.sign(candidate - reference)))
        totals[review.question] += reference, candidate
    flips = [len(set(both)) > 1 for both in verdicts.values() if len(both) == len(ORDERS)]
    of_question = {name: both[0] if len(set(both)) == 1 else 0 for name, both in verdicts.items()}
    rate = statistics.mean([(1 + sign) / 2 for sign in of_question.values()]) if of_question else None
    by_order = {order: [r for r in parsed if r.order == order] for order in {r.order: None for r in parsed}}
    if len(by_order) == len(ORDERS):
        by_order["both"] = parsed
    return {
        "questions": len({review.question for review in reviews}),
        "reviews": len(reviews),
        "unparsed": 1 - len(parsed) / len(reviews),
        "per_cent": {name: _per_cent(found) for name, found in by_order.items()},
        "interval": [100 * bound for bound in statistics.bootstrap_interval(list(totals.values()))]
        if totals
        else None,
        **{
            name: float(np.mean([found == sign for found in of_question.values()])) if of_question else None
            for name, sign in (("win", 1), ("tie", 0), ("loss", -1))
        },
        "win_rate": rate and rate.value,
        "stderr": rate and rate.stderr,
        "flips": float(np.mean(flips)) if flips else None,
        "length_controlled": length_controlled(of_question, parsed),
    }


def _per_cent(reviews: Sequence[Review]) -> float:
    reference, candidate = np.array([review.scores for review in reviews]).sum(axis=0)
    if not reference:
        raise ValueError("the reference has a score of 0 in every review: no per cent of it can be given")
    return float(100 * candidate / reference)


def length_controlled(verdicts: Mapping[str, int], reviews: Iterable[Review]) -> float | None:
    """The win rate at equal length; None where fewer than `FEWEST_LENGTHS` questions have lengths."""
    lengths = {r.question: r.lengths for r in reviews if r.lengths and min(r.lengths) > 0}
    if len(lengths) < FEWEST_LENGTHS:
        return None
    longer = np.log([length[1] / length[0] for length in lengths.values()])
    won = np.array([(1 + verdicts[name]) / 2 for name in lengths])

    def loss(weights: np.ndarray) -> float:
        scores = weights[0] + weights[1] * longer
        fit = np.sum(won * np.logaddexp(0, -scores) + (1 - won) * np.logaddexp(0, scores))
        return float(fit + 0.01 * weights @ weights)  # keeps it finite where length decides all

    return float(special.expit(optimize.minimize(loss, np.zeros(2)).x[0]))


# With files


def judge(
    questions: Sequence[Question],
    reference: Mapping[str, str],
    candidate: Mapping[str, str],
    endpoint: OpenAIConfig,
    out: Path,
    *,
    forms: Mapping[str, Form] | None = None,
    orders: Sequence[str] = ORDERS,
) -> dict[str, Any]:
    """Lets a model behind an API review every question, and writes reviews and scores, which are returned.

    Raises:
      ValueError: an answer is missing.
      EvaluationError: a review is missing; run again, it pays for none twice.
    """
    asked = comparisons(questions, reference, candidate, forms, orders)
    out.mkdir(parents=True, exist_ok=True)
    requests, counter = [Request(comparison.messages, SAMPLING) for comparison in asked], itertools.count(1)
    with progress(f"reviews by {endpoint.model}", len(requests)) as report:
        replies = model.endpoint_replies(
            endpoint, requests, out / "ledger.sqlite", lambda _: report(next(counter))
        )
    with atomic_write(out / REVIEWS) as file:
        for comparison, reply in zip(asked, replies, strict=True):
            row = review_line(comparison, reply.text) | {"reviewer_id": endpoint.model}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return score_reviews(out / REVIEWS, out)


def score_reviews(file: Path, out: Path) -> dict[str, Any]:
    """Writes scores.json: what the reviews of a file say of the candidate."""
    scores = {"benchmark": BENCHMARK, "mode": BENCHMARK, **summarise(read_reviews(file))}
    scoring.write_scores(out, scores)
    return scores


def text(scores: Mapping[str, Any]) -> str:
    """Scores of reviews as lines: per cent of the reference, with one decimal."""
    shown = [
        f"candidate over reference, {order}: {per_cent:.1f} %"
        for order, per_cent in scores["per_cent"].items()
    ]
    if scores["interval"]:
        shown.append("95 % interval (questions drawn): {:.1f} to {:.1f} %".format(*scores["interval"]))
    rates = {name: scores[name] for name in ("win", "tie", "loss", "flips", "length_controlled", "unparsed")}
    shown += [f"{name}: {100 * rate:.1f} %" for name, rate in rates.items() if rate is not None]
    return "\n".join([*shown, f"questions: {scores['questions']}, reviews: {scores['reviews']}"])
