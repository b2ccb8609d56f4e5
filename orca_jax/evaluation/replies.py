"""Reads replies from files, our own or others', to be scored.

A file has JSON lines {"task", "id", "target", "reply"}. A line may have an "outcome" and, for likelihoods,
"log_likelihoods", "continuations" and "labels". Lines of our own `replies.jsonl` ("text" for "reply", no
target) are read too, if the benchmark's questions are given.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax.evaluation import extraction, modes, scoring
from orca_jax.evaluation.benchmarks import base, bbh, registry
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Question
from orca_jax.records import Outcome, Reply

OWN = "puzzles"  # asked by no file
WORDS = (("Yes", "No"), ("yes", "no"), ("True", "False"), ("valid", "invalid"))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])\)?")
_DIGIT = re.compile(r"\(?([0-9])\)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line; `where` names file and line, `target` is None in a line that needs its question."""

    where: str
    task: str
    id: str
    target: str | None
    reply: Reply
    extra: Mapping[str, Any]


def score(
    benchmark: str, mode: str, file: Path, out: Path, path: str = "", size: int | None = None
) -> dict[str, Any]:
    """Writes the items and scores of a file's replies, and returns the scores.

    Args:
      path: the benchmark's folder or file, and `size` the rows that it must have, as `registry.questions`.
    """
    lines = read(file)
    asked = registry.questions(benchmark, path, mode=mode, size=size) if path else []
    answered = questions(lines, benchmark=benchmark, mode=mode, asked=asked)
    replies = [line.reply for line in lines]
    items = scoring.score(answered, replies, seed=0, mode=mode, system_message_id=None)
    groups = registry.BENCHMARKS[benchmark].groups if benchmark in registry.BENCHMARKS else ()
    scores = scoring.summarise(items, answered, groups=groups)
    scoring.write(out, items, scores)
    return scores


def read(path: str | Path) -> list[Line]:
    """The lines of a file.

    Raises:
      BenchmarkError: the file is empty, a line is torn or lacks a field, or an item stands there twice;
        names file and line.
    """
    path = Path(path)
    lines = [_line(row, f"{path}:{number}") for number, row in base.numbered_json_lines(path)]
    if not lines:
        raise BenchmarkError(f"{path}: no reply in it; give lines with task, id, target and reply")
    first: dict[tuple[str, str], Line] = {}
    for line in lines:
        if (line.task, line.id) in first:
            before = first[line.task, line.id].where
            raise BenchmarkError(
                f"{line.where}: {line.task}/{line.id} is in {before} already; keep one reply"
            )
        first[line.task, line.id] = line
    return lines


def _line(row: Mapping[str, Any], where: str) -> Line:
    own = "text" in row and "reply" not in row
    text = _text(row, "text" if own else "reply", where)
    target = None if own and "target" not in row else _text(row, "target", where)
    raw = {key: row[key] for key in (modes.LOG_LIKELIHOODS,) if key in row} or row.get("raw", {})
    outcome = row.get("outcome") or (Outcome.OK if text.strip() else Outcome.EMPTY)
    if outcome not in list(Outcome):
        raise BenchmarkError(f"{where}: unknown outcome {outcome!r:.60}; known: {', '.join(Outcome)}")
    return Line(
        where=where,
        task=_text(row, "task", where),
        id=_text(row, "id", where, int),
        target=target,
        reply=Reply(Outcome(outcome), text, raw=raw),
        extra={key: row[key] for key in ("continuations", "labels") if key in row},
    )


def _text(row: Mapping[str, Any], name: str, where: str, *others: type) -> str:
    if name not in row:
        raise BenchmarkError(
            f"{where}: no {name!r} among {', '.join(row) or 'no fields'}; every line needs it"
        )
    value = row[name]
    if not isinstance(value, (str, *others)) or isinstance(value, bool):
        raise BenchmarkError(f"{where}: {name!r} must be text, not {value!r:.60}")
    return str(value)


def questions(
    lines: Sequence[Line], *, benchmark: str, mode: str, asked: Iterable[Question] = ()
) -> list[Question]:
    """The questions that the lines answer, in the order of the lines.

    Args:
      benchmark: a key of `registry.BENCHMARKS`, or `puzzles`.
      mode: a key of `modes.MODES`.
      asked: the benchmark's questions in that mode, if its files are at hand; without them what is needed
        is taken from the targets, and chance is not known.

    Raises:
      BenchmarkError: benchmark, mode or task is unknown, a line lacks what the mode needs, or it does not
        fit the question asked; names file and line.
    """
    modes.mode(mode)
    if benchmark != OWN:
        reader = registry.BENCHMARKS.get(benchmark)
        if not reader:
            names = f"judged, {OWN}, {', '.join(registry.BENCHMARKS)}"
            raise BenchmarkError(f"unknown benchmark {benchmark!r}; known: {names}")
        if not reader.scored:
            raise BenchmarkError(f"{benchmark} has no right answers: let a judge review it (evaluate judge)")
        if mode not in (*reader.modes, "answer_is", "robust"):
            raise BenchmarkError(f"{benchmark} has no mode {mode!r}; its modes: {', '.join(reader.modes)}")
    known = {(question.task, question.id): question for question in asked}
    if known:
        return [_asked(line, known) for line in lines]
    targets = collections.defaultdict[str, list[str]](list)
    for line in lines:
        targets[line.task].append(line.target or "")
    majority = {task: base.majority(found) for task, found in targets.items()}
    return [_foreign(line, benchmark, mode, majority[line.task]) for line in lines]


def _asked(line: Line, known: Mapping[tuple[str, str], Question]) -> Question:
    question = known.get((line.task, line.id)) or known.get((line.task, f"{line.task}-{line.id}"))
    if question is None:
        raise BenchmarkError(f"{line.where}: the benchmark's files ask no {line.task}/{line.id} in this mode")
    stated = {question.target, f"({question.target})"}
    words = bbh.TASKS[question.task].words if question.task in bbh.TASKS else ()
    if words and question.target in question.choices:  # the word that a letter stands for
        stated.add(words[question.choices.index(question.target)])
    if line.target is not None and line.target not in stated:
        raise BenchmarkError(
            f"{line.where}: target {line.target!r:.60}, but that of {question.task}/{question.id} is "
            f"{question.target!r:.60}; are the lines numbered as the file is?"
        )
    return question


def _foreign(line: Line, benchmark: str, mode: str, majority: float) -> Question:
    if line.target is None:
        raise BenchmarkError(f"{line.where}: no 'target'; give it, or the benchmark's files (--path)")
    if benchmark == bbh.BENCHMARK and line.task not in bbh.TASKS:
        raise BenchmarkError(f"{line.where}: BBH has no task {line.task!r}; known: {', '.join(bbh.TASKS)}")
    target, choices = (line.target, ()) if mode == "answer_is" else _choices(line, mode)
    extra = dict(line.extra)
    if mode == "orca":
        extra["letters"] = "".join(choices) if target.isdigit() else _range(line.task)
    if mode in modes.LIKELIHOOD:
        extra |= _labels(line)
    chance = 1 / len(extra["labels"]) if "labels" in extra else None
    return Question(benchmark, line.task, line.id, "", target, choices, chance, majority, mode, extra)


def _range(task: str) -> str:
    return bbh.TASKS[task].letters if task in bbh.TASKS else extraction.PAPER_LETTERS


def _choices(line: Line, mode: str) -> tuple[str, tuple[str, ...]]:
    """The target as a label, and the labels it is one of; free answers have none."""
    target = line.target or ""
    words = next((words for words in WORDS if target in words), None)
    if words and mode == "orca":
        return "AB"[words.index(target)], ("A", "B")
    if words:
        return target, words
    if letter := _LETTER.fullmatch(target):
        letters = _range(line.task)
        return letter[1], tuple(letters if letter[1] in letters else _ALPHABET)
    if mode == "orca" and (digit := _DIGIT.fullmatch(target)):
        return digit[1], tuple("0123")
    if mode in ("orca", "agieval_upstream"):
        raise BenchmarkError(f"{line.where}: mode {mode} reads letters, but the target is {target!r:.60}")
    return target, ()


def _labels(line: Line) -> dict[str, Any]:
    """The labels of a line's likelihoods: letters in order, where it gives none."""
    scores, texts = line.reply.raw.get(modes.LOG_LIKELIHOODS), line.extra.get("continuations")
    if not isinstance(scores, list) or not isinstance(texts, list) or len(scores) != len(texts) or not texts:
        raise BenchmarkError(
            f"{line.where}: likelihoods need 'log_likelihoods' and 'continuations', two lists of one length"
        )
    labels = line.extra.get("labels") or list(_ALPHABET[: len(texts)])
    if len(labels) != len(texts) or not all(texts):
        raise BenchmarkError(
            f"{line.where}: {len(labels)} labels for {len(texts)} continuations, which must not be empty; "
            f"give 'labels', one each ({len(_ALPHABET)} letters stand in for them)"
        )
    return {"labels": labels}
