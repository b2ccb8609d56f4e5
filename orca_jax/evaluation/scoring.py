"""From replies to items to scores: pure functions, so that old or foreign replies can be scored again."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orca_jax import record_files
from orca_jax.artifacts import atomic_write
from orca_jax.evaluation import extraction, statistics
from orca_jax.evaluation.questions import Question
from orca_jax.evaluation.statistics import Estimate
from orca_jax.records import Item, Outcome, Reply

ITEMS, SCORES = "items.jsonl", "scores.json"
PARSED_OUTCOMES = (Outcome.OK, Outcome.LENGTH)
Details = Callable[[Question, Reply], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A benchmark's named aggregate: unweighted over tasks (`macro`) or weighted by size (`micro`)."""

    name: str
    tasks: tuple[str, ...]
    kind: Literal["macro", "micro"]


def _first_capital(question: Question, reply: Reply) -> str | None:
    return extraction.first_capital(reply.text, question.extra["letters"])


def _robust(question: Question, reply: Reply) -> str | None:
    if reply.outcome == Outcome.LENGTH and extraction.answer_is(reply.text) is None:
        return None  # what a cut-off chain of thought mentions last is not its answer
    return extraction.robust(reply.text, question.choices, options=question.extra.get("options", ()))


EXTRACTORS: Mapping[str, Callable[[Question, Reply], str | None]] = {
    "orca": _first_capital,
    "orca_cot": _robust,
    "robust": _robust,
}


def score(
    questions: Sequence[Question],
    replies: Sequence[Reply],
    *,
    seed: int,
    mode: str,
    system_message_id: int | None,
    details: Details | None = None,
) -> list[Item]:
    """One item a question; `replies` are in the same order.

    A reply is parsed if its outcome is ok, or length (then `robust` modes ask for an "answer is"); of
    others, and of replies without a well-formed answer, `answer` is None.

    Args:
      mode: a key of `EXTRACTORS`.
      details: what to keep in an item's `extra`; the question's own `extra` is not kept.

    Raises:
      ValueError: the mode is unknown, or there are not as many replies as questions.
    """
    if mode not in EXTRACTORS:
        raise ValueError(f"unknown evaluation mode {mode!r}; known: {', '.join(EXTRACTORS)}")
    if len(questions) != len(replies):
        raise ValueError(f"{len(questions)} questions but {len(replies)} replies; every question needs one")
    items = []
    for question, reply in zip(questions, replies):
        answer = EXTRACTORS[mode](question, reply) if reply.outcome in PARSED_OUTCOMES else None
        item = Item(
            benchmark=question.benchmark,
            task=question.task,
            id=question.id,
            seed=seed,
            mode=mode,
            outcome=reply.outcome,
            correct=_is_correct(answer, question),
            answer=answer,
            target=question.target,
            system_message_id=system_message_id,
            extra=details(question, reply) if details else {},
        )
        items.append(item)
    return items


def _is_correct(answer: str | None, question: Question) -> bool:
    if answer is None:
        return False
    return answer == question.target if question.choices else extraction.same_answer(answer, question.target)


def summarise(
    items: Sequence[Item], questions: Iterable[Question], *, groups: Sequence[Group] = ()
) -> dict[str, Any]:
    """The scores of one benchmark under one mode and system message; all rates are fractions.

    {"benchmark", "mode", "system_message_id", "seeds",
     "tasks": {task: {"n", "accuracy", "stderr", "unparsed", "chance", "majority"}},
     "macro", "micro": {"tasks", "n", "accuracy", "stderr", "unparsed", "chance"},
     "groups": {name: the same, and "kind", "missing": the group's tasks that were not examined}}

    `n` counts questions. Under several seeds a question counts with its mean, so that the standard
    error is that of drawing questions. A group of which no task was examined is left out, and one with
    `missing` tasks is the aggregate over the others.

    Raises:
      ValueError: there is no item, items of several examinations are mixed, or one has no question.
    """
    by_key = {question.key: question for question in questions}
    head = _head(items)
    by_task: dict[str, list[Item]] = collections.defaultdict(list)
    for item in items:
        if (item.benchmark, item.task, item.id) not in by_key:
            raise ValueError(f"item {item.benchmark}/{item.task}/{item.id} belongs to none of the questions")
        by_task[item.task].append(item)
    tasks = {task: _task_scores(by_task[task], by_key) for task in sorted(by_task)}
    return {
        **head,
        "tasks": tasks,
        "macro": _aggregate(tasks, "macro"),
        "micro": _aggregate(tasks, "micro"),
        "groups": {
            group.name: _group_scores(group, tasks)
            for group in groups
            if not tasks.keys().isdisjoint(group.tasks)
        },
    }


def _head(items: Sequence[Item]) -> dict[str, Any]:
    heads = {(item.benchmark, item.mode, item.system_message_id) for item in items}
    if len(heads) != 1:
        found = ", ".join(map(str, sorted(heads, key=str))) or "no item"
        raise ValueError(f"scores are of one (benchmark, mode, system message), found {found}")
    benchmark, mode, system_message_id = heads.pop()
    return {
        "benchmark": benchmark,
        "mode": mode,
        "system_message_id": system_message_id,
        "seeds": sorted({item.seed for item in items}),
    }


def _task_scores(items: Sequence[Item], by_key: Mapping[tuple[str, str, str], Question]) -> dict[str, Any]:
    by_id: dict[str, list[bool]] = collections.defaultdict(list)
    for item in items:
        by_id[item.id].append(item.correct)
    asked = [by_key[items[0].benchmark, items[0].task, item_id] for item_id in by_id]
    accuracy, stderr = statistics.mean([np.mean(right) for right in by_id.values()])
    return {
        "n": len(by_id),
        "accuracy": accuracy,
        "stderr": stderr,
        "unparsed": sum(item.answer is None for item in items) / len(items),
        "chance": float(np.mean([question.chance for question in asked])),
        "majority": asked[0].majority,
    }


def _aggregate(tasks: Mapping[str, Mapping[str, Any]], kind: Literal["macro", "micro"]) -> dict[str, Any]:
    sizes = [scores["n"] for scores in tasks.values()]
    weights = sizes if kind == "micro" else [1] * len(sizes)
    estimates = [Estimate(scores["accuracy"], scores["stderr"]) for scores in tasks.values()]
    accuracy, stderr = statistics.micro_mean(estimates, weights)
    rates = {
        key: float(np.average([scores[key] for scores in tasks.values()], weights=weights))
        for key in ("unparsed", "chance")
    }
    return {"tasks": len(tasks), "n": sum(sizes), "accuracy": accuracy, "stderr": stderr, **rates}


def _group_scores(group: Group, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    present = {task: tasks[task] for task in group.tasks if task in tasks}
    missing = [task for task in group.tasks if task not in tasks]
    return {"kind": group.kind, **_aggregate(present, group.kind), "missing": missing}


def write(directory: str | Path, items: Iterable[Item], scores: Mapping[str, Any]) -> None:
    """Writes `items.jsonl` and `scores.json`, each whole or not at all."""
    record_files.write_jsonl(Path(directory) / ITEMS, items)
    with atomic_write(Path(directory) / SCORES) as file:
        json.dump(scores, file, indent=1, ensure_ascii=False)
        file.write("\n")
