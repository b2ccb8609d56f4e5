"""Batches by step: in order, the same wherever a run starts, each row built by the process that holds it."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from orca_jax.config import StageConfig
from orca_jax.data import loader
from orca_jax.data.rows import Distillation
from orca_jax.student import sharding
from orca_jax.training.curriculum import Curriculum
from tests.training import synthetic

BATCH = synthetic.BATCH_ROWS
STAGE = StageConfig(name="mix", datasets={"a": 1.0, "b": 1.0}, steps=14)


@pytest.fixture(scope="module")
def builder():
    return synthetic.row_builder()


@pytest.fixture(scope="module")
def curriculum(builder):
    return Curriculum([STAGE], builder.plan_of, batch_rows=BATCH, seed=0)


def read(builder, curriculum, start=0, stop=14, **changes):
    settings = {"placement": sharding.batch_sharding(synthetic.mesh(2, 2, 2)), **changes}
    return list(
        loader.batches(
            lambda step: curriculum.position(step).rows,
            start=start,
            stop=stop,
            rows=BATCH,
            builder=builder,
            **settings,
        )
    )


def assert_equal(found, expected):
    assert [batch.step for batch in found] == [batch.step for batch in expected]
    for mine, theirs in zip(found, expected):
        assert mine.indices == theirs.indices
        jax.tree.map(np.testing.assert_array_equal, mine.rows, theirs.rows)


def test_batches_are_the_rows_of_their_steps_in_order(builder, curriculum):
    batches = read(builder, curriculum)
    assert [batch.step for batch in batches] == list(range(14))
    for batch in batches:
        assert batch.indices == tuple(range(BATCH))
        for i, ref in enumerate(curriculum.position(batch.step).rows):
            expected = builder.row(*ref)
            jax.tree.map(
                lambda mine, theirs, i=i: np.testing.assert_array_equal(mine[i], theirs), batch.rows, expected
            )


@pytest.mark.parametrize("start", [1, 9, 13])
def test_resumed_stream_is_the_end_of_the_unbroken_one(builder, curriculum, start):
    assert_equal(read(builder, curriculum, start), read(builder, curriculum)[start:])


def test_nothing_left_to_do(builder, curriculum):
    assert read(builder, curriculum, start=14) == []


# --- Which rows a process holds


class Placement:
    """Stands in for a sharding of which this process has only some devices."""

    def __init__(self, slices):
        self.slices = slices

    def addressable_devices_indices_map(self, shape):
        return {f"device {i}": (part,) for i, part in enumerate(self.slices)}


@pytest.mark.parametrize(
    ("slices", "held"),
    [
        ([slice(None)], tuple(range(8))),
        ([slice(0, 2), slice(2, 4)], (0, 1, 2, 3)),
        ([slice(6, 8), slice(2, 4), slice(6, 8)], (2, 3, 6, 7)),  # two devices of a tensor axis share rows
    ],
)
def test_held_rows_are_those_of_the_processs_devices(slices, held):
    assert loader.held_rows(8, Placement(slices)) == held


@pytest.mark.parametrize("axes", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_one_process_holds_every_row(axes):
    assert loader.held_rows(8, sharding.batch_sharding(synthetic.mesh(*axes))) == tuple(range(8))


def test_a_process_builds_only_the_rows_it_holds(builder, curriculum):
    part = read(builder, curriculum, stop=3, placement=Placement([slice(4, 6)]))
    for mine, whole in zip(part, read(builder, curriculum, stop=3), strict=True):
        assert mine.indices == (4, 5)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[4:6]), mine.rows, whole.rows)


# --- On the devices


@pytest.mark.parametrize("axes", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_global_batch_is_laid_over_the_mesh(axes):
    placement = sharding.batch_sharding(synthetic.mesh(*axes))
    rows = synthetic.batch(distillation=Distillation(0.5, 2.0))
    placed = loader.on_devices(loader.Batch(0, tuple(range(BATCH)), rows), BATCH, placement)
    assert placed.soft_targets.weights.shape == (BATCH, synthetic.ROW_LENGTH, 5)
    for mine, theirs in zip(jax.tree.leaves(placed), jax.tree.leaves(rows), strict=True):
        assert mine.sharding == placement
        assert mine.shape[:2] == (BATCH, synthetic.ROW_LENGTH)
        np.testing.assert_array_equal(mine, theirs)
        for shard in mine.addressable_shards:
            np.testing.assert_array_equal(shard.data, theirs[shard.index])


def test_rows_are_laid_by_their_place_in_the_global_batch():
    """A process's rows need not be neighbours."""
    rows = synthetic.batch()
    order = (3, 1, 2, 0, 7, 6, 5, 4)
    shuffled = loader.Batch(0, order, type(rows)(*(array[list(order)] for array in rows[:-1])))
    placement = NamedSharding(synthetic.mesh(4), PartitionSpec(("data", "fsdp")))
    jax.tree.map(np.testing.assert_array_equal, loader.on_devices(shuffled, BATCH, placement), rows)


# --- Rows


def test_every_example_of_an_epoch_is_in_one_row(builder):
    plan = builder.plan_of("a", 0)
    ids = np.concatenate([plan.row(row) for row in range(plan.rows)])
    assert sorted(ids) == list(range(90))


def test_epochs_are_packed_anew_and_alike_each_time(builder):
    first, second = (builder.plan_of("a", epoch) for epoch in (0, 1))
    assert not np.array_equal(first.examples, second.examples)
    again = synthetic.row_builder().plan_of("a", 1)
    np.testing.assert_array_equal(again.examples, second.examples)
    np.testing.assert_array_equal(again.offsets, second.offsets)


def test_rows_past_the_plan_have_no_weight(builder):
    row = builder.row("a", 0, builder.plan_of("a", 0).rows)
    assert not row.loss_weights.any()
    assert not row.segment_ids.any()
    assert (row.tokens == builder.pad_id).all()
