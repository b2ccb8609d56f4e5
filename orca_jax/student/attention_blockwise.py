"""Attention block by block with an online softmax, in plain XLA: memory grows linearly with the length.

After FlashAttention-2 (Dao, arXiv 2307.08691): forward keeps the output and the log-sum-exp of each query,
backward computes the weights again. One scan runs over the pairs (block of queries, block of keys) in which
anything can be seen; pairs in the future or behind the window are not on the list.

Axis letters: q and c blocks of queries and keys, u and v places in them, g query heads to a key-value
head; the others as in `llama`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.student.attention_common import MASKED, pad_length, sees

BLOCK = 256


class _Options(NamedTuple):
    window: int
    scale: float


class _Blocks(NamedTuple):
    """Rows cut in blocks, the blocks' axis first, so that a scan takes whole ones."""

    query: jax.Array  # [q, b, k, g, u, h]
    key: jax.Array  # [c, b, k, v, h]
    value: jax.Array  # [c, b, k, v, h]
    segment_ids: jax.Array  # [q, b, u]


def _pairs(count: int, block: int, window: int) -> tuple[jax.Array, jax.Array]:
    """Indices of the blocks of queries and of keys between which anything can be seen."""
    queries, keys = np.tril_indices(count)
    # The nearest two tokens of such blocks are this far apart.
    near = (queries - keys) * block - (block - 1) < window if window else np.ones(len(queries), bool)
    return jnp.asarray(queries[near], jnp.int32), jnp.asarray(keys[near], jnp.int32)


def _mask(blocks: _Blocks, i: jax.Array, j: jax.Array, window: int) -> jax.Array:
    """Which keys of block j the queries of block i see, [b, 1, 1, u, v]."""
    places = jnp.arange(blocks.segment_ids.shape[-1])
    size = len(places)
    mine, theirs = blocks.segment_ids[i][:, :, None], blocks.segment_ids[j][:, None]
    seen = sees(i * size + places[:, None], j * size + places, window)
    return (seen & (mine == theirs) & (mine > 0))[:, None, None]


def _scores(blocks: _Blocks, i: jax.Array, j: jax.Array, scale: float) -> jax.Array:
    """Float32 [b, k, g, u, v]."""
    return scale * jnp.einsum(
        "bkguh,bkvh->bkguv", blocks.query[i], blocks.key[j], preferred_element_type=jnp.float32
    )


def _forward_step(blocks, options, carry, pair):  # type: ignore[no-untyped-def]
    """Adds one block of keys to the sums of one block of queries (largest score, sum, mixed values)."""
    largest, total, mixed = carry
    i, j = pair
    mask = _mask(blocks, i, j, options.window)
    scores = jnp.where(mask, _scores(blocks, i, j, options.scale), MASKED)
    new = jnp.maximum(largest[i], scores.max(axis=-1))
    weights = jnp.where(mask, jnp.exp(scores - new[..., None]), 0.0)
    value = blocks.value[j]
    added = jnp.einsum(
        "bkguv,bkvh->bkguh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    fade = jnp.exp(largest[i] - new)
    total = total.at[i].set(total[i] * fade + weights.sum(axis=-1))
    mixed = mixed.at[i].set(mixed[i] * fade[..., None] + added)
    return (largest.at[i].set(new), total, mixed), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, blocks: _Blocks) -> jax.Array:
    return _forward(options, blocks)[0]


def _forward(options, blocks):  # type: ignore[no-untyped-def]
    shape = blocks.query.shape
    start = (
        jnp.full(shape[:-1], MASKED, jnp.float32),
        jnp.zeros(shape[:-1], jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    pairs = _pairs(shape[0], shape[-2], options.window)
    (largest, total, mixed), _ = jax.lax.scan(functools.partial(_forward_step, blocks, options), start, pairs)
    total = jnp.where(total > 0, total, 1.0)  # a padding row saw nothing and stays zero
    out = (mixed / total[..., None]).astype(blocks.query.dtype)
    return out, (blocks, out, largest + jnp.log(total))


def _backward_step(blocks, options, gradient, inner, logsumexp, carry, pair):  # type: ignore[no-untyped-def]
    """Adds what one pair of blocks gives to the gradients of query, key and value."""
    d_query, d_key, d_value = carry
    i, j = pair
    mask = _mask(blocks, i, j, options.window)
    scores = _scores(blocks, i, j, options.scale)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - logsumexp[i][..., None], 0.0)), 0.0)
    mine, query = gradient[i], blocks.query[i]
    d_weights = jnp.einsum("bkguh,bkvh->bkguv", mine, blocks.value[j], preferred_element_type=jnp.float32)
    d_scores = (options.scale * weights * (d_weights - inner[i][..., None])).astype(query.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_query = d_query.at[i].add(product("bkguv,bkvh->bkguh", d_scores, blocks.key[j]))
    d_key = d_key.at[j].add(product("bkguv,bkguh->bkvh", d_scores, query))
    d_value = d_value.at[j].add(product("bkguv,bkguh->bkvh", weights.astype(mine.dtype), mine))
    return (d_query, d_key, d_value), None


def _backward(options, saved, gradient):  # type: ignore[no-untyped-def]
    blocks, out, logsumexp = saved
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    step = functools.partial(_backward_step, blocks, options, gradient, inner, logsumexp)
    inputs = (blocks.query, blocks.key, blocks.value)
    pairs = _pairs(blocks.query.shape[0], blocks.query.shape[-2], options.window)
    gradients, _ = jax.lax.scan(step, tuple(jnp.zeros(x.shape, jnp.float32) for x in inputs), pairs)
    d_query, d_key, d_value = (d.astype(x.dtype) for d, x in zip(gradients, inputs, strict=True))
    return (_Blocks(d_query, d_key, d_value, None),)  # type: ignore[arg-type]


_attend.defvjp(_forward, _backward)


def blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    window: int,
    *,
    block: int = BLOCK,
) -> jax.Array:
    """Blocks of queries against blocks of keys, with memory linear in the length, forward and backward."""
    b, length, n, h = query.shape
    k = key.shape[2]
    block = min(block, length)

    def cut(x: jax.Array) -> jax.Array:
        x = pad_length(x, block)
        return jnp.moveaxis(x.reshape(b, -1, block, *x.shape[2:]), 1, 0)

    blocks = _Blocks(
        cut(query.reshape(b, length, k, n // k, h)).transpose(0, 1, 3, 4, 2, 5),
        cut(key).transpose(0, 1, 3, 2, 4),
        cut(value).transpose(0, 1, 3, 2, 4),
        cut(segment_ids),
    )
    mixed = _attend(_Options(window, 1.0 / math.sqrt(h)), blocks)  # [q, b, k, g, u, h]
    return mixed.transpose(1, 0, 4, 2, 3, 5).reshape(b, -1, n, h)[:, :length]
