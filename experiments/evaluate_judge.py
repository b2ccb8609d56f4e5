"""Lets an endpoint judge a candidate's answers to open questions beside a reference's, in both orders.

    python -m experiments.evaluate judge --benchmark=vicuna_prompts --path=question.jsonl --judge=JUDGE.json
        --reference=ANSWERS.jsonl --candidate=ANSWERS.jsonl --out=DIR

JUDGE.json holds an endpoint's settings ({"model": ...}, see config.OpenAIConfig). ANSWERS are a
`replies.jsonl` of ours, or lines {"question_id", "text"}. DIR gets the ledger, reviews.jsonl and scores.json;
run again, it pays for no review twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax.artifacts import atomic_write
from orca_jax.config import OpenAIConfig
from orca_jax.evaluation import judging
from orca_jax.evaluation.benchmarks import open_ended, registry
from orca_jax.evaluation.judging import Comparison, Form
from orca_jax.evaluation.questions import Question
from orca_jax.experiments import evaluate_score, evaluate_who, launch, options
from orca_jax.progress import progress
from orca_jax.teachers.endpoint import Request

REVIEWS = "reviews.jsonl"


def judge(
    questions: Sequence[Question],
    reference: Mapping[str, str],
    candidate: Mapping[str, str],
    endpoint: OpenAIConfig,
    out: Path,
    *,
    forms: Mapping[str, Form] | None = None,
    orders: Sequence[str] = judging.ORDERS,
) -> dict[str, Any]:
    """Asks for every review and writes them with their summary, which is returned."""
    asked = judging.comparisons(questions, reference, candidate, forms, orders)
    out.mkdir(parents=True, exist_ok=True)
    texts = _reviews(asked, endpoint, out / "ledger.sqlite")
    with atomic_write(out / REVIEWS) as file:
        for comparison, text in zip(asked, texts, strict=True):
            row = judging.review_line(comparison, text) | {"reviewer_id": endpoint.model}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return evaluate_score.judge(out / REVIEWS, out)


def _reviews(asked: Sequence[Comparison], endpoint: OpenAIConfig, ledger: Path) -> list[str]:
    requests = [Request(comparison.messages, judging.SAMPLING) for comparison in asked]
    done = 0
    with progress(f"asking {endpoint.model}", len(requests)) as report:

        def count(_: Any) -> None:
            nonlocal done
            done += 1
            report(done)

        replies = evaluate_who.ask_endpoint(endpoint, requests, ledger, count)
    return [reply.text for reply in replies]


def main(arguments: Sequence[str]) -> None:
    given = options.parser("evaluate_judge").parse_args(arguments)

    def work() -> None:
        scores = judge(
            registry.questions(given.benchmark, given.path, mode=open_ended.MODE),
            judging.read_answers(given.reference),
            judging.read_answers(given.candidate),
            evaluate_who.read_endpoint(given.judge),
            given.out,
            forms=judging.read_forms(given.forms) if given.forms else None,
            orders=given.orders,
        )
        print(evaluate_score.judged_lines(scores))

    launch.checked(work)
