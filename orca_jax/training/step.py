"""One training step and one validation step, compiled for a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from orca_jax.data.rows import Row
from orca_jax.student import llama, lora, sharding
from orca_jax.student.config import LlamaConfig
from orca_jax.training.loss import Loss, cross_entropy, token_cross_entropy


class TrainState(NamedTuple):
    """What a checkpoint holds, besides the step: float32 parameters, and the moments of those trained."""

    params: Any
    optimizer: Any


class StepMetrics(NamedTuple):
    """Scalars of one step: loss pair, norm of the gradient before clipping, positions that hold a token."""

    loss: Loss
    gradient_norm: jax.Array
    tokens: jax.Array


def batch_loss(params: Any, batch: Row, config: LlamaConfig, dtype: jnp.dtype) -> Loss:
    """The loss pair of rows [b, t]."""
    hidden, _ = llama.hidden(
        params, batch.tokens, batch.positions, batch.segment_ids, config=config, dtype=dtype
    )
    head = llama.head(params, config)
    total = cross_entropy(hidden, head, batch.targets, batch.loss_weights, config.vocab_size)
    return Loss(total, jnp.sum(batch.loss_weights))


def gradients(
    params: Any, batch: Row, config: LlamaConfig, dtype: jnp.dtype, accumulation: int
) -> tuple[Loss, Any]:
    """Loss pair and gradient of its mean by what is trained, over `accumulation` parts of the batch in turn.

    Both parts of the loss are added over the parts and divided once, so the parts' weights may differ.
    """

    trained, frozen = lora.split(params, config.lora)

    def total_loss(trained: Any, part: Row) -> tuple[jax.Array, Loss]:
        loss = batch_loss(lora.joined(lora.Split(trained, frozen)), part, config, dtype)
        return loss.total, loss

    gradient = jax.grad(total_loss, has_aux=True)
    if accumulation == 1:
        summed, loss = gradient(trained, batch)
    else:
        summed, loss = _accumulated(gradient, trained, batch, accumulation)
    scale = 1.0 / jnp.maximum(loss.weight, 1e-30)
    return loss, jax.tree.map(lambda g: g * scale, summed)


def _accumulated(gradient: Callable[..., Any], trained: Any, batch: Row, parts: int) -> tuple[Any, Loss]:
    def split(array: jax.Array) -> jax.Array:
        # Every part takes rows from every shard, so that no row moves between devices.
        return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(carry: Any, part: Row) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(trained, part)), None

    zeros = (jax.tree.map(jnp.zeros_like, trained), Loss(jnp.zeros(()), jnp.zeros(())))
    (summed, loss), _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    return summed, loss


def update(
    state: TrainState,
    batch: Row,
    learning_rate: jax.Array,
    *,
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    dtype: jnp.dtype,
    accumulation: int,
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step on a batch of rows."""
    loss, gradient = gradients(state.params, batch, config, dtype, accumulation)
    trained, frozen = lora.split(state.params, config.lora)
    updates, moments = optimizer.update(gradient, state.optimizer, trained)
    trained = jax.tree.map(lambda p, u: p - learning_rate * u, trained, updates)
    params = lora.joined(lora.Split(trained, frozen))
    metrics = StepMetrics(loss, optax.tree.norm(gradient), jnp.sum(batch.segment_ids > 0))
    return TrainState(params, moments), metrics


def token_losses(params: Any, batch: Row, config: LlamaConfig, dtype: jnp.dtype) -> jax.Array:
    """Weighted cross-entropy of every position, float32 [b, t], for validation by example."""
    hidden, _ = llama.hidden(
        params, batch.tokens, batch.positions, batch.segment_ids, config=config, dtype=dtype
    )
    losses = token_cross_entropy(hidden, llama.head(params, config), batch.targets, config.vocab_size)
    return losses * batch.loss_weights


class Steps(NamedTuple):
    """The compiled functions of a run, and how its state is laid out."""

    init: Callable[[Any], TrainState]
    update: Callable[[TrainState, Row, jax.Array], tuple[TrainState, StepMetrics]]
    token_losses: Callable[[Any, Row], jax.Array]
    reset: Callable[[TrainState], TrainState]
    abstract: TrainState


def make_steps(
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    dtype: jnp.dtype,
    accumulation: int,
    compiler_options: Mapping[str, str] | None = None,
) -> Steps:
    """Compiles init, update and validation with the mesh's shardings; `update` donates its state."""

    def fresh(params: Any) -> TrainState:
        return TrainState(params, optimizer.init(lora.split(params, config.lora).trained))

    shapes = jax.eval_shape(lambda: fresh(llama.init(config, 0)))
    placed = sharding.shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, placed
    )
    rows, scalar = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = functools.partial(
        update, config=config, optimizer=optimizer, dtype=dtype, accumulation=accumulation
    )
    losses = functools.partial(token_losses, config=config, dtype=dtype)

    def place(params: Any) -> TrainState:
        """Parameters that lie where they should are not copied; moments are made in their place."""
        trained = lora.split(params, config.lora).trained
        moments = jax.jit(optimizer.init, out_shardings=placed.optimizer)(trained)
        return TrainState(jax.device_put(params, placed.params), moments)

    return Steps(
        init=place,
        update=jax.jit(
            step,
            in_shardings=(placed, rows, scalar),
            out_shardings=(placed, scalar),
            donate_argnums=0,
            compiler_options=dict(compiler_options or {}),
        ),
        token_losses=jax.jit(losses, in_shardings=(placed.params, rows), out_shardings=scalar),
        reset=jax.jit(lambda state: fresh(state.params), out_shardings=placed, donate_argnums=0),
        abstract=abstract,
    )
