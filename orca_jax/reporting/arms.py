"""Evaluations of the same items side by side: two of them, or an ablation's arms against a baseline.

Tables of accuracies, paired tests and scores of the stated steps, and the tests' results in sentences.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orca_jax import files
from orca_jax.evaluation import cells, statistics
from orca_jax.evaluation.cells import ABSENT, Cell
from orca_jax.records import Item
from orca_jax.reporting.tables import markdown

# Two evaluations


Names = tuple[str, str]
Pair = tuple[Item, Item]
SIGNIFICANT = 0.05


class PairError(ValueError):
    """Two evaluations cannot be paired; the message says why."""


def pair(first: Sequence[Item], second: Sequence[Item]) -> list[Pair]:
    """The items of both by benchmark, task and id, and by seed where there are several.

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
        raise PairError(f"some items lack one of the {len(seeds)} seeds; finish the evaluations")
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
      whole: the number of questions of each task, where no published file has it.
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
    """Rates that tell reasoning from its style.

    `stated`: share of replies that state steps. `correct_steps`: of the stated steps, the share that are
    true and in order. `right_by_wrong_steps`: of the right answers with steps, the share whose steps are not
    all true. NaN where there is nothing to count.
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


def paired_step_table(pairs: Sequence[Pair], names: Names) -> str:
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


def paired_sentence(pairs: Sequence[Pair], names: Names) -> str:
    """The result of the paired test over all items as a sentence."""
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


def compare_folders(first: Path, second: Path, names: Names) -> str:
    """The paired tables of two evaluations, folders with items.jsonl, as Markdown."""
    sides = [list(files.read_jsonl(side / "items.jsonl", Item)) for side in (first, second)]
    paired = pair(*sides)
    parts = [accuracy_table(paired, names, cells.puzzles_per_family(first)), cells.CAPTION]
    if any("steps" in item.extra for item in sides[0]):
        parts.append(paired_step_table(paired, names))
    return "\n\n".join([*(part.strip() for part in parts), paired_sentence(paired, names)]) + "\n"


# The arms of a set


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


def compare(result: Result, baseline: str) -> list[Comparison]:
    """Every other arm against the baseline; none where the baseline is missing."""
    correct = right(result)
    if baseline not in correct:
        return []
    others = [arm for arm in correct if arm != baseline]
    tests = [statistics.paired_bootstrap(correct[arm], correct[baseline]) for arm in others]
    corrected = statistics.holm([test.p_value for test in tests])
    base = correct[baseline]
    by_seed = [
        tuple(statistics.mcnemar(*seeds).p_value for seeds in zip(base, correct[arm])) for arm in others
    ]
    return [Comparison(*comparison) for comparison in zip(others, tests, corrected, by_seed)]


def outcome_table(result: Result, baseline: str) -> str:
    """Accuracies and tests, one row per arm, the baseline first."""
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
    """A comparison as a sentence."""
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
    return {name: [item for item, _ in group] for name, group in groups(twice).items()}


def step_table(result: Result) -> str:
    """Scores of the stated steps of every arm, by difficulty; empty where no item has any."""
    header = ["", "replies", "replies with steps", "correct steps", "right answers by wrong steps"]
    rows = [
        [f"{arm}, {name}", len(items), *map(_percent, step_row(items).values())]
        for arm, seeds in result.items.items()
        for name, items in _groups(seeds).items()
        if name.partition(",")[0] == "all" and any("steps" in item.extra for item in items)
    ]
    return markdown(header, rows) if rows else ""


def _percent(share: float) -> str:
    return ABSENT if np.isnan(share) else f"{100 * share:.1f}"


def training_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """The training of each arm; `facts` are gathered by `experiments.ablate`."""
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
    """The set's page in Markdown; unfinished results are left out."""
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
