"""Scores replies made anywhere.

    python -m experiments.evaluate score --benchmark=bbh --mode=answer_is --replies=FILE.jsonl --out=DIR
    python -m experiments.evaluate score --benchmark=judged --replies=REVIEWS.jsonl --out=DIR

FILE has lines {"task", "id", "target", "reply"} (see evaluation.replies), REVIEWS lines as Vicuna's reviews
have them (see evaluation.judging). DIR gets items.jsonl and scores.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orca_jax.artifacts import atomic_write
from orca_jax.evaluation import judging, modes, replies, scoring
from orca_jax.evaluation.benchmarks import registry
from orca_jax.experiments import launch, options
from orca_jax.reporting import tables

JUDGED = "judged"


def score(
    benchmark: str, mode: str, file: Path, out: Path, path: str = "", size: int | None = None
) -> dict[str, Any]:
    """Writes the items and scores of a file's replies.

    Args:
      path: the benchmark's folder or file, and `size` the rows that it must have, as `registry.questions`.
    """
    lines = replies.read(file)
    asked = registry.questions(benchmark, path, mode=mode, size=size) if path else []
    questions = replies.questions(lines, benchmark=benchmark, mode=mode, asked=asked)
    answered = [line.reply for line in lines]
    items = scoring.score(questions, answered, seed=0, mode=mode, system_message_id=None)
    groups = registry.BENCHMARKS[benchmark].groups if benchmark in registry.BENCHMARKS else ()
    scores = scoring.summarise(items, questions, groups=groups)
    scoring.write(out, items, scores)
    return scores


def judge(file: Path, out: Path) -> dict[str, Any]:
    """Writes what a file's reviews say of the candidate."""
    scores = {"benchmark": JUDGED, "mode": JUDGED, **judging.summarise(judging.read_reviews(file))}
    with atomic_write(out / scoring.SCORES) as written:
        json.dump(scores, written, indent=1, ensure_ascii=False)
        written.write("\n")
    return scores


def judged_lines(scores: dict[str, Any]) -> str:
    """What is printed of reviews: per cent of the reference, with one decimal."""
    shown = [
        f"candidate over reference, {order}: {per_cent:.1f} %"
        for order, per_cent in scores["per_cent"].items()
    ]
    if scores["interval"]:
        shown.append("95 % interval (questions drawn): {:.1f} to {:.1f} %".format(*scores["interval"]))
    rates = {name: scores[name] for name in ("win", "tie", "loss", "flips", "length_controlled", "unparsed")}
    shown += [f"{name}: {100 * rate:.1f} %" for name, rate in rates.items() if rate is not None]
    return "\n".join([*shown, f"questions: {scores['questions']}, reviews: {scores['reviews']}"])


def main(arguments: Sequence[str]) -> None:
    parser = options.parser("evaluate_score")
    given = parser.parse_args(arguments)
    if not given.mode and given.benchmark != JUDGED:
        parser.error("give --mode, one of " + ", ".join(modes.MODES))

    def work() -> None:
        if given.benchmark == JUDGED:
            print(judged_lines(judge(given.replies, given.out)))
            return
        print(
            tables.score_table(
                score(given.benchmark, given.mode, given.replies, given.out, given.path, given.rows)
            )
        )

    launch.checked(work)
