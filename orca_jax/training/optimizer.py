"""AdamW without its learning rate, which the curriculum gives at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from orca_jax.student.sharding import path_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101). The paper states none of these (ORCA, 3.2).

    `clip_norm` bounds the global gradient norm; weight decay spares norms' scales and biases.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


def decayed(params: Any) -> Any:
    """Which parameters decay: all but norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("scale", "bias")), params
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients to updates of learning rate one; the step scales them."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
