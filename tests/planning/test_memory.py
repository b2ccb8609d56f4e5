"""Bytes before compiling: the state's are exact, the rest near what the CPU's compiler says."""

import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from orca_jax.config import LoraConfig, OptimizerKind, Remat
from orca_jax.planning import memory, roofline
from orca_jax.planning.workload import MeshShape
from orca_jax.student import sharding
from orca_jax.training.optimizer import make_optimizer
from orca_jax.training.step import make_steps
from tests.planning.workloads import large, small

SHAPES = [MeshShape(1, 8, 1), MeshShape(2, 2, 2), MeshShape(1, 1, 8)]


def placed(tree):
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", get_args(OptimizerKind))
@pytest.mark.parametrize("rank", [0, 2])
def test_the_states_bytes_are_those_that_train_places(shape, kind, rank):
    work = small(kind=kind, lora=LoraConfig(rank=rank))
    mesh = sharding.make_mesh(sharding.MeshConfig(**shape._asdict()))
    optimizer = make_optimizer(work.optimizer)
    real = make_steps(work.student, optimizer, mesh, dtype=jnp.float32, accumulation=1).abstract
    state = memory.abstract_state(work.student, work.optimizer)
    assert memory.shard_bytes(state.params, shape) == placed(real.params)
    assert memory.shard_bytes(state.optimizer, shape) == placed(real.optimizer)


def test_adamw_has_two_moments_and_its_variants_less():
    sizes = {}
    for kind in get_args(OptimizerKind):
        work = small(kind=kind)
        state = memory.abstract_state(work.student, work.optimizer)
        sizes[kind] = memory.estimate(work, MeshShape(1, 8, 1), state)
    parameters = sizes["adamw"].parameters
    assert sizes["adamw"].optimizer == pytest.approx(2 * parameters, rel=0.01)
    assert sizes["adamw_bf16"].optimizer == pytest.approx(1.5 * parameters, rel=0.01)
    assert sizes["adafactor"].optimizer < sizes["adamw_bf16"].optimizer


def test_every_remat_policy_is_known():
    assert set(roofline.RECOMPUTED) == set(get_args(Remat))
    kept = [
        memory.saved_width(dataclasses.replace(small().student, remat=p), 1)
        for p in ("full", "products", "none")
    ]
    assert kept == sorted(kept)
    assert len(set(kept)) == 3


def test_more_parts_and_more_chips_need_less():
    work = large("llama-13b", 128)
    state = memory.abstract_state(work.student, work.optimizer)

    def total(accumulation, fsdp):
        part = dataclasses.replace(work, accumulation=accumulation)
        return memory.estimate(part, MeshShape(1, fsdp, 1), state).working

    assert total(4, 32) < total(2, 32)
    assert total(2, 64) < total(2, 32)
