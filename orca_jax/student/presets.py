"""Shapes of released students: LLaMA (arXiv 2302.13971), Llama 2 (2307.09288), Llama 3.x (2407.21783)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orca_jax.config import LlamaConfig, RopeScaling, Sizes, StudentConfig

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
