"""Charts over the conditions of a set, such as `tracking-2` to `tracking-8`: accuracy, and a map."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orca_jax.config import CHANCE, ArmSetConfig
from orca_jax.evaluation import statistics
from orca_jax.reporting import arms, charts
from orca_jax.reporting.arms import KEY, Result
from orca_jax.reporting.charts import Chart
from orca_jax.training import metrics

X = "k"


def families(conditions: Sequence[str]) -> dict[str, dict[float, str]]:
    """Of conditions NAME-NUMBER, by name: the number to the condition, in order; others are left out."""
    found: dict[str, dict[float, str]] = {}
    for condition in conditions:
        if match := re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)", condition):
            found.setdefault(match[1], {})[float(match[2])] = condition
    return {name: dict(sorted(places.items())) for name, places in found.items()}


def compared(arm_set: ArmSetConfig) -> tuple[str, str] | None:
    """The arms of the map, first minus second: those of the first hypothesis on two arms, if there is one."""
    pairs = ((one.arm, one.minus) for one in arm_set.hypotheses if one.minus not in ("", CHANCE))
    return next(pairs, None)


def accuracy(name: str, results: Mapping[float, Result]) -> Chart | None:
    """A line an arm over the conditions of one name, with standard errors over seeds and items, and chance.

    Args:
      results: by the number of the condition.
    """
    lines: dict[str, list[charts.Point]] = {}
    errors: dict[str, list[float]] = {}
    chance = []
    for place, result in results.items():
        guess = result.items.drop_duplicates(KEY).chance.mean(skipna=False)
        chance += [(place, 100 * float(guess))] if np.isfinite(guess) else []
        for arm, right in arms.right(result.items).items():
            mean = statistics.crossed_mean(right)
            lines.setdefault(arm, []).append((place, 100 * mean.value))
            errors.setdefault(arm, []).append(100 * mean.stderr)
    caption = f"{name}: accuracy by arm, with one standard error over seeds and items; dashed: chance."
    series = {**lines, CHANCE: chance}
    return charts.lines(
        series, caption=caption, x=X, y="per cent", marks=True, dashed=(CHANCE,), errors=errors
    )


def curves(
    arm_set: ArmSetConfig, folders: Mapping[tuple[str, str], Sequence[Path]]
) -> dict[tuple[str, str], dict[int, float]]:
    """Accuracy of arms while they were trained, by condition and name: positions trained on to a fraction.

    A point is the mean over the seeds, and left out where one of them has none (`train.evaluate_every`).

    Args:
      folders: the workdirs of each arm's seeds, by condition and name.
    """
    found = {}
    for arm in arm_set.arms:
        config = arm_set.config(arm, arm_set.seeds[0])
        positions, by_seed = config.train.batch_rows * config.data.row_length, []
        for folder in folders[arm.condition, arm.name]:
            path = folder / "training" / metrics.FILE
            rows = metrics.read(path) if path.is_file() else []
            evaluated = [row for row in rows if row["kind"] == "evaluation"]
            by_seed.append({row["step"] * positions: row["accuracy"] for row in evaluated})
        shared = set.intersection(*map(set, by_seed))
        found[arm.condition, arm.name] = {
            at: float(np.mean([seed[at] for seed in by_seed])) for at in sorted(shared)
        }
    return found


def difference_map(
    name: str,
    places: Mapping[float, str],
    pair: tuple[str, str],
    accuracies: Mapping[tuple[str, str], Mapping[int, float]],
) -> Chart | None:
    """One arm minus another in points over conditions and positions trained on; None without such points.

    Args:
      places: the number of each condition of the name.
      accuracies: as `curves` gives them.
    """
    whole = [place for place, at in places.items() if all(accuracies.get((at, arm)) for arm in pair)]
    shown = [[accuracies[places[place], arm] for arm in pair] for place in whole]
    tokens = sorted(set.intersection(*(set(of) for both in shown for of in both))) if shown else []
    if not tokens:
        return None
    values = np.array([[100 * (one[at] - other[at]) for one, other in shown] for at in tokens])
    caption = (
        f"{name}: {pair[0]} minus {pair[1]} in points, on validation puzzles while training, mean over seeds; "
        "black: where it is zero."
    )
    return charts.difference_map(values, whole, tokens, caption=caption, x=X, y="positions trained on")
