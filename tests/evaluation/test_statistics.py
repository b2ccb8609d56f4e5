import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import statistics
from orca_jax.evaluation.statistics import Estimate, crossed_mean

few = settings(max_examples=40, deadline=None)
outcomes = st.lists(st.booleans(), min_size=1, max_size=60)


def test_binomial_standard_error_known_values():
    assert statistics.binomial_standard_error(0.5, 250) == pytest.approx(0.0316228, abs=1e-6)
    assert statistics.binomial_standard_error(1.0, 10) == 0
    with pytest.raises(ValueError, match="n=0"):
        statistics.binomial_standard_error(0.5, 0)


@few
@given(outcomes)
def test_mean_of_right_and_wrong_has_the_binomial_error(correct):
    estimate = statistics.mean(correct)
    expected = statistics.binomial_standard_error(sum(correct) / len(correct), len(correct))
    assert estimate == pytest.approx((sum(correct) / len(correct), expected))


def test_mean_over_seeds_is_less_noisy_than_more_items():
    by_seed = np.array([[1, 0, 1, 1], [1, 1, 1, 1]], float)
    assert statistics.mean(by_seed.mean(axis=0)).stderr == pytest.approx(np.std([1, 0.5, 1, 1]) / 2)


def test_macro_and_micro_means():
    tasks = [Estimate(0.2, 0.03), Estimate(0.8, 0.04)]
    assert statistics.micro_mean(tasks, [1, 1]) == pytest.approx((0.5, 0.025))
    assert statistics.micro_mean(tasks, [3, 1]) == pytest.approx((0.35, math.hypot(0.75 * 0.03, 0.25 * 0.04)))
    with pytest.raises(ValueError, match="mismatch"):
        statistics.micro_mean(tasks, [3])


@few
@given(st.lists(outcomes, min_size=1, max_size=5))
def test_micro_mean_is_the_accuracy_of_all_items_together(tasks):
    pooled = statistics.micro_mean([statistics.mean(task) for task in tasks], [len(task) for task in tasks])
    assert pooled.value == pytest.approx(np.mean([right for task in tasks for right in task]))


def test_intervals_known_values():
    assert statistics.wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert statistics.wilson_interval(0, 10) == pytest.approx((0, 0.27753), abs=1e-4)
    with pytest.raises(ValueError, match="n=0, correct=0"):
        statistics.wilson_interval(0, 0)
    # Newcombe (Statistics in Medicine 17, 1998), table II, method 10: 56 of 70 less 48 of 80
    both = [statistics.wilson_interval(56, 70), statistics.wilson_interval(48, 80)]
    found = statistics.combined_interval([56 / 70, 48 / 80], both, [1, -1])
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


@few
@given(st.integers(1, 80), st.data())
def test_an_interval_holds_the_accuracy_and_is_wider_at_more_confidence(n, data):
    correct = data.draw(st.integers(0, n))
    narrow = statistics.wilson_interval(correct, n, confidence=0.8)
    wide = statistics.wilson_interval(correct, n, confidence=0.99)
    assert 0 <= wide.low <= narrow.low <= correct / n <= narrow.high <= wide.high <= 1


def test_mcnemar_on_the_papers_agieval_disagreements():
    first = np.repeat([True, False, True], [450, 325, 900])
    second = np.repeat([False, True, True], [450, 325, 900])
    result = statistics.mcnemar(first, second)
    assert (result.only_first, result.only_second) == (450, 325)
    assert 1e-6 < result.p_value < 1e-5


@few
@given(outcomes)
def test_mcnemar_sees_no_difference_between_a_run_and_itself(correct):
    assert statistics.mcnemar(correct, correct) == (0, 0, 1.0)


def test_mcnemar_small_case_is_the_binomial_tail():
    assert statistics.mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]).p_value == pytest.approx(2 / 32)
    with pytest.raises(ValueError, match="equal"):
        statistics.mcnemar([1, 0], [1])


def test_paired_bootstrap_finds_a_difference_and_only_where_there_is_one():
    random = np.random.default_rng(1)
    weak = random.random((2, 300)) < 0.4
    strong = weak | (random.random((3, 300)).any(axis=0) & (random.random(300) < 0.3))
    found = statistics.paired_bootstrap(strong, weak, resamples=300)
    assert found.low > 0
    assert found.p_value < 0.01
    assert found.low < found.difference < found.high
    same = statistics.paired_bootstrap(weak, weak, resamples=300)
    assert same.difference == 0
    assert same.low <= 0 <= same.high
    assert same.p_value > 0.5


def test_paired_bootstrap_gains_from_pairing():
    correct = np.random.default_rng(0).random((1, 400)) < 0.5
    better = correct.copy()
    better[0, :20] = True
    paired = statistics.paired_bootstrap(better, correct, resamples=300)
    unpaired_error = math.sqrt(2) * statistics.binomial_standard_error(0.5, 400)
    assert (paired.high - paired.low) / 2 < 1.96 * unpaired_error / 2


def test_paired_bootstrap_of_items_that_are_all_alike_is_not_certain():
    same = statistics.paired_bootstrap([[1] * 100], [[1] * 100])
    assert same == pytest.approx((0, -0.037, 0.037, 1), abs=1e-3)
    two = statistics.paired_bootstrap([[1, 1]], [[0, 0]])
    assert two == pytest.approx((1, 0.0698, 1, 0.5), abs=1e-3)


def test_paired_bootstrap_refuses_other_items():
    with pytest.raises(ValueError, match="3 and 2 items"):
        statistics.paired_bootstrap([[1, 0, 1]], [[1, 0]])


def test_clusters_of_like_answers_widen_the_error_and_single_ones_do_not():
    values = [1, 1, 1, 0, 0, 0]
    assert statistics.clustered_mean(values, range(6)) == pytest.approx(statistics.mean(values))
    assert statistics.clustered_mean(values, "aaabbb") == pytest.approx((0.5, 0.5 * 2**0.5 / 2))
    with pytest.raises(ValueError, match="longer"):
        statistics.clustered_mean(values, "ab")


def test_means_by_key_keep_the_order():
    assert statistics.means([("b", True), ("a", 0.5), ("b", False)]) == {"b": 0.5, "a": 0.5}
    assert list(statistics.means([("b", 1), ("a", 1)])) == ["b", "a"]


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_helps(p_values):
    corrected = statistics.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected))
    assert min(corrected) == pytest.approx(min(1, len(p_values) * min(p_values)))
    assert sorted(corrected) == [corrected[i] for i in sorted(range(len(p_values)), key=p_values.__getitem__)]


def test_holm_known_values():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_bootstrap_intervals_hold_the_mean_and_the_ratio():
    values = np.linspace(0, 1, 50)
    low, high = statistics.bootstrap_interval(values)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 50**0.5, rel=0.15)
    pairs = np.stack([np.full(50, 10.0), 5 + values], axis=1)
    low, high = statistics.bootstrap_interval(pairs)
    assert low < 0.55 < high
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)


def test_a_mean_over_seeds_and_items_has_the_error_of_both():
    rng = np.random.default_rng(0)
    seeds, items = (0.03, 0.2)  # standard deviations

    def draw():
        return rng.normal(0, seeds, (4, 1)) + rng.normal(0, items, (1, 100)) + rng.normal(0, 0.3, (4, 100))

    found = [crossed_mean(draw()) for _ in range(500)]
    true = (seeds**2 / 4 + items**2 / 100 + 0.3**2 / 400) ** 0.5
    assert np.mean([one.stderr**2 for one in found]) ** 0.5 == pytest.approx(true, rel=0.1)
    assert np.mean([one.p_value(0) < 0.05 for one in found]) < 0.08
    assert np.mean([one.interval.low < 0 < one.interval.high for one in found]) > 0.92


def test_one_seed_has_the_error_of_items_alone():
    values = np.array([1.0, 0.0, 1.0, 1.0])
    assert crossed_mean(values).stderr == pytest.approx(values.std(ddof=1) / 2)
    assert crossed_mean(values).freedom == 3


def test_equal_values_are_no_certainty():
    found = crossed_mean(np.ones((3, 100)))
    assert found.stderr == pytest.approx(0.01, rel=0.01)
    with pytest.raises(ValueError, match="two items or more"):
        crossed_mean(np.ones((3, 1)))
