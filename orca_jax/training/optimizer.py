"""AdamW and Adafactor without their learning rate, which the curriculum gives at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from orca_jax.student.sharding import path_name

KINDS = ("adamw", "adamw_bf16", "adafactor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What makes updates of gradients. The paper states none of these (ORCA, 3.2).

    Attributes:
      kind: `adamw` (Loshchilov and Hutter, arXiv 1711.05101); `adamw_bf16`, the same with first moments in
        bfloat16; `adafactor` (Shazeer and Stern, arXiv 1804.04235), whose second moments are one row and one
        column a matrix, with no first moments: of the settings here it uses only the last two.
      betas: decay of first and second moments.
      weight_decay: spares norms' scales and biases.
      clip_norm: bounds the global gradient norm.
    """

    kind: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"optimizer.kind={self.kind!r}; known: {', '.join(KINDS)}")
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas={self.betas} must be two: of first and second moments")


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
