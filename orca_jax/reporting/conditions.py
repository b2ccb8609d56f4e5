"""The page of a set under conditions, such as `tracking-2` to `tracking-8`: tables, hypotheses and charts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from orca_jax import artifacts
from orca_jax.config_arms import CHANCE, ArmSetConfig
from orca_jax.evaluation import cells, statistics
from orca_jax.evaluation.cells import ABSENT, CAPTION
from orca_jax.reporting import arm_runs, arms, charts, hypotheses
from orca_jax.reporting.arms import KEY, Result
from orca_jax.reporting.charts import Chart
from orca_jax.reporting.report_sources import TABLE
from orca_jax.reporting.tables import Table, percent
from orca_jax.training import metrics

X = "k"
Curves = Mapping[str, Mapping[int, float]]  # arm to its accuracy by the positions that it was trained on


def write(arm_set: ArmSetConfig, workdir: Path) -> str:
    """Writes table.md, results.json and the charts of what is finished, and returns the table.

    The charts are of the first result: accuracy-NAME over the conditions NAME-NUMBER, and map-NAME where
    students were evaluated while they were trained, each as PNG and SVG.
    """
    found = {one.name: arm_runs.results(arm_set.under(one), workdir / one.name) for one in arm_set.conditions}
    title = arm_set.results[0].title
    firsts = {name: one for name, results in found.items() for one in results if one.title == title}
    judged = hypotheses.judge(arm_set, found)
    parts = [f"# {arm_set.name}", arm_set.question, *hypotheses.paragraphs(judged), f"## {title}"]
    parts += [table(arm_set, firsts).markdown(), CAPTION]
    parts += ["Tokens are those of a reply. Each condition has a folder of its own, with its tests."]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    with artifacts.atomic_write(workdir / TABLE) as file:
        file.write(text)
    with artifacts.atomic_write(workdir / arm_runs.RESULTS) as file:
        json.dump({"hypotheses": [one.row() for one in judged]}, file, indent=1)
    for name, chart in _charts(arm_set, firsts, workdir):
        for suffix in ("png", "svg"):
            chart.save(workdir / f"{name}.{suffix}", suffix=suffix, title=chart.caption)
    return text


def table(arm_set: ArmSetConfig, results: Mapping[str, Result]) -> Table:
    """A row a condition: chance, and every arm's accuracy and tokens a reply; n is of one seed."""
    rows = []
    for condition in arm_set.conditions:
        row, sizes, chance = [], [ABSENT], ABSENT
        by_arm = results[condition.name].arms if condition.name in results else {}
        for arm in arm_set.arms:
            if arm.name not in by_arm:
                row.append(ABSENT)
                continue
            items = by_arm[arm.name]
            cell, tokens = cells.of_items(items.itertuples()), items.tokens.mean()
            sizes, chance = [str(cell.size)], percent(items.drop_duplicates(KEY).chance.mean(skipna=False))
            row.append(str(cell) if np.isnan(tokens) else f"{cell}, {tokens:.0f} tokens")
        rows.append([condition.name, *sizes, chance, *row])
    return Table(["condition", "n", "chance", *(arm.name for arm in arm_set.arms)], rows)


def _charts(
    arm_set: ArmSetConfig, results: Mapping[str, Result], workdir: Path
) -> Iterator[tuple[str, Chart]]:
    pairs = ((one.arm, one.minus) for one in arm_set.hypotheses if one.minus not in ("", CHANCE))
    others = ((arm.name, arm_set.baseline) for arm in arm_set.arms if arm.name != arm_set.baseline)
    pair = next(pairs, None) or next(others, None)
    for name, places in families([one.name for one in arm_set.conditions]).items():
        there = {place: results[at] for place, at in places.items() if at in results}
        if chart := accuracy(name, there):
            yield f"accuracy-{name}", chart
        sets = {place: arm_set.under(arm_set.chosen([at])[0]) for place, at in places.items()}
        trained = {place: curves(one, workdir / places[place]) for place, one in sets.items()}
        if pair and (chart := difference_map(name, trained, pair)):
            yield f"map-{name}", chart


def families(conditions: Sequence[str]) -> dict[str, dict[float, str]]:
    """Of conditions NAME-NUMBER, by name: the number to the condition, in order; others are left out."""
    found: dict[str, dict[float, str]] = {}
    for condition in conditions:
        if match := re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)", condition):
            found.setdefault(match[1], {})[float(match[2])] = condition
    return {name: dict(sorted(places.items())) for name, places in found.items()}


def accuracy(name: str, results: Mapping[float, Result]) -> Chart | None:
    """A line an arm over the conditions of one name, with standard errors over seeds and items, and chance.

    Args:
      results: by the number of the condition.
    """
    lines: dict[str, list[charts.Point]] = {}
    errors: dict[str, list[float]] = {}
    chance = []
    for place, result in results.items():
        guess = float(result.items.drop_duplicates(KEY).chance.mean(skipna=False))
        chance += [(place, 100 * guess)] if np.isfinite(guess) else []
        for arm, right in arms.right(result.items).items():
            mean = statistics.crossed_mean(right)
            lines.setdefault(arm, []).append((place, 100 * mean.value))
            errors.setdefault(arm, []).append(100 * mean.stderr)
    caption = f"{name}: accuracy by arm, with one standard error over seeds and items; dashed: chance."
    return charts.lines(
        {**lines, CHANCE: chance},
        caption=caption,
        x=X,
        y="per cent",
        marks=True,
        dashed=(CHANCE,),
        errors=errors,
        ticks=[*results],
    )


def curves(arm_set: ArmSetConfig, workdir: Path) -> Curves:
    """Accuracy of a condition's arms on validation puzzles while they were trained (`train.evaluate_every`).

    A point is the mean over the seeds, and left out where one of them has none.
    """
    found = {}
    for arm in arm_set.arms:
        config = arm_set.config(arm, arm_set.seeds[0])
        positions, by_seed = config.train.batch_rows * config.data.row_length, []
        for seed in arm_set.seeds:
            path = arm_runs.folder(workdir, arm.name, seed) / "training" / metrics.FILE
            rows = metrics.read(path) if path.is_file() else []
            evaluated = [row for row in rows if row["kind"] == "evaluation"]
            by_seed.append({row["step"] * positions: row["accuracy"] for row in evaluated})
        shared = set.intersection(*map(set, by_seed))
        found[arm.name] = {at: float(np.mean([seed[at] for seed in by_seed])) for at in sorted(shared)}
    return found


def difference_map(name: str, trained: Mapping[float, Curves], pair: tuple[str, str]) -> Chart | None:
    """One arm minus another in points over conditions and positions trained on; None without such points.

    Arms whose steps differ a little are compared at the first one's positions, the others' accuracies being
    read from the lines between their points, and at their ends up to a twentieth beyond.

    Args:
      trained: as `curves` gives them, by the number of the condition.
    """
    shown = {place: [of.get(arm, {}) for arm in pair] for place, of in trained.items()}
    shown = {place: both for place, both in shown.items() if all(both)}
    if not shown:
        return None
    first = next(iter(shown.values()))[0]
    least = max(min(of) for both in shown.values() for of in both)
    most = min(max(of) for both in shown.values() for of in both)
    tokens = [at for at in first if 0.95 * least <= at <= 1.05 * most] or [most]
    found = [[np.interp(tokens, [*of], [*of.values()]) for of in both] for both in shown.values()]
    values = 100 * np.subtract(*np.array(found).swapaxes(0, 1)).T
    compared = f"{name}: {pair[0]} minus {pair[1]} in points"
    caption = f"{compared}, on validation puzzles, mean over seeds; black: zero."
    return charts.difference_map(values, [*shown], tokens, caption=caption, x=X, y="positions trained on")
