"""Scores replies: replies to items, items to scores. Pure functions, so any replies can be scored again.

A mode says how the answer of a reply is parsed, and when it is right:
  orca                the paper's parser: the first capital letter in the task's range (section 4.2.2)
  orca_cot, robust    the last well-formed answer (`extraction.robust`); the prompts differ
  bbeh                as BBEH's published evaluator reads and compares
  answer_is           what follows the last "answer is", compared letter by letter with the target
"""

from __future__ import annotations

import collections
import json
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax import files, plugins
from orca_jax.artifacts import atomic_write
from orca_jax.evaluation import extraction, statistics
from orca_jax.evaluation.benchmarks.base import Group, Question
from orca_jax.evaluation.statistics import Estimate
from orca_jax.records import Item, Outcome, Reply

ITEMS, SCORES = "items.jsonl", "scores.json"
PARSED_OUTCOMES = (Outcome.OK, Outcome.LENGTH)
# What replies say for the labels of two BBH tasks.
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "sports_understanding": {"plausible": "yes", "implausible": "no"},
    "web_of_lies": {
        **dict.fromkeys(("tell the truth", "tells the truth", "telling the truth"), "Yes"),
        **dict.fromkeys(("lies", "lying"), "No"),
    },
}


def _robust(question: Question, reply: Reply) -> str | None:
    return extraction.robust(
        reply.text,
        question.choices,
        options=question.extra.get("options", ()),
        synonyms=_SYNONYMS.get(question.task, {}),
        form=extraction.form(question.target),
        finished=reply.outcome != Outcome.LENGTH,
    )


# By mode: the answer of a reply, None where it has none.
OWN_MODES: dict[str, Callable[[Question, Reply], str | None]] = {
    "orca": lambda question, reply: extraction.first_capital(
        reply.text, question.extra.get("letters", extraction.PAPER_LETTERS)
    ),
    "orca_cot": _robust,
    "robust": _robust,
    "answer_is": lambda question, reply: extraction.answer_is(reply.text),
    "bbeh": lambda question, reply: extraction.bbeh(reply.text),
}
MODES: Mapping[str, Callable[[Question, Reply], str | None]] = collections.ChainMap(
    plugins.PARSERS.entries, OWN_MODES
)


def parser(mode: str) -> Callable[[Question, Reply], str | None]:
    """Raises ValueError, naming all modes, if there is no such one."""
    if mode not in MODES:
        raise ValueError(f"unknown evaluation mode {mode!r}; known: {', '.join(MODES)}")
    return MODES[mode]


def score(
    questions: Sequence[Question],
    replies: Sequence[Reply],
    *,
    seed: int,
    mode: str,
    system_message_id: int | None,
) -> list[Item]:
    """Scores replies, one item per question; `replies` are in the order of `questions`.

    A reply is parsed if its outcome is ok, or length (then `robust` modes ask for an announced answer); of
    others, and of replies without a well-formed answer, `answer` is None.

    Raises:
      ValueError: the mode is unknown, or there are not as many replies as questions.
    """
    parse = parser(mode)
    if len(questions) != len(replies):
        raise ValueError(f"{len(questions)} questions but {len(replies)} replies; every question needs one")
    items = []
    for question, reply in zip(questions, replies):
        answer = parse(question, reply) if reply.outcome in PARSED_OUTCOMES else None
        # Of free answers the form does not matter, except in the modes that compare letter by letter.
        alike = extraction.same_answer if parse is _robust and not question.choices else operator.eq
        alike = extraction.bbeh_alike if mode == "bbeh" else alike
        item = Item(
            benchmark=question.benchmark,
            task=question.task,
            id=question.id,
            seed=seed,
            mode=mode,
            outcome=reply.outcome,
            correct=answer is not None and alike(answer, question.target),
            answer=answer,
            target=question.target,
            system_message_id=system_message_id,
            extra=question.details(reply.text) if question.details else {},
        )
        items.append(item)
    return items


def summarise(
    items: Sequence[Item],
    questions: Iterable[Question],
    *,
    groups: Sequence[Group] = (),
    met: Collection[str] | None = None,
) -> dict[str, Any]:
    """The scores of one benchmark under one mode and system message; all rates are fractions.

    docs/evaluation.md names the keys. `n` counts questions. Under several seeds a question counts with its
    mean, so that the standard error is that of drawing questions. A group of which no task was evaluated is
    left out, and one with `missing` tasks is the aggregate over the others. What is not known is None.

    Args:
      met: ids of the benchmark's texts that queries drawn for training met (`queries.contamination`).

    Raises:
      ValueError: there is no item, items of several evaluations are mixed, or one has no question.
    """
    by_key = {question.key: question for question in questions}
    heads = {(item.benchmark, item.mode, item.system_message_id) for item in items}
    if len(heads) != 1:
        found = ", ".join(map(str, sorted(heads, key=str))) or "no item"
        raise ValueError(f"scores are of one (benchmark, mode, system message), found {found}")
    [(benchmark, mode, system_message_id)] = heads
    by_task = collections.defaultdict[str, list[Item]](list)
    for item in items:
        if (benchmark, item.task, item.id) not in by_key:
            raise ValueError(f"item {benchmark}/{item.task}/{item.id} belongs to none of the questions")
        by_task[item.task].append(item)
    tasks = {task: _task_scores(by_task[task], by_key, met) for task in sorted(by_task)}
    every = [Group("macro", tuple(tasks), "macro"), Group("micro", tuple(tasks), "micro"), *groups]
    aggregates = {
        group.name: _group_scores(group, tasks) for group in every if not tasks.keys().isdisjoint(group.tasks)
    }
    return {
        "benchmark": benchmark,
        "mode": mode,
        "system_message_id": system_message_id,
        "seeds": sorted({item.seed for item in items}),
        "tasks": tasks,
        "macro": aggregates["macro"]["accuracy"],
        "micro": aggregates["micro"]["accuracy"],
        "groups": aggregates,
    }


def _task_scores(
    items: Sequence[Item], by_key: Mapping[tuple[str, str, str], Question], met: Collection[str] | None
) -> dict[str, Any]:
    questions = {item.id: by_key[item.benchmark, item.task, item.id] for item in items}
    by_id = statistics.means((item.id, item.correct) for item in items)
    right = [by_id[id] for id in questions]
    accuracy, stderr = statistics.mean(right)
    scores: dict[str, Any] = {
        "n": len(questions),
        "accuracy": accuracy,
        "stderr": stderr,
        "unparsed": sum(item.answer is None for item in items) / len(items),
        "chance": _mean([question.chance for question in questions.values()]),
        "majority": next(iter(questions.values())).majority,
    }
    if any("cluster" in question.extra for question in questions.values()):
        clusters = [question.extra.get("cluster", id) for id, question in questions.items()]
        scores["stderr_clustered"] = statistics.clustered_mean(right, clusters).stderr
    if met is not None:
        overlap = [item.id in met or f"{item.id}/passage" in met for item in items]
        scores["query_overlap"] = sum(overlap) / len(overlap)
    return scores


def _mean(values: Sequence[float | None], weights: Sequence[int] | None = None) -> float | None:
    """None where one of the values is not known."""
    known = [value for value in values if value is not None]
    return float(np.average(known, weights=weights)) if len(known) == len(values) else None


def _group_scores(group: Group, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    present = [tasks[task] for task in group.tasks if task in tasks]
    sizes = [scores["n"] for scores in present]
    weights = sizes if group.kind == "micro" else [1] * len(sizes)
    estimates = [Estimate(scores["accuracy"], scores["stderr"]) for scores in present]
    accuracy, stderr = statistics.micro_mean(estimates, weights)
    if group.kind == "harmonic":
        accuracy, stderr = statistics.harmonic_mean(estimates)
    shared = [name for name in present[0] if name not in ("n", "accuracy") and "stderr" not in name]
    return {
        "kind": group.kind,
        "tasks": len(present),
        "n": sum(sizes),
        "accuracy": accuracy,
        "stderr": stderr,
        **{name: _mean([scores.get(name) for scores in present], weights) for name in shared},
        "missing": [task for task in group.tasks if task not in tasks],
    }


def write(directory: str | Path, items: Iterable[Item], scores: Mapping[str, Any]) -> None:
    """Writes `items.jsonl` and `scores.json`, each whole or not at all."""
    files.write_jsonl(Path(directory) / ITEMS, items)
    write_scores(directory, scores)


def write_scores(directory: str | Path, scores: Mapping[str, Any]) -> None:
    with atomic_write(Path(directory) / SCORES) as file:
        json.dump(scores, file, indent=1, ensure_ascii=False)
        file.write("\n")
