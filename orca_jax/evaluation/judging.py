"""Scores pairs of answers to open questions by a judge model (the paper's section 4.2.1).

The paper's form, which is Vicuna's: the judge sees the question, the reference's answer and the candidate's,
and writes two scores from 1 to 10 on its first line; the result is the candidate's total as a share of the
reference's. The paper always shows the reference first, and judges are biased by position; here both orders
are judged, and their average, the verdicts that flip with the order and a rate at equal length are reported.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from orca_jax import files
from orca_jax.config_teachers import OpenAIConfig
from orca_jax.evaluation import model, parts, scoring, statistics
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Question
from orca_jax.evaluation.parts import Part
from orca_jax.progress import progress
from orca_jax.records import Message, Sampling
from orca_jax.teachers.endpoint import Request

BENCHMARK, REVIEWS = "judged", "reviews.jsonl"
REFERENCE_FIRST, CANDIDATE_FIRST = ORDERS = ("reference_first", "candidate_first")
SAMPLING = Sampling(temperature=0.2, max_tokens=1024)  # as Vicuna's review program; the paper names none
TIE = 0.1  # scores this close are a tie
GENERAL = "general"
FEWEST_LENGTHS = 10  # below, no rate at equal length is fitted
_PLACE = re.compile(r"\{(question|answer_1|answer_2)\}")


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


class Comparison(NamedTuple):
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
        names = (question.id, str(question.extra.get("question_id")), str(question.extra.get("idx")))
        answers = []
        for side, given in (("reference", reference), ("candidate", candidate)):
            if not (known := [name for name in names if name in given]):
                raise ValueError(
                    f"the {side} has no answer to {question.id}; give all answers, or fewer questions"
                )
            answers.append(given[known[0]])
        form = forms.get(str(question.extra.get("category")), forms[GENERAL])
        for order in orders:
            first, second = answers if order == REFERENCE_FIRST else answers[::-1]
            values = {"question": question.text, "answer_1": first, "answer_2": second}
            text = _PLACE.sub(lambda place: values[place[1]], form.template)  # noqa: B023  (called here)
            messages = (Message("system", form.system), Message("user", text))
            made.append(Comparison(question, order, messages, (len(answers[0]), len(answers[1]))))
    return made


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


class Review(NamedTuple):
    """A judge's scores for the reference and the candidate, whatever the order; None if not well-formed."""

    question: str
    order: str
    scores: tuple[float, float] | None
    lengths: tuple[int, int] | None = None


def parse_scores(text: str) -> tuple[float, float] | None:
    """The two scores on the first line, in the order shown; None if it holds anything else."""
    try:
        scores = [float(word) for word in text.strip().partition("\n")[0].replace(",", " ").split()]
    except ValueError:
        return None
    well_formed = len(scores) == 2 and all(math.isfinite(score) and score >= 0 for score in scores)
    return (scores[0], scores[1]) if well_formed else None


def review_line(comparison: Comparison, text: str) -> dict[str, Any]:
    """A judge's reply as a line that `read_reviews` reads."""
    return {
        "question_id": comparison.question.id,
        "order": comparison.order,
        "score": list(parse_scores(text) or (-1, -1)),
        "text": text,
        "lengths": list(comparison.lengths),
    }


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
        name, order = row.get("question_id", row.get("id")), row.get("order", REFERENCE_FIRST)
        scores, text, lengths = row.get("score"), row.get("text"), row.get("lengths")
        if type(name) not in (str, int) or order not in ORDERS:
            known = ", ".join(ORDERS)
            raise BenchmarkError(f"{where}: needs 'question_id', and 'order', if given, one of {known}")
        is_pair = isinstance(scores, list) and [type(one) in (int, float) for one in scores] == [True, True]
        if scores is not None and not is_pair:
            raise BenchmarkError(f"{where}: 'score' must be two numbers, not {scores!r:.60}")
        if scores is None and not isinstance(text, str):
            has = ", ".join(row)
            raise BenchmarkError(f"{where}: a review needs 'score' (two numbers) or 'text'; has {has}")
        if (str(name), order) in found:
            raise BenchmarkError(f"{where}: question {name} is reviewed twice ({order})")
        shown = parse_scores(f"{scores[0]} {scores[1]}" if scores else str(text))
        shown = shown[::-1] if shown and order == CANDIDATE_FIRST else shown
        both = isinstance(lengths, list) and len(lengths) == 2
        sizes = (int(lengths[0]), int(lengths[1])) if lengths and both else None
        found[str(name), order] = Review(str(name), order, shown, sizes)
    if not found:
        raise BenchmarkError(f"{path}: no review in it")
    return list(found.values())


def summarise(reviews: Sequence[Review]) -> dict[str, Any]:
    """What the reviews say of the candidate; rates are fractions, `per_cent` figures as the paper prints.

    `per_cent` is the candidate's total over the reference's by order, and "both"; `interval` is of the figure
    over all reviews, by bootstrap over questions. A question's verdict is that of its orders if they agree,
    else a tie; `flips` is the share of those asked in both orders that disagree. `win_rate` counts half the
    ties; `length_controlled` is a logistic regression's for answers of equal length. None: nothing to count.

    Raises:
      ValueError: the reference has a score of 0 in every review.
    """
    parsed = [review for review in reviews if review.scores]
    found: dict[str, Any] = {
        "questions": len({review.question for review in reviews}),
        "reviews": len(reviews),
        "unparsed": 1 - len(parsed) / len(reviews),
        "per_cent": {},
    }
    if not parsed:
        rates = ("win", "tie", "loss", "win_rate", "stderr", "flips", "length_controlled")
        return {**found, "interval": None, **dict.fromkeys(rates)}
    by_order = collections.defaultdict[str, list[Review]](list)
    by_question = collections.defaultdict[str, list[Review]](list)
    for review in parsed:
        by_order[review.order].append(review)
        by_question[review.question].append(review)
    if len(by_order) == len(ORDERS):
        by_order["both"] = parsed
    for order, of_order in by_order.items():
        reference, candidate = np.array([review.scores for review in of_order]).sum(axis=0)
        if not reference:
            raise ValueError("the reference has a score of 0 in every review: no per cent of it can be given")
        found["per_cent"][order] = float(100 * candidate / reference)
    totals, verdicts, flips = list[np.ndarray](), dict[str, int](), list[bool]()
    for question, of_question in by_question.items():
        scores = np.array([review.scores for review in of_question])
        better = scores[:, 1] - scores[:, 0]
        signs = np.where(abs(better) <= TIE, 0, np.sign(better)).astype(int)
        totals.append(scores.sum(axis=0))
        verdicts[question] = int(signs[0]) if len(set(signs)) == 1 else 0
        if len(signs) == len(ORDERS):
            flips.append(len(set(signs)) > 1)
    outcomes = np.array(list(verdicts.values()))
    rate = statistics.mean((1 + outcomes) / 2)
    lengths = {r.question: r.lengths for r in parsed if r.lengths and min(r.lengths) > 0}
    return {
        **found,
        "interval": [100 * bound for bound in statistics.bootstrap_interval(totals)],
        "win": float(np.mean(outcomes == 1)),
        "tie": float(np.mean(outcomes == 0)),
        "loss": float(np.mean(outcomes == -1)),
        "win_rate": rate.value,
        "stderr": rate.stderr,
        "flips": float(np.mean(flips)) if flips else None,
        "length_controlled": _length_controlled(verdicts, lengths),
    }


def _length_controlled(verdicts: Mapping[str, int], lengths: Mapping[str, tuple[int, int]]) -> float | None:
    """The win rate at equal length; None where fewer than `FEWEST_LENGTHS` questions have lengths."""
    if len(lengths) < FEWEST_LENGTHS:
        return None
    longer = np.log([length[1] / length[0] for length in lengths.values()])
    won = np.array([(1 + verdicts[name]) / 2 for name in lengths])

    def loss(weights: np.ndarray) -> float:
        scores = weights[0] + weights[1] * longer
        fit = np.sum(won * np.logaddexp(0, -scores) + (1 - won) * np.logaddexp(0, scores))
        return float(fit + 0.01 * weights @ weights)  # keeps it finite where length decides all

    return float(special.expit(optimize.minimize(loss, np.zeros(2)).x[0]))


def judge(
    questions: Sequence[Question],
    reference: Mapping[str, str],
    candidate: Mapping[str, str],
    endpoint: OpenAIConfig,
    out: Path,
    *,
    forms: Mapping[str, Form] | None = None,
    orders: Sequence[str] = ORDERS,
    part: Part = parts.WHOLE,
) -> dict[str, Any]:
    """Lets a model behind an API review every question, and writes reviews and scores, which are returned.

    Args:
      part: of the reviews, which is only asked for, with a ledger of its own; nothing is scored then.

    Raises:
      ValueError: an answer is missing.
      EvaluationError: a review is missing; run again, it pays for none twice.
    """
    asked = comparisons(questions, reference, candidate, forms, orders)
    out.mkdir(parents=True, exist_ok=True)
    requests, counter = [Request(comparison.messages, SAMPLING) for comparison in asked], itertools.count(1)
    requests = [requests[number] for number in parts.numbers(len(requests), part)]
    ledger = out / model.LEDGER
    with progress(f"reviews by {endpoint.model}", len(requests)) as report:
        replies = model.endpoint_replies(
            endpoint, requests, parts.own(ledger, part), parts.others(ledger, part),
            lambda _: report(next(counter)),
        )  # fmt: skip
    if part != parts.WHOLE:
        return {}
    rows = (review_line(one, reply.text) for one, reply in zip(asked, replies))
    files.write_json_rows(out / REVIEWS, (row | {"reviewer_id": endpoint.model} for row in rows))
    return score_reviews(out / REVIEWS, out)


def score_reviews(file: Path, out: Path) -> dict[str, Any]:
    """Writes scores.json: what the reviews of a file say of the candidate."""
    scores = {"benchmark": BENCHMARK, "mode": BENCHMARK, **summarise(read_reviews(file))}
    scoring.write_scores(out, scores)
    return scores


def text(scores: Mapping[str, Any]) -> str:
    """Scores of reviews as lines: per cent of the reference, with one decimal."""
    by_order = scores["per_cent"].items()
    shown = [f"candidate over reference, {order}: {value:.1f} %" for order, value in by_order]
    if scores["interval"]:
        shown.append("95 % interval (questions drawn): {:.1f} to {:.1f} %".format(*scores["interval"]))
    rates = {name: scores[name] for name in ("win", "tie", "loss", "flips", "length_controlled", "unparsed")}
    shown += [f"{name}: {100 * rate:.1f} %" for name, rate in rates.items() if rate is not None]
    return "\n".join([*shown, f"questions: {scores['questions']}, reviews: {scores['reviews']}"])
