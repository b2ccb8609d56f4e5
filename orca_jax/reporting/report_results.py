"""The report's results of training and evaluations: losses and throughput, accuracies, sample replies."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from orca_jax.artifacts import digest
from orca_jax.evaluation import cells
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.evaluation.run import RecordedReply
from orca_jax.records import Item
from orca_jax.reporting import report_charts
from orca_jax.reporting.report_charts import Chart, Point, tag
from orca_jax.reporting.report_sources import Key, ResultColumn, RunSet, Table
from orca_jax.reporting.tables import UNNAMED, mean_cell

# Training: the curriculum's time line, losses, learning rate, throughput and goodput


WAITS = {"data_wait": "waiting for data", "save_wait": "saving checkpoints"}
BY_TEACHER = "loss/teacher="
Row = Mapping[str, Any]
Series = Mapping[str, Sequence[Point]]


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """The metrics of one run, in the order of its steps."""

    name: str
    train: Sequence[Row]
    validations: Sequence[Row]

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> History:
        kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation")}
        return cls(name, kinds["train"], kinds["validation"])

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """(stage, first step, last step), as far as what was logged tells: a stage ends with a validation."""
        logged: dict[str, list[int]] = {}
        for row in self.train:
            logged.setdefault(row["stage"], []).append(row["step"])
        nexts = [steps[0] for steps in logged.values()][1:] + [math.inf]
        spans, before = [], 0
        for (stage, steps), begun in zip(logged.items(), nexts):
            last = max([steps[-1], *(row["step"] for row in self.validations if row["step"] < begun)])
            spans.append((stage, before + 1, last))
            before = last
        return spans

    def rows_of(self, span: tuple[str, int, int]) -> list[Row]:
        return [row for row in self.train if span[1] <= row["step"] <= span[2]]


def points(rows: Sequence[Row], key: str) -> list[Point]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def goodput(row: Row) -> float | None:
    """The share of the time without waiting, in per cent; None where no waiting time was logged."""
    waits = [row[key] for key in WAITS if key in row]
    return 100 * (1 - sum(waits)) if waits else None


def training_charts(histories: Sequence[History]) -> list[Chart]:
    """Charts of one run by stage and teacher, or of several runs, one line each."""
    if len(histories) == 1:
        return [chart for chart in _of_one(histories[0]) if chart]
    return [chart for chart in _of_several(histories) if chart]


def _of_one(history: History) -> Iterator[Chart | None]:
    stages = {span[0]: history.rows_of(span) for span in history.spans}
    starts = {stage: first for stage, first, _ in history.spans[1:]}
    by_teacher = {
        key.removeprefix(BY_TEACHER) or UNNAMED: points(history.validations, key)
        for key in dict.fromkeys(itertools.chain.from_iterable(history.validations))
        if key.startswith(BY_TEACHER)
    }
    every = {"all teachers": points(history.validations, "loss")}
    yield report_charts.timeline({"": history.spans}, caption="The curriculum: stages over training steps.")
    yield report_charts.lines(
        {stage: points(rows, "loss") for stage, rows in stages.items()},
        caption="Training loss by stage.", y="nats a supervised token (log)", log=True, starts=starts,
    )  # fmt: skip
    yield report_charts.lines(
        by_teacher | every,
        caption="Validation loss on held-out traces, by teacher.",
        y="nats a supervised token (log)", log=True, marks=True, starts=starts,
    )  # fmt: skip
    yield report_charts.lines(
        {stage: points(rows, "learning_rate") for stage, rows in stages.items()},
        caption="Learning rate.", y="learning rate", starts=starts,
    )  # fmt: skip
    yield _throughput({stage: points(rows, "tokens_per_second") for stage, rows in stages.items()})
    yield _waits(history.train)


def _goodputs(rows: Sequence[Row]) -> list[Point]:
    return [(row["step"], share) for row in rows if (share := goodput(row)) is not None]


def _throughput(series: Series) -> Chart | None:
    return report_charts.lines(series, caption="Throughput, padding not counted.", y="tokens a second")


def _waits(rows: Sequence[Row]) -> Chart | None:
    shares = {"goodput": _goodputs(rows)} | {
        name: [(x, 100 * y) for x, y in points(rows, key)] for key, name in WAITS.items()
    }
    caption = "Where the time of training steps goes: goodput is what is not waited."
    return report_charts.lines(
        {name: found for name, found in shares.items() if found}, caption=caption, y="per cent"
    )


def _of_several(histories: Sequence[History]) -> Iterator[Chart | None]:
    spans = {history.name: history.spans for history in histories}
    yield report_charts.timeline(spans, caption="The curricula: stages over training steps.")
    for key, caption, y, log in (
        ("loss", "Training loss.", "nats a supervised token (log)", True),
        ("learning_rate", "Learning rate.", "learning rate", False),
    ):
        series = {history.name: points(history.train, key) for history in histories}
        yield report_charts.lines(series, caption=caption, y=y, log=log)
    yield report_charts.lines(
        {history.name: points(history.validations, "loss") for history in histories},
        caption="Validation loss on the held-out traces of all teachers.",
        y="nats a supervised token (log)", log=True, marks=True,
    )  # fmt: skip
    yield _throughput({history.name: points(history.train, "tokens_per_second") for history in histories})
    yield report_charts.lines(
        {history.name: _goodputs(history.train) for history in histories},
        caption="Goodput: the share of the time of training steps that is not waited.", y="per cent",
    )  # fmt: skip


def training_table(histories: Sequence[History]) -> Table:
    """One row per stage of a single run, or one row per run."""
    alone = len(histories) == 1
    rows = [
        _summary(span[0] if alone else history.name, history, span[1], span[2])
        for history in histories
        for span in (history.spans if alone else [("", 1, history.train[-1]["step"])])
    ]
    header = ["stage" if alone else "run", "last step", "training loss", "validation loss"]
    header += ["tokens a second", "goodput"]
    note = "Losses are the last ones. Throughput is the median of the logged steps, goodput their mean."
    return Table("What training came to", header, rows, note)


def _summary(name: str, history: History, first: int, last: int) -> list[object]:
    train = history.rows_of((name, first, last))
    losses = [loss for step, loss in points(history.validations, "loss") if first <= step <= last]
    rates = [rate for _, rate in points(train, "tokens_per_second")]
    shares = [share for _, share in _goodputs(train)]
    return [
        name,
        f"{last:,}",
        f"{train[-1]['loss']:.4f}",
        f"{losses[-1]:.4f}" if losses else ABSENT,
        f"{np.median(rates):,.0f}" if rates else ABSENT,
        f"{np.mean(shares):.1f} %" if shares else ABSENT,
    ]


# Evaluations: accuracy by task and difficulty, and sample replies side by side


RIGHT, WRONG, UNPARSED = "right", "wrong", "unparsed"
MOST_SAMPLES, MOST_CHARACTERS, LONGEST = 240, 1_500_000, 4000  # questions; of all texts; of one text


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationGroup:
    """Evaluations of the same questions in one mode: items and number of runs by column, chance by task.

    `whole` is the number of questions of each task, where no published file has it.
    """

    title: str
    items: Mapping[str, Sequence[Item]]
    replies: Mapping[str, Mapping[Key, RecordedReply]]
    chance: Mapping[str, float | None]
    runs: Mapping[str, int]
    whole: int | None

    @property
    def tasks(self) -> list[str]:
        return sorted({item.task for items in self.items.values() for item in items})

    def bars(self) -> dict[str, dict[str, Cell | None]]:
        """Accuracy by task and column; None where a column lacks the task."""
        return {
            task: {
                name: self.cell(item for item in items if item.task == task)
                for name, items in self.items.items()
            }
            for task in self.tasks
        }

    def cell(self, items: Iterable[Item]) -> Cell | None:
        found = list(items)
        return cells.of_items(found, self.whole) if found else None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One column's reply to a sampled question."""

    label: str
    outcome: str
    answer: str | None
    text: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A question and what each column replied to it; `question` None where its text is not known."""

    group: str
    item: Item
    question: str | None
    answers: Sequence[Answer]

    @property
    def size(self) -> int:
        return len(self.question or "") + sum(len(answer.text or "") for answer in self.answers)

    @property
    def pattern(self) -> tuple[str, ...]:
        return (self.group, self.item.task, *(answer.outcome for answer in self.answers))


def groups(source: RunSet) -> list[EvaluationGroup]:
    """The evaluations that stand beside one another."""
    by_group: dict[str, list[ResultColumn]] = collections.defaultdict(list)
    for column in source.columns:
        by_group[column.group].append(column)
    return [_group(title, columns) for title, columns in by_group.items()]


def _group(title: str, columns: Sequence[ResultColumn]) -> EvaluationGroup:
    chance = {
        task: row.get("chance")
        for column in columns
        for task, row in column.scores().get("tasks", {}).items()
    }
    return EvaluationGroup(
        title,
        {column.label: column.items() for column in columns},
        {column.label: column.replies() for column in columns},
        chance,
        {column.label: len(column.directories) for column in columns},
        cells.puzzles_per_family(columns[0].directories[0]),
    )


def outcome(item: Item) -> str:
    return RIGHT if item.correct else WRONG if item.answer is not None else UNPARSED


def difficulty(item: Item) -> str:
    found = item.extra.get("difficulty")
    return "" if found is None else str(found)


def _key(item: Item) -> Key:
    return item.benchmark, item.task, item.id


# Tables and figures


def table(group: EvaluationGroup) -> Table:
    """One row per task, one per difficulty where there are several, and the mean of the tasks."""
    rows: list[Sequence[object]] = []
    classes = []
    for task in group.tasks:
        of_task = {name: [item for item in items if item.task == task] for name, items in group.items.items()}
        found = [group.cell(items) for items in of_task.values()]
        shown = map(_shown, found, of_task.values())
        rows.append([task, _size(found), _per_cent(group.chance.get(task)), *shown])
        classes.append("")
        levels = sorted({difficulty(item) for items in of_task.values() for item in items})
        for level in levels if len(levels) > 1 else ():
            chosen = [[item for item in items if difficulty(item) == level] for items in of_task.values()]
            found = [cells.of_items(items) if items else None for items in chosen]
            label = f"difficulty {level or 'not named'}"
            rows.append([label, _size(found), "", *map(_shown, found, chosen)])
            classes.append("part")
    if len(group.tasks) > 1:
        rows.append(_means(group))
        classes.append("sum")
    header = ["task", "questions", "chance", *group.items]
    return Table(f"{group.title}: accuracy by task and difficulty", header, rows, _note(group), classes)


def _note(group: EvaluationGroup) -> str:
    counted = ", ".join(f"{label} {count}" for label, count in group.runs.items())
    several = max(group.runs.values()) > 1
    seeds = f" A question is counted with its mean over the runs ({counted})." if several else ""
    return f"{cells.CAPTION}{seeds} Unparsed: per cent of the replies without a well-formed answer."


def _size(found: Iterable[Cell | None]) -> str:
    return " / ".join(dict.fromkeys(cell.size for cell in found if cell)) or ABSENT


def _per_cent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _shown(cell: Cell | None, items: Sequence[Item]) -> Markup:
    if not cell:
        return Markup(ABSENT)
    unparsed = sum(item.answer is None for item in items) / len(items)
    small = tag("small", f" {100 * unparsed:.1f} unparsed") if unparsed else ""
    return Markup("{}{}").format(str(cell), small)


def _means(group: EvaluationGroup) -> list[object]:
    chances = [group.chance.get(task) for task in group.tasks]
    known = [chance for chance in chances if chance is not None]
    chance = sum(known) / len(known) if len(known) == len(chances) else None
    means = [mean(group, name) for name in group.items]
    shown = map(cells.shown, means)
    return [f"mean of {len(group.tasks)} tasks", _size(means), _per_cent(chance), *shown]


def mean(group: EvaluationGroup, name: str) -> Cell | None:
    """The unweighted mean over all tasks of the group; None where the column lacks one."""
    return mean_cell({task: cell for task, row in group.bars().items() if (cell := row[name])}, group.tasks)


def charts(group: EvaluationGroup) -> list[Chart]:
    """Bars and, for three tasks and more, a radar."""
    rows = group.bars()
    found = [
        report_charts.bars(
            rows,
            group.chance,
            caption=f"{group.title}: accuracy by task in per cent with its error; dashed: chance.",
        ),
        report_charts.radar(rows, caption=f"{group.title}: the same accuracies, a spoke a task."),
    ]
    return [chart for chart in found if chart]


# Sample replies


def samples(found: Iterable[EvaluationGroup], questions: Mapping[Key, str]) -> list[Sample]:
    """Questions with their replies, of every task and combination of outcomes in turn, within the bounds."""
    every = (sample for group in found for sample in _samples(group, questions))
    buckets: dict[tuple[str, ...], list[Sample]] = collections.defaultdict(list)
    for sample in sorted(every, key=lambda sample: digest([sample.group, *_key(sample.item)])):
        buckets[sample.pattern].append(sample)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*buckets.values()))
    chosen, space = [], MOST_CHARACTERS
    for sample in itertools.islice(filter(None, in_turn), MOST_SAMPLES):
        space -= sample.size
        if space < 0:
            break
        chosen.append(sample)
    return chosen


def _samples(group: EvaluationGroup, questions: Mapping[Key, str]) -> Iterator[Sample]:
    by_label = {label: _first_seed(items) for label, items in group.items.items()}
    for key in dict.fromkeys(itertools.chain.from_iterable(by_label.values())):
        answers = [
            _answer(label, items[key], group.replies[label].get(key))
            for label, items in by_label.items()
            if key in items
        ]
        item = next(items[key] for items in by_label.values() if key in items)
        yield Sample(group.title, item, _cut(questions.get(key)), answers)


def _first_seed(items: Sequence[Item]) -> dict[Key, Item]:
    first = min((item.seed for item in items), default=0)
    return {_key(item): item for item in items if item.seed == first}


def _answer(label: str, item: Item, reply: RecordedReply | None) -> Answer:
    return Answer(label, outcome(item), item.answer, _cut(reply.text if reply else None))


def _cut(text: str | None) -> str | None:
    """A text, without what lies between its first and last part where it is long."""
    if text is None or len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
