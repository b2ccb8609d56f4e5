"""The shape of a LLaMA-family student, and of the mesh it lies on. Imports no jax."""

from __future__ import annotations

import dataclasses
import math

REMAT_POLICIES = ("none", "products", "full")
DENSE = ("query", "key", "value", "output", "gate", "up", "down")
ROPE_KINDS = ("none", "linear", "llama3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for lengths beyond those first trained on.

    `linear` divides every frequency by `factor` (Chen et al., arXiv 2306.15595). `llama3` divides only those
    that turn less than `low_frequency_factor` times in `original_length` positions, leaves those that turn
    more than `high_frequency_factor` times, and interpolates between (Llama 3.1, arXiv 2407.21783).
    """

    kind: str = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ValueError(f"rope scaling {self.kind!r}; known: {', '.join(ROPE_KINDS)}")
        if self.factor < 1 or self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(f"rope scaling needs factor >= 1 and high > low frequency factor; got {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of rank `rank` (0: none), scaled by alpha / rank, on the dense layers named in `targets`."""

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = DENSE

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(DENSE))
        if unknown or not self.targets:
            raise ValueError(f"lora targets {', '.join(unknown) or 'nothing'}; known: {', '.join(DENSE)}")
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora needs rank >= 0 and alpha > 0; got rank={self.rank}, alpha={self.alpha}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh's axes; -1 (at most once) takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a LLaMA decoder; validates itself.

    `vocab_size` counts the tokenizer's ids; embeddings are padded to `padded_vocab_size`, a multiple
    of `vocab_multiple`, so that the vocabulary divides over a tensor axis (32,001 does not).

    Attributes:
      qkv_bias, output_bias: whether the attention's projections have biases (Qwen2: the first three).
      sliding_window: a position sees the last so many positions, itself included; 0: all (Mistral).
      max_positions: the length that the weights are meant for; kept for export, enforced nowhere.
      remat: what the backward pass computes again: `none`, `full` (all of a layer but its input), or
        `products` (all but the results of its matrix products with weights).
    """

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    rope_scaling: RopeScaling = RopeScaling()
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    sliding_window: int = 0
    max_positions: int = 2048
    vocab_multiple: int = 128
    lora: LoraConfig = LoraConfig()
    attention: str = "auto"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "head_dim",
            "vocab_multiple",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"student.{name} must be at least 1, got {getattr(self, name)}")
        if self.sliding_window < 0:
            raise ValueError(f"student.sliding_window={self.sliding_window} must be 0 or more")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"student.num_kv_heads={self.num_kv_heads} must divide student.num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"student.head_dim={self.head_dim} must be even: rotary embedding turns pairs")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"student.remat={self.remat!r}; known: {', '.join(REMAT_POLICIES)}")

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    @property
    def parameter_count(self) -> int:
        """Number of parameters without adapters, the padding of the vocabulary included."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        if self.qkv_bias:
            attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        attention += self.hidden_size if self.output_bias else 0
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.padded_vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def training_flops(self, length: int) -> float:
        """Model FLOPs a position, forward and backward, in rows of `length` positions.

        6 for each weight of a matrix product, and causal attention over the whole row (Chowdhery et al.,
        arXiv 2204.02311, appendix B, without the masked half). With adapters, 4: given weights need no
        gradient.
        """
        embedding = 0 if self.tie_embeddings else self.padded_vocab_size * self.hidden_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        weights = self.parameter_count - embedding - norms
        seen = length / 2
        if 0 < self.sliding_window < length:
            seen = self.sliding_window * (1 - self.sliding_window / (2 * length))
        attention = 12 * self.num_layers * self.num_heads * self.head_dim * seen
        return (4 if self.lora.rank else 6) * weights + attention
