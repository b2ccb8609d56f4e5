"""Hypotheses beside what came out: verdicts, what a prediction is about, and what is refused."""

import json

import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.config_arms import load_set
from orca_jax.config_check import ConfigError
from orca_jax.configs.ablations import main
from orca_jax.records import Item, Outcome
from orca_jax.reporting import arm_runs, arms, hypotheses
from orca_jax.reporting.report_sources import SET

CONDITIONS = ("tracking-2", "tracking-5")
A = dict(arm="answers", conditions=("tracking-5",))


def small(*found, conditions=CONDITIONS):
    """Two arms in each condition, with hypotheses."""
    config = main.get_config("runlocal")
    config.baseline = "answers"
    config.arms = [arm for arm in config.arms if arm["name"] in ("answers", "expert")]
    for arm in config.arms:
        arm["name"] = "explanations" if arm["name"] == "expert" else arm["name"]
    config.conditions = [dict(name=name) for name in conditions]
    config.hypotheses = found
    return load_set(config)


def result(chance=0.2, count=400, seeds=3, **rates):
    """Arms under seeds, each right on its share of the items, with some noise."""
    rng = np.random.default_rng(0)

    def run(rate, seed):
        return [
            Item("puzzles", "tracking", f"i{i}", seed, "robust", Outcome.OK, bool(rng.random() < rate),
                 extra={"difficulty": 1 + i % 2})
            for i in range(count)
        ]  # fmt: skip

    frame = arms.frame({name: [run(rate, seed) for seed in range(seeds)] for name, rate in rates.items()})
    return [arms.Result("Under the message it was trained for", frame.assign(chance=chance))]


RESULTS = {
    "tracking-2": result(answers=0.6, explanations=0.99),
    "tracking-5": result(answers=0.2, explanations=0.95),
}


@pytest.mark.parametrize(("one", "verdict"), [
    (dict(A, minus="chance", at_least=-10, at_most=10), "confirmed"),
    (dict(A, minus="chance", at_least=10), "refuted"),
    (dict(A, minus="chance", at_least=-1, at_most=1), "undecided"),
    (dict(A, at_most=80), "confirmed"),
    (dict(arm="explanations", at_least=80), "confirmed"),
    (dict(arm="explanations", minus="answers", at_least=0), "confirmed"),
    (dict(arm="answers", minus="explanations", at_least=0), "refuted"),
    (dict(arm="answers", conditions=("tracking-2",), minus="chance", at_most=10), "refuted"),
    (dict(A, difficulties=(1,), at_most=50), "confirmed"),
    (dict(A, difficulties=(3,), at_most=50), "not finished"),
])  # fmt: skip
def test_a_value_against_its_prediction(one, verdict):
    [judged] = hypotheses.judge(small(dict(one, name="x")), RESULTS)
    assert judged.verdict == verdict
    if judged.found:
        low, high = judged.found.interval
        bound = judged.hypothesis.nearest(100 * judged.found.value) / 100
        assert (low <= bound <= high) == (judged.p_value >= 0.05), "the interval and the test agree"


def test_one_seed_decides_nothing():
    """A student more may come out otherwise, however sure its items are."""
    one = dict(name="x", arm="explanations", minus="answers", conditions=("tracking-5",), at_least=50)
    results = {"tracking-5": result(answers=0.2, explanations=0.99, seeds=1)}
    [judged] = hypotheses.judge(small(one), results)
    assert judged.corrected < 1e-9
    assert judged.verdict == "undecided: one seed"
    assert "One seed decides nothing" in hypotheses.paragraphs([judged])[-1]


def test_an_interaction_is_the_difference_between_conditions():
    one = dict(name="x", arm="explanations", minus="answers", at_least=10)
    both = [
        dict(one, name="5", conditions=("tracking-5",)),
        dict(one, name="2", conditions=("tracking-2",)),
        dict(one, name="5 - 2", conditions=("tracking-5",), less=("tracking-2",)),
    ]
    high, low, found = hypotheses.judge(small(*both), RESULTS)
    assert found.found.value == pytest.approx(high.found.value - low.found.value)
    assert found.found.stderr == pytest.approx(np.hypot(high.found.stderr, low.found.stderr))
    assert low.found.freedom < found.found.freedom < high.found.freedom + low.found.freedom
    assert (found.verdict, found.shape) == ("confirmed", (3, 800))
    assert hypotheses.about(found.hypothesis).endswith("tracking-5; less the same of tracking-2")
    [half] = hypotheses.judge(small(both[2]), {"tracking-5": RESULTS["tracking-5"]})
    assert half.verdict == "not finished"


def test_p_values_are_corrected_for_all_hypotheses():
    every = [dict(A, name=f"h{i}", minus="chance", at_most=5 + i) for i in range(6)]
    judged = hypotheses.judge(small(*every), RESULTS)
    assert all(one.corrected >= one.p_value for one in judged)
    assert max(one.corrected / one.p_value for one in judged) == pytest.approx(6)


def test_what_is_not_finished_is_no_result():
    both = dict(name="x", arm="explanations", minus="answers", at_least=0)
    for results in ({}, {"tracking-2": RESULTS["tracking-2"]}, RESULTS | {"tracking-2": result(answers=0.5)}):
        assert hypotheses.judge(small(both), results)[0].verdict == "not finished"
    unknown = {"tracking-5": result(chance=None, answers=0.5)}
    [judged] = hypotheses.judge(small(dict(A, name="x", minus="chance", at_most=3)), unknown)
    assert judged.verdict == "not finished"


def test_the_table_says_what_was_predicted_and_came_out():
    one = dict(A, name="steps are needed", minus="chance", at_least=-10, at_most=10)
    [row] = hypotheses.table(hypotheses.judge(small(one), RESULTS)).rows
    assert row[:5] == [
        "steps are needed", "answers - chance: tracking-5", "at least -10, at most 10", "400", "3"
    ]  # fmt: skip
    assert row[-1] == "confirmed"


@pytest.mark.parametrize(("one", "message"), [
    (dict(arm="answer", at_least=0), "hypothesis 'x' names the arm 'answer'; known: answers, explanations"),
    (dict(arm="answers", minus="nobody", at_least=0), "names the arm 'nobody'; known: .*chance"),
    (dict(arm="answers", at_least=0, conditions=("k-9",)), "names the condition 'k-9'; known: tracking-2"),
    (dict(arm="answers", at_least=0, result="?"), "names the result '?'"),
    (dict(arm="answers"), "predicts nothing; give at_least, at_most or both"),
    (dict(arm="answers", at_least=0, less=("tracking-2",)), "'x': less needs conditions, and others"),
    (dict(A, at_least=0, less=("tracking-5",)), "'x': less needs conditions, and others than these"),
    (dict(A, at_least=0, less=("k-9",)), "names the condition 'k-9'; known: tracking-2"),
    (dict(arm="answers", at_least=5, at_most=5), "at_least=5.0 must be below at_most=5.0"),
    (dict(arm="answers", at_least=0, tasks=("navigate",)), "names the task 'navigate'; known: boolean"),
    (dict(arm="answers", at_least=0, difficulties=(9,)), "names the difficulty '9'; known: 1, 2, 3"),
])  # fmt: skip
def test_hypotheses_that_cannot_be_are_refused(one, message):
    with pytest.raises(ConfigError, match=message):
        small(dict(one, name="x"))


def test_hypotheses_have_distinct_names():
    one = dict(A, name="x", at_least=0)
    with pytest.raises(ConfigError, match="distinct names"):
        small(one, one)


def test_a_set_keeps_the_hypotheses_that_it_began_with(tmp_path):
    first, other = (small(dict(A, name="x", at_least=bound)) for bound in (80, 70))
    arm_runs.keep_hypotheses(first, tmp_path)
    arm_runs.keep_hypotheses(first, tmp_path)
    for changed in (other, small()):
        with pytest.raises(artifacts.ArtifactError, match="begin a new set in another --workdir"):
            arm_runs.keep_hypotheses(changed, tmp_path)
    with pytest.raises(artifacts.ArtifactError, match=r"x.at_least: 80.0 there, 70.0 now"):
        arm_runs.keep_hypotheses(other, tmp_path)
    kept = json.loads((tmp_path / arm_runs.HYPOTHESES).read_text())
    assert kept["x"]["at_least"] == 80
    del kept["x"]["less"]  # as of a set that began before there was this key
    (tmp_path / arm_runs.HYPOTHESES).write_text(json.dumps(kept))
    arm_runs.keep_hypotheses(first, tmp_path)


@pytest.mark.parametrize("place", [SET, f"tracking-2/{SET}"])
def test_a_set_that_began_without_hypotheses_gets_none(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("{}")
    arm_runs.keep_hypotheses(small(), tmp_path)
    with pytest.raises(artifacts.ArtifactError, match="begin a new set"):
        arm_runs.keep_hypotheses(small(dict(A, name="x", at_least=80)), tmp_path)
