"""Sets under conditions: the table, the charts, and curves of accuracy while training."""

import functools
import json

import pytest

from orca_jax.config_arms import load_set
from orca_jax.configs.ablations import crossover
from orca_jax.evaluation import scoring
from orca_jax.records import Item, Outcome
from orca_jax.reporting import arm_runs, conditions


@functools.cache
def small():
    config = crossover.get_config("runlocal")
    config.seeds = (0, 1)
    first = config.conditions[0]
    config.conditions = [first, dict(first, name="tracking-4"), dict(first, name="other")]
    return load_set(config)


def finish(arm_set, workdir, condition, arm, right, accuracies=()):
    """A run's evaluation, right on so many of 50 items, and its accuracies after 100, 200, ... steps."""
    for seed in arm_set.seeds:
        directory = arm_runs.folder(workdir / condition, arm, seed)
        found = directory / "evaluation/puzzles-message-1"
        items = [
            Item("puzzles", "tracking", f"i{i}", 0, "robust", Outcome.OK, i + seed < right) for i in range(50)
        ]
        scoring.write(found, items, {"tasks": {"tracking": {"chance": 0.2}}})
        (found / "manifest.json").write_text("{}")
        (directory / "training").mkdir()
        rows = [
            {"kind": "evaluation", "step": 100 * (i + 1), "accuracy": value + seed / 10}
            for i, value in enumerate(accuracies)
        ]
        (directory / "training/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    arm_set = small()
    for condition, answers, explanations in (("tracking-2", 30, 10), ("tracking-4", 10, 45)):
        finish(arm_set, tmp_path, condition, "answers", answers, [0.2, 0.3])
        finish(arm_set, tmp_path, condition, "explanations", explanations, [0.1, 0.7])
    return tmp_path


def test_a_set_under_conditions_has_a_table_hypotheses_and_charts(workdir):
    text = conditions.write(small(), workdir)
    assert "| tracking-2 |  50 |   20.0 |" in text
    assert text.count("not finished") == len(small().hypotheses), "only under tracking-2 is there any"
    assert (workdir / "table.md").read_text() == text
    charts = {path.name for path in workdir.glob("*.svg")} | {path.name for path in workdir.glob("*.png")}
    assert charts == {
        f"{name}-tracking.{suffix}" for name in ("accuracy", "map") for suffix in ("svg", "png")
    }


def test_nothing_finished_is_a_table_of_nothing(tmp_path):
    text = conditions.write(small(), tmp_path)
    assert "| other      |   – |" in text
    assert not list(tmp_path.glob("*.svg"))


def test_curves_are_means_over_seeds_by_positions(workdir):
    arm_set = small()
    part = arm_set.under(arm_set.conditions[0])
    config = part.config(part.arms[0], 0)
    positions = 100 * config.train.batch_rows * config.data.row_length
    found = conditions.curves(part, workdir / "tracking-2")
    assert found["answers"] == pytest.approx({positions: 0.25, 2 * positions: 0.35})
    assert found["placebo"] == {}


def test_a_map_compares_at_equal_positions():
    trained = {
        2.0: {"a": {100: 0.2, 200: 0.4}, "b": {90: 0.1, 210: 0.1}},
        4.0: {"a": {100: 0.5, 200: 0.5}, "b": {100: 0.6, 200: 0.0}},
        6.0: {"a": {100: 0.5}, "b": {}},
    }
    chart = conditions.difference_map("tracking", trained, ("a", "b"))
    for said in (
        "+10.0 at k 2 and 100",
        "-10.0 at k 4 and 100",
        "+30.0 at k 2 and 200",
        "+50.0 at k 4 and 200",
    ):
        assert said in chart.alt
    assert "k 6" not in chart.alt
    assert conditions.difference_map("tracking", {2.0: {}}, ("a", "b")) is None


def test_conditions_are_placed_by_the_number_that_they_end_with():
    assert conditions.families(["t-8", "control", "t-2", "width-0.5"]) == {
        "t": {2.0: "t-2", 8.0: "t-8"}, "width": {0.5: "width-0.5"}
    }  # fmt: skip
