"""How the next id is drawn: greedy, or by temperature, top-k and top-p, each row by settings of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Drawn(NamedTuple):
    """Ids int32 [b], and their log-probabilities float32 [b] under the student itself.

    Those are of the whole distribution at temperature 1, whatever was cut off or sharpened for the draw.
    """

    ids: jax.Array
    log_probs: jax.Array


class Settings(NamedTuple):
    """Of each row: temperature (0: greedy), top_k (0: all ids) and top_p (1: all), each [b]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def truncate(scores: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Scores [b, v] with all but the ids that both limits [b] allow at -inf.

    Of the `top_k` likeliest ids (Fan et al., arXiv 1805.04833; ties with the last of them stay), the
    smallest set with a share of at least `top_p` in their probability (Holtzman et al., arXiv 1904.09751).
    The likeliest id always stays.
    """
    ordered = jnp.sort(scores, axis=-1, descending=True)
    rank = jnp.arange(scores.shape[-1])
    ordered = jnp.where((rank < top_k[:, None]) | (top_k[:, None] <= 0), ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    likely = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    kept = (likely & jnp.isfinite(ordered)).at[:, 0].set(True)
    threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def nucleus(scores: jax.Array, top_p: jax.Array) -> jax.Array:
    """`truncate` by top_p alone."""
    rows = scores.shape[0]
    return truncate(scores, jnp.zeros(rows, jnp.int32), jnp.broadcast_to(top_p, rows))


def likeliest(scores: jax.Array) -> jax.Array:
    """The first of the greatest scores' ids, int32 [b]: argmax, which takes several times as long on CPUs."""
    size = scores.shape[-1]
    greatest = scores == scores.max(axis=-1, keepdims=True)
    first = jnp.min(jnp.where(greatest, jnp.arange(size), size), axis=-1)
    return jnp.minimum(first, size - 1).astype(jnp.int32)


def draw(scores: jax.Array, keys: jax.Array, settings: Settings) -> Drawn:
    """One id a row of logits [b, v], by a key a row; only what some row asks for is computed."""

    def sample() -> jax.Array:
        temperature = settings.temperature
        warm = scores / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        limited = ((settings.top_k > 0) | (settings.top_p < 1)) & (temperature > 0)
        cut = jax.lax.cond(
            limited.any(), lambda: truncate(warm, settings.top_k, settings.top_p), lambda: warm
        )
        return jnp.where(temperature > 0, jax.vmap(jax.random.categorical)(keys, cut), greedy())

    def greedy() -> jax.Array:
        return likeliest(scores)

    ids = jax.lax.cond((settings.temperature > 0).any(), sample, greedy).astype(jnp.int32)
    return Drawn(ids, log_prob(scores, ids))


def log_prob(scores: jax.Array, ids: jax.Array) -> jax.Array:
    """Float32 [...] of ids [...] under logits [..., v]."""
    of_ids = jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
    return of_ids - jax.nn.logsumexp(scores, axis=-1)
