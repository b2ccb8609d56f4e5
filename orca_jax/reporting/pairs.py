"""Two evaluations of the same items side by side: accuracies, paired tests, and scores of the steps."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from orca_jax.evaluation import statistics
from orca_jax.records import Item
from orca_jax.reporting import cells
from orca_jax.reporting.tables import markdown

Names = tuple[str, str]
Pair = tuple[Item, Item]
SIGNIFICANT = 0.05


class PairError(ValueError):
    """Two evaluations cannot be paired; the message says why."""


def pair(first: Sequence[Item], second: Sequence[Item]) -> list[Pair]:
    """The items of both by benchmark, task and id, and by seed where an item was asked under several.

    Raises:
      PairError: an item stands in one evaluation only, or twice under one seed.
    """
    several = any(len(items) > len({_key(item) for item in items}) for items in (first, second))
    keyed = [
        {(*_key(item), item.seed if several else 0): item for item in items} for items in (first, second)
    ]
    for items, by_key in zip((first, second), keyed):
        if len(items) > len(by_key):
            raise PairError("an item occurs twice under one seed; compare one evaluation with another")
    alone = keyed[0].keys() ^ keyed[1].keys()
    if alone:
        raise PairError(f"{len(alone)} items are in one evaluation only, for example {sorted(alone)[0]}")
    seeds = {seed for *_, seed in keyed[0]}
    if len(seeds) * len({key[:3] for key in keyed[0]}) != len(keyed[0]):
        raise PairError(f"not every item was asked under each of {len(seeds)} seeds; finish the evaluations")
    return [(keyed[0][key], keyed[1][key]) for key in keyed[0]]


def _key(item: Item) -> tuple[str, str, str]:
    return item.benchmark, item.task, item.id


def groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by task (and difficulty), by difficulty alone, and all together, in the order of a table."""
    found: dict[str, list[Pair]] = collections.defaultdict(list)
    for one, other in sorted(pairs, key=lambda p: (p[0].task, _difficulty(p[0]))):
        found[one.task + _level(one)].append((one, other))
    for one, other in sorted(pairs, key=lambda p: _difficulty(p[0])):
        found["all" + _level(one)].append((one, other))
    return {**found, "all": list(pairs)}


def _level(item: Item) -> str:
    return f", difficulty {_difficulty(item)}" if "difficulty" in item.extra else ""


def _difficulty(item: Item) -> int:
    return int(item.extra.get("difficulty", 0))


def accuracy_table(pairs: Sequence[Pair], names: Names, whole: int | None = None) -> str:
    """Accuracy of both as in `cells`, n, discordant items, the exact McNemar test and a paired bootstrap.

    p (Holm) corrects for the table's rows of single tasks being tests as many. Errors of rows over several
    tasks are pooled within tasks, as in the tables of scores. Under several seeds an item counts with its
    mean, the bootstrap draws seeds too, and McNemar's test is that of the first seed.

    Args:
      whole: how many questions each task has, where no published file tells.
    """
    header = ["", "n", *names, f"{names[1]} - {names[0]}", "right in one only", "p (McNemar)"]
    header += ["p (Holm)", "95 % of the difference"]
    found = groups(pairs)
    tests = {name: statistics.mcnemar(*_right(group)[0].T) for name, group in found.items()}
    single = [name for name in found if name.partition(",")[0] != "all"]
    corrected = dict(zip(single, statistics.holm([tests[name].p_value for name in single])))
    rows = []
    for name, group in found.items():
        of = None if ", difficulty " in name else whole
        rows.append(_accuracy_row(name, group, tests[name], corrected.get(name), of))
    return markdown(header, rows)


def _right(group: Sequence[Pair]) -> np.ndarray:
    """Whether each is right, bool [seeds, items, 2]."""
    by_seed: dict[int, dict[tuple[str, str, str], tuple[bool, bool]]] = collections.defaultdict(dict)
    for one, other in group:
        by_seed[one.seed][_key(one)] = (one.correct, other.correct)
    items = list(next(iter(by_seed.values())))
    return np.array([[by_seed[seed][item] for item in items] for seed in sorted(by_seed)])


def _accuracy_row(
    name: str, group: Sequence[Pair], test: statistics.McNemar, corrected: float | None, whole: int | None
) -> list[str]:
    right = _right(group)
    shown = [cells.of_items((pair[side] for pair in group), whole) for side in (0, 1)]
    drawn = statistics.paired_bootstrap(right[..., 1], right[..., 0])
    return [
        name,
        shown[0].size,
        *map(str, shown),
        f"{100 * drawn.difference:+z.1f}",
        f"{test.only_first} / {test.only_second}",
        f"{test.p_value:.2g}",
        "-" if corrected is None else f"{corrected:.2g}",
        f"{100 * drawn.low:+z.1f} to {100 * drawn.high:+z.1f}",
    ]


def step_row(items: Sequence[Item]) -> Mapping[str, float]:
    """Whether an evaluation shows reasoning or its style.

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
        if name.partition(",")[0] != "all":
            continue
        for side, arm in enumerate(names):
            values = step_row([both[side] for both in group]).values()
            shown = ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in values]
            rows.append([f"{arm}, {name}", str(len(group)), *shown])
    return markdown(header, rows)


def sentence(pairs: Sequence[Pair], names: Names) -> str:
    """What the paired test over all items says, in words."""
    right = _right(pairs)
    test = statistics.mcnemar(*right[0].T)
    accuracy = 100 * right.mean(axis=(0, 1))
    seeds = "one seed" if len(right) == 1 else f"{len(right)} seeds, of the first"
    figures = (
        f"{names[0]} {accuracy[0]:.1f} %, {names[1]} {accuracy[1]:.1f} %, n = {right.shape[1]}, {seeds}, "
        f"McNemar p = {test.p_value:.2g}"
    )
    if test.p_value >= SIGNIFICANT:
        return f"No significant difference between {names[0]} and {names[1]} ({figures})."
    better = names[int(test.only_second > test.only_first)]
    return f"{better} is right more often ({figures})."
