"""An ablation's arms beside one another: accuracies, paired tests against a baseline, and these in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orca_jax.evaluation import statistics
from orca_jax.records import Item
from orca_jax.reporting import cells, pairs
from orca_jax.reporting.cells import ABSENT, Cell
from orca_jax.reporting.tables import markdown

SIGNIFICANT = 0.05
CAPTION = (
    f"{cells.CAPTION} Errors are those of drawing items (an item counts with its mean over seeds); "
    "by seed: the accuracy under each seed. Differences are paired by item; their 95 % interval and p come "
    "from a bootstrap that draws seeds and items; p is corrected for the number of arms (Holm). McNemar's "
    "exact test is made within each seed: its p in the order of the seeds."
)


class Result(NamedTuple):
    """One evaluation of every arm: `items` by arm, a list for each seed, all of the same items."""

    title: str
    items: Mapping[str, Sequence[Sequence[Item]]]


class Comparison(NamedTuple):
    """An arm against the baseline: `test` is arm minus baseline, `corrected` its p over all arms."""

    arm: str
    test: statistics.Bootstrap
    corrected: float
    mcnemar: tuple[float, ...]


class ArmError(ValueError):
    """The arms' evaluations cannot be compared; the message says why."""


def right(result: Result) -> dict[str, np.ndarray]:
    """Whether each arm is right, bool [seeds, items], the items in one order for all arms.

    Raises:
      ArmError: an arm or a seed was evaluated on other items.
    """
    keys = sorted(_key(item) for item in next(iter(result.items.values()))[0])
    found = {}
    for arm, seeds in result.items.items():
        by_key = [{_key(item): item.correct for item in items} for items in seeds]
        for number, one in enumerate(by_key):
            if len(one) != len(seeds[number]) or sorted(one) != keys:
                raise ArmError(
                    f"{result.title}: arm {arm!r} was evaluated on other items than the first arm "
                    f"(seed no. {number}); remove its evaluation folder and run again"
                )
        found[arm] = np.array([[one[key] for key in keys] for one in by_key])
    return found


def _key(item: Item) -> tuple[str, str, str]:
    return item.benchmark, item.task, item.id


def compare(result: Result, baseline: str) -> list[Comparison]:
    """Every other arm against the baseline; none where the baseline is missing."""
    correct = right(result)
    if baseline not in correct:
        return []
    others = [arm for arm in correct if arm != baseline]
    tests = [statistics.paired_bootstrap(correct[arm], correct[baseline]) for arm in others]
    corrected = statistics.holm([test.p_value for test in tests])
    return [
        Comparison(arm, test, p, _by_seed(correct[baseline], correct[arm]))
        for arm, test, p in zip(others, tests, corrected)
    ]


def _by_seed(baseline: np.ndarray, arm: np.ndarray) -> tuple[float, ...]:
    return tuple(statistics.mcnemar(one, other).p_value for one, other in zip(baseline, arm))


def outcome_table(result: Result, baseline: str) -> str:
    """A row an arm, the baseline first."""
    header = [
        "Arm",
        "n",
        "seeds",
        "accuracy",
        "by seed",
        f"- {baseline}",
        "95 %",
        "p (Holm)",
        "p (McNemar, by seed)",
    ]
    correct, compared = right(result), {entry.arm: entry for entry in compare(result, baseline)}
    rows = []
    for arm in sorted(correct, key=lambda arm: arm != baseline):
        cell, seeds = _over_seeds(result.items[arm]), len(correct[arm])
        by_seed = " ".join(f"{100 * one.mean():.1f}" for one in correct[arm])
        rows.append([arm, cell.size, seeds, cell, by_seed, *_tested(compared.get(arm))])
    return markdown(header, rows)


def _over_seeds(seeds: Sequence[Sequence[Item]]) -> Cell:
    return cells.of_items(item for items in seeds for item in items)


def _tested(entry: Comparison | None) -> list[str]:
    if entry is None:
        return [ABSENT] * 4
    test = entry.test
    return [
        f"{100 * test.difference:+z.1f}",
        f"{100 * test.low:+z.1f} to {100 * test.high:+z.1f}",
        f"{entry.corrected:.2g}",
        " ".join(f"{p:.2g}" for p in entry.mcnemar),
    ]


def sentence(entry: Comparison, baseline: str) -> str:
    """What a comparison says, in words made of its figures."""
    test = entry.test
    figures = f"{100 * test.difference:+z.1f} points, 95 % {100 * test.low:+z.1f} to {100 * test.high:+z.1f}"
    if entry.corrected >= SIGNIFICANT:
        return (
            f"No significant difference between {entry.arm} and {baseline} ({figures}, "
            f"Holm's p = {entry.corrected:.2g})."
        )
    more = "more" if test.difference > 0 else "less"
    return f"{entry.arm} is right {more} often than {baseline} ({figures}, Holm's p = {entry.corrected:.2g})."


def group_table(result: Result) -> str:
    """Accuracy of every arm by task and difficulty; n is of one seed."""
    chosen = {arm: _groups(seeds) for arm, seeds in result.items.items()}
    rows = []
    for name in next(iter(chosen.values())):
        found = [cells.of_items(groups[name]) for groups in chosen.values()]
        rows.append([name, found[0].size, *found])
    return markdown(["task", "n", *chosen], rows)


def _groups(seeds: Sequence[Sequence[Item]]) -> dict[str, list[Item]]:
    """All seeds' items by task and difficulty, by difficulty, and together."""
    twice = [(item, item) for items in seeds for item in items]
    return {name: [item for item, _ in group] for name, group in pairs.groups(twice).items()}


def step_table(result: Result) -> str:
    """Scores of the stated steps of every arm, by difficulty; empty where no item has any."""
    header = ["", "replies", "replies with steps", "correct steps", "right answers by wrong steps"]
    rows = [
        [f"{arm}, {name}", len(items), *map(_percent, pairs.step_row(items).values())]
        for arm, seeds in result.items.items()
        for name, items in _groups(seeds).items()
        if name.partition(",")[0] == "all" and any("steps" in item.extra for item in items)
    ]
    return markdown(header, rows) if rows else ""


def _percent(share: float) -> str:
    return ABSENT if np.isnan(share) else f"{100 * share:.1f}"


def training_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """What each arm was trained on: facts as `experiments.ablate` gathers them."""
    header = [
        "Arm",
        "what it is",
        "steps",
        "packed positions",
        "supervised tokens",
        "examples seen",
        "of them",
    ]
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
    return markdown(header, rows)


def render(
    name: str,
    question: str,
    baseline: str,
    results: Sequence[Result],
    facts: Sequence[Mapping[str, Any]],
    *,
    note: str = "",
) -> str:
    """The whole set as Markdown; what is not finished is not in it."""
    parts = [f"# {name}", question, note]
    if facts:
        parts += ["## What each arm was trained on", training_table(facts)]
    for result in results:
        parts += [f"## {result.title}", outcome_table(result, baseline), CAPTION]
        parts += [f"- {sentence(entry, baseline)}" for entry in compare(result, baseline)]
        parts += ["### By task", group_table(result)]
        if steps := step_table(result):
            parts += ["### Steps", steps]
    if not results:
        parts.append("Nothing is finished under all seeds.")
    return _joined(part.strip() for part in parts if part) + "\n"


def _joined(parts: Any) -> str:
    """Parts with an empty line between them, except between the points of a list."""
    text = ""
    for part in parts:
        both = part.startswith("- ") and text.rpartition("\n")[2].startswith("- ")
        text += ("\n" if both else "\n\n") * bool(text) + part
    return text


def rows(baseline: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The outcome of every arm and result as plain values, accuracies as fractions."""
    found: list[dict[str, Any]] = []
    for result in results:
        compared = {entry.arm: entry for entry in compare(result, baseline)}
        for arm, correct in right(result).items():
            cell = _over_seeds(result.items[arm])
            row = {
                "result": result.title,
                "arm": arm,
                "n": cell.n,
                "of": cell.of,
                "accuracy": float(correct.mean()),
                "stderr": None if cell.interval else cell.stderr,
                "interval": cell.interval,
                "by_seed": correct.mean(axis=1).tolist(),
            }
            if entry := compared.get(arm):
                row |= {**entry.test._asdict(), "p_holm": entry.corrected, "p_mcnemar": list(entry.mcnemar)}
            found.append(row)
    return found
