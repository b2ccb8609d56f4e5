"""Bytes a chip needs, before anything is compiled: parameters and optimizer exactly, the rest roughly.

The state's shapes come from the functions that train runs, evaluated for shapes only.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from orca_jax.config import LlamaConfig
from orca_jax.planning.workload import MeshShape, Workload, layer_parameters
from orca_jax.student import sharding
from orca_jax.training import loss
from orca_jax.training.optimizer import OptimizerConfig, make_optimizer
from orca_jax.training.step import TrainState, make_steps

USABLE = 0.9  # of the memory, for an estimate: compiled programs are fragmented, and runtimes keep some


class Bytes(NamedTuple):
    """Of one chip. `working`: gradients, saved activations and what the layer at hand needs."""

    parameters: int
    optimizer: int
    working: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.working


def abstract_state(student: LlamaConfig, optimizer: OptimizerConfig) -> TrainState:
    """Shapes of all that a checkpoint holds; nothing is allocated."""
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.local_devices(backend="cpu")[:1])
    steps = make_steps(student, make_optimizer(optimizer), mesh, dtype=jnp.bfloat16, accumulation=1)
    return steps.abstract


class _Sizes(NamedTuple):
    """As much of a mesh as the sharding rules look at."""

    shape: dict[str, int]


def shard_bytes(tree: Any, shape: MeshShape) -> int:
    """Bytes of one chip's part of a tree of shapes, by the rules that place them."""
    sizes = cast(Mesh, _Sizes(shape._asdict()))

    def size(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> int:
        axes = sharding.spec(sharding.path_name(path), leaf.shape, sizes)
        parts = math.prod(sizes.shape[axis] for axis in axes if axis)
        return math.prod(leaf.shape) * leaf.dtype.itemsize // parts

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, tree)))


def intermediate_width(student: LlamaConfig, tensor: int) -> int:
    """Elements a token that a layer's forward pass leaves for its backward pass, on one of `tensor` chips."""
    heads = (student.num_heads + student.num_kv_heads) * student.head_dim
    return 10 * student.hidden_size + (5 * heads + 5 * student.intermediate_size) // tensor


def products_width(student: LlamaConfig, tensor: int) -> int:
    """Elements a token of the results of one layer's matrix products."""
    heads = (student.num_heads + 2 * student.num_kv_heads) * student.head_dim
    return 2 * student.hidden_size + (heads + 2 * student.intermediate_size) // tensor


def saved_width(student: LlamaConfig, tensor: int) -> int:
    """Elements a token that a layer keeps until the backward pass reaches it, by the policy.

    Raises:
      ValueError: the policy is not known here.
    """
    kept = {
        "none": intermediate_width(student, tensor),
        "full": student.hidden_size,
        "products": student.hidden_size + products_width(student, tensor),
    }
    if student.remat not in kept:
        raise ValueError(
            f"student.remat={student.remat!r} is not known to the planner; known: {', '.join(kept)}"
        )
    return kept[student.remat]


def working_bytes(workload: Workload, shape: MeshShape, trained: int) -> int:
    """Gradients (`trained` bytes here), saved activations, two layers' weights and one chunk of logits."""
    student, tokens = workload.student, workload.part_rows(shape) * workload.row_length
    width = jnp.dtype(workload.compute_dtype).itemsize
    saved = student.num_layers * tokens * saved_width(student, shape.tensor) * width
    # A layer's backward pass holds its intermediates, and the gradients of about half of them at a time.
    at_hand = 3 * tokens * intermediate_width(student, shape.tensor) * width // 2
    weights = 2 * layer_parameters(student) // shape.tensor * width
    gradients = trained * (2 if workload.accumulation > 1 else 1)
    return gradients + saved + at_hand + weights + logits_bytes(workload, shape)


def logits_bytes(workload: Workload, shape: MeshShape) -> int:
    """Float32 logits of one of the loss's chunks, and as much again for their exponents and gradients."""
    tokens = workload.part_rows(shape) * workload.row_length
    budget = loss.LOGITS_BUDGET if workload.student.remat == "none" else loss.LOGITS_BUDGET_WITH_REMAT
    return 2 * min(budget, 4 * tokens * workload.student.padded_vocab_size // shape.tensor)


def estimate(workload: Workload, shape: MeshShape, state: TrainState) -> Bytes:
    """Bytes of one chip for a step on a mesh; `state` from `abstract_state`."""
    parameters, optimizer = shard_bytes(state.params, shape), shard_bytes(state.optimizer, shape)
    trained = 0 if workload.student.lora.rank else parameters
    return Bytes(parameters, optimizer, working_bytes(workload, shape, trained))
