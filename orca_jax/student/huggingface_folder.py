"""What a Hugging Face model folder holds: config.json as a student's config, and tensors read by slices.

Nothing is guessed: an unknown field or value, or a damaged file, raises `UnsupportedModelError` and is named.
Only `.safetensors` are read. Files are chosen as transformers chooses them: `model.safetensors` is preferred
to an index. Which file holds a tensor is read from the files' headers, which cannot be out of date.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from orca_jax.config_check import build
from orca_jax.student.presets import RUN, LlamaConfig

log = logging.getLogger(__name__)
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FLOATS = ("BF16", "F16", "F32", "F64")  # other types hold quantised codes
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK_ROWS = 4096  # rows of an embedding read at a time
CONFIG_FILE = "config.json"
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Fields that do not change the function from tokens to logits.
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
# Fields that `parse` reads.
READ = {
    "model_type", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
    "tie_word_embeddings", "attention_bias", "sliding_window", "use_sliding_window", "layer_types",
    "rms_norm_eps",
}  # fmt: skip
# Fields that are accepted only with these values, the ones this code implements.
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


class UnsupportedModelError(ValueError):
    """A model folder is damaged or needs an unsupported feature; names the field, file or tensor."""


# Tensors


class Folder:
    """The tensors of a model folder; `files` maps each to its file.

    Raises:
      UnsupportedModelError: it has no safetensors, one cannot be read, or two hold the same tensor.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        self._index: Mapping[str, str] = {}
        self.files = self._by_tensor(self._shards())

    def _shards(self) -> Iterable[Path]:
        index, single = self.directory / INDEX, self.directory / SINGLE
        if (self.directory / ADAPTER).is_file():
            raise UnsupportedModelError(
                f"{self.directory} has an {ADAPTER}: adapters are not read here; merge them into their "
                "model first (PEFT's merge_and_unload), or remove its files"
            )
        if single.is_file():
            if index.is_file():
                log.warning("%s is not read, since %s is there, as transformers does it", index, SINGLE)
            return [single]
        if index.is_file():
            try:
                self._index = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (KeyError, TypeError, ValueError) as error:
                raise UnsupportedModelError(
                    f"{index} has no weight_map ({error!r}); fetch it again"
                ) from error
            return [self.directory / name for name in sorted(set(self._index.values()))]
        pickled = sorted(path.name for path in self.directory.glob("*.bin"))
        advice = f"; {pickled[0]} is a pickle, never read here: see docs/students.md" if pickled else ""
        raise UnsupportedModelError(f"{self.directory} has neither {SINGLE} nor {INDEX}{advice}")

    def _by_tensor(self, shards: Iterable[Path]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for shard in shards:
            with self._open(shard) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping, and cannot be iterated)
                    if name in files:
                        raise UnsupportedModelError(
                            f"{files[name]} and {shard.name} both hold {name!r}; fetch the folder again"
                        )
                    files[name] = shard
        return files

    def _open(self, path: Path) -> Any:
        try:
            return safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError) as error:
            raise UnsupportedModelError(f"{path} cannot be read ({error}); fetch it again") from error

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
          UnsupportedModelError: there is none of that name, or its numbers are not floats.
        """
        if tensor not in self.files:
            where = f", though {INDEX} names {self._index[tensor]} for it" if tensor in self._index else ""
            raise UnsupportedModelError(f"{self.directory} has no tensor {tensor!r}{where}")
        with self._open(self.files[tensor]) as file:
            found = file.get_slice(tensor)
            if found.get_dtype() not in FLOATS:
                raise UnsupportedModelError(
                    f"{self.files[tensor]}: {tensor!r} is of type {found.get_dtype()}, not one of "
                    f"{', '.join(FLOATS)}; quantised weights are not read, fetch those that were not"
                )
            return tuple(found.get_shape())

    def read(self, tensor: str, *index: slice) -> np.ndarray:
        """A slice of a tensor in the file's dtype, as numpy slices: nothing past the end.

        The file is closed again, which releases its pages.
        """
        with self._open(self.files[tensor]) as file:
            found = file.get_slice(tensor)
            inside = tuple(slice(*one.indices(size)) for one, size in zip(index, found.get_shape()))
            if inside[0].start == inside[0].stop:  # which safetensors refuses
                return np.zeros([one.stop - one.start for one in inside], np.float32)
            return np.asarray(found[inside if len(inside) > 1 else inside[0]])


def has_own_head(directory: str | os.PathLike[str]) -> bool:
    """Whether the folder has an output head that differs from the embedding."""
    if not any((Path(directory) / name).is_file() for name in (SINGLE, INDEX)):
        return False
    folder = Folder(directory)
    if not {EMBEDDING, HEAD} <= set(folder.files):
        return False
    rows = folder.shape(EMBEDDING)[0]
    blocks = (slice(start, start + BLOCK_ROWS) for start in range(0, rows, BLOCK_ROWS))
    return folder.shape(HEAD) != folder.shape(EMBEDDING) or not all(
        np.array_equal(folder.read(EMBEDDING, block), folder.read(HEAD, block)) for block in blocks
    )


# config.json


def read_config(directory: str | os.PathLike[str]) -> LlamaConfig:
    """The student's config of a Hugging Face model folder.

    As in transformers, a head that differs from the embedding is kept even if the file says that they are
    tied.

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
    """The student's config for the fields of a config.json. Raises as `read_config`."""
    family = values.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModelError(f"model_type {family!r} is not supported; known: {', '.join(FAMILIES)}")
    _check_fields(values)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    biased = bool(values.get("attention_bias", family == "qwen2"))
    found = dict(
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        norm_epsilon=values.get("rms_norm_eps", 1e-6),
        **_rope(values),
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=biased,
        output_bias=biased and family == "llama",
        sliding_window=_window(values),
        max_positions=values["max_position_embeddings"],
    )
    return build(LlamaConfig, found)


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
    """The keys `rope_theta` and `rope_scaling` of a config, from `rope_parameters` or the older fields."""
    theta = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    rope = {**(values.get("rope_scaling") or {}), **theta, **(values.get("rope_parameters") or {})}
    found = {"rope_theta": rope.pop("rope_theta", 10_000.0)}
    old_kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", None) or old_kind
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("rope_parameters.partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return found
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"rope_type {kind!r} is not supported; known: default, linear, llama3")
    if unknown := sorted(set(rope) - set(ROPE_FIELDS)):
        raise UnsupportedModelError(f"rope scaling field {unknown[0]!r} is unknown, and none is ignored")
    if kind == "llama3" and (missing := sorted(set(ROPE_FIELDS) - set(rope))):
        raise UnsupportedModelError(f"rope scaling field {missing[0]!r} is missing")
    return {**found, "rope_scaling": {"kind": kind, **{ROPE_FIELDS[name]: rope[name] for name in rope}}}


def _window(values: Mapping[str, Any]) -> int:
    """The sliding window of every layer; 0 where there is none."""
    if not values.get("use_sliding_window", values["model_type"] == "mistral"):
        return 0
    kinds = set(values.get("layer_types") or ["sliding_attention"])
    if kinds != {"sliding_attention"} or values["model_type"] != "mistral":
        raise UnsupportedModelError("layers that differ in their sliding window are not supported")
    return values.get("sliding_window") or 0


def unparse(config: LlamaConfig) -> dict[str, Any]:
    """The fields of a student's config.json, with rotary settings in the current and the older form.

    Raises:
      UnsupportedModelError: no Hugging Face family computes this student.
    """
    if config.sliding_window and (config.qkv_bias or config.output_bias):
        raise UnsupportedModelError("no Hugging Face family has both biases and a sliding window everywhere")
    if config.output_bias and not config.qkv_bias:
        raise UnsupportedModelError("no Hugging Face family has output_bias without qkv_bias")
    qwen = config.qkv_bias and not config.output_bias
    family = "qwen2" if qwen else "mistral" if config.sliding_window else "llama"
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
    default = LlamaConfig(vocab_size=1)
    run = {name: getattr(default, name) for name in ("vocab_multiple", *RUN)}  # these change no logit
    if parse(values) != dataclasses.replace(config, **run):
        raise UnsupportedModelError(f"{family}'s config.json cannot say {config}")
    return values
