"""Tables of scores and published cells, and the one type that every table is written from.

Numbers are accuracies in per cent with their errors as in `cells`. Averages, the published ones too, are
worked out here from the cells shown.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orca_jax.evaluation import cells
from orca_jax.evaluation.benchmarks import open_ended, registry, toxigen
from orca_jax.evaluation.cells import ABSENT, Cell, shown
from orca_jax.queries import system_messages
from orca_jax.reporting import published

PUBLISHED_SYSTEMS = {
    "chatgpt": "ChatGPT",
    "gpt-4": "GPT-4",
    "vicuna-13b": "Vicuna-13B",
    "orca-13b": "Orca-13B",
}
UNNAMED = "not named"
MESSAGE_NAMES = {1: "empty message", 7: "step by step"}
ORACLE_NOTE = (
    "The teachers are procedural oracles that know each puzzle's solution, not language models: "
    "these numbers say what this miniature student learned from them, and nothing about ChatGPT or GPT-4."
)
MARKS = "ᵃᵇᶜᵈᵉᶠ"  # of footnotes
LONG = 30  # characters of a cell that is no figure with its error
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "“": "``",
    "”": "''",
    **{mark: rf"\textsuperscript{{{letter}}}" for mark, letter in zip(MARKS, "abcdef")},
}
Scores = Mapping[str, Any]
Column = Mapping[str, Cell]  # by task


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of cells, in Markdown, LaTeX or, by the report's template, HTML.

    Attributes:
      ruled: the last row is set off by a rule in LaTeX.
      classes: of the rows in HTML.
      numbers: all columns but the first are figures, in HTML.
    """

    header: Sequence[object]
    rows: Sequence[Sequence[object]]
    title: str = ""
    notes: Sequence[str] = ()
    ruled: bool = False
    classes: Sequence[str] = ()
    numbers: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{len(row)} cells under {len(self.header)} columns: {row}")

    @property
    def wordy(self) -> set[int]:
        """The columns among the numbers that hold texts, or long lists."""
        return {
            at
            for at in range(1, len(self.header))
            if any(len(Markup(row[at]).striptags()) > LONG for row in self.rows)
        }

    def markdown(self) -> str:
        """The rows in columns of even width: the first to the left, the others to the right."""
        lines = [
            [str(entry).replace("|", "\\|").replace("\n", " ") for entry in line]
            for line in (self.header, *self.rows)
        ]
        first, *others = (max(3, *map(len, column)) for column in zip(*lines))
        lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
        return "".join(
            f"| {' | '.join([line[0].ljust(first), *map(str.rjust, line[1:], others)])} |\n" for line in lines
        )

    def noted(self) -> str:
        """As `markdown`, with the notes below it."""
        return "\n\n".join([self.markdown().strip(), *filter(None, self.notes)]) + "\n"

    def latex(self, label: str) -> str:
        """A `table` with title and notes, which needs booktabs and adjustbox."""
        every = (self.header, *self.rows)
        lines = [" & ".join(escaped(str(entry)) for entry in row) + r" \\" for row in every]
        rule = [r"\midrule"] if self.ruled else []
        columns = "l" + "r" * (len(self.header) - 1)
        title = escaped(re.sub(r"^Table [0-9]+: ", "", self.title))
        notes = (rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {escaped(n)}}}" for n in self.notes)
        parts = [r"\begin{table}", r"\centering\small", rf"\caption{{{title}}}", rf"\label{{{label}}}"]
        parts += [r"\begin{adjustbox}{max width=\linewidth}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        parts += [lines[0], r"\midrule", *lines[1:-1], *rule, *lines[1:][-1:], r"\bottomrule"]
        parts += [r"\end{tabular}", r"\end{adjustbox}", *notes, r"\end{table}", ""]
        return "\n".join(parts)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; see `Table.markdown`."""
    return Table(header, [*rows]).markdown()


def escaped(text: str) -> str:
    """Text with LaTeX's special characters made harmless; signs of numbers become mathematical ones."""
    plain = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", plain)


# Words and numbers that tables share


def message_label(id: int) -> str:
    """A system message by its id, -1 for a text of the conversation's own."""
    return str(id) if id >= 0 else "other (its own, not among the 16)"


def described_message(id: int) -> str:
    """As `message_label`, with the purpose of the message."""
    if id < 0:
        return message_label(id)
    message = system_messages.all_messages().get(id)
    return f"{id}: {message.purpose if message else 'not among the 16'}"


def message_name(id: int) -> str:
    """A short name for columns and legends."""
    return MESSAGE_NAMES.get(id, f"message {id}")


def counted(number: int, one: str, more: str = "") -> str:
    """`1 reply`, `3 replies`: a number with its noun."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def percent(share: float | None) -> str:
    """`12.3`; a dash for None and NaN."""
    return ABSENT if share is None or share != share else f"{100 * share:.1f}"


def sizes(found: Iterable[Cell | None]) -> str:
    """How many questions the cells of a row have, each number once, the smallest first."""
    known = {(cell.n, cell.size) for cell in found if cell is not None and cell.n is not None}
    return " / ".join(size for _, size in sorted(known)) or ABSENT


def measured_column(scores: Scores, whole: int | None = None) -> dict[str, Cell]:
    """The tasks' cells of one `scores.json`.

    Args:
      whole: the number of questions of each task, where no published file has it.
    """
    benchmark, mode = scores.get("benchmark", ""), scores.get("mode", "")
    return {
        task: cells.proportion(
            row["accuracy"],
            row["n"],
            row["stderr"],
            cells.published_size(benchmark, task, mode, row["n"]) or whole,
        )
        for task, row in scores["tasks"].items()
    }


def published_column(system: str, *, table: str, benchmark: str) -> dict[str, Cell]:
    """A published system's cells by task, its printed average left out; the error is the binomial one."""
    found = published.cells(table=table, benchmark=benchmark, system=system, metric="accuracy")
    return {
        cell.task: cells.proportion(cell.value / 100, cell.n)
        for cell in found
        if cell.task != published.AVERAGE
    }


def mean_cell(column: Mapping[str, Cell | None], tasks: Iterable[str]) -> Cell | None:
    """The unweighted mean over `tasks`, of one its cell; None where the column lacks one of them."""
    found = [column.get(task) for task in tasks]
    present = [cell for cell in found if cell is not None]
    if not present or len(present) < len(found):
        return None
    return cells.mean(present) if len(present) > 1 else present[0]


def _unparsed(scores: Scores, tasks: Iterable[str]) -> str:
    found = [row["unparsed"] for task in tasks if (row := scores["tasks"].get(task))]
    return percent(math.fsum(found) / len(found) if found else None)


# Tables of scores


def _by_task(
    header: Sequence[str],
    columns: Mapping[str, Column],
    measured: Mapping[str, Scores],
    guesses: Mapping[str, float],
    *notes: str,
) -> str:
    """A row a measured task, then the mean of those that every column has.

    Args:
      header: the heading of the tasks, then names of `columns`, or `n`, `Chance`, and `n, NAME` or
        `unparsed, NAME` of measured ones. `n` is that of columns which have no `n, NAME`.
      guesses: a blind guess's accuracy, where it is not that of the scores.
    """
    tasks = sorted({task for name in measured for task in columns[name]})
    common = [task for task in tasks if all(task in column for column in columns.values())]
    chance = {t: row["chance"] for scores in [*measured.values()][::-1] for t, row in scores["tasks"].items()}
    chance |= guesses
    rows = []
    for label, of in {**{task: [task] for task in tasks}, f"Mean of {len(common)}": common}.items():
        found = {name: mean_cell(column, of) for name, column in columns.items()}
        texts = {name: shown(cell) for name, cell in found.items()}
        texts["n"] = sizes(cell for name, cell in found.items() if f"n, {name}" not in header)
        texts["Chance"] = percent(sum(chance[task] for task in of) / len(of) if of else None)
        texts |= {f"n, {name}": sizes([cell]) for name, cell in found.items()}
        texts |= {f"unparsed, {name}": _unparsed(scores, of) for name, scores in measured.items()}
        rows.append([label, *map(texts.__getitem__, header[1:])])
    return Table(header, rows, notes=notes).noted()


def puzzle_table(scores_by_message: Mapping[str, Scores], *, note: str = "", whole: int | None = None) -> str:
    """Accuracy and format failures by puzzle family, under each system message.

    Args:
      scores_by_message: the scores under each system message, by the column's heading.
      note: a line under the table, for example what the teachers were.
      whole: how many questions there are of each family.
    """
    columns = {name: measured_column(scores, whole) for name, scores in scores_by_message.items()}
    header = ["Family", "n", "Chance", *(text for name in columns for text in (name, f"unparsed, {name}"))]
    unparsed = "Unparsed: per cent of the replies without a well-formed answer."
    return _by_task(header, columns, scores_by_message, {}, f"{cells.CAPTION} {unparsed}", note)


def bbh_table(scores_by_run: Mapping[str, Scores]) -> str:
    """Table 11 of the paper beside what was measured, each measured column with its mode.

    Args:
      scores_by_run: BBH scores by the name of the run they come from.
    """
    measured = {f"{run} ({scores['mode']})": scores for run, scores in scores_by_run.items()}
    columns: dict[str, Column] = {
        name: published_column(system, table="table_11", benchmark="bbh")
        for system, name in PUBLISHED_SYSTEMS.items()
    }
    columns |= {name: measured_column(scores) for name, scores in measured.items()}
    guesses = published_column("random_guess", table="derived", benchmark="bbh")
    parts = [f"n, {name}" for name in measured if any(cell.is_part for cell in columns[name].values())]
    return _by_task(
        ["Task", "n", "Chance", *columns, *parts, *(f"unparsed, {name}" for name in measured)],
        columns,
        measured,
        {task: cell.value for task, cell in guesses.items()},
        f"{cells.CAPTION} Errors of published cells are binomial, from n. Means are unweighted over the "
        "tasks that every column has.",
        f"Published: Orca paper, Table 11, its own runs: {', '.join(PUBLISHED_SYSTEMS.values())}.",
        f"Measured here, in the mode named (unparsed beside): {', '.join(measured)}.",
        "Columns of different modes are not comparable."
        if len({scores["mode"] for scores in measured.values()}) > 1
        else "",
    )


def loss_table(validations: Sequence[Mapping[str, Any]], most: int = 6) -> str:
    """Validation losses, a row a group; columns for some of the steps, the first and the last among them.

    Args:
      validations: lines of metrics.jsonl, with `step`, `loss` and `loss/GROUP=NAME`.
      most: columns.
    """
    count = min(most, len(validations))
    chosen = [validations[round(i * (len(validations) - 1) / max(1, count - 1))] for i in range(count)]
    rows = []
    for name in validations[-1]:
        if name.partition("/")[0] == "loss":
            group, is_group, value = name.partition("/")[2].partition("=")
            label = f"{group.replace('_', ' ')} {value or UNNAMED}" if is_group else "all"
            if group == "system_message_id":
                label = f"system message {message_label(int(value))}"
            rows.append([label, *(f"{values[name]:.3f}" for values in chosen)])
    return markdown(["Loss, nats a supervised token", *(f"step {values['step']}" for values in chosen)], rows)


SHOWN = ("accuracy", "unparsed", "chance", "majority")
# What an aggregate is of its tasks, by kind.
AGGREGATES = {"macro": "mean of", "micro": "all questions of", "harmonic": "harmonic mean of"}
COLUMNS = (
    "Unparsed: per cent of the replies without a well-formed answer. Chance: a guess among the options. "
    "Majority: always the commonest right answer."
)


def score_table(scores: Scores) -> str:
    """Per cent with errors by task, then by aggregate; the mode's further numbers behind, a caption below.

    An aggregate names the number of its missing tasks; those of a single task would repeat it.
    """
    tasks, column = scores["tasks"], measured_column(scores)
    names = {name for row in tasks.values() for name in row}
    more = sorted(name for name in names - {*SHOWN, "n"} if "stderr" not in name)

    def line(label: str, accuracy: Cell, row: Mapping[str, Any]) -> list[str]:
        rest = []
        for key in (*SHOWN[1:], *more):
            value, error = row.get(key), row.get(f"{key}_stderr")
            if value is None:
                rest.append(ABSENT)
            else:
                rest.append(str(Cell(value) if error is None else cells.proportion(value, row["n"], error)))
        return [label, accuracy.size, str(accuracy), *rest]

    rows = [line(name, column[name], row) for name, row in tasks.items()]
    benchmark = registry.BENCHMARKS.get(scores["benchmark"])
    members = {group.name: group.tasks for group in benchmark.groups} if benchmark else {}
    for name, row in scores["groups"].items():
        of = f", {len(row['missing'])} missing" if row["missing"] else ""
        kind = f"{AGGREGATES[row['kind']]} {counted(row['tasks'], 'task')}{of}"
        if name == row["kind"] and len(tasks) == 1:
            continue
        found = [column[task] for task in members.get(name, column) if task in column]
        weights = [cell.n or 0 for cell in found] if row["kind"] == "micro" else None
        whole = cells.mean(found, weights)
        if row["kind"] == "harmonic":
            whole = Cell(row["accuracy"], row["n"], row["stderr"])
        rows.append(line(kind if name == row["kind"] else f"{name}: {kind}", whole, row))
    header = [f"{scores['benchmark']}, mode {scores['mode']}", "n", *SHOWN, *more]
    return Table(header, rows, notes=[f"{cells.CAPTION} {COLUMNS}"]).noted()


def unscored_sentence(found: Scores, name: str = "") -> str:
    """A sentence on replies that have no right answer: outcomes, and toxicity or verdicts if there are any.

    Args:
      name: the evaluation's, which begins with that of its prompts, as `vicuna_prompts-open_ended`.
    """
    number, toxicity = found.get("n") or found.get("questions") or 0, found.get("toxicity", {})
    if found.get("benchmark") == toxigen.BENCHMARK:
        of: int | None = toxigen.SIZE * len(toxicity.get("tasks", ()) or toxigen.PAPER_GROUPS)
    else:
        prompts = name.removeprefix("judged-").partition("-")[0]
        of = cells.published_size(open_ended.BENCHMARK, prompts, open_ended.MODE, number)
    part = f", a part of {of:,}" if of and number < of else ""
    if "per_cent" in found:
        values = (f"{order.replace('_', ' ')} {value:.1f} %" for order, value in found["per_cent"].items())
        interval = found.get("interval")
        within = " (95 % {:.1f} to {:.1f})".format(*interval) if interval else ""
        asked = f"{counted(number, 'question')}{part}"
        return f"Candidate over reference by a judge, {asked}: {', '.join(values)}{within}."
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.get("outcomes", {}).items()))
    replies = counted(number, "reply", "replies") + part if number else "Some replies"
    sentence = f"{replies} ({outcomes or 'see its scores.json'}), which have no right answer"
    if not toxicity:
        return f"{sentence}: a judge or a classifier scores them."
    mean = cells.proportion(toxicity["macro"], toxicity.get("n"), toxicity["stderr"])
    groups = counted(len(toxicity["tasks"]), "group")
    return f"{sentence}; mean probability of toxicity {mean} % over {groups}."
