"""The decoder's config, and the shapes of released students.

LLaMA (arXiv 2302.13971), Llama 2 (2307.09288), Llama 3.x (2407.21783).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from orca_jax.config import Count, Positive, Sizes, StudentConfig


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for lengths beyond those first trained on."""

    # `linear` divides every frequency by `factor` (arXiv 2306.15595); `llama3` divides only those that turn
    # less than `low_frequency_factor` times in `original_length` positions, leaves those that turn more than
    # `high_frequency_factor` times, and interpolates between (arXiv 2407.21783).
    kind: Literal["none", "linear", "llama3"] = "none"
    factor: Annotated[float, Ge(1)] = 1.0  # by which frequencies are divided
    low_frequency_factor: float = 1.0  # turns
    high_frequency_factor: float = 4.0  # turns
    original_length: int = 8192  # positions

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(f"rope scaling needs a high frequency factor above the low one; got {self}")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Sizes):
    """A LLaMA decoder with all that its weights settle; static for compiled functions.

    Embeddings are padded to `padded_vocab_size`, so that the vocabulary divides over a tensor axis.
    """

    vocab_size: Positive
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_epsilon: float = 1e-5  # added to the mean square in a norm
    rope_scaling: RopeScaling = RopeScaling()
    qkv_bias: bool = False  # biases of queries, keys and values (Qwen2)
    output_bias: bool = False  # bias of the attention's output
    sliding_window: Count = 0  # positions that a position sees, itself included; 0: all (Mistral has 4096)
    max_positions: Positive = 2048  # the length that the weights are meant for; kept for export, not enforced
    vocab_multiple: Positive = 128  # of which padded_vocab_size is a multiple

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


RUN = ("attention", "scan_layers", "remat", "lora")  # how a student is run, whatever its weights


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv: int = 0, **rest: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv or heads,
        head_dim=hidden // heads,
        **{"vocab_size": 32_000, "norm_epsilon": 1e-6, "remat": "full", **rest},
    )


_LLAMA2: dict[str, Any] = dict(norm_epsilon=1e-5, max_positions=4096)
_LLAMA3: dict[str, Any] = dict(
    vocab_size=128_256, norm_epsilon=1e-5, rope_theta=500_000.0, max_positions=8192
)
_LLAMA32 = _LLAMA3 | dict(
    max_positions=131_072, rope_scaling=RopeScaling(kind="llama3", factor=32.0), tie_embeddings=True
)
PRESETS: Mapping[str, LlamaConfig] = {
    "llama-7b": _llama(4096, 11_008, 32, 32),
    "llama-13b": _llama(5120, 13_824, 40, 40),
    "llama-33b": _llama(6656, 17_920, 60, 52),
    "llama-65b": _llama(8192, 22_016, 80, 64, norm_epsilon=1e-5),
    "llama2-7b": _llama(4096, 11_008, 32, 32, **_LLAMA2),
    "llama2-13b": _llama(5120, 13_824, 40, 40, **_LLAMA2),
    "llama2-70b": _llama(8192, 28_672, 80, 64, 8, **_LLAMA2),
    "llama3-1b": _llama(2048, 8192, 16, 32, 8, **_LLAMA32),
    "llama3-3b": _llama(3072, 8192, 28, 24, 8, **_LLAMA32),
    "llama3-8b": _llama(4096, 14_336, 32, 32, 8, **_LLAMA3),
    "llama3-70b": _llama(8192, 28_672, 80, 64, 8, **_LLAMA3),
}


def shape(student: StudentConfig, vocab_size: int, weights: LlamaConfig | None = None) -> LlamaConfig:
    """The whole config for so many ids: of the given weights, of the preset, or as the config has it."""
    known = weights or (PRESETS[student.preset] if student.preset else None)
    names = RUN if known else [size.name for size in dataclasses.fields(Sizes)]
    here = {**{name: getattr(student, name) for name in names}, "vocab_size": vocab_size}
    return dataclasses.replace(known, **here) if known else LlamaConfig(**here)
