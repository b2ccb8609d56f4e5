"""Evaluations of the same items side by side: two of them, or an ablation's arms against a baseline.

Tables of accuracies, paired tests and scores of the stated steps, and the tests' results in sentences, all
from one frame of items.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from orca_jax.evaluation import cells, statistics
from orca_jax.evaluation.cells import ABSENT
from orca_jax.evaluation.replies import read_items
from orca_jax.evaluation.scoring import SCORES
from orca_jax.records import Item
from orca_jax.reporting.tables import Table, percent

Names = tuple[str, str]
KEY = ["benchmark", "task", "id"]
SIGNIFICANT = 0.05
STEPS = ["replies with steps", "correct steps", "right answers by wrong steps"]


class PairError(ValueError):
    """Evaluations cannot be paired; the message says why."""


def frame(by_arm: Mapping[Any, Sequence[Iterable[Item]]]) -> pd.DataFrame:
    """A row an item: its arm, the number of the run, key, difficulty, and the steps that it states.

    Args:
      by_arm: of each arm, the items of each of its runs.
    """
    rows = []
    for arm, runs in by_arm.items():
        for run, item in ((number, item) for number, items in enumerate(runs) for item in items):
            level, steps = item.extra.get("difficulty"), item.extra.get("steps", {})
            rows.append(
                {
                    "arm": arm, "run": run, "seed": item.seed, "mode": item.mode, "correct": item.correct,
                    "benchmark": item.benchmark, "task": item.task, "id": item.id,
                    "answer": item.answer, "target": item.target,
                    "difficulty": int(level or 0),
                    "level": "" if level is None else f", difficulty {int(level)}",
                    "has_steps": "steps" in item.extra,
                    "tokens": item.extra.get("tokens", np.nan),
                    "stated": steps.get("stated", 0), "true": steps.get("correct", 0),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def groups(items: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Items by task (and difficulty), by difficulty alone, and all together, in the order of a table."""
    by_task = {
        task + level: part for (task, _, level), part in items.groupby(["task", "difficulty", "level"])
    }
    by_level = {f"all{level}": part for (_, level), part in items.groupby(["difficulty", "level"])}
    return {**by_task, **by_level, "all": items}


def right(items: pd.DataFrame) -> dict[Any, np.ndarray]:
    """Whether each arm is right, bool [runs, items], the items in one order for all arms.

    Raises:
      PairError: an arm or a run was evaluated on other items.
    """
    order = pd.MultiIndex.from_frame(items[KEY].drop_duplicates())
    found: dict[Any, list[np.ndarray]] = {}
    for (arm, run), part in items.groupby(["arm", "run"], sort=False):
        if len(part) != len(order) or part.duplicated(KEY).any():
            raise PairError(
                f"arm {arm!r} was evaluated on other items than the other arms (seed no. {run}); remove its "
                "evaluation folder and run again"
            )
        found.setdefault(arm, []).append(part.set_index(KEY).correct.reindex(order).to_numpy(bool))
    return {arm: np.array(runs) for arm, runs in found.items()}


def step_row(items: pd.DataFrame) -> dict[str, float]:
    """Rates that tell reasoning from its style.

    `stated`: share of replies that state steps. `correct_steps`: of the stated steps, the share that are
    true and in order. `right_by_wrong_steps`: of the right answers with steps, the share whose steps are not
    all true. NaN where there is nothing to count.
    """
    with_steps = items[items.stated > 0]
    right = with_steps[with_steps.correct]
    total = with_steps.stated.sum()
    return {
        "stated": len(with_steps) / len(items) if len(items) else np.nan,
        "correct_steps": items.true.sum() / total if total else np.nan,
        "right_by_wrong_steps": (right.stated > right.true).mean(),
    }


# Two evaluations


def pair(first: Sequence[Item], second: Sequence[Item]) -> pd.DataFrame:
    """The items of both, arms 0 and 1, that are the same by benchmark, task and id, and by seed if several.

    Raises:
      PairError: an item stands in one evaluation only, or twice under one seed.
    """
    items = frame({0: [first], 1: [second]})
    items["run"] = items.seed if items.duplicated(["arm", *KEY]).any() else 0
    keys = [*KEY, "run"]
    if items.duplicated(["arm", *keys]).any():
        raise PairError("an item occurs twice under one seed; compare one evaluation with another")
    alone = items[~items.duplicated(keys, keep=False)]
    if len(alone):
        example = min(alone[keys].itertuples(index=False, name=None))
        raise PairError(f"{len(alone)} items are in one evaluation only, for example {example}")
    seeds = items.run.nunique()
    if seeds * len(items[KEY].drop_duplicates()) * 2 != len(items):
        raise PairError(f"some items lack one of the {seeds} seeds; finish the evaluations")
    return items


def accuracy_table(paired: pd.DataFrame, names: Names, whole: int | None = None) -> Table:
    """Accuracy of both as in `cells`, n, discordant items, the exact McNemar test and a paired bootstrap.

    p (Holm) corrects for the table's rows of single tasks being tests as many. Errors of rows over several
    tasks are pooled within tasks, as in the tables of scores. Under several seeds an item counts with its
    mean, the bootstrap draws seeds too, and McNemar's test is that of the first seed. Chance stands in a
    frame with a column `chance`.

    Args:
      whole: the number of questions of each task, where no published file has it.
    """
    known = ["chance"] if "chance" in paired else []
    header = ["", "n", *known, *names, f"{names[1]} - {names[0]}", "right in one only", "p (McNemar)"]
    header += ["p (Holm)", "95 % of the difference"]
    found = groups(paired)
    correct = {name: right(group) for name, group in found.items()}
    tests = {name: statistics.mcnemar(sides[0][0], sides[1][0]) for name, sides in correct.items()}
    single = [name for name in found if name.partition(",")[0] != "all"]
    corrected = dict(zip(single, statistics.holm([tests[name].p_value for name in single])))
    rows = []
    for name, group in found.items():
        of = None if ", difficulty " in name else whole
        shown = [cells.of_items(group[group.arm == side].itertuples(), of) for side in (0, 1)]
        drawn = statistics.paired_bootstrap(correct[name][1], correct[name][0])
        rows.append(
            [
                name,
                shown[0].size,
                *(percent(_chance(group)) for _ in known),
                *map(str, shown),
                f"{100 * drawn.difference:+z.1f}",
                f"{tests[name].only_first} / {tests[name].only_second}",
                f"{tests[name].p_value:.2g}",
                f"{corrected[name]:.2g}" if name in corrected else "-",
                _range(drawn),
            ]
        )
    return Table(header, rows)


def _range(test: statistics.Bootstrap) -> str:
    return f"{100 * test.low:+z.1f} to {100 * test.high:+z.1f}"


def _step_row(label: str, items: pd.DataFrame, absent: str = ABSENT) -> list[object]:
    return [label, len(items), *(percent(v).replace(ABSENT, absent) for v in step_row(items).values())]


def paired_sentence(paired: pd.DataFrame, names: Names) -> str:
    """The result of the paired test over all items as a sentence."""
    one, other = right(paired).values()
    test = statistics.mcnemar(one[0], other[0])
    seeds = "one seed" if len(one) == 1 else f"{len(one)} seeds, of the first"
    figures = (
        f"{names[0]} {100 * one.mean():.1f} %, {names[1]} {100 * other.mean():.1f} %, n = {one.shape[1]}, "
        f"{seeds}, McNemar p = {test.p_value:.2g}"
    )
    if np.isfinite(chance := _chance(paired)):
        figures += f", chance {100 * chance:.1f} %"
    if test.p_value >= SIGNIFICANT:
        return f"No significant difference between {names[0]} and {names[1]} ({figures})."
    if max(one.mean(), other.mean()) <= chance:
        return f"Neither {names[0]} nor {names[1]} is above chance ({figures})."
    return f"{names[int(test.only_second > test.only_first)]} is right more often ({figures})."


def compare_folders(first: Path, second: Path, names: Names, metric: str = "") -> str:
    """The paired tables of two evaluations, as `replies.read_items` reads them, as Markdown.

    Chance stands in them where the first has the scores of its tasks beside its items.
    """
    paired = pair(read_items(first, metric), read_items(second, metric))
    if (scores := first / SCORES).is_file():
        tasks = json.loads(scores.read_text(encoding="utf-8"))["tasks"]
        chance = paired.task.map({task: of.get("chance") for task, of in tasks.items()}).astype(float)
        if chance.notna().any():
            paired["chance"] = chance
    parts = [accuracy_table(paired, names, cells.puzzles_per_family(first)).markdown(), cells.CAPTION]
    if paired.has_steps[paired.arm == 0].any():
        of_all = (entry for entry in groups(paired).items() if entry[0].partition(",")[0] == "all")
        rows = [
            _step_row(f"{arm}, {name}", items[items.arm == side], "-")
            for name, items in of_all
            for side, arm in enumerate(names)
        ]
        parts.append(Table(["", "n", *STEPS], rows).markdown())
    return "\n\n".join([*(part.strip() for part in parts), paired_sentence(paired, names)]) + "\n"


# The arms of a set


CAPTION = (
    f"{cells.CAPTION} Errors are those of drawing items (an item counts with its mean over seeds); "
    "by seed: the accuracy under each seed. Differences are paired by item; their 95 % interval and p come "
    "from a bootstrap that draws seeds and items; p is corrected for the number of arms (Holm). McNemar's "
    "exact test is made within each seed: its p in the order of the seeds."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One evaluation of every arm: the `frame` of its items, whose runs are the seeds."""

    title: str
    items: pd.DataFrame

    @property
    def arms(self) -> dict[str, pd.DataFrame]:
        return dict(iter(self.items.groupby("arm", sort=False)))


class Comparison(NamedTuple):
    """An arm against the baseline: `test` is arm minus baseline, `corrected` its p over all arms.

    `best` is the higher of the two accuracies, and `chance` NaN where it is not known.
    """

    arm: str
    test: statistics.Bootstrap
    corrected: float
    mcnemar: tuple[float, ...]
    best: float
    chance: float


@functools.lru_cache(maxsize=16)
def compare(result: Result, baseline: str) -> list[Comparison]:
    """Every other arm against the baseline; none where the baseline is missing.

    Raises:
      PairError: an arm or a run was evaluated on other items.
    """
    try:
        correct = right(result.items.sort_values(KEY, kind="stable"))
    except PairError as error:
        raise PairError(f"{result.title}: {error}") from error
    base = correct.pop(baseline, None)
    if base is None:
        return []
    tests = [statistics.paired_bootstrap(one, base) for one in correct.values()]
    corrected = statistics.holm([test.p_value for test in tests])
    found = []
    for (arm, one), test, p_value in zip(correct.items(), tests, corrected):
        by_seed = tuple(statistics.mcnemar(*seeds).p_value for seeds in zip(base, one))
        best = max(one.mean(), base.mean())
        found.append(Comparison(arm, test, p_value, by_seed, best, _chance(result.items)))
    return found


def _chance(items: pd.DataFrame) -> float:
    """Of a frame whose column `chance` is known; else NaN."""
    return items.drop_duplicates(KEY).chance.mean(skipna=False) if "chance" in items else np.nan


def outcome_table(result: Result, baseline: str) -> Table:
    """Accuracies and tests, one row per arm, the baseline first; `chance` stands in a frame that knows it."""
    known = ["chance"] if "chance" in result.items else []
    guess = [percent(_chance(result.items)) for _ in known]
    compared = {entry.arm: entry for entry in compare(result, baseline)}
    rows = []
    for arm, items in sorted(result.arms.items(), key=lambda one: one[0] != baseline):
        cell, (correct,) = cells.of_items(items.itertuples()), right(items).values()
        by_seed = " ".join(f"{100 * one.mean():.1f}" for one in correct)
        tested = [ABSENT] * 4
        if entry := compared.get(arm):
            tested = [f"{100 * entry.test.difference:+z.1f}", _range(entry.test), f"{entry.corrected:.2g}"]
            tested.append(" ".join(f"{p:.2g}" for p in entry.mcnemar))
        tokens = items.tokens.mean()
        said = ABSENT if np.isnan(tokens) else f"{tokens:.0f}"
        rows.append([arm, cell.size, len(correct), *guess, cell, said, by_seed, *tested])
    header = ["Arm", "n", "seeds", *known, "accuracy", "tokens a reply", "by seed"]
    header += [f"- {baseline}", "95 %", "p (Holm)"]
    return Table([*header, "p (McNemar, by seed)"], rows)


def sentence(entry: Comparison, baseline: str) -> str:
    """A comparison as a sentence."""
    figures = f"{100 * entry.test.difference:+z.1f} points, 95 % {_range(entry.test)}"
    if entry.corrected >= SIGNIFICANT:
        return (
            f"No significant difference between {entry.arm} and {baseline} ({figures}, "
            f"Holm's p = {entry.corrected:.2g})."
        )
    figures += f", Holm's p = {entry.corrected:.2g}"
    more = "more" if entry.test.difference > 0 else "less"
    if entry.best <= entry.chance:
        return (
            f"Neither {entry.arm} nor {baseline} is above chance ({100 * entry.chance:.1f} %); "
            f"{entry.arm} is right {more} often ({figures})."
        )
    return f"{entry.arm} is right {more} often than {baseline} ({figures})."


def group_table(result: Result) -> Table:
    """Accuracy of every arm by task and difficulty, beside chance where it is known; n is of one seed."""
    chosen = {arm: groups(items) for arm, items in result.arms.items()}
    known = ["chance"] if "chance" in result.items else []
    rows = []
    for name in next(iter(chosen.values())):
        found = [cells.of_items(parts[name].itertuples()) for parts in chosen.values()]
        guess = [percent(_chance(next(iter(chosen.values()))[name])) for _ in known]
        rows.append([name, found[0].size, *guess, *found])
    return Table(["task", "n", *known, *chosen], rows)


def step_table(result: Result) -> Table:
    """Scores of the stated steps of every arm, by difficulty; without rows where no item has any."""
    rows = [
        _step_row(f"{arm}, {name}", items)
        for arm, found in result.arms.items()
        for name, items in groups(found).items()
        if name.partition(",")[0] == "all" and items.has_steps.any()
    ]
    return Table(["", "replies", *STEPS], rows)


def training_table(facts: Sequence[Mapping[str, Any]]) -> Table:
    """The training of each arm; `facts` as `arm_runs.training_facts` gathers them."""
    header = ["Arm", "what it is", "steps", "packed positions", "supervised tokens", "examples seen"]
    rows = [
        [
            fact["arm"],
            fact["note"],
            fact["steps"],
            f"{fact['positions'] / 1e6:.2f} M",
            f"{fact['supervised'] / 1e6:.2f} M",
            f"{fact['examples']:.0f}",
            ", ".join(f"{name} {count:.0f}" for name, count in fact["by_set"].items()),
        ]
        for fact in facts
    ]
    return Table([*header, "of them"], rows)


def render(
    name: str,
    question: str,
    baseline: str,
    results: Sequence[Result],
    facts: Sequence[Mapping[str, Any]],
    *,
    note: str = "",
    first: Sequence[str] = (),
) -> str:
    """The set's page in Markdown; unfinished results are left out.

    Args:
      first: paragraphs that stand before the tables.
    """
    parts = [f"# {name}", question, note, *first]
    if facts:
        parts += ["## What each arm was trained on", training_table(facts).markdown()]
    for result in results:
        parts += [f"## {result.title}", outcome_table(result, baseline).markdown(), CAPTION]
        parts.append("\n".join(f"- {sentence(entry, baseline)}" for entry in compare(result, baseline)))
        parts += ["### By task", group_table(result).markdown()]
        if (steps := step_table(result)).rows:
            parts += ["### Steps", steps.markdown()]
    if not results:
        parts.append("Nothing is finished under all seeds.")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def rows(baseline: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The outcome of every arm and result as plain values, accuracies as fractions."""
    found: list[dict[str, Any]] = []
    for result in results:
        compared = {entry.arm: entry for entry in compare(result, baseline)}
        for arm, items in result.arms.items():
            cell, (correct,) = cells.of_items(items.itertuples()), right(items).values()
            row = {
                "result": result.title,
                "arm": arm,
                "n": cell.n,
                "of": cell.of,
                "accuracy": float(correct.mean()),
                "stderr": None if cell.interval else cell.stderr,
                "interval": cell.interval,
                "by_seed": correct.mean(axis=1).tolist(),
                "tokens": None if items.tokens.isna().any() else float(items.tokens.mean()),
            }
            if entry := compared.get(arm):
                row |= {**entry.test._asdict(), "p_holm": entry.corrected, "p_mcnemar": list(entry.mcnemar)}
            found.append(row)
    return found
