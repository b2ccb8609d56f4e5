"""Limits rest on steps that are surely known, whenever the loop looked and whatever interrupted it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.training.trainer import HORIZON, LEAST, Guard, Plateau

OUTCOMES = st.lists(st.tuples(st.floats(0.01, 100), st.booleans()), min_size=1, max_size=120)


def limits(outcomes, looks, resumes):
    """Limits of each step where, before it, the step before has been seen (`looks`) or not yet."""
    guard, seen, found = Guard(), 0, []
    for step in range(1, len(outcomes) + 1):
        known = step - 1 if step in looks else step - 2
        while seen < known:
            seen += 1
            guard.see(seen, *outcomes[seen - 1])
        if step in resumes and seen == step - 1:
            guard = Guard(json.loads(json.dumps(guard.note())))
        found.append(guard.limit(step, 3.0))
    return found


@given(outcomes=OUTCOMES, looks=st.sets(st.integers(1, 120)), resumes=st.sets(st.integers(1, 120)))
def test_limits_depend_on_the_steps_alone(outcomes, looks, resumes):
    assert limits(outcomes, looks, resumes) == limits(outcomes, set(), set())


def test_a_limit_is_a_multiple_of_the_mean_norm_once_there_are_enough():
    guard = Guard()
    for step in range(1, LEAST + 1):
        assert guard.limit(step, 3.0) == math.inf
        guard.see(step, 2.0, skipped=False)
    assert guard.limit(LEAST + 1, 3.0) == math.inf
    guard.see(LEAST + 1, 2.0, skipped=False)
    assert guard.limit(LEAST + 2, 3.0) == pytest.approx(6.0)
    assert guard.limit(LEAST + 2, 0.0) == math.inf


def test_the_mean_forgets():
    guard = Guard()
    for step in range(1, 6 * HORIZON):
        guard.see(step, 100.0 if step <= LEAST else 1.0, skipped=False)
    assert guard.limit(6 * HORIZON, 2.0) == pytest.approx(2.0, rel=0.5)


def test_skipped_steps_are_counted_and_leave_the_mean():
    guard = Guard()
    for step in range(1, 40):
        guard.see(step, 1.0, skipped=False)
    guard.see(40, math.nan, skipped=True)
    guard.see(41, 1e9, skipped=True)
    assert (guard.skipped, guard.in_a_row) == (2, 2)
    assert guard.limit(42, 2.0) == pytest.approx(2.0)
    guard.see(42, 1.0, skipped=False)
    assert (guard.skipped, guard.in_a_row) == (2, 0)


@given(st.lists(st.floats(0, 10) | st.just(math.nan), min_size=1, max_size=30))
def test_a_plateau_counts_losses_since_the_lowest(losses):
    plateau = Plateau()
    for loss in losses:
        plateau = Plateau(*json.loads(json.dumps(plateau.after(loss))))
    finite = [loss for loss in losses if not math.isnan(loss)]
    if not finite:
        assert plateau == (None, len(losses))
        return
    assert plateau.best == min(finite)
    assert plateau.stale == len(losses) - 1 - losses.index(min(finite))
