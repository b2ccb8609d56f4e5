"""The decoder's config, and the shapes of released students.

LLaMA (arXiv 2302.13971), Llama 2 (2307.09288), Llama 3.x (2407.21783), SmolLM2 (2502.02737), SmolLM3, Qwen2.5
(2412.15115), Qwen3 (2505.09388), Gemma 3 (2503.19786), OLMo 2 (2501.00656).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from orca_jax.config import Count, Positive, Sizes, StudentConfig

LayerType = Literal["full", "window", "no_rope"]


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
    # Norms of what goes into attention and feed-forward (`before`), of what comes out (`after`: OLMo 2), or
    # of `both` (Gemma 3).
    norms: Literal["before", "after", "both"] = "before"
    norm_around_one: bool = False  # a norm multiplies by 1 + its weight (Gemma)
    # Norms of queries and keys, of each head (Qwen3, Gemma 3) or over `all` heads together (OLMo 2).
    query_key_norm: Literal["none", "head", "all"] = "none"
    query_scalar: Annotated[float, Ge(0)] = 0.0  # scores are divided by its root; 0: by that of head_dim
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; gelu in its tanh form
    scale_embedding: bool = False  # embeddings are multiplied by the root of hidden_size (Gemma)
    sliding_window: Count = 0  # positions that a position sees, itself included; 0: all (Mistral has 4096)
    # One for each layer: `full` attention, a sliding `window`, or full without rotary positions (`no_rope`);
    # empty: all have the window, if there is one.
    layer_types: tuple[LayerType, ...] = ()
    window_rope_theta: Annotated[float, Ge(0)] = 0.0  # of windowed layers, not stretched; 0: as the others
    max_positions: Positive = 2048  # the length that the weights are meant for; kept for export, not enforced
    vocab_multiple: Positive = 128  # of which padded_vocab_size is a multiple

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise ValueError(f"{len(self.layer_types)} layer_types for num_layers={self.num_layers}")
        if "window" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types names windowed layers, and there is no sliding_window")

    @property
    def types(self) -> tuple[LayerType, ...]:
        """The type of each layer."""
        return self.layer_types or (("window" if self.sliding_window else "full"),) * self.num_layers

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
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        embeddings = self.padded_vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self._norm_parameters

    @property
    def _norm_parameters(self) -> int:
        heads = self.num_heads + self.num_kv_heads
        of_heads = {"none": 0, "head": 2 * self.head_dim, "all": heads * self.head_dim}[self.query_key_norm]
        layer = (4 if self.norms == "both" else 2) * self.hidden_size + of_heads
        return self.num_layers * layer + self.hidden_size

    def training_flops(self, length: int) -> float:
        """Model FLOPs a position, forward and backward, in rows of `length` positions.

        6 for each weight of a matrix product, and causal attention over the whole row (Chowdhery et al.,
        arXiv 2204.02311, appendix B, without the masked half). With adapters, 4: given weights need no
        gradient.
        """
        embedding = 0 if self.tie_embeddings else self.padded_vocab_size * self.hidden_size
        weights = self.parameter_count - embedding - self._norm_parameters
        window = min(self.sliding_window, length)
        windowed = window * (1 - window / (2 * length)) if length else 0.0
        seen = sum(windowed if kind == "window" else length / 2 for kind in self.types)
        attention = 12 * self.num_heads * self.head_dim * seen
        return (4 if self.lora.rank else 6) * weights + attention


RUN = ("attention", "scan_layers", "remat", "lora")  # how a student is run, whatever its weights


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv: int = 0, **rest: Any) -> LlamaConfig:
    sizes: dict[str, Any] = dict(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv or heads,
        head_dim=hidden // heads,
    )
    return LlamaConfig(**sizes | {"vocab_size": 32_000, "norm_epsilon": 1e-6, "remat": "full"} | rest)


def layer_pattern(layers: int, every: int, most: LayerType, nth: LayerType) -> tuple[LayerType, ...]:
    """Types of layers: `nth` for each `every`-th, `most` for the others."""
    return tuple(most if number % every else nth for number in range(1, layers + 1))


def _gemma3(hidden: int, intermediate: int, layers: int) -> LlamaConfig:
    pattern = layer_pattern(layers, 6, "window", "full")
    return _llama(hidden, intermediate, layers, 4, 1, **GEMMA3, **_GEMMA3, layer_types=pattern)


_LLAMA2: dict[str, Any] = dict(norm_epsilon=1e-5, max_positions=4096)
_LLAMA3: dict[str, Any] = dict(
    vocab_size=128_256, norm_epsilon=1e-5, rope_theta=500_000.0, max_positions=8192
)
_LLAMA32 = _LLAMA3 | dict(
    max_positions=131_072, rope_scaling=RopeScaling(kind="llama3", factor=32.0), tie_embeddings=True
)
_SMOLLM2: dict[str, Any] = dict(
    vocab_size=49_152, norm_epsilon=1e-5, rope_theta=1e5, max_positions=8192, tie_embeddings=True
)
_SMOLLM3: dict[str, Any] = dict(
    vocab_size=128_256, rope_theta=5e6, max_positions=65_536, tie_embeddings=True,
    layer_types=layer_pattern(36, 4, "full", "no_rope"),
)  # fmt: skip
_QWEN25: dict[str, Any] = dict(
    vocab_size=151_936, rope_theta=1e6, max_positions=32_768, tie_embeddings=True, qkv_bias=True
)
_QWEN25_7B = _QWEN25 | dict(vocab_size=152_064, tie_embeddings=False, max_positions=131_072)
_QWEN3: dict[str, Any] = dict(
    vocab_size=151_936, rope_theta=1e6, max_positions=40_960, tie_embeddings=True, head_dim=128,
    query_key_norm="head",
)  # fmt: skip
# What all models of a family have.
GEMMA3: dict[str, Any] = dict(
    norms="both", norm_around_one=True, query_key_norm="head", activation="gelu", scale_embedding=True
)
OLMO2: dict[str, Any] = dict(norms="after", query_key_norm="all")
_GEMMA3: dict[str, Any] = dict(
    vocab_size=262_144, head_dim=256, query_scalar=256.0, rope_theta=1e6, window_rope_theta=1e4,
    sliding_window=512, max_positions=32_768, tie_embeddings=True,
)  # fmt: skip
_OLMO2: dict[str, Any] = dict(vocab_size=100_352, rope_theta=5e5, max_positions=4096, **OLMO2)
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
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, **_SMOLLM2),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, **_SMOLLM2),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, **{**_SMOLLM2, "rope_theta": 130_000.0}),
    "smollm3-3b": _llama(2048, 11_008, 36, 16, 4, **_SMOLLM3),
    "qwen2.5-0.5b": _llama(896, 4864, 24, 14, 2, **_QWEN25),
    "qwen2.5-1.5b": _llama(1536, 8960, 28, 12, 2, **{**_QWEN25, "max_positions": 131_072}),
    "qwen2.5-3b": _llama(2048, 11_008, 36, 16, 2, **_QWEN25),
    "qwen2.5-7b": _llama(3584, 18_944, 28, 28, 4, **_QWEN25_7B),
    "qwen3-0.6b": _llama(1024, 3072, 28, 16, 8, **_QWEN3),
    "qwen3-1.7b": _llama(2048, 6144, 28, 16, 8, **_QWEN3),
    "qwen3-4b": _llama(2560, 9728, 36, 32, 8, **_QWEN3),
    "qwen3-8b": _llama(4096, 12_288, 36, 32, 8, **{**_QWEN3, "tie_embeddings": False}),
    "gemma3-270m": _gemma3(640, 2048, 18),
    "gemma3-1b": _gemma3(1152, 6912, 26),
    "olmo2-1b": _llama(2048, 8192, 16, 16, **_OLMO2),
    "olmo2-7b": _llama(4096, 11_008, 32, 32, **_OLMO2),
}


def shape(student: StudentConfig, vocab_size: int, weights: LlamaConfig | None = None) -> LlamaConfig:
    """The whole config for so many ids: of the given weights, of the preset, or as the config has it."""
    known = weights or (PRESETS[student.preset] if student.preset else None)
    names = RUN if known else [size.name for size in dataclasses.fields(Sizes)]
    here = {**{name: getattr(student, name) for name in names}, "vocab_size": vocab_size}
    return dataclasses.replace(known, **here) if known else LlamaConfig(**here)
