"""Times from FLOPs and bytes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.planning import chips, memory, roofline, search
from orca_jax.planning.workload import MeshShape, model_flops
from tests.planning.workloads import large

SLICE = chips.topology("v5p:2x4x4")
FSDP = MeshShape(1, 32, 1)


@pytest.fixture(scope="module")
def work():
    return large("llama-13b", 128)


@pytest.fixture(scope="module")
def state(work):
    return memory.abstract_state(work.student, work.optimizer)


def with_remat(work, policy):
    return dataclasses.replace(work, student=dataclasses.replace(work.student, remat=policy))


@given(kind=st.sampled_from(["all-gather", "reduce-scatter", "all-reduce"]), size=st.integers(2, 512))
def test_a_sum_is_a_scatter_and_a_gather(kind, size):
    sent = roofline.ring_bytes(kind, size, 1000.0)
    assert sent == pytest.approx((2 if kind == "all-reduce" else 1) * 1000 * (1 - 1 / size))
    assert roofline.ring_bytes(kind, 1, 1000.0) == 0


def test_recomputing_a_forward_pass_costs_a_third_more(work):
    model = model_flops(work)
    none, products, full = (
        roofline.executed_flops(with_remat(work, p)) for p in ("none", "products", "full")
    )
    assert none.products == products.products == model.products
    assert full.products == pytest.approx(model.products * 8 / 6, rel=0.01)
    assert model.attention < none.attention < products.attention == full.attention


def test_a_computing_bound_step_is_its_flops_over_the_assumed_speed(work, state):
    time = search.assess(with_remat(work, "none"), FSDP, SLICE, state).time
    assert time.bound == "computing"
    products = model_flops(work).products / (32 * 459e12 * 0.85)
    assert time.products == pytest.approx(products)
    assert products < time.step < 1.5 * products
    assert roofline.mfu(work, SLICE, time.step) < 0.85


def test_twice_the_rows_take_twice_the_computing_and_as_many_gathers(work, state):
    once, twice = (
        search.assess(dataclasses.replace(work, batch_rows=rows), FSDP, SLICE, state).time
        for rows in (128, 256)
    )
    assert twice.products == pytest.approx(2 * once.products)
    assert twice.overlapped == once.overlapped
    assert twice.update == once.update


def test_gathers_hide_and_sums_over_the_tensor_axis_do_not(work, state):
    assert search.assess(work, FSDP, SLICE, state).time.exposed == 0
    split = search.assess(work, MeshShape(1, 8, 4), SLICE, state).time
    assert split.exposed > 0
    kinds = {(one.kind, one.axes) for one in roofline.collectives(work, MeshShape(2, 4, 4))}
    assert kinds == {
        ("all-gather", ("fsdp",)),
        ("reduce-scatter", ("fsdp",)),
        ("all-reduce", ("data",)),
        ("all-reduce", ("tensor",)),
    }


def test_a_few_rows_on_many_chips_wait_for_the_interconnect(state, work):
    pod = chips.topology("v5e-256")
    few = dataclasses.replace(work, batch_rows=256, row_length=256)
    assert search.assess(few, MeshShape(1, 256, 1), pod, state).time.bound == "interconnect"


@pytest.mark.parametrize(
    ("name", "size", "gigabytes"),
    [
        ("v5p:4x4x4", 64, 600),  # all three dimensions, rings closed
        ("v5p:4x4x4", 4, 200),  # one dimension of three
        ("v5p:2x4x4", 32, 300),  # open lines
        ("h100-8", 8, 450),
        ("h100-16", 16, 400),  # eight ports of 50 GB/s a node
        ("a100-20", 20, 200),
    ],
)
def test_bandwidth_of_a_group(name, size, gigabytes):
    assert roofline.bandwidth(chips.topology(name), size) == pytest.approx(gigabytes * 1e9)
