"""Big-Bench Hard (arXiv 2210.09261): reader and prompts of its 27 files.

Modes (how replies are read: `evaluation.modes`):
  `orca`      the paper's multiple-choice form (section 4.2.2), in AGIEval's wording: a one-line task
              description, question, options and "Among A through D, the answer is"; the first capital
              letter of the reply counts. The paper does not print its descriptions nor say how it
              lettered the yes/no tasks: the descriptions are ours, and words are lettered in the order
              in which the files list them. 23 tasks: those with free answers have no such form.
  `orca_cot`, `answer_is`  the file's own question and a step-by-step cue. All 27 tasks.
  `robust`    the file's own question and "A:".
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Group, Question

BENCHMARK = "bbh"
MODES = BENCHMARK_MODES["bbh"]
STEP_BY_STEP = " Let's think step by step."


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """`words` are the answers of a yes/no-type task; without them and not `free`, options are lettered.

    `most` is the greatest number of lettered options, where it is above the parser's six.
    """

    name: str
    description: str
    size: int = 250
    words: tuple[str, ...] = ()
    free: bool = False
    most: int = 0

    @property
    def letters(self) -> str:
        """What the paper's parser may take for an answer."""
        return extraction.widened(_letters(self.most))


_TASK_LIST = (
    Task("boolean_expressions", "Work out the value of a Boolean expression.", words=("True", "False")),
    Task("causal_judgement", "Judge what caused an event.", size=187, words=("Yes", "No")),
    Task("date_understanding", "Work out a date from what is said."),
    Task("disambiguation_qa", "Say whom an ambiguous pronoun refers to."),
    Task("dyck_languages", "Close all open brackets in the right order.", free=True),
    Task("formal_fallacies", "Tell valid arguments from fallacies.", words=("valid", "invalid")),
    Task("geometric_shapes", "Name the shape that an SVG path draws.", most=11),
    Task("hyperbaton", "Choose the right order of adjectives."),
    Task("logical_deduction_five_objects", "Deduce the order of five objects."),
    Task("logical_deduction_seven_objects", "Deduce the order of seven objects.", most=7),
    Task("logical_deduction_three_objects", "Deduce the order of three objects."),
    Task("movie_recommendation", "Choose the movie that is most like those named."),
    Task("multistep_arithmetic_two", "Solve an arithmetic problem of several steps.", free=True),
    Task("navigate", "Say whether the instructions lead back to the start.", words=("Yes", "No")),
    Task("object_counting", "Count the objects that are asked for.", free=True),
    Task("penguins_in_a_table", "Answer a question about a table of penguins.", size=146),
    Task("reasoning_about_colored_objects", "Answer a question about colored objects.", most=18),
    Task("ruin_names", "Choose the funniest change to a name."),
    Task("salient_translation_error_detection", "Name the kind of error in a translation."),
    Task("snarks", "Choose the sarcastic one of two statements.", size=178),
    Task("sports_understanding", "Say whether a sentence about sports is plausible.", words=("yes", "no")),
    Task("temporal_sequences", "Find the time at which something could have happened."),
    Task("tracking_shuffled_objects_five_objects", "Track five objects through swaps."),
    Task("tracking_shuffled_objects_seven_objects", "Track seven objects through swaps.", most=7),
    Task("tracking_shuffled_objects_three_objects", "Track three objects through swaps."),
    Task("web_of_lies", "Say whether a person tells the truth.", words=("Yes", "No")),
    Task("word_sorting", "Sort words alphabetically.", free=True),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASK_LIST}
PAPER_TASKS = tuple(task.name for task in _TASK_LIST if not task.free)
GROUPS = (Group("paper23", PAPER_TASKS, "macro"), Group("all27", tuple(TASKS), "micro"))

# Rows (from 0) whose target is none of their options; they can never be right and are not scored. Odd but
# scored: ruin_names 51 lists three options, and snarks 88 only one, so that chance there is 1.
UNSCORED: Mapping[str, tuple[int, ...]] = {"movie_recommendation": (163,), "ruin_names": (99, 144)}

_OPTIONS_HEAD = "\nOptions:\n"
_OPTION = re.compile(r"\(([A-Z])\) ?(.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class _Example:
    """One row: the file's `input` as it is, and taken apart. `labels` is empty for free answers.

    `verbatim` is the file's target, and `target` the label that it is.
    """

    task: Task
    row: int
    input: str
    stem: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    target: str
    verbatim: str

    @property
    def id(self) -> str:
        return f"{self.task.name}-{self.row}"


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The scored questions of every BBH file in `directory`, in file order.

    In mode `orca` the free-answer tasks are left out.

    Raises:
      BenchmarkError: the mode is unknown, there is no BBH file, or one is truncated, damaged or has a target
        that is not an option (known faults apart); the message names file and row.
    """
    if mode not in MODES:
        raise BenchmarkError(f"unknown BBH mode {mode!r}; known: {', '.join(MODES)}")
    made: list[Question] = []
    for path in _files(directory):
        task = TASKS[path.stem]
        if not (mode == "orca" and task.free):
            rows, unscored = enumerate(_rows(path, task)), UNSCORED.get(task.name, ())
            examples = [_example(task, row, *texts, path=path) for row, texts in rows if row not in unscored]
            majority = base.majority(example.target for example in examples)
            made += [_question(example, mode, majority) for example in examples]
    return made


def documents(directory: str | Path) -> Iterator[Document]:
    """The inputs of a folder's files, unscored rows too, as texts not to be trained on."""
    for path in _files(directory):
        for row, (text, _) in enumerate(_rows(path, TASKS[path.stem])):
            yield Document(BENCHMARK, f"{path.stem}-{row}", text)


def _files(directory: str | Path) -> list[Path]:
    files = sorted(path for path in Path(directory).glob("*.json") if path.stem in TASKS)
    if not files:
        raise BenchmarkError(
            f"{directory} holds no BBH file; expected <task>.json, for example navigate.json"
        )
    return files


def _rows(path: Path, task: Task) -> list[tuple[str, str]]:
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        rows = [(str(example["input"]), str(example["target"])) for example in examples]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a BBH file ({error!r}); fetch it again") from error
    if len(rows) != task.size:
        raise BenchmarkError(
            f"{path}: expected {task.size} examples, found {len(rows)}; fetch the file again"
        )
    return rows


def _example(task: Task, row: int, text: str, verbatim: str, *, path: Path) -> _Example:
    if task.free:
        return _Example(task, row, text, text, (), (), verbatim, verbatim)
    stem, _, tail = text.rpartition(_OPTIONS_HEAD) if _OPTIONS_HEAD in text else (text, "", "")
    lines = map(_OPTION.match, tail.split("\n"))
    options = task.words or tuple(match[2].strip() for match in lines if match)
    labels = task.words or tuple(_letters(len(options)))
    target = verbatim if task.words else verbatim.removeprefix("(").removesuffix(")")
    if target not in labels:
        known = ", ".join(labels) or "none found"
        raise BenchmarkError(
            f"{path}, row {row}: target {target!r} is not an option ({known}); fetch it again"
        )
    return _Example(task, row, text, stem, labels, options, target, verbatim)


def _letters(count: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def _question(example: _Example, mode: str, majority: float) -> Question:
    """The paper's form, or the file's own question; in mode `answer_is` with the file's own target too."""
    task, target, labels, extra = example.task, example.target, example.labels, dict[str, Any]()
    if mode == "orca":
        letters = _letters(len(labels))
        options = " ".join(f"({letter}) {option}" for letter, option in zip(letters, example.options))
        text = (
            f"{task.description}\n\nQ: {example.stem} Answer Choices: {options}\n"
            f"A: Among A through {letters[-1]}, the answer is"
        )
        extra = {"letters": task.letters}
        target, labels = letters[labels.index(target)], tuple(letters)
    else:
        text = f"Q: {example.input}\nA:{'' if mode == 'robust' else STEP_BY_STEP}"
        if example.options and not task.words:
            extra = {"options": list(example.options)}
        if mode == "answer_is":
            target, labels = example.verbatim, ()  # which is no label
    return Question(
        benchmark=BENCHMARK,
        task=task.name,
        id=example.id,
        text=text,
        target=target,
        choices=labels,
        chance=1 / len(example.labels) if example.labels else 0.0,
        majority=majority,
        mode=mode,
        extra=extra,
    )
