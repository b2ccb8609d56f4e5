"""Attention kernels: splash (TPUs) and cudnn (GPUs), with padding and partitioning.

splash is jax.experimental.pallas.ops.tpu.splash_attention; cudnn is cuDNN's flash attention, as
jax.nn.dot_product_attention calls it. Neither has run on its chips: splash is interpreted on CPUs, where
cudnn is the same call in plain XLA.

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels
from jax.sharding import PartitionSpec

from orca_jax.student.attention_xla import RESIDUALS, blockwise, causal_mask, pad_length
from orca_jax.student.sharding import BATCH, batch_shards

log = logging.getLogger(__name__)

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
LANES = 128  # a TPU register's width, of which splash's blocks are multiples
LARGEST_BLOCK, LARGEST_PART = 1024, 512  # of queries and keys; of keys whose scores are computed at a time
# The fused backward kernel writes the queries' gradient once a block of keys, to be summed after it.
MOST_COPIES = 4
MAX_HEAD_DIM = 512  # the largest that has been compiled for a TPU; small and odd sizes compile as well
CUDNN_BLOCK = 64  # cuDNN's backward pass needs even lengths where it is given a mask
CUDNN_HEAD_DIMS = (64, 128)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the current mesh, or else of the default backend.

    The mesh takes precedence because a program may be compiled for chips that this host does not have.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def in_whole_blocks(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    multiple: int,
) -> jax.Array:
    """Runs a kernel on each device's rows and heads of the current mesh, in rows padded to whole blocks.

    The result is zero at padding: the kernels let padding attend to padding. XLA cannot partition a kernel
    itself: every device would gather and compute everything. Rows or heads that the mesh does not divide are
    computed by all devices of that axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows = BATCH if query.shape[0] % batch_shards(mesh) == 0 else None
        # Query heads divide where key-value heads do.
        heads = "tensor" if key.shape[2] % mesh.shape["tensor"] == 0 else None
        whole = PartitionSpec(rows, None, heads, None)
        # The kernels' results do not say over which axes they vary, so that cannot be checked.
        kernel = jax.shard_map(
            kernel,
            in_specs=(whole, whole, whole, PartitionSpec(rows)),
            out_specs=whole,
            check_vma=False,
        )
    out = kernel(*(pad_length(x, multiple) for x in (query, key, value, segment_ids)))
    return jnp.where((segment_ids > 0)[:, :, None, None], out[:, : query.shape[1]], 0)


# TPUs


def _block_sizes(length: int, head_bytes: int) -> splash_kernels.BlockSizes:
    """The largest power of two that divides a row, from 128 to 1024, and one backward kernel in place of two.

    A row of many blocks of keys has two backward kernels, with blocks of 512 at most. Heads of over 512 bytes
    have no larger blocks anywhere: they do not fit into the scoped memory that libtpu allows.
    """
    part = math.gcd(length, LARGEST_PART)
    block = math.gcd(length, LARGEST_BLOCK) if head_bytes <= 512 else part
    fused = length <= MOST_COPIES * block
    backward = block if fused else part
    return splash_kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=part,
        block_q_dkv=backward,
        block_kv_dkv=backward,
        block_kv_dkv_compute=part,
        block_q_dq=None if fused else part,
        block_kv_dq=None if fused else part,
        use_fused_bwd_kernel=fused,
    )


def _run_splash(
    window: int,
    interpret: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    """The kernel, row by row, on scaled queries. It takes heads first and supports grouped queries."""
    length, heads = query.shape[1:3]
    shape = (length, length)
    if window:
        mask: splash_kernels.Mask = splash_kernels.LocalMask(shape, (window - 1, 0), offset=0)
    else:
        mask = splash_kernels.CausalMask(shape)
    kernel = splash_kernels.make_splash_mha(
        splash_kernels.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(length, query.shape[-1] * query.dtype.itemsize),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    heads_first = [x.transpose(0, 2, 1, 3) for x in (query, key, value)]
    out = jax.vmap(kernel)(*heads_first, splash_kernels.SegmentIds(segment_ids, segment_ids))
    return out.transpose(0, 2, 1, 3)


def splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """Splash attention on rows padded to a multiple of 128; interpreted, hence slow, on other platforms.

    Raises:
      ValueError: heads larger than 512.
    """
    head_dim = query.shape[-1]
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"student.attention='splash' takes student.head_dim up to {MAX_HEAD_DIM}, got {head_dim}; "
            "use auto or blockwise"
        )
    # The kernel does not scale scores; the product is taken in float32, the result in the query's type.
    scaled = (query.astype(jnp.float32) / math.sqrt(head_dim)).astype(query.dtype)
    kernel = functools.partial(_run_splash, window, platform() != "tpu")
    return in_whole_blocks(kernel, scaled, key, value, segment_ids, LANES)


# GPUs


def cudnn_lacks(head_dim: int, dtype: jnp.dtype) -> str:
    """Why cuDNN's kernel is not used for heads of this size and type; empty: it is."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN has no attention in {jnp.dtype(dtype).name}"
    if head_dim not in CUDNN_HEAD_DIMS:
        return f"heads of {head_dim} are not among {CUDNN_HEAD_DIMS}"
    return ""


@functools.cache
def say(message: str) -> None:
    """Logs a choice once: it is made for every layer of every program that is traced."""
    log.info(message)


def is_cudnn_forward(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint` that saves the residuals of `cudnn`, which JAX does not let us name."""
    return bool(primitive.name == "dot_product_attention_fwd_wrapper")


def _run_cudnn(
    window: int,
    implementation: Any,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    """One call. Padding is a segment like another here, so that no row of the mask is empty."""
    mask = segment_ids[:, :, None] == segment_ids[:, None, :]
    if window:
        # Not by `local_window_size`: older versions of cuDNN take no window beside a mask.
        order = jnp.arange(query.shape[1])
        mask &= causal_mask(order[:, None], order, window)
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], is_causal=True, implementation=implementation
    )


def cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """cuDNN's flash attention, with the mask of segments and window as a bias [b, 1, t, t].

    On GPUs, float32 and heads of other sizes than 64 and 128 are computed by `blockwise`; elsewhere the
    call is XLA's own implementation, for any type and size.
    """
    on_gpu = platform() == "gpu"
    if on_gpu and (why := cudnn_lacks(query.shape[-1], query.dtype)):
        say(f"attention: blockwise in place of cudnn: {why}")
        return blockwise(query, key, value, segment_ids, window)
    kernel = functools.partial(_run_cudnn, window, "cudnn" if on_gpu else "xla")
    return in_whole_blocks(kernel, query, key, value, segment_ids, CUDNN_BLOCK)
