"""Batched generation on the per-layer view: prefill once, then decode a token at a time on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.student import llama, parameters
from orca_jax.student.config import LlamaConfig

BUCKET = 128  # prompts and replies are padded to multiples of this, so that few shapes are compiled


class Generated(NamedTuple):
    """Token ids int32 [n] without the stop token, and whether one ended them."""

    tokens: np.ndarray
    stopped: bool


class _Decoding(NamedTuple):
    """The state of a decode loop; `out` int32 [b, new] holds what has been drawn."""

    drawn: jax.Array
    token: jax.Array
    positions: jax.Array
    done: jax.Array
    out: jax.Array
    cache: llama.Cache


def nucleus(scores: jax.Array, top_p: jax.Array) -> jax.Array:
    """Scores [b, v] with all but the smallest set of ids of probability >= top_p at -inf.

    Nucleus sampling (Holtzman et al., arXiv 1904.09751); the likeliest id always stays.
    """
    ordered = jnp.sort(scores, axis=-1)[:, ::-1]
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = ((before < top_p) | (top_p >= 1)).at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def draw(scores: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One id a row, int32 [b], of logits [b, v] and a key a row; temperature 0 is greedy."""

    def sample() -> jax.Array:
        return jax.vmap(jax.random.categorical)(keys, nucleus(scores / temperature, top_p))

    return jax.lax.cond(temperature > 0, sample, lambda: jnp.argmax(scores, axis=-1)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "new", "stop_ids"))
def _generate(
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    limits: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype,
    new: int,
    stop_ids: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Drawn ids int32 [b, new], -1 after a row's end, and whether a stop id ended it, bool [b].

    Row `i` draws at most `limits[i]` ids, its stop id among them.
    """
    batch, width = prompts.shape
    stops = jnp.array(stop_ids, jnp.int32)

    def choose(hidden: jax.Array, drawn: jax.Array) -> jax.Array:
        scores = llama.logits(hidden, llama.head(params, config), config.vocab_size)
        at = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, drawn)
        return draw(scores, at, temperature, top_p)

    def forward(tokens: jax.Array, positions: jax.Array, cache: llama.Cache) -> tuple[jax.Array, llama.Cache]:
        ones = jnp.ones_like(tokens)
        last, filled = llama.hidden(params, tokens, positions, ones, cache, config=config, dtype=dtype)
        assert filled is not None
        return last, filled

    def going(state: _Decoding) -> jax.Array:
        return ~(state.done | (state.drawn >= limits)).all()

    def advance(state: _Decoding) -> _Decoding:
        ended = state.done | (state.drawn >= limits)
        out = state.out.at[:, state.drawn].set(jnp.where(ended, -1, state.token))
        hidden, cache = forward(state.token[:, None], state.positions[:, None], state.cache)
        token = choose(hidden[:, 0], state.drawn + 1)
        done = state.done | (jnp.isin(token, stops) & (state.drawn + 1 < limits))
        return _Decoding(state.drawn + 1, token, state.positions + 1, done, out, cache)

    cache = llama.empty_cache(config, batch, width + new, dtype)
    positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
    hidden, cache = forward(prompts, positions, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    token = choose(last, jnp.int32(0))
    start = _Decoding(
        jnp.int32(0), token, lengths, jnp.isin(token, stops), jnp.full((batch, new), -1, jnp.int32), cache
    )
    state = jax.lax.while_loop(going, advance, start)
    return state.out, state.done


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Generator:
    """Generates from one student.

    Args:
      params, config: either view; decoding uses the per-layer one.
      stop_ids: ids that end a reply and are not part of it.
      batch_size: prompts decoded together; smaller batches are filled up.
      max_length: prompt and reply together, in tokens.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        *,
        stop_ids: Sequence[int],
        batch_size: int = 32,
        max_length: int = 2048,
        dtype: jnp.dtype = jnp.float32,
    ):
        self.params, self.config = parameters.per_layer(jax.tree.map(jnp.asarray, params), config)
        self.stop_ids = tuple(int(i) for i in stop_ids)
        self.batch_size = batch_size
        self.max_length = max_length
        self.dtype = dtype

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Replies to prompts (int32 [n] each), in their order.

        Prompt `i` draws from (seed, numbers[i]), or from (seed, i); its company does not matter. A reply
        has at most `max_tokens` tokens, its stop token among them.

        Raises:
          ValueError: a prompt is empty or leaves no room for a reply.
        """
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.max_length:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {self.max_length - 1} fit")
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: dict[int, Generated] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
                np.array([i if numbers is None else numbers[i] for i in self._filled(chosen)])
            )
            replies |= zip(chosen, self._batch(prompts, chosen, keys, max_tokens, temperature, top_p))
        return [replies[index] for index in range(len(prompts))]

    def _filled(self, chosen: list[int]) -> list[int]:
        """A batch's prompts, the first repeated to the batch's size."""
        return chosen + [chosen[0]] * (self.batch_size - len(chosen))

    def _batch(
        self,
        prompts: Sequence[np.ndarray],
        chosen: list[int],
        keys: jax.Array,
        max_tokens: int,
        temperature: float,
        top_p: float,
    ) -> list[Generated]:
        longest = max(len(prompts[i]) for i in chosen)
        limits = [min(max_tokens, self.max_length - len(prompts[i])) for i in chosen]
        limits += [0] * (self.batch_size - len(chosen))
        rows = [prompts[i] for i in self._filled(chosen)]
        padded = np.zeros((len(rows), _up(longest, BUCKET)), np.int32)
        for row, prompt in zip(padded, rows):
            row[: len(prompt)] = prompt
        out, done = _generate(
            self.params,
            padded,
            np.array([len(prompt) for prompt in rows], np.int32),
            keys,
            np.array(limits, np.int32),
            np.float32(temperature),
            np.float32(top_p),
            config=self.config,
            dtype=self.dtype,
            new=_up(max(limits), BUCKET),
            stop_ids=self.stop_ids,
        )
        out, done = np.asarray(out), np.asarray(done)
        return [Generated(row[row >= 0], bool(stopped)) for row, stopped in zip(out, done)][: len(chosen)]
