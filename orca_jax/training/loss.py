"""The explanation-tuning loss: next-token cross-entropy on the teacher's tokens only (paper, section 3.2).

A stage may add the cross-entropy to the teacher's distribution (Hinton, Vinyals and Dean, arXiv 1503.02531),
of which its likeliest tokens are known, see `distillation_loss`.

A loss is a pair (sum of weight * loss of a token, sum of weights). Both are added over devices, hosts and
accumulation parts, and divided once.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orca_jax.data.rows import Row, SoftTargets
from orca_jax.student.attention_xla import pad_length
from orca_jax.student.llama import logits
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import constrain, shards

# Bytes of float32 logits on a device at a time. A student with remat has less memory to spare.
LOGITS_BUDGET, LOGITS_BUDGET_WITH_REMAT = 1 << 30, 1 << 28
NEVER = -1e9  # the logit of no outcome; finite, as its weight of 0 times infinity would be no number


class Loss(NamedTuple):
    """float32 scalars: the weighted sum of the tokens' losses in nats, and the sum of weights.

    `distillation` is the part of `total` that is not cross-entropy to tokens; None where there is none.
    """

    total: jax.Array
    weight: jax.Array
    distillation: jax.Array | None = None

    @property
    def mean(self) -> jax.Array:
        return self.total / jnp.maximum(self.weight, 1e-30)

    def metrics(self) -> dict[str, float]:
        """The mean cross-entropy to tokens, as validation has it, and what distillation adds to it."""
        mean = float(self.mean)
        if self.distillation is None:
            return {"loss": mean}
        added = float(self._replace(total=self.distillation).mean)
        return {"loss": mean - added, "distillation": added}


def token_loss(scores: jax.Array, batch: Row) -> jax.Array:
    """The loss of every position before its weight, float32 [b, t], of float32 logits [b, t, v].

    A plain function, differentiated by JAX: a further term of the loss is added here.
    """
    loss = cross_entropy(scores, batch.targets)
    return loss if batch.soft_targets is None else loss + distillation_loss(scores, batch.soft_targets)


def distillation_loss(scores: jax.Array, soft: SoftTargets) -> jax.Array:
    """Weighted cross-entropy to soft targets in nats, float32 [...], of float32 logits [..., v].

    Of teacher and student, the k known ids and all others together are k + 1 outcomes. Both distributions
    over them are tempered (probabilities to the power 1 / T, normalised), the teacher's in the rows. With
    k = v this is weight * (KL(p || q) + entropy of p) of the whole distributions softmax(logits / T).
    """
    # One id after the other: together they would be an array [..., k, v] in memory.
    ids = [soft.ids[..., place] for place in range(soft.ids.shape[-1])]
    every = jnp.arange(scores.shape[-1])
    known = functools.reduce(jnp.logical_or, [one[..., None] == every for one in ids])
    # By logarithms of the others' sum: 1 - the sum of the known ones has no digits where that is close to 1.
    others = jax.nn.logsumexp(jnp.where(known, NEVER, scores), axis=-1, keepdims=True)
    picked = jnp.stack([pick(scores, one) for one in ids], axis=-1)
    outcomes = jnp.concatenate([jnp.where(soft.ids < 0, NEVER, picked), others], axis=-1)
    log_q = jax.nn.log_softmax(outcomes * soft.inverse_temperature[..., None], axis=-1)
    return -jnp.sum(soft.weights * log_q, axis=-1)


def cross_entropy(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats, float32 [...], of float32 logits [..., v] against int32 targets [...]."""
    return jax.nn.logsumexp(scores, axis=-1) - pick(scores, targets)


@jax.custom_jvp
def pick(scores: jax.Array, ids: jax.Array) -> jax.Array:
    """Entries `ids` [...] of [..., v]. Its gradient is a comparison: JAX's is a slow scatter over v."""
    return jnp.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]


@pick.defjvp
def _pick_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (scores, ids), (tangent, _) = primals, tangents
    chosen = ids[..., None] == jnp.arange(scores.shape[-1])
    return pick(scores, ids), jnp.where(chosen, tangent, 0).sum(axis=-1)


def chunk_size(config: LlamaConfig, rows: int, length: int) -> int:
    """How many positions of every row have their logits computed at a time, on the current mesh.

    All of them if a device's share of [rows, length, v] fits the budget; otherwise the row is split into
    the smallest power of two of equal chunks that fit.
    """
    parts = shards((rows, config.padded_vocab_size), "batch", "tensor")
    budget = LOGITS_BUDGET if config.remat == "none" else LOGITS_BUDGET_WITH_REMAT
    too_large = 4 * rows * length * config.padded_vocab_size / parts / budget
    return math.ceil(length / 2 ** max(0, math.ceil(math.log2(too_large))))


def _cut(x: jax.Array, size: int) -> jax.Array:
    """[b, t, ...] as [chunks, b, size, ...], zero-padded after the last position."""
    x = pad_length(x, size)
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
    return constrain(x, None, "batch", *[None] * (x.ndim - 2))


def _joined(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`: [b, length, ...]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def token_cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, vocab_size: int, chunk: int
) -> jax.Array:
    """Cross-entropy float32 [b, t], in nats, of hidden [b, t, d] against int32 targets [b, t], by chunks."""
    matrix = constrain(head.astype(hidden.dtype), None, "tensor")
    losses = jax.lax.map(
        lambda part: cross_entropy(logits(part[0], matrix, vocab_size), part[1]),
        (_cut(hidden, chunk), _cut(targets, chunk)),
    )
    return _joined(losses, hidden.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def total_losses(
    hidden: jax.Array, head: jax.Array, batch: Row, vocab_size: int, chunk: int
) -> tuple[jax.Array, jax.Array | None]:
    """The weighted sum of `token_loss`, float32, of hidden [b, t, d] and head [d, v]; and of its second term.

    The logits of `chunk` positions of each row are in memory at a time. The gradient by hidden and head is
    computed with the loss: the backward pass only scales it, and no logits are kept or computed twice. The
    batch has no gradient, and the second term, None without soft targets, none of its own.
    """
    return _loss_and_grad(hidden, head, batch, vocab_size, chunk)[0]


def _loss_and_grad(hidden, head, batch, vocab_size, chunk):  # type: ignore[no-untyped-def]
    matrix = constrain(head.astype(hidden.dtype), None, "tensor")  # gathered over fsdp once for all chunks

    def step(d_head: jax.Array, part: tuple[jax.Array, Row]) -> tuple[jax.Array, Any]:
        hidden, batch = part
        scores = logits(hidden, matrix, vocab_size)
        total, d_scores = jax.value_and_grad(
            lambda scores: jnp.sum(token_loss(scores, batch) * batch.loss_weights)
        )(scores)
        second = None
        if batch.soft_targets is not None:  # the compiler finds that it was computed in the total
            second = jnp.sum(distillation_loss(scores, batch.soft_targets) * batch.loss_weights)
        # In the compute type, as in the layers below; only the sum over chunks is in float32.
        d_scores = d_scores.astype(hidden.dtype)
        d_head += jnp.einsum("btd,btv->dv", hidden, d_scores, preferred_element_type=jnp.float32)
        return d_head, ((total, second), jnp.matmul(d_scores, matrix.T))

    zeros = constrain(jnp.zeros(head.shape, jnp.float32), "fsdp", "tensor")
    parts = jax.tree.map(functools.partial(_cut, size=chunk), (hidden, batch))
    d_head, (totals, d_hidden) = jax.lax.scan(step, zeros, parts)
    totals = jax.tree.map(jnp.sum, totals)
    return totals, (_joined(d_hidden, hidden.shape[1]), d_head.astype(head.dtype))


def _scaled(vocab_size, chunk, gradients, factors):  # type: ignore[no-untyped-def]
    (d_hidden, d_head), (factor, _) = gradients, factors
    return (factor * d_hidden).astype(d_hidden.dtype), factor * d_head, None


total_losses.defvjp(_loss_and_grad, _scaled)
