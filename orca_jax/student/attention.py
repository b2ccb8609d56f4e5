"""Attention backends by name. Every one keeps the segments of a packed row apart.

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k. A backend is
called as (query, key, value, segment_ids, window): int32 segment ids [b, t] with 0 for padding, and the
number of last tokens, itself included, that a query sees (0: all up to itself).

| name | for | memory in the length | sliding window |
|---|---|---|---|
| reference | tests of the others | quadratic | yes |
| causal_blocks | CPUs | quadratic, a quarter of that | yes |
| blockwise | whatever XLA runs on | linear | yes |
| splash | TPUs | linear | yes |
| pallas_gpu | GPUs; not yet timed on one | linear | no |
"""

from __future__ import annotations

import functools
import logging
import math

import jax
import jax.numpy as jnp

from orca_jax.student.attention_blockwise import blockwise
from orca_jax.student.attention_causal import causal_blocks
from orca_jax.student.attention_common import MASKED, Backend, platform, sees
from orca_jax.student.attention_gpu import pallas_gpu
from orca_jax.student.attention_splash import MAX_HEAD_DIM, splash

log = logging.getLogger(__name__)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis where `mask` holds, in float32; zeros where nothing does."""
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def reference(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, window: int
) -> jax.Array:
    """The plain form that the others are tested against: one mask [b, t, t], all scores in float32."""
    b, t, n, h = query.shape
    order, kv_heads = jnp.arange(t), key.shape[2]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same & sees(order[:, None], order, window) & (segment_ids > 0)[:, :, None]
    groups = query.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", groups, key, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores / math.sqrt(h), mask[:, None, None])
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value)
    return mixed.reshape(query.shape)


BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "causal_blocks": causal_blocks,
    "blockwise": blockwise,
    "splash": splash,
    "pallas_gpu": pallas_gpu,
}


@functools.cache
def _say(message: str) -> None:
    """Logs a choice once: it is made again for every layer and every program that is traced."""
    log.info(message)


def _automatic(on: str, head_dim: int) -> tuple[str, str]:
    """The backend for a platform, and why."""
    if on == "cpu":
        return "causal_blocks", "the fastest on CPUs"
    if on == "tpu" and head_dim <= MAX_HEAD_DIM:
        return "splash", "the kernel for TPUs"
    if on == "tpu":
        return "blockwise", f"heads of {head_dim} are larger than splash takes ({MAX_HEAD_DIM})"
    # `pallas_gpu` has not run on a GPU yet, so what XLA compiles by itself goes first.
    return "blockwise", "memory is linear in the length; no backend has been timed there yet"


def choose(backend: str, head_dim: int = 0) -> str:
    """The backend that `auto` stands for on the platform in force, or the name itself; logged once, with why.

    Raises:
      ValueError: the name is unknown.
    """
    if backend == "auto":
        name, why = _automatic(platform(), head_dim)
        _say(f"attention: {name}, by auto on {platform()}: {why}")
        return name
    if backend not in BACKENDS:
        raise ValueError(f"student.attention={backend!r}; known: auto, {', '.join(BACKENDS)}")
    _say(f"attention: {backend}, as student.attention asks")
    return backend


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    backend: str = "auto",
    window: int = 0,
) -> jax.Array:
    """Causal attention within segments, [b, t, n, h] in the query's type; padding rows give zeros.

    Args:
      query: [b, t, n, h]; n is a multiple of k, and g = n / k neighbouring heads share a key-value head.
      key: [b, t, k, h].
      value: [b, t, k, h].
      segment_ids: int32 [b, t]; 0 is padding, and a segment's tokens stand side by side.
      backend: a name of `BACKENDS`, or `auto`.
      window: how many last tokens, itself included, a query sees; 0 is no window.

    Raises:
      ValueError: the name is unknown, the window negative, or the backend has no windows.
    """
    if window < 0:
        raise ValueError(f"the sliding window must be 0 (none) or a number of tokens, got {window}")
    return BACKENDS[choose(backend, query.shape[-1])](query, key, value, segment_ids, window)
