"""Markdown tables of scores and published cells.

Numbers are accuracies in per cent with their errors as in `cells`. Averages, the published ones too, are
worked out here from the cells shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
Scores = Mapping[str, Any]
Column = Mapping[str, Cell]


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


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with columns of even width: the first to the left, the others to the right.

    Raises:
      ValueError: a row has more or fewer cells than the header.
    """
    lines = [[_escaped(entry) for entry in row] for row in (header, *rows)]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"a row of {len(line)} cells under {len(header)} columns: {' | '.join(line)}")
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(_line(line, widths) for line in (lines[0], rule, *lines[1:]))


def _escaped(entry: object) -> str:
    return str(entry).replace("|", "\\|").replace("\n", " ")


def _line(entries: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(entries, widths)
    padded = [first[0].ljust(first[1]), *(entry.rjust(width) for entry, width in others)]
    return f"| {' | '.join(padded)} |\n"


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


def mean_cell(column: Column, tasks: Iterable[str]) -> Cell | None:
    """The unweighted mean over `tasks`, or None where the column lacks one of them."""
    found = [column.get(task) for task in tasks]
    present = [cell for cell in found if cell is not None]
    return cells.mean(present) if present and len(present) == len(found) else None


def puzzle_table(scores_by_message: Mapping[str, Scores], *, note: str = "", whole: int | None = None) -> str:
    """Accuracy and format failures by puzzle family, under each system message.

    Args:
      scores_by_message: the scores under each system message, by the column's heading.
      note: a line under the table, for example what the teachers were.
      whole: how many questions there are of each family.
    """
    columns = {name: measured_column(scores, whole) for name, scores in scores_by_message.items()}
    families = _all_tasks(columns.values())
    header = ["Family", "n", "Chance"]
    for name in columns:
        header += [name, f"unparsed, {name}"]
    rows = [_puzzle_row(family, scores_by_message, columns) for family in families]
    rows.append(_puzzle_means(families, scores_by_message, columns))
    unparsed = "Unparsed: per cent of the replies without a well-formed answer."
    return _with_notes(markdown(header, rows), [f"{cells.CAPTION} {unparsed}", note])


def _puzzle_row(family: str, scores: Mapping[str, Scores], columns: Mapping[str, Column]) -> list[str]:
    of_family = {name: message["tasks"].get(family) for name, message in scores.items()}
    known = [row for row in of_family.values() if row]
    entries = [family, _sizes(column.get(family) for column in columns.values())]
    entries.append(f"{100 * known[0]['chance']:.1f}")
    for name, row in of_family.items():
        entries += [shown(columns[name].get(family)), _percent(row["unparsed"]) if row else ABSENT]
    return entries


def _puzzle_means(
    families: Sequence[str], scores: Mapping[str, Scores], columns: Mapping[str, Column]
) -> list[str]:
    common = _common(families, columns.values())
    means = {name: mean_cell(column, common) for name, column in columns.items()}
    tasks = [message["tasks"] for message in scores.values()]
    chance = _mean(tasks[0][family]["chance"] for family in common) if tasks else None
    entries = [_mean_label(common), _sizes(means.values()), _percent(chance)]
    for name, message in zip(columns, tasks):
        unparsed = _mean(message[family]["unparsed"] for family in common)
        entries += [shown(means[name]), _percent(unparsed)]
    return entries


def bbh_table(
    scores_by_run: Mapping[str, Scores] | None = None, *, tasks: Sequence[str] | None = None
) -> str:
    """Table 11 of the paper beside what was measured, each measured column with its mode.

    Args:
      scores_by_run: BBH scores by the name of the run they come from; without any, the published cells
        alone.
      tasks: the rows; by default the measured tasks, or else all of Table 11.

    Raises:
      ValueError: the scores are of another benchmark, or there is no such task.
    """
    measured = {_heading(run, scores): scores for run, scores in (scores_by_run or {}).items()}
    columns: dict[str, Column] = {
        name: published_column(system, table="table_11", benchmark="bbh")
        for system, name in PUBLISHED_SYSTEMS.items()
    }
    columns |= {name: measured_column(scores) for name, scores in measured.items()}
    known = _all_tasks(columns.values())
    rows = sorted(tasks or _all_tasks(columns[name] for name in measured) or known)
    if unknown := set(rows) - set(known):
        raise ValueError(f"no BBH scores for {', '.join(sorted(unknown))}; known tasks: {', '.join(known)}")
    table = markdown(*_bbh_cells(rows, columns, measured))
    return _with_notes(table, _bbh_notes(measured))


def _heading(run: str, scores: Scores) -> str:
    if scores["benchmark"] != "bbh":
        raise ValueError(f"{run} has scores of {scores['benchmark']}, not of bbh")
    return f"{run} ({scores['mode']})"


def _bbh_cells(
    tasks: Sequence[str], columns: Mapping[str, Column], measured: Mapping[str, Scores]
) -> tuple[list[str], list[list[str]]]:
    chance = _bbh_chance(tasks, measured)
    parts = [name for name in measured if any(cell.is_part for cell in columns[name].values())]
    header = ["Task", "n", "Chance", *columns, *(f"n, {name}" for name in parts)]
    header += [f"unparsed, {name}" for name in measured]

    def row(
        label: str, shown_chance: float | None, found: Mapping[str, Cell | None], of: Sequence[str]
    ) -> list[str]:
        whole = _sizes(cell for name, cell in found.items() if name not in parts)
        entries = [label, whole, _percent(shown_chance), *map(shown, found.values())]
        entries += [_sizes([found[name]]) for name in parts]
        return entries + [_unparsed(scores, of) for scores in measured.values()]

    rows = [
        row(task, chance[task], {name: column.get(task) for name, column in columns.items()}, [task])
        for task in tasks
    ]
    common = _common(tasks, columns.values())
    means = {name: mean_cell(column, common) for name, column in columns.items()}
    rows.append(row(_mean_label(common), _mean(chance[task] for task in common), means, common))
    return header, rows


def _bbh_chance(tasks: Sequence[str], measured: Mapping[str, Scores]) -> dict[str, float]:
    derived = published_column("random_guess", table="derived", benchmark="bbh")
    chance = {task: cell.value for task, cell in derived.items()}
    for scores in measured.values():
        chance = {task: row["chance"] for task, row in scores["tasks"].items()} | chance
    return {task: chance[task] for task in tasks}


def _bbh_notes(measured: Mapping[str, Scores]) -> list[str]:
    modes = sorted({scores["mode"] for scores in measured.values()})
    ours = f"Measured here, in the mode named (unparsed beside): {', '.join(measured)}." if measured else ""
    mixed = "Columns of different modes are not comparable." if len(modes) > 1 else ""
    return [
        f"{cells.CAPTION} Errors of published cells are binomial, from n. Means are unweighted over the "
        "tasks that every column has.",
        f"Published: Orca paper, Table 11, its own runs: {', '.join(PUBLISHED_SYSTEMS.values())}.",
        ours,
        mixed,
    ]


def _unparsed(scores: Scores, tasks: Sequence[str]) -> str:
    rows = [scores["tasks"].get(task) for task in tasks]
    return _percent(_mean(row["unparsed"] for row in rows if row))


def _all_tasks(columns: Iterable[Column]) -> list[str]:
    return sorted({task for column in columns for task in column})


def _common(tasks: Iterable[str], columns: Iterable[Column]) -> list[str]:
    wanted = list(columns)
    return [task for task in tasks if all(task in column for column in wanted)]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _mean_label(tasks: Sequence[str]) -> str:
    return f"Mean of {len(tasks)}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _sizes(found: Iterable[Cell | None]) -> str:
    """How many questions the cells of a row have, each number once, the smallest first."""
    known = {(cell.n, cell.size) for cell in found if cell is not None and cell.n is not None}
    return " / ".join(size for _, size in sorted(known)) or ABSENT


def _with_notes(table: str, notes: Iterable[str]) -> str:
    return table + "".join(f"\n{note}\n" for note in notes if note)


def loss_table(validations: Sequence[Mapping[str, Any]], most: int = 6) -> str:
    """Validation losses, a row a group; columns for some of the steps, the first and the last among them.

    Args:
      validations: lines of metrics.jsonl, with `step`, `loss` and `loss/GROUP=NAME`.
      most: columns.
    """
    count = min(most, len(validations))
    shown = [validations[round(i * (len(validations) - 1) / max(1, count - 1))] for i in range(count)]
    names = [name for name in validations[-1] if name.partition("/")[0] == "loss"]
    header = ["Loss, nats a supervised token", *(f"step {values['step']}" for values in shown)]
    rows = ([_group(name), *(f"{values[name]:.3f}" for values in shown)] for name in names)
    return markdown(header, rows)


def _group(name: str) -> str:
    """A group's name out of `loss/GROUP=NAME`; `loss` alone is over all."""
    group, is_group, value = name.partition("/")[2].partition("=")
    if not is_group:
        return "all"
    if group == "system_message_id":
        return f"system message {message_label(int(value))}"
    return f"{group.replace('_', ' ')} {value or UNNAMED}"


# One scores.json: every task and aggregate, its mode and format failures beside


SHOWN = ("accuracy", "unparsed", "chance", "majority")


def score_table(scores: Mapping[str, Any]) -> str:
    """Per cent with errors by task, then by aggregate; the mode's further numbers behind, a caption below.

    An aggregate names the number of its missing tasks.
    """
    tasks, column = scores["tasks"], measured_column(scores)
    names = {name for row in tasks.values() for name in row}
    more = sorted(name for name in names - {*SHOWN, "n"} if "stderr" not in name)
    header = [f"{scores['benchmark']}, mode {scores['mode']}", "n", *SHOWN, *more]
    rows = [_row(name, column[name], row, more) for name, row in tasks.items()]
    for name, row in scores["groups"].items():
        of = f", {len(row['missing'])} missing" if row["missing"] else ""
        label = f"{name} ({row['kind']} of {row['tasks']}{of})"
        rows.append(_row(label, _aggregate(name, row, column, scores["benchmark"]), row, more))
    return f"{markdown(header, rows)}\n{cells.CAPTION}\n"


def _aggregate(name: str, row: Mapping[str, Any], column: Mapping[str, Cell], benchmark: str) -> Cell:
    """The mean over the tasks of an aggregate: of a benchmark's own, or of all tasks."""
    known = registry.BENCHMARKS.get(benchmark)
    members = next((group.tasks for group in known.groups if group.name == name), ()) if known else ()
    found = [column[task] for task in members or column if task in column]
    return cells.mean(found, [cell.n or 0 for cell in found] if row["kind"] == "micro" else None)


def _row(label: str, accuracy: Cell, row: Mapping[str, Any], more: list[str]) -> list[str]:
    rest = (_cell(row, key) for key in (*SHOWN[1:], *more))
    return [label, accuracy.size, str(accuracy), *rest]


def _cell(row: Mapping[str, Any], key: str) -> str:
    value, error = row.get(key), row.get(f"{key}_stderr")
    if value is None:
        return ABSENT
    return str(Cell(value) if error is None else cells.proportion(value, row["n"], error))


def unscored_sentence(found: Mapping[str, Any], name: str = "") -> str:
    """A sentence on replies that have no right answer: outcomes, and toxicity or verdicts if there are any.

    Args:
      name: the evaluation's, which begins with that of its prompts, as `vicuna_prompts-open_ended`.
    """
    if "per_cent" in found:
        return _judged(found, name)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.get("outcomes", {}).items()))
    number, of = found.get("n"), _whole(found, name)
    replies = counted(number, "reply", "replies") if number else "Some replies"
    replies += f", a part of {of:,}" if number and of and number < of else ""
    sentence = f"{replies} ({outcomes or 'see its scores.json'}), which have no right answer"
    toxicity = found.get("toxicity")
    if not toxicity:
        return f"{sentence}: a judge or a classifier scores them."
    mean = cells.proportion(toxicity["macro"], toxicity.get("n"), toxicity["stderr"])
    groups = counted(len(toxicity["tasks"]), "group")
    return f"{sentence}; mean probability of toxicity {mean} % over {groups}."


def _judged(found: Mapping[str, Any], name: str) -> str:
    """The candidate beside its reference, of the questions that were judged."""
    values = ", ".join(
        f"{order.replace('_', ' ')} {value:.1f} %" for order, value in found["per_cent"].items()
    )
    interval = found.get("interval")
    within = " (95 % {:.1f} to {:.1f})".format(*interval) if interval else ""
    number, of = found.get("questions") or 0, _whole(found, name)
    part = f", a part of {of:,}" if of and number < of else ""
    return f"Candidate over reference by a judge, {counted(number, 'question')}{part}: {values}{within}."


def _whole(found: Mapping[str, Any], name: str) -> int | None:
    """The number of prompts of a published file; None where it is not known."""
    if found.get("benchmark") == toxigen.BENCHMARK:
        return toxigen.SIZE * len(found.get("toxicity", {}).get("tasks", ()) or toxigen.PAPER_GROUPS)
    prompts = name.removeprefix("judged-").partition("-")[0]
    number = found.get("n") or found.get("questions") or 0
    return cells.published_size(open_ended.BENCHMARK, prompts, open_ended.MODE, number)
