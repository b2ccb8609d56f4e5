"""Attention in plain XLA: the reference, causal blocks (for CPUs) and blockwise (an online softmax).

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k and
g = n / k. In `blockwise` also q and c blocks of queries and of keys, u and v positions inside them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # finite, so that a row whose scores are all masked gives zeros and not NaN
CAUSAL_BLOCK = 128
BLOCK = 256
# The name, for policies of `jax.checkpoint`, of what the backward pass takes from the forward one: output and
# log-sum-exp. A policy that saves them does not run attention's forward pass twice.
RESIDUALS = "attention"


def causal_mask(query_index: jax.Array, key_index: jax.Array, window: int) -> jax.Array:
    """Where keys are not later than queries, and with a window (not 0) within the last `window` positions.

    The window includes the query's own position (Mistral: Jiang et al., arXiv 2310.06825, as implemented
    in transformers).
    """
    causal = query_index >= key_index
    return causal & (query_index - key_index < window) if window else causal


def pad_length(x: jax.Array, multiple: int) -> jax.Array:
    """Zero-pads the end of axis 1 of [b, t, ...] to a multiple; as segment ids, the zeros are padding."""
    missing = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis where `mask` holds, in float32; zeros where it holds nowhere."""
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def reference(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """The form that the others are tested against: one mask [b, t, t], all scores in float32."""
    b, t, n, h = query.shape
    order, kv_heads = jnp.arange(t), key.shape[2]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same & causal_mask(order[:, None], order, window) & (segment_ids > 0)[:, :, None]
    groups = query.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", groups, key, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores / math.sqrt(h), mask[:, None, None])
    attn_out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value)
    return attn_out.reshape(query.shape)


# Causal blocks


def _bounds(length: int, window: int) -> list[tuple[int, int, int]]:
    """(first visible key, start, end) of every block of queries."""
    return [
        (max(0, start - window + 1) if window else 0, start, min(start + CAUSAL_BLOCK, length))
        for start in range(0, length, CAUSAL_BLOCK)
    ]


def _block_scores(
    query: jax.Array, key: jax.Array, segment_ids: jax.Array, bounds: tuple[int, int, int], window: int
) -> jax.Array:
    """Masked scores [b, n, end - start, end - first] of one block; inputs are [b, n, t, h]."""
    first, start, end = bounds
    scores = jnp.einsum(
        "bnth,bnsh->bnts", query[:, :, start:end], key[:, :, first:end], preferred_element_type=jnp.float32
    )
    seen = causal_mask(jnp.arange(start, end)[:, None], jnp.arange(first, end), window)
    mine = segment_ids[:, start:end, None]
    mask = seen & (mine == segment_ids[:, None, first:end]) & (mine > 0)
    return jnp.where(mask[:, None], scores, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _causal(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    return _causal_forward(query, key, value, segment_ids, window)[0]


def _causal_forward(query, key, value, segment_ids, window):  # type: ignore[no-untyped-def]
    outputs, probabilities = [], []
    for bounds in _bounds(query.shape[2], window):
        first, _, end = bounds
        scores = _block_scores(query, key, segment_ids, bounds, window)
        exponent = jnp.exp(scores - jnp.maximum(scores.max(axis=-1, keepdims=True), MASKED / 2))
        weights = exponent / jnp.maximum(exponent.sum(axis=-1, keepdims=True), 1e-30)
        weights = weights.astype(value.dtype)
        outputs.append(jnp.einsum("bnts,bnsh->bnth", weights, value[:, :, first:end]))
        probabilities.append(weights)
    out = jnp.concatenate(outputs, axis=2)
    return out, (query, key, value, out, probabilities)


def _causal_backward(window, saved, gradient):  # type: ignore[no-untyped-def]
    query, key, value, out, probabilities = saved
    bounds = _bounds(query.shape[2], window)
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_query, d_key, d_value = [], jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for (first, start, end), weights in zip(bounds, probabilities, strict=True):
        seen = (slice(None), slice(None), slice(first, end))
        block = gradient[:, :, start:end]
        d_weights = jnp.einsum("bnth,bnsh->bnts", block, value[seen], preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner[:, :, start:end])).astype(query.dtype)
        d_query.append(jnp.einsum("bnts,bnsh->bnth", d_scores, key[seen]))
        d_key = d_key.at[seen].add(jnp.einsum("bnts,bnth->bnsh", d_scores, query[:, :, start:end]))
        d_value = d_value.at[seen].add(jnp.einsum("bnts,bnth->bnsh", weights, block))
    return jnp.concatenate(d_query, axis=2), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_causal.defvjp(_causal_forward, _causal_backward)


def causal_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """Blocks of 128 queries, each against the keys up to its end only: about half the work of `reference`.

    The backward pass keeps the attention weights, so memory is quadratic in the length.
    """
    share = query.shape[2] // key.shape[2]
    scaled = query * (1.0 / math.sqrt(query.shape[-1]))
    heads_first = [x.transpose(0, 2, 1, 3) for x in (scaled, key, value)]
    if share > 1:
        heads_first[1:] = [jnp.repeat(x, share, axis=1) for x in heads_first[1:]]
    return _causal(*heads_first, segment_ids, window).transpose(0, 2, 1, 3)


# Blockwise


class _Blocks(NamedTuple):
    """Rows cut into blocks, with the axis of blocks first, which the scan indexes."""

    query: jax.Array  # [q, b, k, g, u, h]
    key: jax.Array  # [c, b, k, v, h]
    value: jax.Array  # [c, b, k, v, h]
    segment_ids: jax.Array  # [q, b, u]


def _pairs(count: int, block: int, window: int) -> tuple[jax.Array, jax.Array]:
    """Indices (of queries, of keys) of the pairs of blocks that the mask does not rule out."""
    queries, keys = np.tril_indices(count)
    # Compared with the window: the distance between the nearest two tokens of the two blocks.
    near = (queries - keys) * block - (block - 1) < window if window else np.ones(len(queries), bool)
    return jnp.asarray(queries[near], jnp.int32), jnp.asarray(keys[near], jnp.int32)


def _mask(blocks: _Blocks, i: jax.Array, j: jax.Array, window: int) -> jax.Array:
    """The mask of queries of block i against keys of block j, [b, 1, 1, u, v]."""
    offsets = jnp.arange(blocks.segment_ids.shape[-1])
    size = len(offsets)
    mine, theirs = blocks.segment_ids[i][:, :, None], blocks.segment_ids[j][:, None]
    seen = causal_mask(i * size + offsets[:, None], j * size + offsets, window)
    return (seen & (mine == theirs) & (mine > 0))[:, None, None]


def _scores(blocks: _Blocks, i: jax.Array, j: jax.Array) -> jax.Array:
    """Float32 [b, k, g, u, v]."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    return _scale(blocks) * product("bkguh,bkvh->bkguv", blocks.query[i], blocks.key[j])


def _scale(blocks: _Blocks) -> float:
    return 1.0 / math.sqrt(blocks.query.shape[-1])


def _forward_step(blocks, window, carry, pair):  # type: ignore[no-untyped-def]
    """Adds one block of keys to a block of queries' (largest score, sum of weights, weighted values)."""
    largest, total, out = carry
    i, j = pair
    mask = _mask(blocks, i, j, window)
    scores = jnp.where(mask, _scores(blocks, i, j), MASKED)
    new = jnp.maximum(largest[i], scores.max(axis=-1))
    weights = jnp.where(mask, jnp.exp(scores - new[..., None]), 0.0)
    value = blocks.value[j]
    added = jnp.einsum(
        "bkguv,bkvh->bkguh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    fade = jnp.exp(largest[i] - new)
    total = total.at[i].set(total[i] * fade + weights.sum(axis=-1))
    out = out.at[i].set(out[i] * fade[..., None] + added)
    return (largest.at[i].set(new), total, out), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window: int, blocks: _Blocks) -> jax.Array:
    return _forward(window, blocks)[0]


def _forward(window, blocks):  # type: ignore[no-untyped-def]
    shape = blocks.query.shape
    start = (
        jnp.full(shape[:-1], MASKED, jnp.float32),
        jnp.zeros(shape[:-1], jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    pairs = _pairs(shape[0], shape[-2], window)
    (largest, total, out), _ = jax.lax.scan(functools.partial(_forward_step, blocks, window), start, pairs)
    total = jnp.where(total > 0, total, 1.0)  # padding attends to nothing and stays zero
    out = checkpoint_name((out / total[..., None]).astype(blocks.query.dtype), RESIDUALS)
    return out, (blocks, out, checkpoint_name(largest + jnp.log(total), RESIDUALS))


def _backward_step(blocks, window, gradient, inner, logsumexp, carry, pair):  # type: ignore[no-untyped-def]
    """Adds the contribution of one pair of blocks to the gradients of query, key and value."""
    d_query, d_key, d_value = carry
    i, j = pair
    mask = _mask(blocks, i, j, window)
    scores = _scores(blocks, i, j)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - logsumexp[i][..., None], 0.0)), 0.0)
    mine, query = gradient[i], blocks.query[i]
    d_weights = jnp.einsum("bkguh,bkvh->bkguv", mine, blocks.value[j], preferred_element_type=jnp.float32)
    d_scores = (_scale(blocks) * weights * (d_weights - inner[i][..., None])).astype(query.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_query = d_query.at[i].add(product("bkguv,bkvh->bkguh", d_scores, blocks.key[j]))
    d_key = d_key.at[j].add(product("bkguv,bkguh->bkvh", d_scores, query))
    d_value = d_value.at[j].add(product("bkguv,bkguh->bkvh", weights.astype(mine.dtype), mine))
    return (d_query, d_key, d_value), None


def _backward(window, saved, gradient):  # type: ignore[no-untyped-def]
    blocks, out, logsumexp = saved
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    step = functools.partial(_backward_step, blocks, window, gradient, inner, logsumexp)
    inputs = (blocks.query, blocks.key, blocks.value)
    pairs = _pairs(blocks.query.shape[0], blocks.query.shape[-2], window)
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
    """Attention by blocks with an online softmax; memory is linear in the length, forward and backward.

    After FlashAttention-2 (Dao, arXiv 2307.08691): the forward pass keeps the output and the log-sum-exp of
    each query, the backward pass computes the weights again. One scan runs over the pairs (block of
    queries, block of keys) that the causal mask and the window leave.
    """
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
    out = _attend(window, blocks)  # [q, b, k, g, u, h]
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(b, -1, n, h)[:, :length]
