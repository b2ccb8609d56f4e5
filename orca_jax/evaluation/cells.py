"""Cells of tables: a number, its sampling error, and the rule by which all tables show them.

A proportion of at least `statistics.FEW` questions with at least `statistics.RARE` of them right and as many
wrong has its standard error; any other has its 95 % interval by Wilson, since the standard error of 0 of 2
would be 0. A mean or a difference follows the same rule, its interval combined from those of its parts. A
number of fewer questions than the published files have is shown as a part of them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from orca_jax import artifacts, plugins
from orca_jax.evaluation import statistics
from orca_jax.evaluation.benchmarks import agieval, bbeh, bbh, gsm8k, open_ended, puzzles, toxigen, truthfulqa
from orca_jax.evaluation.statistics import Interval
from orca_jax.records import Item

ABSENT = "–"
ERRORS = (
    f"± one standard error, or [the 95 % interval] where n is below {statistics.FEW} or fewer than "
    f"{statistics.RARE} are right or wrong (Wilson's; a mean's or difference's, from its terms')"
)
PARTS = "n of N: a part of the N questions that there are, which is no score of the benchmark"
CAPTION = f"Accuracy in per cent {ERRORS}. {PARTS}."


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A number with its sampling error; made by `proportion`, `mean` and `difference`."""

    value: float  # a fraction, for example an accuracy
    n: int | None = None  # questions measured; None where unknown
    stderr: float | None = None  # one standard error; None where unknown
    of: int | None = None  # questions that there are; None where unknown
    interval: Interval | None = None  # of 95 %, where it stands in the place of the standard error

    @property
    def is_part(self) -> bool:
        return self.n is not None and self.of is not None and self.n < self.of

    @property
    def size(self) -> str:
        """n, of a part `n of N`."""
        return ABSENT if self.n is None else f"{self.n} of {self.of}" if self.is_part else str(self.n)

    @property
    def span(self) -> Interval:
        """The ends of the error bar."""
        error = self.stderr or 0.0
        return self.interval or Interval(self.value - error, self.value + error)

    def __str__(self) -> str:
        return self.text()

    def text(self, scale: float = 100, decimals: int = 1, sign: str = "") -> str:
        """The value times `scale` with its error: `62.4 ± 3.6`, or `0.0 [0.0, 65.8]`."""

        def shown(number: float, sign: str = sign) -> str:
            return f"{rounded(scale * number, decimals):{sign}z}"

        if self.interval:
            return f"{shown(self.value)} [{shown(self.interval.low)}, {shown(self.interval.high)}]"
        error = "" if self.stderr is None else f" ± {shown(self.stderr, '')}"
        return shown(self.value) + error


def rounded(value: float, decimals: int) -> Decimal:
    """A half goes up, as in the paper: its 41.6 (Table 9) is a mean of 41.55."""
    exact = Decimal(repr(round(value, 9)))  # without the noise of binary fractions
    return exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def shown(cell: Cell | None) -> str:
    return ABSENT if cell is None else str(cell)


def proportion(value: float, n: int | None, stderr: float | None = None, of: int | None = None) -> Cell:
    """A mean of `n` values in [0, 1]; its standard error is by default the binomial one."""
    if not n:
        return Cell(value, stderr=stderr, of=of)
    if stderr is None:
        stderr = statistics.binomial_standard_error(value, n)
    rough = statistics.is_rough(value, n) or not stderr
    return Cell(value, n, stderr, of, statistics.wilson_interval(value * n, n) if rough else None)


def mean(cells: Sequence[Cell], weights: Sequence[float] | None = None) -> Cell:
    """The mean over tasks, unweighted by default; without an error where one of the cells has none."""
    weights = weights or [1] * len(cells)
    shares = [weight / math.fsum(weights) for weight in weights]
    value = math.fsum(share * cell.value for share, cell in zip(shares, cells))
    counts = [cell.n for cell in cells if cell.n is not None and cell.stderr is not None]
    if len(counts) < len(cells):
        return Cell(value)
    stderr = math.hypot(*(share * (cell.stderr or 0.0) for share, cell in zip(shares, cells)))
    known = any(cell.of is not None for cell in cells)
    of = sum(max(n, cell.of or n) for n, cell in zip(counts, cells)) if known else None
    whole = Cell(value, sum(counts), stderr, of)
    # The number of questions of a single proportion with this variance: fewer than all, if sizes differ.
    effective = 1 / math.fsum(share**2 / n for share, n in zip(shares, counts))
    bounded = any(cell.interval for cell in cells) and (statistics.is_rough(value, effective) or not stderr)
    return dataclasses.replace(whole, interval=_combined(cells, shares)) if bounded else whole


def difference(ours: Cell, theirs: Cell) -> Cell:
    """Ours less theirs, as of independent samples, with our n."""
    value = ours.value - theirs.value
    known = ours.stderr is not None and theirs.stderr is not None
    stderr = math.hypot(ours.stderr or 0.0, theirs.stderr or 0.0) if known else None
    bounded = ours.interval or theirs.interval
    return Cell(value, ours.n, stderr, ours.of, _combined((ours, theirs), (1, -1)) if bounded else None)


def _combined(cells: Sequence[Cell], weights: Sequence[float]) -> Interval:
    errors = [statistics.NORMAL_95 * (cell.stderr or 0.0) for cell in cells]
    bounds = [c.interval or Interval(c.value - error, c.value + error) for c, error in zip(cells, errors)]
    return statistics.combined_interval([cell.value for cell in cells], bounds, weights)


def of_items(items: Iterable[Item], whole: int | None = None) -> Cell:
    """Accuracy over all items, errors pooled within tasks; an item under several seeds is its mean.

    Args:
      whole: the number of questions of each task, where no published file has it.
    """
    by_task = collections.defaultdict[tuple[str, str, str], list[float]](list)
    keyed = (((i.benchmark, i.task, i.mode, i.id), float(i.correct)) for i in items)
    for (*of, _), right in statistics.means(keyed).items():
        by_task[tuple(of)].append(right)  # type: ignore[index]
    found = []
    for (benchmark, task, mode), values in by_task.items():
        value, stderr = statistics.mean(values)
        of_file = published_size(benchmark, task, mode, len(values))
        found.append(proportion(value, len(values), stderr, of_file or whole))
    return mean(found, [cell.n or 0 for cell in found])


# Sizes


def published_size(benchmark: str, task: str, mode: str, n: int) -> int | None:
    """The number of questions of the task's file, of which `n` were evaluated in `mode`; None where unknown.

    Of a file with several versions it is the first that has `n` or more questions.
    """
    sizes = _known_sizes(benchmark, task, mode)
    return n if n in sizes else next((size for size in sizes if size > n), max(sizes, default=None))


def puzzles_per_family(evaluation: Path) -> int | None:
    """How many puzzles of each family the config of an evaluation has, by its manifest; None of others."""
    try:
        provenance = artifacts.read_manifest(evaluation)["provenance"]
    except artifacts.ArtifactError:
        return None
    is_puzzles = str(provenance.get("name", "")).startswith(puzzles.BENCHMARK)
    return provenance.get("evaluation", {}).get("per_family") if is_puzzles else None


def _known_sizes(benchmark: str, task: str, mode: str) -> tuple[int, ...]:
    """The sizes of all known versions of a file, the paper's first."""
    match benchmark:
        case bbh.BENCHMARK if task in bbh.TASKS:
            return (bbh.TASKS[task].size - len(bbh.UNSCORED.get(task, ())),)
        case bbeh.BENCHMARK if task in bbeh.SIZES:
            return (bbeh.SIZES[task],)
        case agieval.BENCHMARK if task in agieval.TASKS:
            return (agieval.TASKS[task][0],)
        case truthfulqa.BENCHMARK:
            return truthfulqa.USED
        case gsm8k.BENCHMARK:
            return tuple(gsm8k.SIZES.values())
        case toxigen.BENCHMARK:
            return (toxigen.SIZE,)
        case open_ended.BENCHMARK if task in open_ended.SOURCES:
            return open_ended.SOURCES[task].sizes
        case name if name in plugins.BENCHMARKS.entries:
            sizes = plugins.BENCHMARKS.entries[name].sizes
            return (sizes[task],) if task in sizes else ()
    return ()
