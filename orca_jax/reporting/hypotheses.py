"""A set's hypotheses beside what came out: confirmed, refuted or undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orca_jax.artifacts import plain
from orca_jax.config_arms import CHANCE, ArmSetConfig, HypothesisConfig
from orca_jax.evaluation import statistics
from orca_jax.evaluation.cells import ABSENT
from orca_jax.evaluation.statistics import Crossed
from orca_jax.reporting.arms import KEY, SIGNIFICANT, Result, right
from orca_jax.reporting.tables import Table

CAPTION = (
    "Values in points, with one standard error and the 95 % interval: of a mean over seeds and items, both "
    "drawn at random, differences paired by seed and item (Student's t with Satterthwaite's degrees of "
    "freedom, Welch's where conditions are subtracted). p is two-sided, of the value being at the bound of "
    "the prediction that is nearest; Holm's correction is for all hypotheses of the set. With a corrected p "
    f"below {SIGNIFICANT} a value within the bounds confirms the hypothesis, and one outside refutes it. One "
    "seed decides nothing: its errors and p are over the items of one student an arm."
)


class Judged(NamedTuple):
    """A hypothesis with its value, a fraction, over `shape` seeds and items; None: arms are not finished."""

    hypothesis: HypothesisConfig
    found: Crossed | None
    shape: tuple[int, ...]
    p_value: float
    corrected: float

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not finished"
        if self.shape[0] < 2:
            return "undecided: one seed"
        if self.corrected >= SIGNIFICANT:
            return "undecided"
        low, high = self.hypothesis.bounds
        return "confirmed" if low < 100 * self.found.value < high else "refuted"

    def row(self) -> dict[str, Any]:
        """As plain values, the value and its error as fractions."""
        found = self.found._asdict() if self.found else {}
        return {
            **plain(self.hypothesis),
            **found,
            "p": self.p_value,
            "p_holm": self.corrected,
            "verdict": self.verdict,
        }


def values(
    arm_set: ArmSetConfig,
    results: Mapping[str, Sequence[Result]],
    one: HypothesisConfig,
    conditions: Sequence[str],
) -> np.ndarray | None:
    """What a hypothesis is about at every seed and item under conditions, float [seeds, items] of -1 to 1.

    None where an arm that it needs is not finished, its items are not there, or chance is not known.

    Args:
      results: of the set by condition; of a set without conditions, that of no name.

    Raises:
      PairError: an arm or a run was evaluated on other items.
    """
    title, parts = one.result or arm_set.results[0].title, []
    for condition in conditions or tuple(part.name for part in arm_set.conditions) or ("",):
        found = [result.items for result in results.get(condition, ()) if result.title == title]
        if not found:
            return None
        [items] = found
        chosen = items.arm.isin([one.arm, one.minus]) & items.task.map(one.is_about)
        if one.difficulties:
            chosen &= items.difficulty.isin(one.difficulties)
        by_arm = right(items[chosen])
        if one.arm not in by_arm or (one.minus not in by_arm and one.minus not in ("", CHANCE)):
            return None
        part = by_arm[one.arm].astype(float)
        if one.minus == CHANCE:
            part -= items[chosen].drop_duplicates(KEY).chance.to_numpy(float)
        elif one.minus:
            part -= by_arm[one.minus]
        parts.append(part)
    every = np.concatenate(parts, axis=1)
    return every if np.isfinite(every).all() and every.shape[1] > 1 else None


def judge(arm_set: ArmSetConfig, results: Mapping[str, Sequence[Result]]) -> list[Judged]:
    """Every hypothesis of the set, in its order; p is corrected for all, also those not finished."""
    every, p_values = [], []
    for one in arm_set.hypotheses:
        found, shape = _found(arm_set, results, one)
        every.append((one, found, shape))
        p_values.append(found.p_value(one.nearest(100 * found.value) / 100) if found else 1.0)
    corrected = statistics.holm(p_values)
    return [Judged(*entry, *p) for entry, *p in zip(every, p_values, corrected)]


def _found(
    arm_set: ArmSetConfig, results: Mapping[str, Sequence[Result]], one: HypothesisConfig
) -> tuple[Crossed | None, tuple[int, ...]]:
    """A hypothesis' value, and of how many seeds and items it is."""
    first = values(arm_set, results, one, one.conditions)
    other = values(arm_set, results, one, one.less) if one.less else None
    if first is None or (one.less and other is None):
        return None, ()
    found = statistics.crossed_mean(first)
    if other is None:
        return found, first.shape
    seeds, items = min(len(first), len(other)), first.shape[1] + other.shape[1]
    return found.minus(statistics.crossed_mean(other)), (seeds, items)


def paragraphs(judged: Sequence[Judged]) -> list[str]:
    """The table with its heading and caption in Markdown; nothing of a set without hypotheses."""
    return ["## Hypotheses", table(judged).markdown(), CAPTION] if judged else []


def predicted(one: HypothesisConfig) -> str:
    """The prediction in words."""
    words = zip(("at least", "at most"), one.bounds)
    return ", ".join(f"{word} {bound:g}" for word, bound in words if math.isfinite(bound))


def about(one: HypothesisConfig) -> str:
    """What a hypothesis is about, in words."""
    parts = [", ".join(one.conditions), ", ".join(one.tasks)]
    parts += [f"difficulty {', '.join(map(str, one.difficulties))}"] if one.difficulties else []
    parts += [f"less the same of {', '.join(one.less)}"] if one.less else []
    value = f"{one.arm} - {one.minus}" if one.minus else one.arm
    return f"{value}: {'; '.join(filter(None, parts)) or 'all items'}"


def table(judged: Sequence[Judged]) -> Table:
    """A row a hypothesis."""
    rows = []
    for one in judged:
        cells = [ABSENT] * 6
        if one.found:
            seeds, items = one.shape
            low, high = one.found.interval
            error = f"{100 * one.found.value:+z.1f} ± {100 * one.found.stderr:.1f}"
            cells = [str(items), str(seeds), error, f"{100 * low:+z.1f} to {100 * high:+z.1f}"]
            cells += [f"{one.p_value:.2g}", f"{one.corrected:.2g}"]
        rows.append(
            [one.hypothesis.name, about(one.hypothesis), predicted(one.hypothesis), *cells, one.verdict]
        )
    header = ["Hypothesis", "of", "predicted", "n", "seeds", "value", "95 %", "p", "p (Holm)", "result"]
    return Table(header, rows)
