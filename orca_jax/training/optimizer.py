"""AdamW and Adafactor without their learning rate, which the curriculum gives at every step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from orca_jax.config import OptimizerConfig
from orca_jax.student.sharding import path_name


def decayed(params: Any) -> Any:
    """Which parameters decay: all but norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("scale", "bias")), params
    )


def _adafactor() -> optax.GradientTransformation:
    """The paper's section 8 but for its step size: the curriculum's learning rate stands alone."""
    return optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))


def _scaled(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.kind == "adafactor":
        return _adafactor()
    first = jnp.bfloat16 if config.kind == "adamw_bf16" else None
    return optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.epsilon, mu_dtype=first)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients to updates of learning rate one; the step scales them."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scaled(config),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
