"""The engine's compiled programs: `read` a prompt, `place` what was read in a row, `decode` a few steps.

`place`, `move` and `resize` work on the cache of one layer, so that their many shapes compile fast.

Each is compiled once for every shape it meets; `engine` keeps these few, by rounding up to buckets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.config import LlamaConfig
from orca_jax.student import cache, llama
from orca_jax.student.cache import KV, Cache, Decode, Prefill
from orca_jax.student.sampling import Settings, draw

STEPS = 16  # of one call: a token a row each; the host looks at what was drawn only between calls


class Rows(NamedTuple):
    """What decoding must know of each row, from the host; all [b] but `key`.

    Attributes:
      token: the last one said, which the cache does not hold yet.
      position: its position, which is also how many the cache holds.
      drawn, limit: how many ids the reply has, and may have at most; a row at its limit stands still.
      key: uint32 [b, 2], the two words of the request's seed.
      number: folded into it, so that requests of one seed differ.
    """

    token: jax.Array
    position: jax.Array
    drawn: jax.Array
    limit: jax.Array
    key: jax.Array
    number: jax.Array
    settings: Settings


class Steps(NamedTuple):
    """Ids int32 [b, STEPS], -1 where a row stood still, and their log-probabilities float32."""

    ids: jax.Array
    log_probs: jax.Array


class _State(NamedTuple):
    step: jax.Array
    token: jax.Array
    done: jax.Array
    said: Steps
    new: Cache


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs of one student; see the functions of these names."""

    read: Callable[..., Cache]
    place: Callable[..., KV]
    move: Callable[..., KV]
    resize: Callable[..., KV]
    decode: Callable[..., tuple[Steps, Cache]]


@functools.cache
def programs(config: LlamaConfig, dtype: Any, options: tuple[tuple[str, str], ...] = ()) -> Programs:
    """For a config of the per-layer view, the compute type, and XLA's options; the same ones each time."""
    jit: Any = functools.partial(jax.jit, compiler_options=dict(options))
    return Programs(
        read=jit(functools.partial(read, config=config, dtype=dtype)),
        place=jit(place, donate_argnums=0),
        move=jit(move, donate_argnums=0),
        resize=jit(resize, static_argnames=("rows", "length")),
        decode=jit(functools.partial(decode, config=config, dtype=dtype), donate_argnums=1),
    )


def read(
    params: llama.Params,
    tokens: jax.Array,
    lengths: jax.Array,
    past: Cache | None,
    offset: jax.Array,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype,
) -> Cache:
    """Keys and values [b, k, t, h] of int32 tokens [b, t], of which the first `lengths` [b] count.

    They are at positions from `offset` on, behind `past` (one row, which all share); with None, from 0 on.
    """
    batch, width = tokens.shape
    places = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    segment_ids = (places < lengths[:, None]).astype(jnp.int32)
    layers: llama.Cache = (Prefill(),) * config.num_layers
    if past is not None:
        starts = jnp.full(batch, offset)
        new = cache.empty(config, batch, width, dtype)
        layers = tuple(Decode(p, starts, n, jnp.int32(0)) for p, n in zip(past, new))
        places = places + offset
    _, after = llama.hidden(params, tokens, places, segment_ids, layers, config=config, dtype=dtype)
    assert after is not None
    return tuple(layer.new if isinstance(layer, Decode) else layer for layer in after)  # type: ignore[misc]


def place(held: KV, added: KV, rows: jax.Array, positions: jax.Array) -> KV:
    """Writes row `i` of `added` into row `rows[i]` of `held`, its first column at `positions[i]`."""

    def put(i: jax.Array, held: KV) -> KV:
        def one(whole: jax.Array, part: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(part, i, 1).astype(whole.dtype)
            return jax.lax.dynamic_update_slice(whole, row, (rows[i], 0, positions[i], 0))

        return KV(*map(one, held, added))

    return cache.split_heads(jax.lax.fori_loop(0, len(rows), put, held))


def move(held: KV, source: jax.Array, target: jax.Array) -> KV:
    """Copies a row of the cache over another."""
    row = KV(*(jax.lax.dynamic_slice_in_dim(whole, source, 1) for whole in held))
    return place(held, row, target[None], jnp.zeros(1, jnp.int32))


def resize(held: KV, *, rows: int, length: int) -> KV:
    """The first `rows` rows and `length` columns, zeros where there were fewer."""

    def one(whole: jax.Array) -> jax.Array:
        kept = whole[:rows, :, :length]
        missing = rows - kept.shape[0], length - kept.shape[2]
        return jnp.pad(kept, ((0, missing[0]), (0, 0), (0, missing[1]), (0, 0)))

    return cache.split_heads(KV(*map(one, held)))


def decode(
    params: llama.Params,
    held: Cache,
    rows: Rows,
    stops: jax.Array,
    waiting: jax.Array,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype,
) -> tuple[Steps, Cache]:
    """Up to `STEPS` ids for each row of the cache; fewer when all are done, or one is and others wait.

    Args:
      held: the cache, with `STEPS` columns or more behind the last position of any row.
      stops: int32 [n]; a row that draws one of them is done.
      waiting: bool; whether a free row would be taken at once.
    """
    batch = len(rows.token)
    keys = jax.random.wrap_key_data(rows.key, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in)(keys, rows.number)
    started = rows.drawn < rows.limit

    def forward(state: _State) -> tuple[jax.Array, Cache]:
        layers = tuple(Decode(p, rows.position, n, state.step) for p, n in zip(held, state.new))
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
        ids, log_probs = draw(scores, jax.vmap(jax.random.fold_in)(keys, drawn), rows.settings)
        said = Steps(
            state.said.ids.at[:, state.step].set(jnp.where(state.done, -1, ids)),
            state.said.log_probs.at[:, state.step].set(log_probs),
        )
        done = state.done | jnp.isin(ids, stops) | (drawn + 1 >= rows.limit)
        return _State(state.step + 1, ids, done, said, new)

    said = Steps(jnp.full((batch, STEPS), -1, jnp.int32), jnp.zeros((batch, STEPS), jnp.float32))
    new = cache.empty(config, batch, STEPS, dtype)
    end = jax.lax.while_loop(going, advance, _State(jnp.int32(0), rows.token, ~started, said, new))
    after = [place(p, n, jnp.arange(batch), rows.position) for p, n in zip(held, end.new)]
    return end.said, tuple(after)
