"""How a student is trained, as an experiment's config says it. Imports no jax."""

from __future__ import annotations

import dataclasses

KINDS = ("adamw", "adamw_bf16", "adafactor")
DTYPES = ("float32", "bfloat16")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a curriculum is run.

    Attributes:
      batch_rows: rows an optimizer step, over all devices and accumulation parts.
      accumulation: parts a batch is computed in, one after the other.
      compute_dtype: float32 or bfloat16; parameters and moments stay float32.
      checkpoint_every, validate_every: in steps; 0 validates only at the end of a stage.
      keep: checkpoints preserved.
    """

    batch_rows: int = 8
    accumulation: int = 1
    compute_dtype: str = "float32"
    checkpoint_every: int = 100
    keep: int = 2
    log_every: int = 10
    validate_every: int = 0

    def __post_init__(self) -> None:
        if self.compute_dtype not in DTYPES:
            raise ValueError(f"train.compute_dtype={self.compute_dtype!r}; known: {', '.join(DTYPES)}")
        for name in ("batch_rows", "accumulation", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_rows % self.accumulation:
            raise ValueError(
                f"train.accumulation={self.accumulation} must divide batch_rows={self.batch_rows}"
            )
