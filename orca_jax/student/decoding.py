"""The KV cache and the engine's compiled programs: prefill, insert, decode.

Keys and values are kept with heads before positions, [b, k, s, h], so that the scores and the weighted sum
of one new token are matrix products on the cache as it is stored. Axis letters as in `llama`; g query heads
share a key-value head.

Every program is compiled once for each shape; `bucket`, `coarse` and `row_bucket` keep them few. `insert`,
`move_row` and `resize` work on the cache of one layer, so that their many shapes compile fast.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.student import attention, llama
from orca_jax.student.attention_xla import causal_mask, masked_softmax
from orca_jax.student.parameters import in_dtype
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sampling import Drawn, SamplingParams, draw
from orca_jax.student.sharding import constrain

STEPS = 16  # decoding steps of one call; the host looks at the ids only between calls
LEAST = 64  # the smallest bucket of lengths
FINE = 512  # above this, smaller steps between buckets are worth compiling more programs
NEVER = 1 << 30  # the position of cache entries that no query attends to


def bucket(size: int, least: int = LEAST) -> int:
    """`size` rounded up to 64, 96, 128, 192, ..., 512, 640, 768, 896, 1024, 1280, ..."""
    power = least
    while power < size:
        power *= 2
    parts = 4 if power > FINE else 2  # between the power of two and the one before it
    step = max(power // (2 * parts), 1)
    return max(least, -(-size // step) * step)


def coarse(size: int, most: int) -> int:
    """`size` rounded up to 128, 256, 512, ..., or to `most` where twice that would be more."""
    power = max(2 * LEAST, 1 << (size - 1).bit_length())
    return power if 2 * power <= most else most


def row_bucket(count: int, slots: int) -> int:
    """`count` rounded up to 1, 4, 16, ..., at most `slots`."""
    size = 1
    while size < count:
        size *= 4
    return min(size, slots)


# The cache


class KV(NamedTuple):
    """Keys and values of one layer, each [b, k, s, h]."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[KV, ...]  # one entry a layer


def empty_cache(config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype) -> Cache:
    """Zeros for `length` positions of `batch` rows; with a tensor axis, heads are split over it."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    return tuple(
        _split_heads(KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))) for _ in range(config.num_layers)
    )


def _split_heads(kv: KV) -> KV:
    """Shards heads over the tensor axis of the current mesh, as the student's projections are."""
    return KV(*(constrain(x, None, "tensor", None, None) for x in kv))


def _heads_first(key: jax.Array, value: jax.Array) -> KV:
    """[b, t, k, h] as [b, k, t, h]."""
    return KV(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))


class Prefill(NamedTuple):
    """A layer without a cache: prompts attend to themselves, through the student's attention backend."""

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        config: LlamaConfig,
        window: int,
    ) -> tuple[jax.Array, KV]:
        """See `llama.LayerCache`; positions count from 0, and segment 0 is padding."""
        attn_out = attention.attend(query, key, value, segment_ids, backend=config.attention, window=window)
        return attn_out, _heads_first(key, value)


class Decode(NamedTuple):
    """A layer with the first `lengths` [b] positions of each row in `cached`; the next ones go to `new`.

    `cached` is only read, so a loop over steps does not copy it; it may have one row, shared by all. Entry
    `i` of `new` is position `lengths + i`; the next token is written at entry `step`, an int32 scalar.
    """

    cached: KV
    lengths: jax.Array
    new: KV
    step: jax.Array

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        config: LlamaConfig,
        window: int,
    ) -> tuple[jax.Array, Decode]:
        """See `llama.LayerCache`; `segment_ids` is unused: each row is one segment."""
        start = (0, 0, self.step, 0)
        new = KV(
            *(
                jax.lax.dynamic_update_slice(before, added.astype(before.dtype), start)
                for before, added in zip(self.new, _heads_first(key, value))
            )
        )
        attn_out = _attend_cached(query, self.cached, new, self.lengths, positions, window)
        return attn_out, Decode(self.cached, self.lengths, new, self.step + key.shape[1])


def _attend_cached(
    query: jax.Array, cached: KV, new: KV, lengths: jax.Array, positions: jax.Array, window: int
) -> jax.Array:
    """Attention [b, t, n, h] of tokens at `positions` [b, t] to both parts, with one softmax in float32."""
    b, t, n, h = query.shape
    k = new.keys.shape[1]
    grouped = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    entries = jnp.arange(cached.keys.shape[2])
    cached_positions = jnp.where(entries < lengths[:, None], entries, NEVER)
    new_positions = lengths[:, None] + jnp.arange(new.keys.shape[2])
    key_positions = jnp.concatenate([cached_positions, new_positions], axis=1)
    mask = causal_mask(positions[:, :, None], key_positions[:, None], window)  # [b, t, s]
    scores = jnp.concatenate([_scores(grouped, cached.keys), _scores(grouped, new.keys)], axis=-1)
    scores = scores.reshape(b, k, n // k, t, -1) / math.sqrt(h)
    weights = masked_softmax(scores, mask[:, None, None]).astype(query.dtype).reshape(b, k, (n // k) * t, -1)
    on_cached, on_new = jnp.split(weights, [len(entries)], axis=-1)
    attn_out = _weighted(on_cached, cached.values) + _weighted(on_new, new.values)
    return attn_out.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _scores(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Float32 [b, k, q, s]; keys of one row are broadcast to all."""
    keys = jnp.broadcast_to(keys, (query.shape[0], *keys.shape[1:]))
    return jnp.einsum("bkqh,bksh->bkqs", query, keys, preferred_element_type=jnp.float32)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
    values = jnp.broadcast_to(values, (weights.shape[0], *values.shape[1:]))
    return jnp.einsum("bkqs,bksh->bkqh", weights, values)


# The programs


class Rows(NamedTuple):
    """The state of each row, from the host; all [b] but `key`.

    Attributes:
      token: the last id, which is not in the cache yet.
      position: its position, which is also the length of the row's cache.
      drawn, limit: how many ids the reply has, and may have at most; a row at its limit is inactive.
      key: uint32 [b, 2], the two words of the request's seed.
      number: folded into the key, so that requests of one seed differ.
    """

    token: jax.Array
    position: jax.Array
    drawn: jax.Array
    limit: jax.Array
    key: jax.Array
    number: jax.Array
    sampling: SamplingParams


class _State(NamedTuple):
    step: jax.Array
    token: jax.Array
    done: jax.Array
    decoded: Drawn
    new: Cache


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one student; see the functions of these names.

    `fine` are shapes on CPUs, which compile fast and feel every padded position. On chips a program of a
    large student takes a minute to compile, and what it reads beside the weights is little.
    """

    empty: Callable[..., Cache]
    prefill: Callable[..., Cache]
    insert: Callable[..., KV]
    move_row: Callable[..., KV]
    resize: Callable[..., KV]
    decode: Callable[..., tuple[Drawn, Cache]]
    fine: bool


@functools.cache
def programs(config: LlamaConfig, dtype: Any, options: tuple[tuple[str, str], ...] = ()) -> Programs:
    """The programs for a per-layer config, a compute dtype and XLA options, cached by these."""
    jit: Any = functools.partial(jax.jit, compiler_options=dict(options))
    return Programs(
        empty=jit(functools.partial(empty_cache, config), static_argnums=(0, 1, 2)),
        prefill=jit(in_dtype(prefill, dtype, config=config)),
        insert=jit(insert, donate_argnums=0),
        move_row=jit(move_row, donate_argnums=0),
        resize=jit(resize, static_argnames=("rows", "length")),
        decode=jit(in_dtype(decode, dtype, config=config), donate_argnums=1),
        fine=jax.default_backend() == "cpu",
    )


def prefill(
    params: llama.Params,
    tokens: jax.Array,
    lengths: jax.Array,
    prefix: Cache | None,
    offset: jax.Array,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype,
) -> Cache:
    """Keys and values [b, k, t, h] of int32 tokens [b, t], of which the first `lengths` [b] count.

    The tokens are at positions from `offset` on, after `prefix` (one row, shared by all), or from 0 on
    without a prefix.
    """
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    layers: llama.Cache = (Prefill(),) * config.num_layers
    if prefix is not None:
        starts = jnp.full(batch, offset)
        new = empty_cache(config, batch, width, dtype)
        layers = tuple(Decode(p, starts, n, jnp.int32(0)) for p, n in zip(prefix, new))
        positions = positions + offset
    _, after = llama.hidden(params, tokens, positions, segment_ids, layers, config=config, dtype=dtype)
    assert after is not None
    return tuple(layer.new if isinstance(layer, Decode) else layer for layer in after)  # type: ignore[misc]


def insert(kv: KV, added: KV, rows: jax.Array, positions: jax.Array) -> KV:
    """Writes row `i` of `added` into row `rows[i]` of `kv`, starting at `positions[i]`."""

    def put(i: jax.Array, kv: KV) -> KV:
        def one(whole: jax.Array, part: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(part, i, 1).astype(whole.dtype)
            return jax.lax.dynamic_update_slice(whole, row, (rows[i], 0, positions[i], 0))

        return KV(*map(one, kv, added))

    return _split_heads(jax.lax.fori_loop(0, len(rows), put, kv))


def move_row(kv: KV, source: jax.Array, target: jax.Array) -> KV:
    """Copies a row of the cache over another."""
    row = KV(*(jax.lax.dynamic_slice_in_dim(whole, source, 1) for whole in kv))
    return insert(kv, row, target[None], jnp.zeros(1, jnp.int32))


def resize(kv: KV, *, rows: int, length: int) -> KV:
    """The first `rows` rows and `length` positions, padded with zeros."""

    def one(whole: jax.Array) -> jax.Array:
        kept = whole[:rows, :, :length]
        missing = rows - kept.shape[0], length - kept.shape[2]
        return jnp.pad(kept, ((0, missing[0]), (0, 0), (0, missing[1]), (0, 0)))

    return _split_heads(KV(*map(one, kv)))


def decode(
    params: llama.Params,
    cached: Cache,
    rows: Rows,
    stop_ids: jax.Array,
    waiting: jax.Array,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype,
) -> tuple[Drawn, Cache]:
    """Draws up to `STEPS` ids for each row; fewer if all rows finish, or one does while requests wait.

    Args:
      cached: the cache, with at least `STEPS` entries after the last position of any row.
      stop_ids: int32 [n]; a row that draws one of them is finished.
      waiting: bool; whether requests wait for a free row.

    Returns:
      Ids and log-probabilities [b, STEPS], with id -1 where a row was inactive, and the new cache.
    """
    batch = len(rows.token)
    keys = jax.random.wrap_key_data(rows.key, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in)(keys, rows.number)
    started = rows.drawn < rows.limit

    def forward(state: _State) -> tuple[jax.Array, Cache]:
        layers = tuple(Decode(kv, rows.position, n, state.step) for kv, n in zip(cached, state.new))
        token, position = state.token[:, None], (rows.position + state.step)[:, None]
        ones = jnp.ones_like(token)
        hidden, after = llama.hidden(params, token, position, ones, layers, config=config, dtype=dtype)
        assert after is not None
        scores = llama.logits(hidden[:, 0], llama.head(params, config), config.vocab_size)
        return scores, tuple(layer.new for layer in after)  # type: ignore[attr-defined]

    def going(state: _State) -> jax.Array:
        freed = waiting & (state.done & started).any()
        return (state.step < STEPS) & ~state.done.all() & ~freed

    def advance(state: _State) -> _State:
        drawn = rows.drawn + state.step
        scores, new = forward(state)
        ids, log_probs = draw(scores, jax.vmap(jax.random.fold_in)(keys, drawn), rows.sampling)
        decoded = Drawn(
            state.decoded.ids.at[:, state.step].set(jnp.where(state.done, -1, ids)),
            state.decoded.log_probs.at[:, state.step].set(log_probs),
        )
        done = state.done | jnp.isin(ids, stop_ids) | (drawn + 1 >= rows.limit)
        return _State(state.step + 1, ids, done, decoded, new)

    decoded = Drawn(jnp.full((batch, STEPS), -1, jnp.int32), jnp.zeros((batch, STEPS), jnp.float32))
    new = empty_cache(config, batch, STEPS, dtype)
    end = jax.lax.while_loop(going, advance, _State(jnp.int32(0), rows.token, ~started, decoded, new))
    after = [insert(kv, n, jnp.arange(batch), rows.position) for kv, n in zip(cached, end.new)]
    return end.decoded, tuple(after)
