"""FLOPs, bytes and seconds of a step by estimate, against what the student and the trainer do."""

import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.config import LoraConfig, MeshConfig, OptimizerKind, Remat
from orca_jax.planning import chips, estimate, plan
from orca_jax.planning.estimate import MeshShape, formula, layer_parameters, model_flops
from orca_jax.student import llama, sharding
from orca_jax.training.step import make_optimizer, make_steps
from tests.planning.workloads import large, small

SIZES = st.sampled_from([-1, 1, 2, 4, 8])


def counted(jaxpr):
    """FLOPs of all matrix products of a traced function, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr")]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(counted(one.jaxpr) for one in inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_model_flops_are_those_of_the_traced_forward_pass(tied):
    """Three times its products, and three times half of the attention, which `reference` computes whole."""
    work = small(tie_embeddings=tied, remat="none", attention="reference", vocab_size=256)
    tokens = jnp.zeros((work.batch_rows, work.row_length), jnp.int32)
    params = jax.eval_shape(lambda: llama.init(work.student, 0))
    traced = jax.make_jaxpr(lambda p: llama.apply(p, tokens, tokens, tokens + 1, config=work.student))(params)
    flops = model_flops(work)
    assert 3 * counted(traced.jaxpr) == flops.products + 2 * flops.attention


def test_adapters_spare_the_gradients_of_given_weights():
    whole, adapted = small(), small(lora=LoraConfig(rank=2))
    assert model_flops(adapted).products == model_flops(whole).products * 4 / 6
    assert formula(adapted).startswith("4 x N")
    assert formula(whole).startswith("6 x N")


def test_layers_embeddings_and_last_norm_are_all_parameters():
    for tied in (False, True):
        student = small(tie_embeddings=tied).student
        params = jax.eval_shape(lambda s=student: llama.init(s, 0))
        layer = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["layers"])) // student.num_layers
        assert layer_parameters(student) == layer


def test_rows_that_do_not_divide_are_refused_by_name():
    shape = MeshShape(1, 8, 1)
    assert small(rows=16).part_rows(shape) == 2
    for rows in (4, 12):
        with pytest.raises(ValueError, match=rf"train.batch_rows={rows} .*= 8 devices"):
            small(rows=rows).part_rows(shape)


SHAPES = [MeshShape(1, 8, 1), MeshShape(2, 2, 2), MeshShape(1, 1, 8)]


def placed(tree):
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize(("shape", "rank"), [*zip(SHAPES, (0, 2, 0))], ids=str)
@pytest.mark.parametrize("kind", get_args(OptimizerKind))
def test_the_states_bytes_are_those_that_train_places(shape, kind, rank):
    work = small(kind=kind, lora=LoraConfig(rank=rank))
    mesh = sharding.make_mesh(MeshConfig(**shape._asdict()))
    optimizer = make_optimizer(work.optimizer)
    real = make_steps(work.student, optimizer, mesh, dtype=jnp.float32, accumulation=1).abstract
    state = estimate.abstract_state(work.student, work.optimizer)
    assert estimate.shard_bytes(state.params, shape) == placed(real.params)
    assert estimate.shard_bytes(state.optimizer, shape) == placed(real.optimizer)


def test_adamw_has_two_moments_and_its_variants_less():
    sizes = {}
    for kind in get_args(OptimizerKind):
        work = small(kind=kind)
        state = estimate.abstract_state(work.student, work.optimizer)
        sizes[kind] = estimate.step_bytes(work, MeshShape(1, 8, 1), state)
    parameters = sizes["adamw"].parameters
    assert sizes["adamw"].optimizer == pytest.approx(2 * parameters, rel=0.01)
    assert sizes["adamw_bf16"].optimizer == pytest.approx(1.5 * parameters, rel=0.01)
    assert sizes["adafactor"].optimizer < sizes["adamw_bf16"].optimizer


def test_every_remat_policy_is_known():
    assert set(estimate.RECOMPUTED) == set(get_args(Remat))
    widths = estimate.saved_widths(small().student, 1)
    assert set(widths) == set(get_args(Remat))
    kept = [widths[policy] for policy in ("full", "products", "none")]
    assert kept == sorted(kept)
    assert len(set(kept)) == 3


def test_more_parts_and_more_chips_need_less():
    work = large("llama-13b", 128)
    state = estimate.abstract_state(work.student, work.optimizer)

    def total(accumulation, fsdp):
        part = dataclasses.replace(work, accumulation=accumulation)
        return estimate.step_bytes(part, MeshShape(1, fsdp, 1), state).working

    assert total(4, 32) < total(2, 32)
    assert total(2, 64) < total(2, 32)


SLICE = chips.topology("v5p:2x4x4")
FSDP = MeshShape(1, 32, 1)


@pytest.fixture(scope="module")
def work():
    return large("llama-13b", 128)


@pytest.fixture(scope="module")
def state(work):
    return estimate.abstract_state(work.student, work.optimizer)


def with_remat(work, policy):
    return dataclasses.replace(work, student=dataclasses.replace(work.student, remat=policy))


@given(kind=st.sampled_from(["all-gather", "reduce-scatter", "all-reduce"]), size=st.integers(2, 512))
def test_a_sum_is_a_scatter_and_a_gather(kind, size):
    sent = estimate.ring_bytes(kind, size, 1000.0)
    assert sent == pytest.approx((2 if kind == "all-reduce" else 1) * 1000 * (1 - 1 / size))
    assert estimate.ring_bytes(kind, 1, 1000.0) == 0


def test_recomputing_a_forward_pass_costs_a_third_more(work):
    model = model_flops(work)
    none, products, full = (
        estimate.executed_flops(with_remat(work, p)) for p in ("none", "products", "full")
    )
    assert none.products == products.products == model.products
    assert full.products == pytest.approx(model.products * 8 / 6, rel=0.01)
    assert model.attention < none.attention == products.attention < full.attention


def test_a_computing_bound_step_is_its_flops_over_the_assumed_speed(work, state):
    work = dataclasses.replace(work, windowed=False)
    time = plan.assess(with_remat(work, "none"), FSDP, SLICE, state).time
    assert time.bound == "computing"
    products = model_flops(work).products / (32 * 459e12 * 0.85)
    assert time.products == pytest.approx(products)
    assert products < time.step < 1.5 * products
    assert estimate.mfu(work, SLICE, time.step) < 0.85


def test_weight_gradients_in_narrow_slices_take_longer(work):
    """Of three products of one size, that of the gradients runs at 0.5 of the peak in place of 0.95."""
    none, full = with_remat(work, "none"), with_remat(work, "full")
    assert estimate.gradient_slowdown(none, FSDP, SLICE) == pytest.approx((2 + 0.95 / 0.5) / 3)
    assert estimate.gradient_slowdown(full, FSDP, SLICE) == pytest.approx((3 + 0.95 / 0.5) / 4, rel=0.01)
    by_size = [estimate.gradient_slowdown(none, MeshShape(1, size, 1), SLICE) for size in (1, 8, 16, 64)]
    assert by_size[:2] == [1, 1]  # 640 columns
    assert 1 < by_size[2] < by_size[3]
    assert estimate.gradient_slowdown(none, FSDP, chips.topology("h100-32")) == 1
    assert estimate.gradient_slowdown(dataclasses.replace(none, windowed=False), FSDP, SLICE) == 1


def test_twice_the_rows_take_twice_the_computing_and_as_many_gathers(work, state):
    once, twice = (
        plan.assess(dataclasses.replace(work, batch_rows=rows), FSDP, SLICE, state).time
        for rows in (128, 256)
    )
    assert twice.products == pytest.approx(2 * once.products)
    assert twice.overlapped == once.overlapped
    assert twice.update == once.update


def test_gathers_hide_and_sums_over_the_tensor_axis_do_not(work, state):
    assert plan.assess(work, FSDP, SLICE, state).time.exposed == 0
    split = plan.assess(work, MeshShape(1, 8, 4), SLICE, state).time
    assert split.exposed > 0
    kinds = {(one.kind, one.axes) for one in estimate.collectives(work, MeshShape(2, 4, 4))}
    assert kinds == {
        ("all-gather", ("fsdp",)),
        ("reduce-scatter", ("fsdp",)),
        ("all-reduce", ("data",)),
        ("all-reduce", ("tensor",)),
    }


def test_a_few_rows_on_many_chips_wait_for_the_interconnect(state, work):
    pod = chips.topology("v5e-256")
    few = dataclasses.replace(work, batch_rows=256, row_length=256, windowed=False)
    assert plan.assess(few, MeshShape(1, 256, 1), pod, state).time.bound == "interconnect"


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
    assert estimate.bandwidth(chips.topology(name), size) == pytest.approx(gigabytes * 1e9)
