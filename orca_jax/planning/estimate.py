"""What a training step costs by estimate: FLOPs, bytes of a chip, transfers between chips, and seconds.

FLOPs follow PaLM's appendix B (arXiv 2204.02311), with attention counted as causal. Bytes are exact for
parameters and optimizer, whose shapes come from the functions that train runs, and rough for the rest. Time:

    step = max(products + attention + elementwise, overlapped collectives) + exposed collectives + update

Matrix products reach `product_efficiency` of the peak (chips.csv), and on TPUs those of weight gradients
the share of it that `GRADIENT_EFFICIENCY` gives. Attention kernels, memory and links reach the shares
below. Elementwise operations wait for memory while nothing else runs. Gathers and scatters of parameters
and gradients hide behind computing; sums of activations over the tensor axis, on which the next product
waits, do not. These are assumptions, the same for every case; docs/scale.md states the errors against
published runs. Of a compiled TPU program, `compiled_seconds` takes computing from the compiler's cycles
instead.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax.config import MeshConfig, OptimizerConfig
from orca_jax.planning.chips import Topology
from orca_jax.student import sharding
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import loss
from orca_jax.training.step import TrainState, make_optimizer, make_steps

USABLE = 0.9  # of the memory, for an estimate: compiled programs are fragmented, and runtimes keep some
ATTENTION_EFFICIENCY = 0.5
HBM_EFFICIENCY = 0.8
LINK_EFFICIENCY = 0.8
# libtpu splits the products of weight gradients into slices of hidden_size / fsdp columns, and sends one
# while it computes the next. Width, and the share of the peak by its cycles on v5p; linear below 64.
GRADIENT_EFFICIENCY = ((0, 0.0), (64, 0.23), (128, 0.42), (160, 0.5), (256, 0.72), (320, 0.78), (640, 0.95))
BACKWARD_ATTENTION = 5  # products of the fused kernel, which computes the scores again
# What a policy computes again: shares of a layer's forward products and of its attention.
RECOMPUTED = {"none": (0.0, 0.0), "full": (1.0, 1.0), "products": (0.0, 0.0)}
FORMULA = (
    "6 x N x tokens + 6 x layers x heads x head_dim x row_length x tokens; N: parameters of matrix products "
    "(all but the input embedding and norms); the second term is causal attention over whole rows"
)


class MeshShape(NamedTuple):
    """Sizes of the mesh's axes, none of them -1."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def rows(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return f"data={self.data} fsdp={self.fsdp} tensor={self.tensor}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything but the chips and the mesh that a training step depends on; names as in configs."""

    student: LlamaConfig
    optimizer: OptimizerConfig
    batch_rows: int
    accumulation: int = 1
    row_length: int = 2048
    compute_dtype: str = "bfloat16"
    reduce_dtype: str = "float32"
    limited: bool = False  # steps whose gradient spikes are skipped
    soft_targets: int = 0  # ids of a teacher's distribution in each place; 0: there are none
    windowed: bool = True  # on TPUs, weight gradients in slices; see GRADIENT_EFFICIENCY

    @property
    def tokens(self) -> int:
        """Positions of an optimizer step."""
        return self.batch_rows * self.row_length

    def part_rows(self, shape: MeshShape) -> int:
        """Rows that a chip works on at a time.

        Raises:
          ValueError: the rows do not divide over accumulation parts and the mesh.
        """
        rows, rest = divmod(self.batch_rows, self.accumulation * shape.rows)
        if rest or not rows:
            raise ValueError(
                f"train.batch_rows={self.batch_rows} does not divide over train.accumulation="
                f"{self.accumulation} parts and data x fsdp = {shape.rows} devices"
            )
        return rows


def layer_parameters(student: LlamaConfig) -> int:
    """Parameters of one layer."""
    embeddings = student.padded_vocab_size * student.hidden_size * (1 if student.tie_embeddings else 2)
    return (student.parameter_count - embeddings - student.hidden_size) // student.num_layers


class Flops(NamedTuple):
    """FLOPs of one optimizer step on all chips together."""

    products: float
    attention: float

    @property
    def total(self) -> float:
        return self.products + self.attention


def model_flops(workload: Workload) -> Flops:
    """Model FLOPs by `FORMULA`: without recomputation, and with each row as one segment."""
    products = workload.tokens * workload.student.training_flops(0)
    return Flops(products, workload.tokens * workload.student.training_flops(workload.row_length) - products)


def formula(workload: Workload) -> str:
    """The formula in words, for full weights or adapters."""
    if not workload.student.lora.rank:
        return FORMULA
    return f"{FORMULA.replace('6 x N', '4 x N', 1)}; frozen weights need no gradients; adapters not counted"


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
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
    steps = make_steps(student, make_optimizer(optimizer), mesh, dtype=jnp.bfloat16, accumulation=1)
    return steps.abstract


def shard_bytes(tree: Any, shape: MeshShape) -> int:
    """Bytes of one chip's part of a tree of shapes, by the rules that place them."""
    sizes = cast(Mesh, types.SimpleNamespace(shape=shape._asdict()))  # all that the rules look at

    def size(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> int:
        axes = sharding.spec(sharding.path_name(path), leaf.shape, sizes)
        parts = math.prod(sizes.shape[axis] for axis in axes if axis)
        return math.prod(leaf.shape) * leaf.dtype.itemsize // parts

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, tree)))


def saved_widths(student: LlamaConfig, tensor: int) -> dict[str, int]:
    """Elements a token that a layer keeps until the backward pass, on one of `tensor` chips, by policy.

    `none` keeps all that its forward pass leaves, `products` the results of its matrix products and
    of attention.
    """
    d, f, heads = student.hidden_size, student.intermediate_size, student.num_heads * student.head_dim
    kv_heads = student.num_kv_heads * student.head_dim
    return {
        "none": 10 * d + (5 * (heads + kv_heads) + 5 * f) // tensor,
        "full": d,
        "products": 3 * d + (2 * heads + 2 * kv_heads + 2 * f) // tensor,
    }


def step_bytes(workload: Workload, shape: MeshShape, state: TrainState) -> Bytes:
    """Bytes of one chip for a step on a mesh; `state` from `abstract_state`.

    Working: gradients, saved activations, two layers' weights and one chunk of logits.
    """
    parameters, optimizer = shard_bytes(state.params, shape), shard_bytes(state.optimizer, shape)
    student, tokens = workload.student, workload.part_rows(shape) * workload.row_length
    width, widths = jnp.dtype(workload.compute_dtype).itemsize, saved_widths(student, shape.tensor)
    gradients = 0 if student.lora.rank else parameters * (2 if workload.accumulation > 1 else 1)
    saved = student.num_layers * tokens * widths[student.remat] * width
    # A layer's backward pass holds its intermediates, and the gradients of about half of them at a time.
    at_hand = 3 * tokens * widths["none"] * width // 2
    weights = 2 * layer_parameters(student) // shape.tensor * width
    # Float32 logits of one of the loss's chunks, and as much again for their exponents and gradients.
    budget = loss.LOGITS_BUDGET if student.remat == "none" else loss.LOGITS_BUDGET_WITH_REMAT
    logits = 2 * min(budget, 4 * tokens * student.padded_vocab_size // shape.tensor)
    return Bytes(parameters, optimizer, gradients + saved + at_hand + weights + logits)


class Collective(NamedTuple):
    """Transfers of one kind over the same axes of the mesh; `sent` is what a chip sends a step, in bytes."""

    kind: str
    axes: tuple[str, ...]
    times: int
    sent: int


class Seconds(NamedTuple):
    """Seconds of a step, in parts."""

    products: float
    attention: float
    elementwise: float
    overlapped: float
    exposed: float
    update: float

    @property
    def step(self) -> float:
        computing = self.products + self.attention + self.elementwise
        return max(computing, self.overlapped) + self.exposed + self.update

    @property
    def bound(self) -> str:
        """The largest part."""
        computing = self.products + self.attention + self.elementwise
        waiting = max(self.overlapped, self.exposed)
        parts = {"computing": computing, "interconnect": waiting, "update": self.update}
        return max(parts, key=lambda name: parts[name])


def executed_flops(workload: Workload) -> Flops:
    """FLOPs that the chips execute, with recomputation and the kernels' repeated scores."""
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
    """The transfers of a step that follow from the sharding rules; a compiled program may do others."""
    student, width = workload.student, jnp.dtype(workload.compute_dtype).itemsize
    summed = jnp.promote_types(workload.compute_dtype, workload.reduce_dtype).itemsize
    layers, parts = student.num_layers, workload.accumulation
    weights = layers * layer_parameters(student) * width / shape.tensor
    activations = workload.part_rows(shape) * workload.row_length * student.hidden_size * width
    gathers = 2 + (student.remat == "full")  # forward, again, backward
    sums = (4 + 2 * (student.remat == "full")) * layers * parts
    found = (
        ("all-gather", "fsdp", gathers * layers * parts, gathers * parts * weights),
        ("reduce-scatter", "fsdp", layers * parts, parts * weights * summed / width),
        ("all-reduce", "data", layers, summed * weights / width / shape.fsdp),
        ("all-reduce", "tensor", sums, sums * activations),
    )
    rings = (
        Collective(kind, (axis,), times, int(ring_bytes(kind, getattr(shape, axis), payload)))
        for kind, axis, times, payload in found
    )
    return tuple(ring for ring in rings if ring.sent)


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


def gradient_slowdown(workload: Workload, shape: MeshShape, topology: Topology) -> float:
    """How much longer all matrix products take because those of weight gradients run in narrow slices."""
    if topology.chip.kind != "tpu" or not workload.windowed or workload.student.lora.rank or shape.fsdp == 1:
        return 1.0
    widths, shares = zip(*GRADIENT_EFFICIENCY)
    share = float(np.interp(workload.student.hidden_size / shape.fsdp, widths, shares)) / shares[-1]
    gradients = model_flops(workload).products / 3 / executed_flops(workload).products
    return 1 + gradients * (1 / share - 1)


def transfer_seconds(
    shape: MeshShape, topology: Topology, traffic: Sequence[Collective]
) -> tuple[float, float]:
    """Seconds of the transfers that hide behind computing, and of those that do not."""
    seconds = {True: 0.0, False: 0.0}
    for one in traffic:
        size = math.prod(getattr(shape, axis) for axis in one.axes)
        seconds[one.axes == ("tensor",)] += one.sent / (bandwidth(topology, size, one.kind) * LINK_EFFICIENCY)
    return seconds[False], seconds[True]


def step_seconds(
    workload: Workload,
    shape: MeshShape,
    topology: Topology,
    traffic: Sequence[Collective],
    state_bytes: int,
) -> Seconds:
    """Seconds of one optimizer step by roofline.

    Args:
      traffic: `collectives`, or those of the compiled program.
      state_bytes: parameters and optimizer state of one chip.
    """
    chip, executed = topology.chip, executed_flops(workload)
    power, memory = chip.peak * topology.chips, chip.hbm_gb_per_s * 1e9 * HBM_EFFICIENCY
    products = executed.products / (power * chip.product_efficiency)
    overlapped, exposed = transfer_seconds(shape, topology, traffic)
    return Seconds(
        products=products * gradient_slowdown(workload, shape, topology),
        attention=executed.attention / (power * ATTENTION_EFFICIENCY),
        elementwise=elementwise_bytes(workload, shape) / memory,
        overlapped=overlapped,
        exposed=exposed,
        update=2 * state_bytes / memory,
    )


def compiled_seconds(
    shape: MeshShape, topology: Topology, traffic: Sequence[Collective], cycles: int, attention: float
) -> Seconds:
    """Seconds of one optimizer step by the compiler's cycles; attention kernels and transfers by roofline.

    Args:
      traffic: of the compiled program.
      cycles: of one chip, for all that is computed outside of attention kernels.
      attention: FLOPs of one chip's attention kernels.
    """
    overlapped, exposed = transfer_seconds(shape, topology, traffic)
    kernels = attention / (topology.chip.peak * ATTENTION_EFFICIENCY)
    return Seconds(cycles / (topology.chip.clock_ghz * 1e9), kernels, 0.0, overlapped, exposed, 0.0)


def mfu(workload: Workload, topology: Topology, step_seconds: float) -> float:
    """Model FLOPs over what the chips' peak allows in that time."""
    return model_flops(workload).total / (topology.chip.peak * topology.chips * step_seconds)
