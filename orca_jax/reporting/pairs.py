"""Two examinations of the same items side by side: accuracies, paired tests, and scores of the steps."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from orca_jax.evaluation import statistics
from orca_jax.records import Item
from orca_jax.reporting.tables import markdown

Names = tuple[str, str]
Pair = tuple[Item, Item]
SIGNIFICANT = 0.05


class PairError(ValueError):
    """Two examinations cannot be paired; the message says why."""


def pair(first: Sequence[Item], second: Sequence[Item]) -> list[Pair]:
    """The items of both by benchmark, task and id.

    Raises:
      PairError: an item stands in one examination only, or twice.
    """
    keyed = [{(i.benchmark, i.task, i.id): i for i in items} for items in (first, second)]
    for items, by_key in zip((first, second), keyed):
        if len(items) > len(by_key):
            raise PairError("an item occurs twice; compare examinations of one seed")
    alone = keyed[0].keys() ^ keyed[1].keys()
    if alone:
        raise PairError(f"{len(alone)} items are in one examination only, for example {sorted(alone)[0]}")
    return [(keyed[0][key], keyed[1][key]) for key in keyed[0]]


def groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by task and difficulty, by difficulty alone, and all together, in the order of a table."""
    found: dict[str, list[Pair]] = collections.defaultdict(list)
    for one, other in sorted(pairs, key=lambda p: (p[0].task, _difficulty(p[0]))):
        found[f"{one.task}, difficulty {_difficulty(one)}"].append((one, other))
    for one, other in sorted(pairs, key=lambda p: _difficulty(p[0])):
        found[f"all, difficulty {_difficulty(one)}"].append((one, other))
    return {**found, "all": list(pairs)}


def _difficulty(item: Item) -> int:
    return int(item.extra.get("difficulty", 0))


def accuracy_table(pairs: Sequence[Pair], names: Names) -> str:
    """Accuracy of both in per cent, n, discordant items and the exact McNemar test, by group."""
    header = ["", "n", *names, f"{names[1]} - {names[0]}", "right in one only", "p (McNemar)"]
    return markdown(header, [_accuracy_row(name, group) for name, group in groups(pairs).items()])


def _accuracy_row(name: str, group: Sequence[Pair]) -> list[str]:
    right = np.array([[one.correct, other.correct] for one, other in group])
    test = statistics.mcnemar(right[:, 0], right[:, 1])
    shown = [_percent(statistics.mean(right[:, side].astype(float))) for side in (0, 1)]
    difference = 100 * float(right[:, 1].mean() - right[:, 0].mean())
    return [
        name,
        str(len(group)),
        *shown,
        f"{difference:+.1f}",
        f"{test.only_first} / {test.only_second}",
        f"{test.p_value:.2g}",
    ]


def _percent(estimate: statistics.Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {100 * estimate.stderr:.1f}"


def step_row(items: Sequence[Item]) -> Mapping[str, float]:
    """Whether an examination shows reasoning or its style.

    `stated`: share of replies that state steps. `correct_steps`: of the stated steps, the share that are
    true and in order. `right_by_wrong_steps`: of the right answers with steps, the share whose steps are not
    all true. Nan where there is nothing to count.
    """
    steps = [item.extra.get("steps", {"stated": 0, "correct": 0, "expected": 0}) for item in items]
    stated = [s["stated"] > 0 for s in steps]
    right = [s for s, item in zip(steps, items) if item.correct and s["stated"]]
    wrong = [s for s in right if s["stated"] > s["correct"]]
    total = sum(s["stated"] for s in steps)
    return {
        "stated": float(np.mean(stated)) if items else float("nan"),
        "correct_steps": sum(s["correct"] for s in steps) / total if total else float("nan"),
        "right_by_wrong_steps": len(wrong) / len(right) if right else float("nan"),
    }


def step_table(pairs: Sequence[Pair], names: Names) -> str:
    """Scores of the steps of both, in per cent, by difficulty and over all."""
    header = ["", "n", "replies with steps", "correct steps", "right answers by wrong steps"]
    rows = []
    for name, group in groups(pairs).items():
        if not name.startswith("all"):
            continue
        for side, arm in enumerate(names):
            values = step_row([both[side] for both in group]).values()
            shown = ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in values]
            rows.append([f"{arm}, {name}", str(len(group)), *shown])
    return markdown(header, rows)


def sentence(pairs: Sequence[Pair], names: Names) -> str:
    """What the paired test over all items says, in words."""
    right = np.array([[one.correct, other.correct] for one, other in pairs])
    test = statistics.mcnemar(right[:, 0], right[:, 1])
    accuracy = 100 * right.mean(axis=0)
    figures = (
        f"{names[0]} {accuracy[0]:.1f} %, {names[1]} {accuracy[1]:.1f} %, n = {len(pairs)}, one seed, "
        f"McNemar p = {test.p_value:.2g}"
    )
    if test.p_value >= SIGNIFICANT:
        return f"No significant difference between {names[0]} and {names[1]} ({figures})."
    better = names[int(test.only_second > test.only_first)]
    return f"{better} is right more often ({figures})."
