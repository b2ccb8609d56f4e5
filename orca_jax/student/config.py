"""The shape of a LLaMA-family student."""

from __future__ import annotations

import dataclasses
import math

REMAT_POLICIES = ("none", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a LLaMA decoder; validates itself.

    `vocab_size` counts the tokenizer's ids; embeddings are padded to `padded_vocab_size`, a multiple
    of `vocab_multiple`, so that the vocabulary divides over a tensor axis (32,001 does not).
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
    tie_embeddings: bool = False
    vocab_multiple: int = 128
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
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"student.{name} must be at least 1, got {getattr(self, name)}")
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
        """Number of trained parameters, the padding of the vocabulary included."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.padded_vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size
