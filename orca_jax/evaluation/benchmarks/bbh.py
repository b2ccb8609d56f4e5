"""Big-Bench Hard (arXiv 2210.09261): reader and prompts of its 27 files.

Modes: `orca` is the paper's multiple-choice form (section 4.2.2), in AGIEval's wording: a one-line task
description, question, options and "Among A through D, the answer is". The paper does not print its
descriptions nor say how it lettered the yes/no tasks: the descriptions are ours, and words are lettered in
the order in which the files list them. The four tasks with free answers have no such form. `orca_cot` and
`answer_is` have the file's own question and a step-by-step cue, `robust` the question and "A:".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import STEP_BY_STEP, BenchmarkError, Document, Group, Question

BENCHMARK = "bbh"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTIONS_HEAD = "\nOptions:\n"
_OPTION = re.compile(r"\(([A-Z])\) ?(.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One file; without `words` and not `free`, its options are lettered."""

    name: str
    description: str
    size: int = 250
    words: tuple[str, ...] = ()  # the answers of a yes/no-type task
    free: bool = False
    most: int = 0  # the greatest number of lettered options, where it is above the parser's six

    @property
    def letters(self) -> str:
        """What the paper's parser may take for an answer."""
        return _ALPHABET[: max(self.most, len(extraction.PAPER_LETTERS))]


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


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The scored questions of every BBH file in `directory`; in `orca` not those with free answers."""
    return base.with_majority(
        [
            _question(task, row, text, target, mode=mode, where=f"{path}, row {row}")
            for task, path in _files(directory)
            if not (mode == "orca" and task.free)
            for row, (text, target) in enumerate(base.examples(path, task.size))
            if row not in UNSCORED.get(task.name, ())
        ]
    )


def documents(directory: str | Path) -> Iterator[Document]:
    """The inputs of a folder's files, unscored rows too."""
    for task, path in _files(directory):
        for row, (text, _) in enumerate(base.examples(path, task.size)):
            yield Document(BENCHMARK, f"{task.name}-{row}", text)


def _files(directory: str | Path) -> list[tuple[Task, Path]]:
    return [(TASKS[path.stem], path) for path in base.find(directory, [f"{t}.json" for t in TASKS], "BBH")]


def _question(task: Task, row: int, text: str, verbatim: str, *, mode: str, where: str) -> Question:
    """The paper's form, or the file's own question; in mode `answer_is` with the file's own target too."""
    stem, _, tail = text.rpartition(_OPTIONS_HEAD) if _OPTIONS_HEAD in text else (text, "", "")
    listed = [match[2].strip() for line in tail.split("\n") if (match := _OPTION.match(line))]
    options = () if task.free else task.words or tuple(listed)
    labels = task.words or tuple(_ALPHABET[: len(options)])
    lettered = labels and not task.words
    target = verbatim.removeprefix("(").removesuffix(")") if lettered else verbatim
    if not task.free and target not in labels:
        known = ", ".join(labels) or "none found"
        raise BenchmarkError(f"{where}: target {target!r} is not an option ({known}); fetch it again")
    chance, extra = 1 / len(labels) if labels else 0.0, dict[str, Any]()
    if mode == "orca":
        letters = _ALPHABET[: len(labels)]
        choices = " ".join(f"({letter}) {option}" for letter, option in zip(letters, options))
        prompt = (
            f"{task.description}\n\nQ: {stem} Answer Choices: {choices}\nA: {base.choice_cue(mode, letters)}"
        )
        target, labels, extra = letters[labels.index(target)], tuple(letters), {"letters": task.letters}
    else:
        prompt = f"Q: {text}\nA:{'' if mode == 'robust' else f' {STEP_BY_STEP}'}"
        if lettered:
            extra = {"options": list(options)}
        if mode == "answer_is":
            target, labels = verbatim, ()
    id = f"{task.name}-{row}"
    return Question(BENCHMARK, task.name, id, prompt, target, labels, chance=chance, mode=mode, extra=extra)
