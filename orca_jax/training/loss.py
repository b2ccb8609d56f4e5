"""The explanation-tuning loss: next-token cross-entropy on the teacher's tokens only (paper, section 3.2).

A loss is a pair (sum of weight * cross-entropy, sum of weights). Devices, hosts and accumulation steps
add both parts, and divide once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.student.llama import logits


class Loss(NamedTuple):
    """float32 scalars: the weighted sum of cross-entropies in nats, and the sum of weights."""

    total: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        return self.total / jnp.maximum(self.weight, 1e-30)


class _Softmax(NamedTuple):
    """Unnormalised probabilities [..., v], their sums [..., 1] and the cross-entropies [...]."""

    exponents: jax.Array
    sums: jax.Array
    losses: jax.Array


def _softmax(hidden: jax.Array, head: jax.Array, targets: jax.Array, vocab_size: int) -> _Softmax:
    scores = logits(hidden, head, vocab_size)
    top = scores.max(axis=-1, keepdims=True)
    exponents = jnp.exp(scores - top)
    sums = exponents.sum(axis=-1, keepdims=True)
    picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)
    return _Softmax(exponents, sums, (top + jnp.log(sums) - picked)[..., 0])


def token_cross_entropy(hidden: jax.Array, head: jax.Array, targets: jax.Array, vocab_size: int) -> jax.Array:
    """Cross-entropy float32 [...], in nats, of hidden [..., d] against int32 targets [...]."""
    return _softmax(hidden, head, targets, vocab_size).losses


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, vocab_size: int
) -> jax.Array:
    """Weighted sum of cross-entropies of hidden [b, t, d] against int32 targets [b, t], in nats.

    Its gradient is taken in the forward pass, where the probabilities are at hand: the loss is linear
    in its cotangent, so the backward pass only scales, and no logits are kept or computed twice.
    """
    return jnp.sum(token_cross_entropy(hidden, head, targets, vocab_size) * weights)


def _forward(hidden, head, targets, weights, vocab_size):  # type: ignore[no-untyped-def]
    exponents, sums, losses = _softmax(hidden, head, targets, vocab_size)
    at_target = targets[..., None] == jnp.arange(head.shape[-1])
    scaled = exponents * (weights[..., None] / sums)
    d_logits = jnp.where(at_target, scaled - weights[..., None], scaled).astype(hidden.dtype)
    d_hidden = jnp.matmul(d_logits, head.T.astype(hidden.dtype))
    d_head = jnp.einsum("btd,btv->dv", hidden, d_logits, preferred_element_type=jnp.float32)
    return jnp.sum(losses * weights), (d_hidden, d_head.astype(head.dtype), losses)


def _backward(vocab_size, saved, gradient):  # type: ignore[no-untyped-def]
    d_hidden, d_head, losses = saved
    return (gradient * d_hidden).astype(d_hidden.dtype), gradient * d_head, None, gradient * losses


cross_entropy.defvjp(_forward, _backward)
