"""The explanation-tuning loss: next-token cross-entropy on the teacher's tokens only (paper, section 3.2).

A loss is a pair (sum of weight * cross-entropy, sum of weights). Both are added over devices, hosts and
accumulation parts, and divided once.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.config import LlamaConfig
from orca_jax.student.attention_xla import pad_length
from orca_jax.student.llama import logits
from orca_jax.student.sharding import constrain, shards

# Bytes of float32 logits on a device at a time. A student with remat has less memory to spare.
LOGITS_BUDGET, LOGITS_BUDGET_WITH_REMAT = 1 << 30, 1 << 28


class Loss(NamedTuple):
    """float32 scalars: the weighted sum of cross-entropies in nats, and the sum of weights."""

    total: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        return self.total / jnp.maximum(self.weight, 1e-30)


def chunk_size(config: LlamaConfig, rows: int, length: int) -> int:
    """How many positions of every row have their logits computed at a time, on the current mesh.

    All of them if a device's share of [rows, length, v] fits the budget; otherwise the row is split into
    the smallest power of two of equal chunks that fit.
    """
    parts = shards((rows, config.padded_vocab_size), "batch", "tensor")
    budget = LOGITS_BUDGET if config.remat == "none" else LOGITS_BUDGET_WITH_REMAT
    too_large = 4 * rows * length * config.padded_vocab_size / parts / budget
    return math.ceil(length / 2 ** max(0, math.ceil(math.log2(too_large))))


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


def _cut(x: jax.Array, size: int) -> jax.Array:
    """[b, t, ...] as [chunks, b, size, ...], zero-padded after the last position."""
    x = pad_length(x, size)
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
    return constrain(x, None, "batch", *[None] * (x.ndim - 2))


def _joined(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`: [b, length, ...]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def _gathered(head: jax.Array, hidden: jax.Array) -> jax.Array:
    """The head in the compute dtype, gathered over fsdp once for all chunks."""
    return constrain(head.astype(hidden.dtype), None, "tensor")


def token_cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, vocab_size: int, chunk: int | None = None
) -> jax.Array:
    """Cross-entropy float32 [b, t], in nats, of hidden [b, t, d] against int32 targets [b, t].

    With `chunk`, the logits of that many positions of each row are in memory at a time.
    """
    length = hidden.shape[1]
    if chunk is None or chunk >= length:
        return _softmax(hidden, head, targets, vocab_size).losses
    gathered = _gathered(head, hidden)
    losses = jax.lax.map(
        lambda part: _softmax(part[0], gathered, part[1], vocab_size).losses,
        (_cut(hidden, chunk), _cut(targets, chunk)),
    )
    return _joined(losses, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    vocab_size: int,
    chunk: int | None = None,
) -> jax.Array:
    """Weighted sum of cross-entropies of hidden [b, t, d] against int32 targets [b, t], in nats.

    The gradient is computed in the forward pass, from the same probabilities: the loss is linear in its
    cotangent, so the backward pass only scales it, and no logits are kept or computed twice. With `chunk`,
    the logits of that many positions of each row are in memory at a time.
    """
    return jnp.sum(token_cross_entropy(hidden, head, targets, vocab_size, chunk) * weights)


class _LossAndGrad(NamedTuple):
    """Loss and gradients of some positions; `d_head` is float32 [d, v]."""

    total: jax.Array
    d_hidden: jax.Array
    d_head: jax.Array
    losses: jax.Array


def _loss_and_grad(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, vocab_size: int
) -> _LossAndGrad:
    exponents, sums, losses = _softmax(hidden, head, targets, vocab_size)
    at_target = targets[..., None] == jnp.arange(head.shape[-1])
    scaled = exponents * (weights[..., None] / sums)
    d_logits = jnp.where(at_target, scaled - weights[..., None], scaled).astype(hidden.dtype)
    d_hidden = jnp.matmul(d_logits, head.T.astype(hidden.dtype))
    d_head = jnp.einsum("btd,btv->dv", hidden, d_logits, preferred_element_type=jnp.float32)
    return _LossAndGrad(jnp.sum(losses * weights), d_hidden, d_head, losses)


def _loss_and_grad_in_chunks(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, vocab_size: int, chunk: int
) -> _LossAndGrad:
    gathered = _gathered(head, hidden)

    def step(d_head: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        result = _loss_and_grad(part[0], gathered, part[1], part[2], vocab_size)
        return d_head + result.d_head, (result.total, result.d_hidden, result.losses)

    zeros = constrain(jnp.zeros(head.shape, jnp.float32), "fsdp", "tensor")
    parts = tuple(_cut(x, chunk) for x in (hidden, targets, weights))
    d_head, (totals, d_hidden, losses) = jax.lax.scan(step, zeros, parts)
    length = hidden.shape[1]
    return _LossAndGrad(totals.sum(), _joined(d_hidden, length), d_head, _joined(losses, length))


def _forward(hidden, head, targets, weights, vocab_size, chunk):  # type: ignore[no-untyped-def]
    if chunk is None or chunk >= hidden.shape[1]:
        result = _loss_and_grad(hidden, head, targets, weights, vocab_size)
    else:
        result = _loss_and_grad_in_chunks(hidden, head, targets, weights, vocab_size, chunk)
    return result.total, (result.d_hidden, result.d_head.astype(head.dtype), result.losses)


def _backward(vocab_size, chunk, saved, gradient):  # type: ignore[no-untyped-def]
    d_hidden, d_head, losses = saved
    return (gradient * d_hidden).astype(d_hidden.dtype), gradient * d_head, None, gradient * losses


cross_entropy.defvjp(_forward, _backward)
