"""One `scores.json` as a table: every task and aggregate, its mode and format failures beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orca_jax.evaluation.benchmarks import open_ended, registry, toxigen
from orca_jax.reporting import cells, sizes
from orca_jax.reporting.cells import ABSENT, Cell
from orca_jax.reporting.tables import counted, markdown, measured_column

SHOWN = ("accuracy", "unparsed", "chance", "majority")


def table(scores: Mapping[str, Any]) -> str:
    """Per cent with errors by task, then by aggregate; the mode's further numbers behind, a caption below.

    An aggregate of which tasks are missing says how many.
    """
    tasks, column = scores["tasks"], measured_column(scores)
    more = sorted({name for row in tasks.values() for name in row if _is_metric(name)})
    header = [f"{scores['benchmark']}, mode {scores['mode']}", "n", *SHOWN, *more]
    rows = [_row(name, column[name], row, more) for name, row in tasks.items()]
    for name, row in scores["groups"].items():
        of = f", {len(row['missing'])} missing" if row["missing"] else ""
        label = f"{name} ({row['kind']} of {row['tasks']}{of})"
        rows.append(_row(label, _aggregate(name, row, column, scores["benchmark"]), row, more))
    return f"{markdown(header, rows)}\n{cells.CAPTION}\n"


def _aggregate(name: str, row: Mapping[str, Any], column: Mapping[str, Cell], benchmark: str) -> Cell:
    """The mean over the tasks of an aggregate: of a benchmark's own, or of all tasks."""
    reader = registry.BENCHMARKS.get(benchmark)
    members = next((group.tasks for group in reader.groups if group.name == name), ()) if reader else ()
    found = [column[task] for task in members or column if task in column]
    return cells.mean(found, [cell.n or 0 for cell in found] if row["kind"] == "micro" else None)


def _is_metric(name: str) -> bool:
    return name not in (*SHOWN, "n") and "stderr" not in name


def _row(label: str, accuracy: Cell, row: Mapping[str, Any], more: list[str]) -> list[str]:
    rest = (_cell(row, key) for key in (*SHOWN[1:], *more))
    return [label, accuracy.size, str(accuracy), *rest]


def _cell(row: Mapping[str, Any], key: str) -> str:
    value, error = row.get(key), row.get(f"{key}_stderr")
    if value is None:
        return ABSENT
    return str(Cell(value) if error is None else cells.proportion(value, row["n"], error))


def unscored(found: Mapping[str, Any], name: str = "") -> str:
    """What is said of replies that have no right answer: outcomes, and toxicity or verdicts if there are any.

    Args:
      name: the evaluation's, which begins with that of its prompts, as `vicuna_prompts-open_ended`.
    """
    if "per_cent" in found:
        return _judged(found, name)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.get("outcomes", {}).items()))
    number, of = found.get("n"), _whole(found, name)
    replies = counted(number, "reply", "replies") if number else "Some replies"
    replies += f", a part of {of:,}" if number and of and number < of else ""
    said = f"{replies} ({outcomes or 'see its scores.json'}), which have no right answer"
    toxicity = found.get("toxicity")
    if not toxicity:
        return f"{said}: a judge or a classifier scores them."
    mean = cells.proportion(toxicity["macro"], toxicity.get("n"), toxicity["stderr"])
    groups = counted(len(toxicity["tasks"]), "group")
    return f"{said}; mean probability of toxicity {mean} % over {groups}."


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
    """How many prompts there are where a published file tells."""
    if found.get("benchmark") == toxigen.BENCHMARK:
        return toxigen.SIZE * len(found.get("toxicity", {}).get("tasks", ()) or toxigen.PAPER_GROUPS)
    prompts = name.removeprefix("judged-").partition("-")[0]
    number = found.get("n") or found.get("questions") or 0
    return sizes.full(open_ended.BENCHMARK, prompts, open_ended.MODE, number)
