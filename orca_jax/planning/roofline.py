"""How long a step takes: FLOPs, memory traffic and interconnect traffic over what the chips can do.

    step = max(products + attention + elementwise, overlapped collectives) + exposed collectives + update

Matrix products reach `product_efficiency` of the peak (chips.csv). Attention kernels, memory and links reach
the shares below. Elementwise operations wait for memory while nothing else runs. Gathers and scatters of
parameters and gradients hide behind computing; sums of activations over the tensor axis, on which the next
product waits, do not.
These are assumptions, the same for every case; docs/scale.md states the errors against published runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from orca_jax.planning.chips import Topology
from orca_jax.planning.workload import (
    Flops,
    MeshShape,
    Workload,
    layer_parameters,
    model_flops,
)

ATTENTION_EFFICIENCY = 0.5
HBM_EFFICIENCY = 0.8
LINK_EFFICIENCY = 0.8
BACKWARD_ATTENTION = 7  # products of the kernels for queries' and keys' gradients, which both redo the scores
# What a policy computes again: shares of a layer's forward products and of its attention.
RECOMPUTED = {"none": (0.0, 0.0), "full": (1.0, 1.0), "products": (0.0, 1.0)}


class Collective(NamedTuple):
    """Transfers of one kind over the same axes of the mesh; `sent` is what a chip sends a step, in bytes."""

    kind: str
    axes: tuple[str, ...]
    times: int
    sent: int


class Estimate(NamedTuple):
    """Seconds of a step, in parts."""

    products: float
    attention: float
    elementwise: float
    overlapped: float
    exposed: float
    update: float

    @property
    def step(self) -> float:
        return (
            max(self.products + self.attention + self.elementwise, self.overlapped)
            + self.exposed
            + self.update
        )

    @property
    def bound(self) -> str:
        """What the step waits for most."""
        computing = self.products + self.attention + self.elementwise
        parts = {
            "computing": computing,
            "interconnect": max(self.overlapped, self.exposed),
            "update": self.update,
        }
        return max(parts, key=lambda name: parts[name])


def executed_flops(workload: Workload) -> Flops:
    """What the chips compute, recomputation and the kernels' repeated scores included."""
    student, model = workload.student, model_flops(workload)
    again, attention_again = RECOMPUTED[student.remat]
    layers = student.num_layers * layer_parameters(student) * workload.tokens
    # The model's attention is two products forward and four backward, of one size.
    attention = model.attention / 6 * (2 + 2 * attention_again + BACKWARD_ATTENTION)
    return Flops(model.products + 2 * again * layers, attention)


def elementwise_bytes(workload: Workload, shape: MeshShape) -> float:
    """Memory traffic of one chip beside matrix products: norms, rotations, gates, residuals; and the logits.

    A forward pass reads and writes 10 d + 2 heads + 3 f elements a token and layer; the backward pass moves
    twice as much, and a recomputing one once more. Logits move six times.
    """
    student, tokens = workload.student, workload.tokens / shape.rows
    heads = (student.num_heads + student.num_kv_heads) * student.head_dim
    width = 10 * student.hidden_size + (2 * heads + 3 * student.intermediate_size) / shape.tensor
    passes = 3 + (student.remat != "none")
    layers = tokens * student.num_layers * width * passes * jnp.dtype(workload.compute_dtype).itemsize
    return layers + 6 * 4 * tokens * student.padded_vocab_size / shape.tensor


def collectives(workload: Workload, shape: MeshShape) -> tuple[Collective, ...]:
    """What a step has to send by the sharding rules; the compiled program tells what it does send."""
    student, width = workload.student, jnp.dtype(workload.compute_dtype).itemsize
    layers, parts = student.num_layers, workload.accumulation
    weights = product_bytes(workload) / shape.tensor
    activations = workload.part_rows(shape) * workload.row_length * student.hidden_size * width
    gathers = 2 + (student.remat == "full")  # forward, again, backward
    sums = (4 + 2 * (student.remat == "full")) * layers * parts
    found = (
        _ring("all-gather", "fsdp", shape.fsdp, gathers * layers * parts, gathers * parts * weights),
        _ring("reduce-scatter", "fsdp", shape.fsdp, layers * parts, parts * weights),
        _ring("all-reduce", "data", shape.data, layers, 4 * weights / width / shape.fsdp),
        _ring("all-reduce", "tensor", shape.tensor, sums, sums * activations),
    )
    return tuple(collective for collective in found if collective.sent)


def product_bytes(workload: Workload) -> float:
    """All layers' weights in the compute type."""
    student = workload.student
    return student.num_layers * layer_parameters(student) * jnp.dtype(workload.compute_dtype).itemsize


def _ring(kind: str, axis: str, size: int, count: int, payload: float) -> Collective:
    return Collective(kind, (axis,), count, int(ring_bytes(kind, size, payload)))


def ring_bytes(kind: str, size: int, payload: float) -> float:
    """Bytes that a chip of a ring of `size` sends for a whole (gathered, or not yet scattered) payload."""
    if kind == "collective-permute":
        return payload
    return payload * (2 if kind == "all-reduce" else 1) * (size - 1) / size


def bandwidth(topology: Topology, size: int, kind: str = "all-gather") -> float:
    """Bytes a second that a chip sends in a group of `size`.

    On a torus a group spans its share of the dimensions, at least one, and a line whose ring does not close
    has half; the permutations that pass shards from neighbour to neighbour use one dimension's links. On
    GPUs a group larger than a node waits for the slower of its links and the node's network ports together.
    """
    chip = topology.chip
    if not chip.torus:
        outside = chip.node_chips * chip.network_gb_per_s if size > chip.node_chips else math.inf
        return min(chip.link_gb_per_s, outside) * 1e9
    if kind == "collective-permute":
        return chip.link_gb_per_s * 1e9 / chip.torus
    dimensions = max(1.0, chip.torus * math.log(max(2, size)) / math.log(max(2, topology.chips)))
    closed = 1.0 if topology.wrapped else 0.5
    return chip.link_gb_per_s * 1e9 * min(1.0, dimensions / chip.torus) * closed


def estimate(
    workload: Workload,
    shape: MeshShape,
    topology: Topology,
    traffic: Sequence[Collective],
    state_bytes: int,
) -> Estimate:
    """Seconds of one optimizer step.

    Args:
      traffic: `collectives`, or those of the compiled program.
      state_bytes: parameters and optimizer state of one chip.
    """
    chip, executed = topology.chip, executed_flops(workload)
    power, memory = chip.peak * topology.chips, chip.hbm_gb_per_s * 1e9 * HBM_EFFICIENCY
    seconds = {True: 0.0, False: 0.0}
    for one in traffic:
        size = math.prod(getattr(shape, axis) for axis in one.axes)
        seconds[one.axes == ("tensor",)] += one.sent / (bandwidth(topology, size, one.kind) * LINK_EFFICIENCY)
    return Estimate(
        products=executed.products / (power * chip.product_efficiency),
        attention=executed.attention / (power * ATTENTION_EFFICIENCY),
        elementwise=elementwise_bytes(workload, shape) / memory,
        overlapped=seconds[False],
        exposed=seconds[True],
        update=2 * state_bytes / memory,
    )


def mfu(workload: Workload, topology: Topology, step_seconds: float) -> float:
    """Model FLOPs over what the chips' peak allows in that time."""
    return model_flops(workload).total / (topology.chip.peak * topology.chips * step_seconds)
