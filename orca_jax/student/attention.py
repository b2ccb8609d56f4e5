"""Attention backends by name. Every one keeps the segments of a packed row apart.

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
MASKED = -1e30  # finite, so that a row with nothing to see gives zeros and no NaN
BLOCK = 128


def grouped(query: jax.Array, kv_heads: int) -> jax.Array:
    """Query [b, t, n, h] as [b, t, k, g, h]: g query heads share one key-value head."""
    b, t, n, h = query.shape
    return query.reshape(b, t, kv_heads, n // kv_heads, h)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis where `mask` holds, in float32; zeros where nothing does."""
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def mix(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention under a boolean mask [b, t, s]; scores and softmax in float32."""
    groups = grouped(query, key.shape[2])
    scores = jnp.einsum("btkgh,bskh->bkgts", groups, key, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores / math.sqrt(query.shape[-1]), mask[:, None, None])
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value)
    return mixed.reshape(query.shape)


def reference(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The plain form that the others are tested against: one mask [b, t, t]."""
    order = jnp.arange(query.shape[1])
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return mix(query, key, value, same & (order[:, None] >= order) & (segment_ids > 0)[:, :, None])


def attend_to_cache(query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Attention of a row's new tokens, at `positions` [b, t], to the cache's slots up to them."""
    return mix(query, keys, values, jnp.arange(keys.shape[1]) <= positions[:, :, None])


# --- Causal blocks: each block of queries sees only the keys up to its end, with a backward pass of its own.


def _bounds(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _block_scores(
    query: jax.Array, key: jax.Array, segment_ids: jax.Array, start: int, end: int
) -> jax.Array:
    """Masked scores [b, n, end - start, end] of one block; inputs are [b, n, t, h]."""
    scores = jnp.einsum(
        "bnth,bnsh->bnts", query[:, :, start:end], key[:, :, :end], preferred_element_type=jnp.float32
    )
    seen = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    mine = segment_ids[:, start:end, None]
    mask = seen & (mine == segment_ids[:, None, :end]) & (mine > 0)
    return jnp.where(mask[:, None], scores, MASKED)


@jax.custom_vjp
def _causal(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return _causal_forward(query, key, value, segment_ids)[0]


def _causal_forward(query, key, value, segment_ids):  # type: ignore[no-untyped-def]
    outputs, probabilities = [], []
    for start, end in _bounds(query.shape[2]):
        scores = _block_scores(query, key, segment_ids, start, end)
        exponent = jnp.exp(scores - jnp.maximum(scores.max(axis=-1, keepdims=True), MASKED / 2))
        weights = exponent / jnp.maximum(exponent.sum(axis=-1, keepdims=True), 1e-30)
        weights = weights.astype(value.dtype)
        outputs.append(jnp.einsum("bnts,bnsh->bnth", weights, value[:, :, :end]))
        probabilities.append(weights)
    out = jnp.concatenate(outputs, axis=2)
    return out, (query, key, value, out, probabilities)


def _causal_backward(saved, gradient):  # type: ignore[no-untyped-def]
    query, key, value, out, probabilities = saved
    length = query.shape[2]
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_query, d_key, d_value = [], jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for (start, end), weights in zip(_bounds(length), probabilities, strict=True):
        block = gradient[:, :, start:end]
        d_weights = jnp.einsum(
            "bnth,bnsh->bnts", block, value[:, :, :end], preferred_element_type=jnp.float32
        )
        d_scores = (weights * (d_weights - inner[:, :, start:end])).astype(query.dtype)
        d_query.append(jnp.einsum("bnts,bnsh->bnth", d_scores, key[:, :, :end]))
        d_key = d_key.at[:, :, :end].add(jnp.einsum("bnts,bnth->bnsh", d_scores, query[:, :, start:end]))
        d_value = d_value.at[:, :, :end].add(jnp.einsum("bnts,bnth->bnsh", weights, block))
    return jnp.concatenate(d_query, axis=2), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_causal.defvjp(_causal_forward, _causal_backward)


def causal_blocks(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Queries in blocks of 128, each against the keys up to its end: about half the work, for CPUs."""
    share = query.shape[2] // key.shape[2]
    scaled = query * (1.0 / math.sqrt(query.shape[-1]))
    heads_first = [x.transpose(0, 2, 1, 3) for x in (scaled, key, value)]
    if share > 1:
        heads_first[1:] = [jnp.repeat(x, share, axis=1) for x in heads_first[1:]]
    return _causal(*heads_first, segment_ids).transpose(0, 2, 1, 3)


BACKENDS: dict[str, Backend] = {"reference": reference, "causal_blocks": causal_blocks}


@functools.cache
def choose(backend: str) -> str:
    """The backend that `auto` stands for on the default platform, or the name itself.

    Raises:
      ValueError: the name is unknown.
    """
    if backend == "auto":
        return "causal_blocks"
    if backend not in BACKENDS:
        raise ValueError(f"student.attention={backend!r}; known: auto, {', '.join(BACKENDS)}")
    return backend


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, backend: str = "auto"
) -> jax.Array:
    """Causal attention within segments, [b, t, n, h] in the query's type; padding rows give zeros."""
    return BACKENDS[choose(backend)](query, key, value, segment_ids)
