"""Keys and values as the engine keeps them, heads before positions: [b, k, s, h].

With heads first, the scores and the mixing of one new token are matrix products on the cache as it lies.

Axis letters as in `llama`; g query heads share a key-value head. A `Cache` has one entry a layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.config import LlamaConfig
from orca_jax.student import attention
from orca_jax.student.attention_common import sees
from orca_jax.student.sharding import constrain

NEVER = 1 << 30  # the position of a column that nobody sees


class KV(NamedTuple):
    """Keys and values of one layer, each [b, k, s, h]."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[KV, ...]


def empty(config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype) -> Cache:
    """Zeros for `length` positions of `batch` rows; over a tensor axis, each device has its heads."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    return tuple(
        split_heads(KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))) for _ in range(config.num_layers)
    )


def split_heads(columns: KV) -> KV:
    """The same, heads over the tensor axis of the mesh in force, as the student's projections are."""
    return KV(*(constrain(x, None, "tensor", None, None) for x in columns))


def heads_first(key: jax.Array, value: jax.Array) -> KV:
    """[b, t, k, h] as [b, k, t, h]."""
    return KV(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))


class Prefill(NamedTuple):
    """A layer that has seen nothing: prompts attend to themselves, by the student's own backend."""

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        config: LlamaConfig,
    ) -> tuple[jax.Array, KV]:
        """See `llama.LayerCache`; positions count from 0, and segment 0 is padding."""
        mixed = attention.attend(
            query, key, value, segment_ids, backend=config.attention, window=config.sliding_window
        )
        return mixed, heads_first(key, value)


class Decode(NamedTuple):
    """A layer that has seen the first `lengths` [b] columns of `past`, and writes on in `new`.

    `past` is only read, so that a loop over steps holds it once; it may have one row for all. Column `i` of
    `new` is position `lengths + i`; the next token goes to column `written`, an int32 scalar.
    """

    past: KV
    lengths: jax.Array
    new: KV
    written: jax.Array

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        config: LlamaConfig,
    ) -> tuple[jax.Array, Decode]:
        """See `llama.LayerCache`; `segment_ids` is unused: each row is one segment."""
        place = (0, 0, self.written, 0)
        new = KV(
            *(
                jax.lax.dynamic_update_slice(held, added.astype(held.dtype), place)
                for held, added in zip(self.new, heads_first(key, value))
            )
        )
        mixed = mix(query, self.past, new, self.lengths, positions, config.sliding_window)
        return mixed, Decode(self.past, self.lengths, new, self.written + key.shape[1])


def mix(
    query: jax.Array, past: KV, new: KV, lengths: jax.Array, positions: jax.Array, window: int
) -> jax.Array:
    """Attention [b, t, n, h] of tokens at `positions` [b, t] to both parts, under one softmax in float32."""
    b, t, n, h = query.shape
    k = new.keys.shape[1]
    grouped = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    columns = jnp.arange(past.keys.shape[2])
    past_positions = jnp.where(columns < lengths[:, None], columns, NEVER)
    new_positions = lengths[:, None] + jnp.arange(new.keys.shape[2])
    every = jnp.concatenate([past_positions, new_positions], axis=1)
    mask = sees(positions[:, :, None], every[:, None], window)[:, None, None]  # [b, 1, 1, t, s]
    scores = jnp.concatenate([_scores(grouped, past.keys), _scores(grouped, new.keys)], axis=-1)
    scores = scores.reshape(b, k, n // k, t, -1) / math.sqrt(h)
    weights = attention.masked_softmax(scores, mask).astype(query.dtype).reshape(b, k, (n // k) * t, -1)
    earlier, later = jnp.split(weights, [len(columns)], axis=-1)
    mixed = _weighted(earlier, past.values) + _weighted(later, new.values)
    return mixed.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _scores(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Float32 [b, k, q, s]; keys of one row serve every row."""
    keys = jnp.broadcast_to(keys, (query.shape[0], *keys.shape[1:]))
    return jnp.einsum("bkqh,bksh->bkqs", query, keys, preferred_element_type=jnp.float32)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
    values = jnp.broadcast_to(values, (weights.shape[0], *values.shape[1:]))
    return jnp.einsum("bkqs,bksh->bkqh", weights, values)
