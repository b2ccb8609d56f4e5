"""AdamW and Adafactor without a learning rate, which the curriculum gives at every step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from orca_jax.config import OptimizerConfig
from orca_jax.student.sharding import path_name


def decayed(params: Any) -> Any:
    """The mask of weight decay: all parameters but norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("scale", "bias")), params
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
