"""What the attention backends share: who sees whom, whole blocks, and a part of the heads per device.

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from orca_jax.student.sharding import BATCH

Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int], jax.Array]
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
MASKED = -1e30  # finite, so that a row with nothing to see gives zeros and no NaN


def sees(query_index: jax.Array, key_index: jax.Array, window: int) -> jax.Array:
    """Whether a query sees a key, by their indices: no later one, and with a window the last `window` only.

    Window 0 is none. A query counts itself (as Mistral does, Jiang et al., arXiv 2310.06825, in
    transformers' reading).
    """
    causal = query_index >= key_index
    return causal & (query_index - key_index < window) if window else causal


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh in force, or else the default one.

    The mesh comes first because a program may be compiled for chips that this host lacks.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def pad_length(x: jax.Array, multiple: int) -> jax.Array:
    """[b, t, ...] with zeros behind until t is a multiple; in segment ids these are padding."""
    missing = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def in_whole_blocks(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    multiple: int,
) -> jax.Array:
    """Runs a kernel on rows padded to a multiple of its block; padding rows of the result are zeros.

    The kernels let padding attend to padding, so what they return there is finite but not zero.
    """
    length = query.shape[1]
    padded = [pad_length(x, multiple) for x in (query, key, value, segment_ids)]
    mixed = kernel(*padded)[:, :length]
    return jnp.where((segment_ids > 0)[:, :, None, None], mixed, 0)


def on_each_device(
    kernel: Kernel, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """Runs a kernel on each device's rows and heads of the mesh in force; without a mesh, on all of them.

    XLA cannot partition a Pallas call itself: left to it, every device would gather and compute everything.
    Rows or heads that the mesh does not divide are computed by all devices of that axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, segment_ids)
    rows, heads = _axes(mesh, query.shape[0], key.shape[2])
    whole = PartitionSpec(rows, None, heads, None)
    # The kernels' results do not say over which axes they vary, so that cannot be checked.
    split = jax.shard_map(
        kernel, in_specs=(whole, whole, whole, PartitionSpec(rows)), out_specs=whole, check_vma=False
    )
    return split(query, key, value, segment_ids)


def _axes(mesh: AbstractMesh, rows: int, kv_heads: int) -> tuple[tuple[str, ...] | None, str | None]:
    """The mesh's axes for rows and for heads. Query heads divide where key-value heads do."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    return BATCH if rows % shards == 0 else None, "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
