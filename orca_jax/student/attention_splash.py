"""JAX's splash attention for TPUs (jax.experimental.pallas.ops.tpu.splash_attention)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels

from orca_jax.student.attention_common import in_whole_blocks, on_each_device, platform

LANES = 128  # a TPU register's width, of which the kernel's blocks are multiples
LARGEST_BLOCK = 512
MAX_HEAD_DIM = 512  # the largest that has been compiled for a TPU; small and odd ones compile as well


def _mask(length: int, window: int) -> splash_kernels.Mask:
    shape = (length, length)
    if window:
        return splash_kernels.LocalMask(shape, (window - 1, 0), offset=0)
    return splash_kernels.CausalMask(shape)


def _block_sizes(length: int) -> splash_kernels.BlockSizes:
    """One size for all loops: the largest power of two that divides a row, from 128 to 512."""
    block = math.gcd(length, LARGEST_BLOCK)
    return splash_kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )


def _scaled(query: jax.Array) -> jax.Array:
    """The query over the root of its head size, multiplied in float32, in its own type."""
    return (query.astype(jnp.float32) / math.sqrt(query.shape[-1])).astype(query.dtype)


def _run(
    window: int,
    interpret: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    """The kernel, row by row, on scaled queries. It wants heads first, and knows grouped queries."""
    length, heads = query.shape[1:3]
    kernel = splash_kernels.make_splash_mha(
        splash_kernels.MultiHeadMask([_mask(length, window)] * heads),
        block_sizes=_block_sizes(length),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    heads_first = [x.transpose(0, 2, 1, 3) for x in (query, key, value)]
    mixed = jax.vmap(kernel)(*heads_first, splash_kernels.SegmentIds(segment_ids, segment_ids))
    return mixed.transpose(0, 2, 1, 3)


def splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """Splash attention on rows padded to a multiple of 128; interpreted, hence slow, where no TPU is meant.

    Raises:
      ValueError: heads larger than 512.
    """
    if query.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(
            f"student.attention='splash' takes student.head_dim up to {MAX_HEAD_DIM}, got {query.shape[-1]}; "
            "use auto or blockwise"
        )
    kernel = functools.partial(_run, window, platform() != "tpu")
    run = functools.partial(on_each_device, kernel)
    return in_whole_blocks(run, _scaled(query), key, value, segment_ids, LANES)
