"""Big-Bench Hard (arXiv 2210.09261): reader, prompts and known faults of its 27 files.

Modes (how replies are read: `evaluation.modes`):
  `orca`      the paper's multiple-choice form (section 4.2.2), in AGIEval's wording: a one-line task
              description, question, options and "Among A through D, the answer is"; the first capital
              letter of the reply counts. The paper does not print its descriptions nor say how it
              lettered the yes/no tasks: the descriptions are ours, and words are lettered in the order
              in which the files list them. 23 tasks: those with free answers have no such form.
  `orca_cot`, `answer_is`  the file's own question and a step-by-step cue. All 27 tasks.
  `robust`    the file's own question and "A:".
  `lm_eval_zeroshot`, `lm_eval_cot` and both with `_strict`: lm-eval's prompts, which put the task's
              description before them. It is what the published `cot-prompts/TASK.txt` has before its first
              question; looked for in the folder and beside it. Rows with a known fault are asked too.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import files
from orca_jax.evaluation.benchmarks.files import BenchmarkError, Document, FileReport
from orca_jax.evaluation.modes import LM_EVAL_BBH, VERBATIM
from orca_jax.evaluation.questions import Question
from orca_jax.evaluation.scoring import Group

BENCHMARK = "bbh"
MODES = ("orca", "orca_cot", "robust", "answer_is", *LM_EVAL_BBH)
DESCRIPTIONS = ("cot-prompts", "cot_prompts", "../cot-prompts", "../cot_prompts")
STEP_BY_STEP = " Let's think step by step."


class BbhError(BenchmarkError):
    """A BBH file is missing, incomplete or not what it should be."""


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

# Of the published files, as far as we have them.
REVISION = "suzgunmirac/BIG-Bench-Hard"
KNOWN_HASHES: Mapping[str, str] = {
    "boolean_expressions": "ea6c754ec005e2d3f2d085d349a740f593b5764f32ea4638ffed4cfc0061b12a",
    "causal_judgement": "6e8bca44dd402008ed41c07a3d0a1d5e7b03db7001a7e002fcdf4c60985ea081",
    "date_understanding": "0148d4ac5fca05b2f82373e5fef7208e15363b9c6079493034d77b3dab496bf5",
    "dyck_languages": "3f9badedf15c2be1ce53d94fdf016299bb30ba231ef087ab9f51a7ed6d0bdc25",
    "hyperbaton": "b6d7f55c75f5d02f2987a4f3123802dfa093872089a56a334144aae8a7264fdc",
    "logical_deduction_five_objects": "d2df31394b903b7f0e085d42a69572a092987856eac076799017d70ef266fa8f",
    "logical_deduction_seven_objects": "2896c7e3482eea318dd37bcc370d24ec3cc91e8374c1784287b5dbd38a529e33",
    "object_counting": "8acef14dbbdd40d2326ef7755750b6b5fe919fef06276af1bab3f1c297f022ff",
    "penguins_in_a_table": "bb87ee449698eee51215e025a453b1bcb2f5e6589c2063b2c79e68b8f0655228",
    "reasoning_about_colored_objects": "0a8850cf95166020fce7a78244026ceedd7ea839302471512b4f8744e85a6a49",
    "ruin_names": "b6f723aef2bafdd4c7bfc3c7e0329c7e8a8279391a609969c8ed76c9319f5f7f",
    "salient_translation_error_detection": "becf3eb8dd53c821a555ecd5c1334ecd93eb25f980e63be963c518e7138de5da",
    "snarks": "54a0661fe2de06167645a4965e6bcf963c4ba307e76262a7c750998b0e3d0d0e",
    "word_sorting": "2a6132d2c99f00d0d2eb1113ac6b4a918bd969d863c48749210d969713db8d43",
}

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
      BbhError: the mode is unknown, there is no BBH file, or one is truncated, damaged or has a target
        that is not an option (known faults apart); the message names file and row.
    """
    if mode not in MODES:
        raise BbhError(f"unknown BBH mode {mode!r}; known: {', '.join(MODES)}")
    made: list[Question] = []
    for path in _files(directory):
        task = TASKS[path.stem]
        if not (mode == "orca" and task.free):
            made += _task_questions(_read(path, task, whole=mode in LM_EVAL_BBH), mode, path.parent)
    return made


def documents(directory: str | Path) -> Iterator[Document]:
    """The inputs of a folder's files, unscored rows too, as texts not to be trained on."""
    for path in _files(directory):
        for row, (text, _) in enumerate(_rows(path, TASKS[path.stem])):
            yield Document(BENCHMARK, f"{path.stem}-{row}", text)


def reports(directory: str | Path) -> list[FileReport]:
    """One report a file. Fault: `target_no_option`, rows that are not scored."""
    return [_report(path) for path in _files(directory)]


def _report(path: Path) -> FileReport:
    rows = len(_rows(path, TASKS[path.stem]))
    known = {KNOWN_HASHES[path.stem]: REVISION} if path.stem in KNOWN_HASHES else {}
    return files.report(BENCHMARK, path, rows, known, {"target_no_option": UNSCORED.get(path.stem, ())})


def _files(directory: str | Path) -> list[Path]:
    files = sorted(path for path in Path(directory).glob("*.json") if path.stem in TASKS)
    if not files:
        raise BbhError(f"{directory} holds no BBH file; expected <task>.json, for example navigate.json")
    return files


def _rows(path: Path, task: Task) -> list[tuple[str, str]]:
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        rows = [(str(example["input"]), str(example["target"])) for example in examples]
    except (ValueError, KeyError, TypeError) as error:
        raise BbhError(f"{path}: not a BBH file ({error!r}); fetch it again") from error
    if len(rows) != task.size:
        raise BbhError(f"{path}: expected {task.size} examples, found {len(rows)}; fetch the file again")
    return rows


def _read(path: Path, task: Task, *, whole: bool = False) -> list[_Example]:
    """The file's rows; those that cannot be right only if `whole`."""
    faulty = UNSCORED.get(task.name, ())
    rows = enumerate(_rows(path, task))
    return [
        _example(task, row, *texts, path=path, faulty=row in faulty)
        for row, texts in rows
        if whole or row not in faulty
    ]


def _example(task: Task, row: int, text: str, verbatim: str, *, path: Path, faulty: bool) -> _Example:
    if task.free:
        return _Example(task, row, text, text, (), (), verbatim, verbatim)
    stem, _, tail = text.rpartition(_OPTIONS_HEAD) if _OPTIONS_HEAD in text else (text, "", "")
    lines = map(_OPTION.match, tail.split("\n"))
    options = task.words or tuple(match[2].strip() for match in lines if match)
    labels = task.words or tuple(_letters(len(options)))
    target = verbatim if task.words else verbatim.removeprefix("(").removesuffix(")")
    if target not in labels and not faulty:
        known = ", ".join(labels) or "none found"
        raise BbhError(f"{path}, row {row}: target {target!r} is not an option ({known}); fetch it again")
    return _Example(task, row, text, stem, labels, options, target, verbatim)


def _letters(count: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def _task_questions(examples: list[_Example], mode: str, folder: Path) -> list[Question]:
    targets = collections.Counter(example.target for example in examples)
    majority = max(targets.values()) / len(examples)
    if mode == "orca":
        return [_orca_question(example, majority) for example in examples]
    if mode in VERBATIM:
        before = _description(folder, examples[0].task) if mode in LM_EVAL_BBH else ""
        return [_verbatim_question(example, majority, mode, before) for example in examples]
    return [_plain_question(example, majority, mode) for example in examples]


def _orca_question(example: _Example, majority: float) -> Question:
    labels = _letters(len(example.labels))
    options = " ".join(f"({letter}) {option}" for letter, option in zip(labels, example.options))
    text = (
        f"{example.task.description}\n\nQ: {example.stem} Answer Choices: {options}\n"
        f"A: Among A through {labels[-1]}, the answer is"
    )
    return Question(
        benchmark=BENCHMARK,
        task=example.task.name,
        id=example.id,
        text=text,
        target=labels[example.labels.index(example.target)],
        choices=tuple(labels),
        chance=1 / len(labels),
        majority=majority,
        mode="orca",
        extra={"letters": example.task.letters},
    )


def _plain_question(example: _Example, majority: float, mode: str) -> Question:
    return Question(
        benchmark=BENCHMARK,
        task=example.task.name,
        id=example.id,
        text=f"Q: {example.input}\nA:{STEP_BY_STEP if mode == 'orca_cot' else ''}",
        target=example.target,
        choices=example.labels,
        chance=1 / len(example.labels) if example.labels else 0.0,
        majority=majority,
        mode=mode,
        extra={"options": list(example.options)} if example.options and not example.task.words else {},
    )


def _verbatim_question(example: _Example, majority: float, mode: str, before: str) -> Question:
    steps = mode == "answer_is" or mode.startswith("lm_eval_cot")
    return Question(
        benchmark=BENCHMARK,
        task=example.task.name,
        id=example.id,
        text=f"{before}Q: {example.input}\nA:{STEP_BY_STEP if steps else ''}",
        target=example.verbatim,
        chance=1 / len(example.labels) if example.labels else 0.0,
        majority=majority,
        mode=mode,
        extra={"input": example.input},
    )


def _description(folder: Path, task: Task) -> str:
    """The published description of a task, which stands behind canary and rule, and an empty line."""
    files = [folder / name / f"{task.name}.txt" for name in DESCRIPTIONS]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        raise BbhError(f"lm-eval's prompts need {task.name}'s description: put {files[0]} there")
    _, rule, prompt = path.read_text(encoding="utf-8").partition("\n-----\n")
    if not rule:
        raise BbhError(f"{path}: no '-----' below the canary; fetch it again")
    return prompt.strip().partition("\n\nQ:")[0] + "\n\n"
