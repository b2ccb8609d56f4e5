"""One `scores.json` as a table: every task and aggregate, its mode and format failures beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orca_jax.reporting.tables import ABSENT, markdown

SHOWN = ("accuracy", "unparsed", "chance", "majority")


def table(scores: Mapping[str, Any]) -> str:
    """Per cent ± one standard error by task, then by aggregate; the mode's further numbers behind.

    An aggregate of which tasks are missing says how many.
    """
    tasks, groups = scores["tasks"], scores["groups"]
    more = sorted({name for row in tasks.values() for name in row if _is_metric(name)})
    header = [f"{scores['benchmark']}, mode {scores['mode']}", "n", *SHOWN, *more]
    rows = [[name, row["n"], *(_cell(row, key) for key in (*SHOWN, *more))] for name, row in tasks.items()]
    for name, row in groups.items():
        of = f", {len(row['missing'])} missing" if row["missing"] else ""
        label = f"{name} ({row['kind']} of {row['tasks']}{of})"
        rows.append([label, row["n"], *(_cell(row, key) for key in (*SHOWN, *more))])
    return markdown(header, rows)


def _is_metric(name: str) -> bool:
    return name not in (*SHOWN, "n") and "stderr" not in name


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ABSENT
    error = row.get("stderr" if key == "accuracy" else f"{key}_stderr")
    return f"{100 * value:.1f}" if error is None else f"{100 * value:.1f} ± {100 * error:.1f}"


def unscored(found: Mapping[str, Any]) -> str:
    """What is said of replies that have no right answer: their outcomes, and toxicity if it was measured."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.get("outcomes", {}).items()))
    said = (
        f"{found.get('n', 'Some')} replies ({outcomes or 'see its scores.json'}), which have no right answer"
    )
    toxicity = found.get("toxicity")
    if not toxicity:
        return f"{said}: a judge or a classifier scores them."
    mean, error = 100 * toxicity["macro"], 100 * toxicity["stderr"]
    groups = len(toxicity["tasks"])
    return f"{said}; mean probability of toxicity {mean:.1f} ± {error:.1f} % over {groups} groups."
