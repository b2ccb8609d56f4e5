"""Shapes of released students: LLaMA (arXiv 2302.13971), Llama 2 (2307.09288), Llama 3.x (2407.21783)."""

from __future__ import annotations

import dataclasses

from orca_jax.student.config import LlamaConfig, RopeScaling

LLAMA_VOCABULARY = 32_000


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **rest: object) -> LlamaConfig:
    shape = dict(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        norm_epsilon=1e-6,
        max_positions=2048,
        remat="full",
    )
    return LlamaConfig(**{**shape, **rest})  # type: ignore[arg-type]


def _llama2(hidden: int, intermediate: int, layers: int, heads: int, **rest: object) -> LlamaConfig:
    return _llama(hidden, intermediate, layers, heads, norm_epsilon=1e-5, max_positions=4096, **rest)


def _llama3(
    hidden: int, intermediate: int, layers: int, heads: int, factor: float, **rest: object
) -> LlamaConfig:
    scaling = RopeScaling(kind="llama3", factor=factor) if factor > 1 else RopeScaling()
    own = dict(vocab_size=128_256, num_kv_heads=8, norm_epsilon=1e-5, rope_theta=500_000.0)
    length = 131_072 if factor > 1 else 8192
    return _llama(
        hidden, intermediate, layers, heads, rope_scaling=scaling, max_positions=length, **{**own, **rest}
    )


PRESETS: dict[str, LlamaConfig] = {
    "llama-7b": _llama(4096, 11_008, 32, 32),
    "llama-13b": _llama(5120, 13_824, 40, 40),
    "llama-33b": _llama(6656, 17_920, 60, 52),
    "llama-65b": dataclasses.replace(_llama(8192, 22_016, 80, 64), norm_epsilon=1e-5),
    "llama2-7b": _llama2(4096, 11_008, 32, 32),
    "llama2-13b": _llama2(5120, 13_824, 40, 40),
    "llama2-70b": _llama2(8192, 28_672, 80, 64, num_kv_heads=8),
    "llama3-1b": _llama3(2048, 8192, 16, 32, 32.0, tie_embeddings=True),
    "llama3-3b": _llama3(3072, 8192, 28, 24, 32.0, tie_embeddings=True),
    "llama3-8b": _llama3(4096, 14_336, 32, 32, 1.0),
    "llama3-70b": _llama3(8192, 28_672, 80, 64, 1.0),
}


def preset(name: str) -> LlamaConfig:
    """The shape of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"student.preset={name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
