"""Hugging Face's config.json to a student's config and back; what is not supported is refused by name."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orca_jax.config import LlamaConfig, RopeScaling
from orca_jax.config_check import build
from orca_jax.student.huggingface_folder import UnsupportedModelError, has_own_head

log = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Fields that say nothing about the function from tokens to logits.
NEUTRAL = {
    "_attn_implementation", "_attn_implementation_autoset", "_model_name_or_path", "_name_or_path",
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label",
    "initializer_range", "is_llama_config", "label2id", "max_sequence_length", "max_window_layers",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "torch_dtype", "transformers_version", "unk_token_id", "unsloth_version", "use_cache",
}  # fmt: skip
SHAPE = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
}  # fmt: skip
# Fields that are read; each is looked at below.
READ = {
    "model_type", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
    "tie_word_embeddings", "attention_bias", "sliding_window", "use_sliding_window", "layer_types",
    "rms_norm_eps",
}  # fmt: skip
# Fields that may only say what every student here does.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "attention_dropout": (0, 0.0, None),
    "hidden_dropout": (0, 0.0, None),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False, None),
}
ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_length",
}


def read_config(directory: str | os.PathLike[str]) -> LlamaConfig:
    """The student's config of a Hugging Face model folder.

    A head that differs from the embedding is kept, though the file may say that they are tied, as
    transformers does.

    Raises:
      UnsupportedModelError: a field is missing, unknown or has a value that is not supported.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedModelError(
            f"{directory} has no {CONFIG_FILE}: no Hugging Face model folder"
        ) from None
    except json.JSONDecodeError as error:
        raise UnsupportedModelError(f"{path} is not JSON ({error}); fetch it again") from error
    try:
        config = parse(values)
    except ValueError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    if config.tie_embeddings and has_own_head(directory):
        log.warning("%s says tie_word_embeddings, but the weights have a head of their own: it is used", path)
        return dataclasses.replace(config, tie_embeddings=False)
    return config


def parse(values: Mapping[str, Any]) -> LlamaConfig:
    """`read_config` of what the file says."""
    family = values.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModelError(f"model_type {family!r} is not supported; known: {', '.join(FAMILIES)}")
    _check_fields(values)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    biased = bool(values.get("attention_bias", family == "qwen2"))
    shape = dict(
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        rope_theta=_rope(values).get("rope_theta", 10_000.0),
        norm_epsilon=values.get("rms_norm_eps", 1e-6),
        rope_scaling=dataclasses.asdict(_rope_scaling(values)),
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=biased,
        output_bias=biased and family == "llama",
        sliding_window=_window(values),
        max_positions=values["max_position_embeddings"],
    )
    return build(LlamaConfig, shape)


def _check_fields(values: Mapping[str, Any]) -> None:
    missing = sorted(SHAPE - set(values))
    if missing:
        raise UnsupportedModelError(f"field {missing[0]!r} is missing")
    for name, value in values.items():
        if name in FIXED:
            if value not in FIXED[name]:
                raise UnsupportedModelError(f"{name}={value!r} is not supported, only {FIXED[name][0]!r}")
        elif name not in NEUTRAL | SHAPE | READ:
            raise UnsupportedModelError(f"field {name!r} ({value!r:.60}) is unknown, and none is ignored")


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of the present form (`rope_parameters`) or of the one before, as one mapping."""
    before = {**(values.get("rope_scaling") or {})}
    if "rope_theta" in values:
        before["rope_theta"] = values["rope_theta"]
    return {**before, **(values.get("rope_parameters") or {})}


def _rope_scaling(values: Mapping[str, Any]) -> RopeScaling:
    rope = _rope(values)
    kind = rope.pop("rope_type", None) or rope.get("type", "default")
    rope = {name: value for name, value in rope.items() if name not in ("type", "rope_theta")}
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("rope_parameters.partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return RopeScaling()
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"rope_type {kind!r} is not supported; known: default, linear, llama3")
    unknown = sorted(set(rope) - set(ROPE_FIELDS))
    if unknown:
        raise UnsupportedModelError(f"rope scaling field {unknown[0]!r} is unknown, and none is ignored")
    if kind == "llama3" and (missing := sorted(set(ROPE_FIELDS) - set(rope))):
        raise UnsupportedModelError(f"rope scaling field {missing[0]!r} is missing")
    given = {ROPE_FIELDS[name]: value for name, value in rope.items()}
    return build(RopeScaling, {"kind": kind, **given}, "rope_scaling")


def _window(values: Mapping[str, Any]) -> int:
    """The sliding window of every layer; 0 where there is none."""
    if not values.get("use_sliding_window", values["model_type"] == "mistral"):
        return 0
    kinds = set(values.get("layer_types") or ["sliding_attention"])
    if kinds != {"sliding_attention"} or values["model_type"] != "mistral":
        raise UnsupportedModelError("layers that differ in their sliding window are not supported")
    return values.get("sliding_window") or 0


def family_of(config: LlamaConfig) -> str:
    """The model type whose code computes this student.

    Raises:
      UnsupportedModelError: no one family has all its features.
    """
    if config.qkv_bias and not config.output_bias:
        family = "qwen2"
    else:
        family = "mistral" if config.sliding_window else "llama"
    if config.sliding_window and (config.qkv_bias or config.output_bias):
        raise UnsupportedModelError("no Hugging Face family has both biases and a sliding window everywhere")
    if config.output_bias and not config.qkv_bias:
        raise UnsupportedModelError("no Hugging Face family has output_bias without qkv_bias")
    return family


def unparse(config: LlamaConfig) -> dict[str, Any]:
    """config.json of a student, in the present form of rotary settings and the one before."""
    family = family_of(config)
    scaling = config.rope_scaling
    names = ROPE_FIELDS if scaling.kind == "llama3" else {"factor": "factor"}
    stretch = {name: getattr(scaling, ours) for name, ours in names.items()}
    stretched = {} if scaling.kind == "none" else {"rope_type": scaling.kind, **stretch}
    values = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **stretched},
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
    if stretched:
        values["rope_scaling"] = stretched
    if family == "llama":
        values |= {"attention_bias": config.qkv_bias, "mlp_bias": False}
    if family == "mistral":
        values["sliding_window"] = config.sliding_window
    if parse(values) != dataclasses.replace(config, **_running(LlamaConfig(vocab_size=1))):
        raise UnsupportedModelError(f"{family}'s config.json cannot say {config}")
    return values


def _running(config: LlamaConfig) -> dict[str, Any]:
    """The settings that say how a student is run, and change no logit."""
    return {
        name: getattr(config, name)
        for name in ("vocab_multiple", "lora", "attention", "scan_layers", "remat")
    }
