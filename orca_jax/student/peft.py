"""Adapters in the format of Hugging Face's PEFT: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from orca_jax.artifacts import atomic_write
from orca_jax.config import LlamaConfig
from orca_jax.student import huggingface, lora
from orca_jax.student.llama import Params
from orca_jax.student.parameters import per_layer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def save(params: Params, config: LlamaConfig, directory: str | os.PathLike[str], *, base: str = "") -> int:
    """Writes the adapters of `params`; returns how many parameters they have.

    Args:
      base: the model that they adapt, for PEFT to load.

    Raises:
      ValueError: there are none.
    """
    found = lora.adapters(per_layer(params, config)[0])
    if not found:
        raise ValueError("the student has no adapters; train it with student.lora.rank, or export it whole")
    tensors = {
        name: np.ascontiguousarray(np.asarray(leaves[part]).T, np.float32)
        for path, leaves in found.items()
        for part, name in _names(path).items()
    }
    with atomic_write(Path(directory) / WEIGHTS, "wb") as file:
        file.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    with atomic_write(Path(directory) / CONFIG) as file:
        json.dump(_config(config, base), file, indent=2)
        file.write("\n")
    return sum(tensor.size for tensor in tensors.values())


def _names(path: str) -> dict[str, str]:
    """PEFT's names for both parts of the adapter of a layer such as `layer_0/attention/query`."""
    tensor = huggingface.place(f"{path}/kernel").tensor.removesuffix(".weight")
    return {part: f"{PREFIX}{tensor}.{theirs}.weight" for part, theirs in PARTS.items()}


def _config(config: LlamaConfig, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": sorted(map(_module, config.lora.targets)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _module(target: str) -> str:
    """The name of a target's layer in a model folder: `q_proj` for `query`."""
    space = "attention" if target in ("query", "key", "value", "output") else "feed_forward"
    return huggingface.place(f"layer_0/{space}/{target}/kernel").tensor.split(".")[-2]
