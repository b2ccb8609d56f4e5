"""Scores replies in files, our own or others', and reads the items that lm-eval has scored.

A file has JSON lines {"task", "id", "target", "reply"}, optionally with an "outcome". Lines of our own
`replies.jsonl` ("text" for "reply", no target) are read too, if the benchmark's questions are given.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orca_jax import files
from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation import extraction, scoring
from orca_jax.evaluation.benchmarks import base, bbh, registry
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Question
from orca_jax.records import Item, Outcome, RecordError, Reply, from_json

OWN = "puzzles"  # asked by no file
WORDS = (("Yes", "No"), ("yes", "no"), ("True", "False"), ("valid", "invalid"))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LM_EVAL = "lm_eval"
_SAMPLES = re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")  # lm-eval adds the time


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a file; without a `target` it needs its question."""

    task: str
    id: str
    reply: str
    outcome: Outcome
    target: str | None = None


def score(
    benchmark: str, mode: str, file: Path, out: Path, path: str = "", size: int | None = None
) -> dict[str, Any]:
    """Writes the items and scores of a file's replies, and returns the scores.

    Args:
      benchmark: a key of `registry.BENCHMARKS`, or `puzzles`.
      mode: a key of `scoring.MODES`.
      path: the benchmark's folder or file, and `size` the rows that it must have, as `registry.questions`;
        without them what is needed is taken from the targets, and chance is not known.

    Raises:
      BenchmarkError: benchmark, mode or task is unknown, the file is empty, an item stands there twice, or a
        line is torn, lacks what the mode needs or does not fit its question; names file, line and field.
    """
    _check(benchmark, mode)
    asked = registry.questions(benchmark, path, mode=mode, size=size) if path else []
    known = {(question.task, question.id): question for question in asked}
    first, questions, replies = dict[tuple[str, str], str](), list[Question](), list[Reply]()
    for where, row in base.rows(file):
        line = _line(row, where)
        if before := first.get((line.task, line.id)):
            raise BenchmarkError(f"{where}: {line.task}/{line.id} is in {before} already; keep one reply")
        first[line.task, line.id] = where
        questions.append(_asked(line, where, known) if asked else _foreign(line, where, benchmark, mode))
        replies.append(Reply(line.outcome, line.reply))
    if not questions:
        raise BenchmarkError(f"{file}: no reply in it; give lines with task, id, target and reply")
    if not asked:
        questions = base.with_majority(questions)
    items = scoring.score(questions, replies, seed=0, mode=mode, system_message_id=None)
    groups = registry.BENCHMARKS[benchmark].groups if benchmark in registry.BENCHMARKS else ()
    scores = scoring.summarise(items, questions, groups=groups)
    scoring.write(out, items, scores)
    return scores


def _check(benchmark: str, mode: str) -> None:
    scoring.parser(mode)
    if benchmark == OWN:
        return
    if benchmark not in registry.BENCHMARKS:
        names = f"judged, {OWN}, {', '.join(registry.BENCHMARKS)}"
        raise BenchmarkError(f"unknown benchmark {benchmark!r}; known: {names}")
    if not registry.BENCHMARKS[benchmark].scored:
        raise BenchmarkError(f"{benchmark} has no right answers: let a judge review it (evaluate judge)")
    if mode not in (*BENCHMARK_MODES[benchmark], "answer_is", "robust"):
        known = ", ".join(BENCHMARK_MODES[benchmark])
        raise BenchmarkError(f"{benchmark} has no mode {mode!r}; its modes: {known}")


def _line(row: Mapping[str, Any], where: str) -> Line:
    values = {"reply": row.get("text"), **row}
    values["outcome"] = row.get("outcome") or ("ok" if str(values["reply"]).strip() else "empty")
    if type(row.get("id")) is int:
        values["id"] = str(row["id"])
    try:
        return from_json(Line, values)
    except RecordError as error:
        raise BenchmarkError(f"{where}: {error}") from error


def _asked(line: Line, where: str, known: Mapping[tuple[str, str], Question]) -> Question:
    """The benchmark's question that a line answers."""
    question = known.get((line.task, line.id)) or known.get((line.task, f"{line.task}-{line.id}"))
    if question is None:
        raise BenchmarkError(f"{where}: the benchmark's files ask no {line.task}/{line.id} in this mode")
    stated = {question.target, f"({question.target})"}
    words = bbh.TASKS[question.task].words if question.task in bbh.TASKS else ()
    if words and question.target in question.choices:  # the word that a letter stands for
        stated.add(words[question.choices.index(question.target)])
    if line.target is not None and line.target not in stated:
        raise BenchmarkError(
            f"{where}: target {line.target!r:.60}, but that of {question.task}/{question.id} is "
            f"{question.target!r:.60}; are the lines numbered as the file is?"
        )
    return question


def _foreign(line: Line, where: str, benchmark: str, mode: str) -> Question:
    """The question by its target: as a label, with the labels it is one of; free answers have none."""
    target, choices, extra = line.target, tuple[str, ...](), dict[str, Any]()
    if target is None:
        raise BenchmarkError(f"{where}: no 'target'; give it, or the benchmark's files (--path)")
    if benchmark == bbh.BENCHMARK and line.task not in bbh.TASKS:
        raise BenchmarkError(f"{where}: BBH has no task {line.task!r}; known: {', '.join(bbh.TASKS)}")
    letters = bbh.TASKS[line.task].letters if line.task in bbh.TASKS else extraction.PAPER_LETTERS
    words = next((words for words in WORDS if target in words), ())
    if mode in ("answer_is", "bbeh"):
        pass
    elif words and mode == "orca":
        target, choices = "AB"[words.index(target)], ("A", "B")
    elif words:
        choices = words
    elif letter := re.fullmatch(r"\(?([A-Z])\)?", target):
        target = letter[1]
        choices = tuple(letters if target in letters else _ALPHABET)
    elif mode == "orca" and (digit := re.fullmatch(r"\(?([0-9])\)?", target)):
        target, choices, letters = digit[1], tuple("0123"), "0123"
    elif mode == "orca":
        raise BenchmarkError(f"{where}: mode {mode} reads letters, but the target is {target!r:.60}")
    if mode == "orca":
        extra = {"letters": letters}
    return Question(benchmark, line.task, line.id, "", target, choices, None, mode=mode, extra=extra)


# Items


def read_items(path: Path, metric: str = "") -> list[Item]:
    """The items of a folder of `run` or `score`, or of lm-eval's `samples_TASK_TIME.jsonl` (--log_samples).

    A sample's id is its `doc_id` and the beginning of its `doc_hash`, so that other questions do not pair.

    Args:
      path: such a folder, a folder with samples anywhere in it, or a file of samples.
      metric: of lm-eval, as its results call it: `acc` or, where there are several filters, `acc,none`.

    Raises:
      BenchmarkError: there are no such files, two of one task, or a line without a metric of this name that
        is 0 or 1; names file and line.
    """
    if (path / scoring.ITEMS).is_file():
        return list(files.read_jsonl(path / scoring.ITEMS, Item))
    found = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))
    if not found:
        raise BenchmarkError(f"{path}: neither {scoring.ITEMS} nor lm-eval's samples_*.jsonl in it")
    by_task, items = dict[str, Path](), list[Item]()
    for file in found:
        task = named[1] if (named := _SAMPLES.fullmatch(file.name)) else file.stem
        if task in by_task:
            raise BenchmarkError(f"{file}: {task} is in {by_task[task]} too; name one of the two files")
        by_task[task] = file
        items += _samples(file, task, metric)
    return items


def _samples(file: Path, task: str, metric: str) -> list[Item]:
    """One metric, under one filter, of a file's samples."""
    by_metric = dict[str, list[tuple[str, Mapping[str, Any], Any]]]()
    for where, row in base.rows(file):
        if "doc_id" not in row or not isinstance(row.get("metrics"), list):
            raise BenchmarkError(f"{where}: no sample of lm-eval: it has no `doc_id` or no list of `metrics`")
        for key in row["metrics"]:
            full = f"{key},{row.get('filter', 'none')}"
            if metric in ("", key, full):
                by_metric.setdefault(full, []).append((where, row, row.get(key)))
    if len(by_metric) > 1:
        raise BenchmarkError(f"{file}: {', '.join(by_metric)}: name one by --metric")
    if not by_metric:
        raise BenchmarkError(f"{file}: no {metric or 'metric'} in it")
    [(full, samples)] = by_metric.items()
    for where, _, value in samples:
        if value not in (0, 1):
            raise BenchmarkError(
                f"{where}: {full} is {value!r:.40}, neither 1 (right) nor 0 (wrong); name another by --metric"
            )
    return [
        Item(
            benchmark=LM_EVAL,
            task=task,
            id=f"{row['doc_id']}-{row.get('doc_hash', '')[:8]}",
            seed=0,
            mode=full,
            outcome=Outcome.OK,
            correct=bool(value),
            answer=str(row.get("filtered_resps")),
            target=str(row.get("target")),
        )
        for _, row, value in samples
    ]
