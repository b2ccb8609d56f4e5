"""Any questions with a known answer in JSON lines, JSON, Parquet or CSV; `ChoicesConfig` names the fields.

Options are lettered in the file's order. Where the first one is the right one, their order is drawn by a hash
of the question, so that the right one has no fixed place. Modes and prompts are AGIEval's. A question without
options is asked as it stands.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from orca_jax.config import ChoicesConfig
from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question
from orca_jax.queries.make import unit_hash

LETTERS = string.ascii_uppercase


class _Parsed(NamedTuple):
    task: str
    id: str
    question: str
    options: list[str]
    choices: tuple[str, ...]
    target: str

    @property
    def text(self) -> str:
        if not self.options:
            return self.question
        shown = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, self.options))
        return f"{self.question} Answer Choices: {shown}"


def questions(config: ChoicesConfig, *, mode: str) -> list[Question]:
    """The questions of a file.

    Raises:
      BenchmarkError: the file is absent or damaged, or a row has no such field, not two options at least, or
        an answer that is not exactly one of them; names file and row.
    """
    made = []
    for row in _rows(config):
        text, extra = row.text, dict[str, Any]()
        if row.options:
            text = f"Q: {text}\nA: {base.choice_cue(mode, row.choices)}"
            letters = max("".join(row.choices), extraction.PAPER_LETTERS, key=len)
            extra = {"letters": letters, "options": row.options}
        made.append(
            Question(
                benchmark=config.name,
                task=row.task,
                id=row.id,
                text=text,
                target=row.target,
                choices=row.choices,
                chance=1 / len(row.choices) if row.choices else None,
                mode=mode,
                extra=extra,
            )
        )
    return base.with_majority(made)


def documents(config: ChoicesConfig) -> Iterator[Document]:
    """Each question that is asked, with its options."""
    for row in _rows(config):
        yield Document(config.name, row.id, row.text)


def _rows(config: ChoicesConfig) -> Iterator[_Parsed]:
    found = base.rows(config.path)
    if not found:
        raise BenchmarkError(f"{config.path}: no question in it; correct the path of {config.name!r}")
    asked = 0
    for number, (where, row) in enumerate(found):
        parsed = _parsed(config, f"{config.name}-{number}", row, where)
        if unit_hash("asked", parsed.question) < config.share:
            asked += 1
            yield parsed
    if not asked:
        raise BenchmarkError(f"{config.path}: the share {config.share} of {config.name!r} has no question")


def _parsed(config: ChoicesConfig, id: str, row: Mapping[str, Any], where: str) -> _Parsed:
    question = "\n".join(_text(_field(row, name, where), name, where) for name in config.question)
    task = str(_field(row, config.task, where)) if config.task else config.name
    if not config.options:
        target = _text(_field(row, config.answer, where), config.answer, where)
        if config.labels and target not in config.labels:
            known = ", ".join(config.labels)
            raise BenchmarkError(f"{where}: {config.answer} {target!r:.60} is none of the labels {known}")
        return _Parsed(task, id, question, [], config.labels, target)
    listed = [_field(row, name, where) for name in config.options]
    given = listed[0] if len(listed) == 1 else listed
    if not isinstance(given, list):
        raise BenchmarkError(f"{where}: {config.options[0]} must be a list, not {given!r:.60}")
    labels = list(config.labels or LETTERS)
    if len(config.labels) == 1:
        labels = _field(row, config.labels[0], where)
    if not isinstance(labels, list) or len(labels) < len(given):
        raise BenchmarkError(f"{where}: {len(given)} options, but as labels {labels!r:.60}")
    # Of a field an option, those that a row does not have are null or empty.
    kept = [place for place, option in enumerate(given) if len(listed) == 1 or option not in (None, "")]
    options = [_text(given[place], "an option", where) for place in kept]
    if not 2 <= len(options) <= len(LETTERS):
        raise BenchmarkError(f"{where}: {len(options)} options; a question needs 2 to {len(LETTERS)}")
    letters = tuple(LETTERS[: len(options)])
    if config.answer:
        answer = _field(row, config.answer, where)
        right = _place(answer, [str(labels[place]) for place in kept], kept, options, bool(config.labels))
        if right is None:
            names = ", ".join(str(labels[place]) for place in kept)
            raise BenchmarkError(
                f"{where}: {config.answer} {answer!r:.60} names not one option, by label ({names}), number "
                "from 0 or text; correct `answer`, or give the options' `labels`"
            )
        return _Parsed(task, id, question, options, letters, letters[right])
    drawn = sorted(range(len(options)), key=lambda place: _rank(question, options[place], place))
    return _Parsed(task, id, question, [options[place] for place in drawn], letters, letters[drawn.index(0)])


def _place(
    answer: Any, labels: list[str], numbers: list[int], options: list[str], labelled: bool
) -> int | None:
    """Which option is meant; None where it is none, or may be several."""
    found = {place for place, label in enumerate(labels) if str(answer).strip("() ") == label.strip("() ")}
    if not labelled and type(answer) is int:
        found = {place for place, number in enumerate(numbers) if answer == number}
    elif not labelled and isinstance(answer, str):
        found |= {place for place, option in enumerate(options) if answer.strip() == option}
    return found.pop() if len(found) == 1 else None


def _rank(question: str, option: str, place: int) -> tuple[str, int]:
    return hashlib.sha256("\x00".join((question, option)).encode()).hexdigest(), place


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A field, one inside another by dots; of a list, that field of each entry."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        try:
            value = [entry[part] for entry in value] if isinstance(value, list) else value[part]
        except (KeyError, TypeError):
            known = ", ".join(row)
            raise BenchmarkError(f"{where}: no field {name!r}; the row has {known}") from None
    return value


def _text(value: Any, name: str, where: str) -> str:
    text = str(value) if isinstance(value, int | float) else value
    if not isinstance(text, str) or not text.strip():
        raise BenchmarkError(f"{where}: {name} must be text, not {value!r:.60}")
    return text.strip()
