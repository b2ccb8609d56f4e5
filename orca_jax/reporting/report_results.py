"""The report's results of training and evaluations: losses and throughput, accuracies, sample replies."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from orca_jax.artifacts import digest
from orca_jax.evaluation import cells, scoring
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.reporting import charts
from orca_jax.reporting.charts import Chart, Point
from orca_jax.reporting.report_sources import Key, ResultColumn, RunSet, read_json
from orca_jax.reporting.tables import UNNAMED, Table, mean_cell, percent

# Training: the curriculum's time line, losses, learning rate, throughput and goodput


WAITS = {"data_wait": "waiting for data", "save_wait": "saving checkpoints"}
BY_TEACHER, BY_FAMILY = "loss/teacher=", "accuracy/family="
NATS = "nats a supervised token (log)"
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """The metrics of one run, in the order of its steps."""

    name: str
    train: Sequence[Row]
    validations: Sequence[Row]
    evaluations: Sequence[Row]

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> History:
        kinds = ("train", "validation", "evaluation")
        return cls(name, *([row for row in rows if row["kind"] == kind] for kind in kinds))

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """(stage, first step, last step), as far as what was logged tells: a stage's end is assessed."""
        logged: dict[str, list[int]] = {}
        for row in self.train:
            logged.setdefault(row["stage"], []).append(row["step"])
        nexts = [steps[0] for steps in logged.values()][1:] + [math.inf]
        spans, before, assessed = [], 0, [*self.validations, *self.evaluations]
        for (stage, steps), begun in zip(logged.items(), nexts):
            last = max([steps[-1], *(row["step"] for row in assessed if row["step"] < begun)])
            spans.append((stage, before + 1, last))
            before = last
        return spans

    def between(self, first: int, last: int) -> list[Row]:
        return [row for row in self.train if first <= row["step"] <= last]


def points(rows: Sequence[Row], key: str) -> list[Point]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def percents(rows: Sequence[Row], key: str) -> list[Point]:
    return [(step, 100 * share) for step, share in points(rows, key)]


def goodputs(rows: Sequence[Row]) -> list[Point]:
    """The share of the time without waiting, in per cent, of the steps whose waiting time was logged."""
    known = [(row["step"], sum(row.get(key, 0.0) for key in WAITS)) for row in rows if WAITS.keys() & row]
    return [(step, 100 * (1 - waits)) for step, waits in known]


def training_charts(histories: Sequence[History]) -> list[Chart]:
    """Charts of one run by stage and teacher, or of several runs, one line each."""
    starts: dict[str, float] = {}
    if len(histories) == 1:
        (run,) = histories
        spans = {"": run.spans}
        parts = {stage: run.between(first, last) for stage, first, last in run.spans}
        starts = {stage: first for stage, first, _ in run.spans[1:]}
        names = dict.fromkeys(key for row in run.validations for key in row if key.startswith(BY_TEACHER))
        losses = {key.removeprefix(BY_TEACHER) or UNNAMED: points(run.validations, key) for key in names}
        losses |= {"all teachers": points(run.validations, "loss")}
        names = dict.fromkeys(key for row in run.evaluations for key in row if key.startswith(BY_FAMILY))
        rights = {key.removeprefix(BY_FAMILY): percents(run.evaluations, key) for key in names}
        rights |= {"all families": percents(run.evaluations, "accuracy")}
        shares = {"goodput": goodputs(run.train)} | {
            name: percents(run.train, key) for key, name in WAITS.items()
        }
        captions = (
            "The curriculum: stages over training steps.",
            "Training loss by stage.",
            "Validation loss on held-out traces, by teacher.",
            "Accuracy on validation puzzles while training, by family: {} over all.",
            "Where the time of training steps goes: goodput is what is not waited.",
        )
    else:
        spans = {run.name: run.spans for run in histories}
        parts = {run.name: list(run.train) for run in histories}
        losses = {run.name: points(run.validations, "loss") for run in histories}
        rights = {run.name: percents(run.evaluations, "accuracy") for run in histories}
        shares = {run.name: goodputs(run.train) for run in histories}
        captions = (
            "The curricula: stages over training steps.",
            "Training loss.",
            "Validation loss on the held-out traces of all teachers.",
            "Accuracy on validation puzzles while training: {}.",
            "Goodput: the share of the time of training steps that is not waited.",
        )

    def of(key: str) -> dict[str, list[Point]]:
        return {name: points(rows, key) for name, rows in parts.items()}

    evaluated = next((run.evaluations for run in histories if run.evaluations), [])
    errors = [error for run in histories for _, error in percents(run.evaluations, "stderr")]
    rights["chance"] = percents(evaluated, "chance")
    marked: Any = {"marks": True, "starts": starts}
    asked = f"{evaluated[-1]['n']} questions, standard error at most {max(errors):.1f}" if errors else ""
    found = [
        charts.timeline(spans, caption=captions[0]),
        charts.lines(of("loss"), caption=captions[1], y=NATS, log="y", starts=starts),
        charts.lines(losses, caption=captions[2], y=NATS, log="y", **marked),
        charts.lines(rights, caption=captions[3].format(asked), y="per cent", dashed=("chance",), **marked),
        charts.lines(of("learning_rate"), caption="Learning rate.", y="learning rate", starts=starts),
        charts.lines(
            of("tokens_per_second"), caption="Throughput, padding not counted.", y="tokens a second"
        ),
        charts.lines({n: found for n, found in shares.items() if found}, caption=captions[4], y="per cent"),
    ]
    return [chart for chart in found if chart]


def training_table(histories: Sequence[History]) -> Table:
    """One row per stage of a single run, or one row per run."""
    alone = len(histories) == 1
    rows = []
    for run in histories:
        for stage, first, last in run.spans if alone else [(run.name, 1, run.train[-1]["step"])]:
            train = run.between(first, last)
            losses = [loss for step, loss in points(run.validations, "loss") if first <= step <= last]
            rates = [rate for _, rate in points(train, "tokens_per_second")]
            shares = [share for _, share in goodputs(train)]
            shown = [f"{last:,}", f"{train[-1]['loss']:.4f}", f"{losses[-1]:.4f}" if losses else ABSENT]
            shown.append(f"{np.median(rates):,.0f}" if rates else ABSENT)
            rows.append([stage, *shown, f"{np.mean(shares):.1f} %" if shares else ABSENT])
    header = ["stage" if alone else "run", "last step", "training loss", "validation loss"]
    note = "Losses are the last ones. Throughput is the median of the logged steps, goodput their mean."
    return Table([*header, "tokens a second", "goodput"], rows, "What training came to", [note])


# Evaluations: accuracy by task and difficulty, and sample replies side by side


MOST_SAMPLES, MOST_CHARACTERS, LONGEST = 240, 1_500_000, 4000  # questions; of all texts; of one text


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationGroup:
    """Evaluations of the same questions in one mode.

    Attributes:
      items: those of all columns, see `ResultColumn.items`.
      bars: accuracy by task and column; None where a column lacks the task.
      whole: the number of questions of each task, where no published file has it.
    """

    title: str
    columns: Sequence[ResultColumn]
    items: pd.DataFrame
    chance: Mapping[str, float | None]
    bars: Mapping[str, Mapping[str, Cell | None]]
    whole: int | None

    @property
    def labels(self) -> list[str]:
        return [column.label for column in self.columns]

    @property
    def means(self) -> dict[str, Cell | None]:
        """The unweighted mean over all tasks by column; None where the column lacks one."""
        columns = {label: {task: row[label] for task, row in self.bars.items()} for label in self.labels}
        return {label: mean_cell(column, self.bars) for label, column in columns.items()}


def groups(source: RunSet) -> list[EvaluationGroup]:
    """The evaluations that stand beside one another."""
    found = []
    for title in dict.fromkeys(column.group for column in source.columns):
        columns = [column for column in source.columns if column.group == title]
        items = pd.concat([column.items() for column in columns], ignore_index=True)
        if items.empty:
            continue
        whole = cells.puzzles_per_family(columns[0].directories[0])
        scores = (read_json(column.directories[0] / scoring.SCORES) for column in columns)
        chance = {task: row.get("chance") for one in scores for task, row in one.get("tasks", {}).items()}
        bars: dict[str, dict[str, Cell | None]] = {
            task: dict.fromkeys(column.label for column in columns) for task in sorted(set(items.task))
        }
        for (task, label), part in items.groupby(["task", "arm"]):
            bars[task][label] = cells.of_items(part.itertuples(), whole)
        found.append(EvaluationGroup(title, columns, items, chance, bars, whole))
    return found


def table(group: EvaluationGroup) -> Table:
    """One row per task, one per difficulty where there are several, and the mean of the tasks."""
    rows: list[list[object]] = []
    classes = []

    def add(
        label: str, items: pd.DataFrame, found: Mapping[str, Cell | None], chance: str, kind: str
    ) -> None:
        shown = []
        for column, cell in found.items():
            unparsed = 100 * items.answer[items.arm == column].isna().mean() if cell and kind != "sum" else 0
            small = Markup("<small> {:.1f} unparsed</small>").format(unparsed) if unparsed else ""
            shown.append(Markup("{}{}").format(cells.shown(cell), small))
        sizes = " / ".join(dict.fromkeys(cell.size for cell in found.values() if cell)) or ABSENT
        rows.append([label, sizes, chance, *shown])
        classes.append(kind)

    for task, bars in group.bars.items():
        of_task = group.items[group.items.task == task]
        add(task, of_task, bars, percent(group.chance.get(task)), "")
        levels = sorted(set(of_task.difficulty))
        for level in levels if len(levels) > 1 else ():
            chosen = of_task[of_task.difficulty == level]
            parts = {label: chosen[chosen.arm == label] for label in bars}
            found = {label: cells.of_items(p.itertuples()) if len(p) else None for label, p in parts.items()}
            add(f"difficulty {level or 'not named'}", chosen, found, "", "part")
    if len(group.bars) > 1:
        chances = pd.Series([group.chance.get(task) for task in group.bars], dtype=float)
        mean = chances.mean(skipna=False)
        add(f"mean of {len(group.bars)} tasks", group.items, group.means, percent(mean), "sum")
    runs = {column.label: len(column.directories) for column in group.columns}
    counted = ", ".join(f"{label} {count}" for label, count in runs.items())
    said = f" A question is counted with its mean over the runs ({counted})."
    seeds = said if max(runs.values()) > 1 else ""
    note = f"{cells.CAPTION}{seeds} Unparsed: per cent of the replies without a well-formed answer."
    title = f"{group.title}: accuracy by task and difficulty"
    return Table(["task", "questions", "chance", *group.labels], rows, title, [note], classes=classes)


def result_charts(group: EvaluationGroup) -> list[Chart]:
    """Bars and, for three tasks and more, a radar."""
    about = f"{group.title}: accuracy by task in per cent with its error; dashed: chance."
    spokes = charts.radar(group.bars, caption=f"{group.title}: the same accuracies, a spoke a task.")
    return [charts.bars(group.bars, group.chance, caption=about), *([spokes] if spokes else [])]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A question and what each column replied to it; `question` None where its text is not known.

    Attributes:
      item: one column's, for what all of them have.
      answers: by column: `outcome`, `answer` and the reply's text, None where it is not kept.
    """

    group: str
    item: Any
    question: str | None
    answers: Mapping[str, tuple[str, str | None, str | None]]

    @property
    def size(self) -> int:
        return len(self.question or "") + sum(len(text or "") for *_, text in self.answers.values())

    @property
    def pattern(self) -> tuple[str, ...]:
        return (self.group, self.item.task, *(outcome for outcome, *_ in self.answers.values()))


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


def _key(item: Any) -> Key:
    return item.benchmark, item.task, item.id


def _samples(group: EvaluationGroup, questions: Mapping[Key, str]) -> Iterator[Sample]:
    firsts = group.items[group.items.run == group.items.groupby("arm").run.transform("min")]
    replies = {column.label: column.replies() for column in group.columns}
    by_key: dict[Key, dict[str, Any]] = collections.defaultdict(dict)
    for item in firsts.astype(object).where(firsts.notna(), None).itertuples():
        by_key[_key(item)][item.arm] = item
    for key, items in by_key.items():
        answers = {}
        for label, item in items.items():
            outcome = "right" if item.correct else "unparsed" if item.answer is None else "wrong"
            answers[label] = outcome, item.answer, _cut(replies[label].get(key))
        yield Sample(group.title, next(iter(items.values())), _cut(questions.get(key)), answers)


def _cut(text: str | None) -> str | None:
    """A text, without what lies between its first and last part where it is long."""
    if text is None or len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
