"""What a set of arms can find before it is run: the smallest difference, seeds and items, and hours.

The error of a difference of two arms follows from three variances (`Variances`), as in
`statistics.crossed_mean`, whose test is planned for:

    stderr^2 = V_seed / seeds + V_item / items + V_residual / (seeds * items)

The smallest difference that is found with a power of 80 % by a two-sided test at level 0.05 / tests is
(t(1 - 0.025 / tests) + t(0.8)) * stderr (Bloom, "Minimum detectable effects", Evaluation Review 19, 1995),
where t are quantiles of Student's distribution with Satterthwaite's degrees of freedom. Holm's correction
compares the smallest p of so many tests with 0.05 / tests, so this is the difference that is found whatever
the other tests show.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from orca_jax.config import ExperimentConfig
from orca_jax.config_arms import CHANCE, ArmSetConfig, HypothesisConfig
from orca_jax.evaluation.statistics import satterthwaite
from orca_jax.reporting import arm_runs, arms
from orca_jax.reporting.tables import Table

LEVEL, POWER = 0.05, 0.8
SEED_DEVIATION = 2.0  # points: of an arm's accuracy between seeds, from the tables of docs/findings.md
# An item's variance from docs/findings.md, where an arm that is right on 0.6 of 450 items has an error of
# 0.018 with three seeds: between items plus a third of that within an item is 450 * 0.018^2 = 0.146, and
# between plus within is 0.6 * 0.4 = 0.24.
BETWEEN, WITHIN = 0.099, 0.141
SHARED = 0.75  # share of the variance between items that two arms have in common: assumed
MOST_SEEDS, TRIED_ITEMS = 300, range(50, 50_000, 50)  # in search of a difference's seeds and items
TIMED, LEAST = 20.0, 5  # seconds for which the steps of a shape are timed, and the fewest steps


class Variances(NamedTuple):
    """Of a value by seed, by item, and of what is left, as fractions squared."""

    seed: float
    item: float
    residual: float

    def error(self, seeds: int, items: int) -> tuple[float, float]:
        """The standard error of a mean over both, and its degrees of freedom."""
        squares = (self.residual + items * self.seed, self.residual + seeds * self.item, self.residual)
        variance = self.seed / seeds + self.item / items + self.residual / (seeds * items)
        freedom = max(satterthwaite(seeds, items, *squares), seeds - 1.0) if seeds > 1 else items - 1.0
        return math.sqrt(variance), freedom


def assumed(deviation: float, arms: int = 2) -> Variances:
    """Of an arm's accuracy or the difference of two, for a seed standard deviation in points."""
    own = 1.0 if arms == 1 else 1 - SHARED
    return Variances(arms * (deviation / 100) ** 2, arms * own * BETWEEN, arms * WITHIN)


def measured(values: Sequence[np.ndarray]) -> Variances:
    """The means over several differences (or accuracies), each float [seeds, items], of their variances.

    Raises:
      ValueError: there is none with two seeds.
    """
    found = []
    for array in values:
        seeds, items = array.shape
        if seeds > 1:
            by_seed, by_item = array.mean(axis=1, keepdims=True), array.mean(axis=0, keepdims=True)
            rest = array - by_seed - by_item + array.mean()
            residual = float(np.sum(rest**2)) / ((seeds - 1) * (items - 1))
            of_seed = float(by_seed.var(ddof=1)) - residual / items
            found.append((of_seed, float(by_item.var(ddof=1)) - residual / seeds, residual))
    if not found:
        raise ValueError("variances between seeds need arms that are finished under two seeds or more")
    return Variances(*(max(0.0, float(value)) for value in np.mean(found, axis=0)))


def smallest(variances: Variances, seeds: int, items: int, tests: int = 1, *, normal: bool = False) -> float:
    """The smallest difference, a fraction, that is found with a power of 80 %; see the module.

    Args:
      tests: hypotheses that are corrected for together.
      normal: take quantiles of the normal distribution, as if variances were known.
    """
    stderr, freedom = variances.error(seeds, items)
    chances = np.array([1 - LEVEL / 2 / tests, POWER])
    quantiles = special.ndtri(chances) if normal else special.stdtrit(freedom, chances)
    return float(quantiles.sum() * stderr)


def items_of(arm_set: ArmSetConfig, one: HypothesisConfig) -> int:
    """The puzzles that a hypothesis is about, the fewer of an interaction's sides; 0: other questions."""
    if one.less:
        sides = replace(one, less=()), replace(one, conditions=one.less, less=())
        return min(items_of(arm_set, side) for side in sides)
    total = 0
    for part in arm_set.parts(one.conditions):
        config, evaluation = part.asked(one)
        if not evaluation.startswith("puzzles"):
            return 0
        families = [name for name in config.puzzles.families if one.is_about(name)]
        levels = config.evaluation.difficulties
        drawn = [levels[number % len(levels)] for number in range(config.evaluation.per_family)]
        total += len(families) * sum(not one.difficulties or level in one.difficulties for level in drawn)
    return total


def hypotheses_of(arm_set: ArmSetConfig) -> tuple[HypothesisConfig, ...]:
    """Those of the set, or of one that has none: every arm against the baseline."""
    others = [arm.name for arm in arm_set.arms if arm.name != arm_set.baseline]
    return arm_set.hypotheses or tuple(
        HypothesisConfig(name=name, arm=name, minus=arm_set.baseline, at_least=0.0) for name in others
    )


def table(
    arm_set: ArmSetConfig,
    variances: Mapping[int, Variances],
    *,
    seeds: int = 0,
    items: int = 0,
    difference: float = 0.0,
) -> Table:
    """A row a hypothesis: its items, and the smallest differences in points, alone and with Holm.

    Args:
      variances: of an accuracy (1) and of the difference of two arms (2).
      seeds, items: in place of the set's; 0: the set's.
      difference: points; two columns more have the seeds, and the items, at which it is found with Holm.

    Raises:
      ValueError: the items of a hypothesis are not known.
    """
    every, seeds = hypotheses_of(arm_set), seeds or len(arm_set.seeds)
    tests, rows = len(every), []
    for one in every:
        n = items or items_of(arm_set, one)
        if n < 2:
            raise ValueError(
                f"{one.name}: its items are not puzzles that the config draws; give their number, --items=450"
            )
        of_value = variances[2 if one.minus not in ("", CHANCE) else 1]
        if one.less:  # two sides, of so many items each
            of_value = Variances(*(2 * part for part in of_value))
        found = functools.partial(smallest, of_value)
        points = [found(seeds, n), found(seeds, n, tests), found(seeds, n, tests, normal=True)]
        rows.append([one.name, n, seeds, *(f"{100 * value:.1f}" for value in points)])
        if difference:
            by_seeds = [found(many, n, tests) for many in range(2, MOST_SEEDS)]
            by_items = [found(seeds, many, tests) for many in TRIED_ITEMS]
            rows[-1].append(next((i for i, v in enumerate(by_seeds, 2) if 100 * v <= difference), "none"))
            rows[-1].append(next((i for i, v in zip(TRIED_ITEMS, by_items) if 100 * v <= difference), "none"))
    header = ["hypothesis", "items", "seeds", "alone", f"Holm over {tests}", "Holm, normal"]
    if difference:
        header += [f"seeds for {difference:g}", f"items for {difference:g}"]
    return Table(header, rows)


def step_seconds(config: ExperimentConfig, seconds: float = TIMED) -> float:
    """The median of the config's training step, on random tokens without padding, on this machine's devices.

    Steps are timed for so many seconds after one that compiles.

    Raises:
      ValueError: the student's size is not written in the config.
    """
    import jax
    import jax.numpy as jnp

    from orca_jax import compiler_options
    from orca_jax.data.rows import Row
    from orca_jax.student import llama, presets, sharding
    from orca_jax.training.step import make_optimizer, make_steps

    if config.student.init or not config.student.vocab_size:
        raise ValueError("the student's size is not in the config; give --seconds_per_student instead")
    student = presets.shape(config.student, config.student.vocab_size)
    mesh = sharding.make_mesh(config.mesh)
    steps = make_steps(
        student,
        make_optimizer(config.optimizer),
        mesh,
        dtype=jnp.dtype(config.train.compute_dtype),
        accumulation=config.train.accumulation,
        compiler_options=compiler_options.resolved(config.compiler_options),
    )
    shape = config.train.batch_rows, config.data.row_length
    tokens = np.random.default_rng(0).integers(3, student.vocab_size, shape, dtype=np.int32)
    ones, positions = np.ones(shape, np.int32), np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    rows = jax.device_put(
        Row(tokens, np.roll(tokens, -1, 1), ones.astype(np.float32), ones, positions),
        sharding.batch_sharding(mesh),
    )
    state, took, began = steps.init(llama.init(student, 0)), list[float](), 0.0
    while len(took) <= LEAST or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        state, metrics = steps.update(state, rows, jnp.float32(1e-3))
        jax.block_until_ready(metrics)
        took.append(time.perf_counter() - started)
        began = began or time.perf_counter()
    return float(np.median(took[1:]))


def measured_in(arm_set: ArmSetConfig, workdir: Path) -> dict[int, Variances]:
    """The variances of an accuracy (1) and of the difference of two arms (2) of a set's finished arms.

    They are of the first result, means over its conditions and over all pairs of arms.

    Raises:
      ValueError: no two arms are finished under two seeds.
    """
    title, names = arm_set.results[0].title, [one.name for one in arm_set.conditions] or [""]
    results = [
        one for part, name in zip(arm_set.parts(), names) for one in arm_runs.results(part, workdir / name)
    ]
    found = [arms.right(one.items) for one in results if one.title == title]
    singles = [right.astype(float) for by_arm in found for right in by_arm.values()]
    pairs = [
        one - other.astype(float)
        for by_arm in found
        for one, other in itertools.combinations(by_arm.values(), 2)
    ]
    try:
        return {1: measured(singles), 2: measured(pairs)}
    except ValueError as error:
        raise ValueError(f"--measured={workdir}: {error}") from error


def report(
    arm_set: ArmSetConfig,
    *,
    seeds: int = 0,
    items: int = 0,
    difference: float = 0.0,
    deviation: float = SEED_DEVIATION,
    workdir: Path | None = None,
) -> str:
    """The table in Markdown, and what it assumes; with `workdir` variances are those of its finished arms."""
    if workdir:
        variances, source = measured_in(arm_set, workdir), f"as measured in {workdir}"
    else:
        variances = {count: assumed(deviation, count) for count in (1, 2)}
        source = "assumed: see orca_jax/planning/ablation.py"
    seed, item, residual = variances[2]
    return (
        f"Points that are found with a power of {POWER:.0%}. Of a difference, standard deviations {source}:\n"
        f"{100 * math.sqrt(seed):.1f} between seeds, {100 * math.sqrt(item):.0f} between items, "
        f"{100 * math.sqrt(residual):.0f} within.\n\n"
        + table(arm_set, variances, seeds=seeds, items=items, difference=difference).markdown()
    )


def hours(arm_set: ArmSetConfig, seeds: int = 0, seconds_per_student: float = 0.0, jobs: int = 1) -> str:
    """The hours of all students in words; without `seconds_per_student`, of their steps, timed here."""
    seeds = seeds or len(arm_set.seeds)
    students = seeds * len(arm_set.arms) * len(arm_set.parts())
    if seconds_per_student:
        spent = students * seconds_per_student / jobs / 3600
        return f"{students} students of {seconds_per_student:g} s, {jobs} at once: {spent:.1f} hours."
    timed: dict[str, float] = {}
    seconds, lines = 0.0, []
    for under, arm in ((one, arm) for one in arm_set.parts() for arm in one.arms):
        config = under.config(arm, arm_set.seeds[0])
        if not all(stage.steps for stage in config.curriculum):
            raise ValueError(f"arm {arm.name!r} is measured in epochs; give --seconds_per_student")
        shape = repr((config.student, config.optimizer, config.train, config.data.row_length, config.mesh))
        if shape not in timed:
            timed[shape] = step_seconds(config)
            rows = f"{config.train.batch_rows} rows of {config.data.row_length}"
            lines.append(f"{config.name}: {1000 * timed[shape]:.0f} ms a step of {rows}.")
        seconds += seeds * sum(stage.steps for stage in config.curriculum) * timed[shape]
    lines.append(
        f"{students} students, one at a time: {seconds / 3600:.1f} hours of training steps here; data, "
        "compiling and evaluation come on top."
    )
    return "\n".join(lines)
