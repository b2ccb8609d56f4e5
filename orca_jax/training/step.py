"""One training step and one validation step, compiled for a mesh, and the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from orca_jax.config import OptimizerConfig
from orca_jax.data.rows import Row
from orca_jax.student import llama, lora, sharding
from orca_jax.student.presets import LlamaConfig
from orca_jax.training.loss import Loss, chunk_size, token_cross_entropy, total_losses


def decayed(params: Any) -> Any:
    """The mask of weight decay: all parameters but norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not sharding.path_name(path).endswith(("scale", "bias")), params
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients to updates of learning rate one; the training step scales them."""
    if config.kind == "adafactor":
        # Shazeer and Stern, section 8, without its step size: the curriculum gives the learning rate.
        scaled = optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))
    else:
        b1, b2 = config.betas
        first = jnp.bfloat16 if config.kind == "adamw_bf16" else None
        scaled = optax.scale_by_adam(b1=b1, b2=b2, eps=config.epsilon, mu_dtype=first)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        scaled,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )


class TrainState(NamedTuple):
    """What a checkpoint holds besides the step: float32 parameters, and optimizer state of those trained."""

    params: Any
    optimizer: Any


class StepMetrics(NamedTuple):
    """Scalars of one step: loss pair, norm of the gradient before clipping, number of token positions.

    `skipped`: the loss or the gradient was not finite, or the norm over the limit; nothing was updated.
    """

    loss: Loss
    gradient_norm: jax.Array
    tokens: jax.Array
    skipped: jax.Array


def batch_loss(
    params: Any,
    batch: Row,
    config: LlamaConfig,
    dtype: jnp.dtype,
    reduce_dtype: jnp.dtype = jnp.float32,
) -> Loss:
    """The loss pair of rows [b, t]; for `reduce_dtype` see `llama.hidden`."""
    arguments = batch.tokens, batch.positions, batch.segment_ids
    hidden, _ = llama.hidden(params, *arguments, config=config, dtype=dtype, reduce_dtype=reduce_dtype)
    head, chunk = llama.head(params, config), chunk_size(config, *batch.tokens.shape)
    total, distillation = total_losses(hidden, head, batch, config.vocab_size, chunk)
    return Loss(total, jnp.sum(batch.loss_weights), distillation)


def gradients(
    params: Any,
    batch: Row,
    config: LlamaConfig,
    dtype: jnp.dtype,
    accumulation: int,
    reduce_dtype: jnp.dtype = jnp.float32,
) -> tuple[Loss, Any]:
    """Loss pair, and gradient of its mean by the trained parameters, in `accumulation` parts of the batch.

    The loss pair is added over the parts and divided once, so the weights of the parts may differ.
    """

    trained, frozen = lora.split(params, config.lora)

    def total_loss(trained: Any, part: Row) -> tuple[jax.Array, Loss]:
        loss = batch_loss(lora.joined(lora.Split(trained, frozen)), part, config, dtype, reduce_dtype)
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

    second = None if batch.soft_targets is None else jnp.zeros(())
    zeros = (jax.tree.map(jnp.zeros_like, trained), Loss(jnp.zeros(()), jnp.zeros(()), second))
    (summed, loss), _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    return summed, loss


def update(
    state: TrainState,
    batch: Row,
    learning_rate: jax.Array,
    norm_limit: jax.Array | None = None,
    *,
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    dtype: jnp.dtype,
    accumulation: int,
    reduce_dtype: jnp.dtype,
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step on a batch of rows.

    If the loss or the gradient is not finite, or the gradient's norm is over `norm_limit` (float32 scalar),
    parameters and optimizer state do not change.
    """
    loss, gradient = gradients(state.params, batch, config, dtype, accumulation, reduce_dtype)
    norm = optax.tree.norm(gradient)
    good = jnp.isfinite(loss.total) & jnp.isfinite(norm)
    if norm_limit is not None:
        good &= norm <= norm_limit
    before, frozen = lora.split(state.params, config.lora)
    updates, moments = optimizer.update(gradient, state.optimizer, before)
    after = jax.tree.map(lambda p, u: p - learning_rate * u, before, updates)
    trained, moments = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (after, moments), (before, state.optimizer)
    )
    params = lora.joined(lora.Split(trained, frozen))
    metrics = StepMetrics(loss, norm, jnp.sum(batch.segment_ids > 0), ~good)
    return TrainState(params, moments), metrics


def token_losses(params: Any, batch: Row, config: LlamaConfig, dtype: jnp.dtype) -> jax.Array:
    """Weighted cross-entropy of every position, float32 [b, t], for validation."""
    hidden, _ = llama.hidden(
        params, batch.tokens, batch.positions, batch.segment_ids, config=config, dtype=dtype
    )
    head, chunk = llama.head(params, config), chunk_size(config, *batch.tokens.shape)
    return token_cross_entropy(hidden, head, batch.targets, config.vocab_size, chunk) * batch.loss_weights


class Steps(NamedTuple):
    """The compiled functions of a run, and the shapes and shardings of its state."""

    init: Callable[[Any], TrainState]
    update: Callable[..., tuple[TrainState, StepMetrics]]
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
    reduce_dtype: jnp.dtype = jnp.float32,
    compiler_options: Mapping[str, str] | None = None,
    limited: bool = False,
) -> Steps:
    """Compiles init, update and validation with the mesh's shardings; `update` donates its state.

    `update` takes (state, rows, learning rate) and, if `limited`, a limit for the gradient's norm.
    """

    def fresh(params: Any) -> TrainState:
        return TrainState(params, optimizer.init(lora.split(params, config.lora).trained))

    shapes = jax.eval_shape(lambda: fresh(llama.init(config, 0)))
    placed = sharding.shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, placed
    )
    rows, scalar = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = functools.partial(
        update,
        config=config,
        optimizer=optimizer,
        dtype=dtype,
        accumulation=accumulation,
        reduce_dtype=reduce_dtype,
    )
    losses = functools.partial(token_losses, config=config, dtype=dtype)

    def place(params: Any) -> TrainState:
        """Places parameters (no copy if they are placed already) and initialises the optimizer state."""
        trained = lora.split(params, config.lora).trained
        moments = jax.jit(optimizer.init, out_shardings=placed.optimizer)(trained)
        return TrainState(jax.device_put(params, placed.params), moments)

    return Steps(
        init=place,
        update=jax.jit(
            step,
            in_shardings=(placed, rows, scalar, scalar)[: 4 if limited else 3],
            out_shardings=(placed, scalar),
            donate_argnums=0,
            compiler_options=dict(compiler_options or {}),
        ),
        token_losses=jax.jit(losses, in_shardings=(placed.params, rows), out_shardings=scalar),
        reset=jax.jit(lambda state: fresh(state.params), out_shardings=placed, donate_argnums=0),
        abstract=abstract,
    )
