"""Causal blocks: each block of queries against just the keys that it can see, for CPUs.

The backward pass keeps the attention weights, so memory grows with the square of the length.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from orca_jax.student.attention_common import MASKED, sees

BLOCK = 128


def _bounds(length: int, window: int) -> list[tuple[int, int, int]]:
    """Of every block of queries: the first key that its first query sees, its start and its end."""
    return [
        (max(0, start - window + 1) if window else 0, start, min(start + BLOCK, length))
        for start in range(0, length, BLOCK)
    ]


def _block_scores(
    query: jax.Array, key: jax.Array, segment_ids: jax.Array, bounds: tuple[int, int, int], window: int
) -> jax.Array:
    """Masked scores [b, n, end - start, end - first] of one block; inputs are [b, n, t, h]."""
    first, start, end = bounds
    scores = jnp.einsum(
        "bnth,bnsh->bnts", query[:, :, start:end], key[:, :, first:end], preferred_element_type=jnp.float32
    )
    seen = sees(jnp.arange(start, end)[:, None], jnp.arange(first, end), window)
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
    """Queries in blocks of 128, each against the keys up to its end: about half the work."""
    share = query.shape[2] // key.shape[2]
    scaled = query * (1.0 / math.sqrt(query.shape[-1]))
    heads_first = [x.transpose(0, 2, 1, 3) for x in (scaled, key, value)]
    if share > 1:
        heads_first[1:] = [jnp.repeat(x, share, axis=1) for x in heads_first[1:]]
    return _causal(*heads_first, segment_ids, window).transpose(0, 2, 1, 3)
