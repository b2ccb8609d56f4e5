"""Sampling error and significance of accuracies; all accuracies are fractions."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

Key = TypeVar("Key", bound=Hashable)
FEW, RARE = 40, 5  # a standard error needs this many items, and this many right and wrong ones
ENDS_95 = [(1 - 0.95) / 2, (1 + 0.95) / 2]
NORMAL_95 = 1.96  # standard errors from the middle of a 95 % interval to its end


class Estimate(NamedTuple):
    value: float
    stderr: float


class Interval(NamedTuple):
    low: float
    high: float


class McNemar(NamedTuple):
    """`only_first` items were right in the first evaluation alone; `p_value` is two-sided."""

    only_first: int
    only_second: int
    p_value: float


class Bootstrap(NamedTuple):
    """`difference` is first minus second, with a 95 % percentile interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


class Crossed(NamedTuple):
    """A mean over seeds and items with its standard error; `freedom`: degrees of Student's t."""

    value: float
    stderr: float
    freedom: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        half = self.stderr * float(special.stdtrit(self.freedom, ENDS_95[1]))
        return Interval(self.value - half, self.value + half)

    def p_value(self, expected: float) -> float:
        """Of the two-sided t test against `expected`."""
        return min(1.0, 2 * float(special.stdtr(self.freedom, -abs(self.value - expected) / self.stderr)))

    def minus(self, other: Crossed) -> Crossed:
        """The difference to a mean over other seeds and items, as in Welch's test (Biometrika 34, 1947)."""
        parts = [(one.stderr**2, one.freedom) for one in (self, other)]
        variance = sum(part for part, _ in parts)
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        return Crossed(self.value - other.value, math.sqrt(variance), freedom)


def binomial_standard_error(accuracy: float, n: int) -> float:
    """sqrt(p (1 - p) / n): the sampling error of `n` independent items."""
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"need n >= 1 and an accuracy in [0, 1], got n={n}, accuracy={accuracy}")
    return float(np.sqrt(accuracy * (1 - accuracy) / n))


def mean(values: ArrayLike) -> Estimate:
    """The mean over items, float [items], each a mean over seeds; of zeros and ones the error is binomial."""
    array = np.asarray(values, float)
    return Estimate(float(array.mean()), float(array.std() / np.sqrt(array.size)))


def means(pairs: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The mean of each key's values, keys in the order of their first."""
    values: dict[Key, list[float]] = collections.defaultdict(list)
    for key, value in pairs:
        values[key].append(value)
    return {key: float(np.mean(found)) for key, found in values.items()}


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """The mean over items, float [items], with the error of drawing whole clusters of items.

    Deviations of a cluster's items (questions about one passage, say), which are not independent, are added
    before they are squared (Miller, arXiv 2411.00640).
    """
    array = np.asarray(values, float)
    sums: dict[Hashable, float] = collections.defaultdict(float)
    for cluster, deviation in zip(clusters, array - array.mean(), strict=True):
        sums[cluster] += deviation
    return Estimate(float(array.mean()), float(np.linalg.norm(list(sums.values())) / array.size))


def bootstrap_interval(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The 95 % percentile interval of a mean over items, float [items], drawn with replacement.

    Two columns, [items, 2], are a ratio: the sum of the second over the sum of the first.
    """
    array = np.asarray(values, float)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(array), size=(resamples, len(array)))
    sums = array[drawn].sum(axis=1)
    found = sums[:, 1] / sums[:, 0] if array.ndim == 2 else sums / len(array)
    low, high = np.quantile(found, ENDS_95)
    return Interval(float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for testing so many hypotheses at once; in the order given."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def micro_mean(estimates: Sequence[Estimate], sizes: Sequence[int]) -> Estimate:
    """The mean over tasks weighted by their number of items; errors are pooled within tasks."""
    values, errors = np.array(estimates, float).T
    shares = np.asarray(sizes, float) / sum(sizes)
    return Estimate(float(shares @ values), float(np.linalg.norm(shares * errors)))


def harmonic_mean(estimates: Sequence[Estimate]) -> Estimate:
    """BBEH's mean over tasks (arXiv 2502.19187): harmonic, with 0.01 added to each accuracy and left in."""
    values, errors = np.array(estimates, float).T
    values = values + 0.01
    mean = len(values) / np.sum(1 / values)
    return Estimate(float(mean), float(np.linalg.norm(errors * (mean / values) ** 2) / len(values)))


def is_rough(accuracy: float, n: float) -> bool:
    """Whether the standard error of an accuracy misleads: the items, or those right or wrong, are few.

    Brown, Cai and DasGupta (Statistical Science 16, 2001) advise Wilson's interval for 40 items and fewer.
    """
    return n < FEW or min(accuracy, 1 - accuracy) * n < RARE - 1e-6  # 145 of 150 are 5 short of all


def wilson_interval(correct: float, n: float, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for an accuracy; `correct` may be a sum of items' means over seeds.

    Raises:
      ValueError: there is no item, or `correct` is not between 0 and `n`.
    """
    if n <= 0 or not -1e-9 <= correct <= n + 1e-9:
        raise ValueError(f"need n > 0 and from 0 to n correct, got n={n}, correct={correct}")
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), correct / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(max(p * (1 - p), 0) / n + z**2 / (4 * n**2))
    low, high = ((middle + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return Interval(max(0.0, min(p, low)), min(1.0, max(p, high)))


def combined_interval(
    values: Sequence[float], intervals: Sequence[Interval], weights: Sequence[float]
) -> Interval:
    """The interval of a weighted sum of independent estimates, from their own intervals.

    Zou and Donner (Statistics in Medicine 27, 2008); of the difference of two accuracies by Wilson's
    intervals it is Newcombe's (1998).
    """
    middle = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
    ends = [
        sorted(weight * (end - value) for end in interval)
        for weight, value, interval in zip(weights, values, intervals, strict=True)
    ]
    return Interval(
        middle - math.hypot(*(low for low, _ in ends)), middle + math.hypot(*(high for _, high in ends))
    )


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test on two evaluations with the same items (and one seed), bool [items] each."""
    one, two = np.asarray(first, bool), np.asarray(second, bool)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"need two equal [items] arrays, got shapes {one.shape} and {two.shape}")
    only_first, only_second = int(np.sum(one & ~two)), int(np.sum(two & ~one))
    discordant = only_first + only_second
    tail = float(special.bdtr(min(only_first, only_second), discordant, 0.5))
    return McNemar(only_first, only_second, min(1.0, 2 * tail))


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Bootstrap:
    """Compares two systems over seeds and items, both drawn with replacement.

    Where the difference is the same at every item, so that every draw gives it again, the interval is
    Wilson's and the p-value that of the sign test.

    Args:
      first, second: right or wrong, [seeds, items]; items are the same and drawn together, seeds
        (their number may differ) are drawn for each system alone.
      seed: of the resampling.
    """
    systems = [np.atleast_2d(np.asarray(scores, float)) for scores in (first, second)]
    if systems[0].shape[1] != systems[1].shape[1]:
        raise ValueError(f"the systems have {systems[0].shape[1]} and {systems[1].shape[1]} items")
    random = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for draw in range(resamples):
        items = random.integers(systems[0].shape[1], size=systems[0].shape[1])
        one, two = (
            scores[random.integers(len(scores), size=len(scores))][:, items].mean() for scores in systems
        )
        differences[draw] = one - two
    low, high = np.quantile(differences, ENDS_95)
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    p_value = min(1.0, 2 * float(tail + 1) / (resamples + 1))
    difference = float(systems[0].mean() - systems[1].mean())
    if low == high:
        n = systems[0].shape[1]
        shares = max(difference, 0.0), max(-difference, 0.0)
        bounds = [wilson_interval(share * n, n) for share in shares]
        low, high = combined_interval(shares, bounds, (1, -1))
        p_value = max(p_value, min(1.0, 2.0 ** (1 - n))) if difference else 1.0
    return Bootstrap(difference, float(low), float(high), p_value)


def satterthwaite(seeds: int, items: int, of_seeds: float, of_items: float, residual: float) -> float:
    """Degrees of freedom of a mean over seeds and items, from the mean squares of their crossed design."""
    squares = [(of_seeds, seeds - 1), (of_items, items - 1), (-residual, (seeds - 1) * (items - 1))]
    total = sum(square for square, _ in squares)
    return total**2 / max(sum(square**2 / max(degrees, 1) for square, degrees in squares), 1e-300)


def crossed_mean(values: ArrayLike) -> Crossed:
    """The mean of values, float [seeds, items], of which both the seeds and the items are drawn.

    Every seed meets all items, so the variance is (MS_seeds + MS_items - MS_residual) / (seeds * items), with
    Satterthwaite's degrees of freedom: the quasi-F test of Clark (Journal of Verbal Learning and Verbal
    Behavior 12, 1973). No component counts as negative, and the error is at least that of one item that
    differs from all others. With one seed the error is that of drawing items alone.
    """
    array = np.atleast_2d(np.asarray(values, float))
    seeds, items = array.shape
    if items < 2:
        raise ValueError(f"need two items or more, got shape {array.shape}")
    by_seed, by_item, mean = array.mean(axis=1), array.mean(axis=0), array.mean()
    of_items = seeds * float(by_item.var(ddof=1))
    of_seeds = residual = 0.0
    variance, freedom = of_items, float(items - 1)
    if seeds > 1:
        of_seeds = items * float(by_seed.var(ddof=1))
        rest = array - by_seed[:, None] - by_item + mean
        residual = float(np.sum(rest**2)) / ((seeds - 1) * (items - 1))
        variance = max(of_items + max(of_seeds - residual, 0.0), of_seeds)
        freedom = max(satterthwaite(seeds, items, of_seeds, of_items, residual), seeds - 1.0)
    least = math.sqrt(1 - 1 / items) / items
    return Crossed(float(mean), max(math.sqrt(variance / (seeds * items)), least), freedom)
