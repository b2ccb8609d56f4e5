"""Validation's means are over supervised tokens, by group, and not means of means."""

import numpy as np
import pytest

from orca_jax.student import sharding
from orca_jax.training.validation import add_by_segment, validation_losses
from tests.training import synthetic

BATCH = synthetic.BATCH_ROWS


def validate(token_losses, axes=(1, 1, 1), **counts):
    rows = synthetic.row_builder(**(counts or {"validation": 25}))
    placement = sharding.batch_sharding(synthetic.mesh(*axes))
    where = {"batch_rows": BATCH, "placement": placement}
    return validation_losses(None, token_losses, "validation", rows, **where), rows


def by_token(_, batch):
    """A stand-in for the student: the loss of a position is its target id."""
    return np.asarray(batch.targets * batch.loss_weights)


def expected(store, chosen):
    """The mean target id over the supervised tokens of the chosen examples."""
    examples = [store[i] for i in np.flatnonzero(chosen)]
    sums = sum((e["tokens"][1:] * e["weights"][1:]).sum() for e in examples)
    return sums / sum(e["weights"][1:].sum() for e in examples)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_means_over_all_and_by_group(axes):
    values, rows = validate(by_token, axes)
    store = rows.stores["validation"]
    assert values["examples"] == 25
    assert values["loss"] == pytest.approx(expected(store, np.ones(25, bool)))
    for group in ("collection", "teacher", "system_message_id"):
        for name in set(store.columns[group].tolist()):
            mine = expected(store, store.columns[group] == name)
            assert values[f"loss/{group}={name}"] == pytest.approx(mine)


def test_every_position_counts_once():
    values, _ = validate(lambda _, batch: np.asarray(batch.loss_weights))
    assert {values[name] for name in values if name != "examples"} == {1.0}


def test_add_by_segment_gives_each_example_its_positions():
    sums = np.zeros(4)
    add_by_segment(sums, np.array([2, 0]), np.array([1, 1, 2, 2, 0]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    np.testing.assert_array_equal(sums, [12, 0, 3, 0])


def test_add_by_segment_of_an_empty_row_adds_nothing():
    sums = np.zeros(2)
    add_by_segment(sums, np.zeros(0, np.int64), np.zeros(5, np.int64), np.ones(5))
    np.testing.assert_array_equal(sums, 0)
