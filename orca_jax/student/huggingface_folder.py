"""What a Hugging Face model folder holds: config.json as a student's config, and tensors read by slices.

Nothing is guessed: a field of config.json that could change the way from tokens to logits is understood or
refused, and a damaged file raises `UnsupportedModelError`; both are named.
Only `.safetensors` are read. Files are chosen as transformers chooses them: `model.safetensors` is preferred
to an index. Which file holds a tensor is read from the files' headers, which cannot be out of date.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from orca_jax.config_check import build
from orca_jax.student.presets import GEMMA3, OLMO2, RUN, LayerType, LlamaConfig, layer_pattern

log = logging.getLogger(__name__)
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FLOATS = ("BF16", "F16", "F32", "F64")  # other types hold quantised codes
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK_ROWS = 4096  # rows of an embedding read at a time
CONFIG_FILE = "config.json"


class Family(NamedTuple):
    """A model type of transformers.

    Attributes:
      architecture: the class of its weights.
      defaults: values of fields that a config.json may leave out, as transformers has them.
      traits: keys of `LlamaConfig` that all its models have.
    """

    architecture: str
    defaults: Mapping[str, Any]
    traits: Mapping[str, Any] = {}


_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA3 = {
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
    "sliding_window": 4096, "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
_SMOLLM3 = {
    "num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6, "no_rope_layer_interval": 4,
}  # fmt: skip
FAMILIES = {
    "llama": Family("LlamaForCausalLM", {}),
    "mistral": Family("MistralForCausalLM", {"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", {"num_key_value_heads": 32, "attention_bias": True, **_WINDOW}),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 32, "head_dim": 128, **_WINDOW},
        {"query_key_norm": "head"},
    ),
    "smollm3": Family("SmolLM3ForCausalLM", _SMOLLM3),
    "olmo2": Family("Olmo2ForCausalLM", {"rms_norm_eps": 1e-5}, OLMO2),
    "gemma3_text": Family("Gemma3ForCausalLM", _GEMMA3, GEMMA3),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
# Fields that do not change the function from tokens to logits: notes of tools and hubs, settings of training,
# of sampling and of what is returned. Token ids are the tokenizer's matter.
NEUTRAL = re.compile(
    r"_(?!sliding_window_pattern$).*|.*token_(ids?|index)|transformers\.js_config|unsloth.*|auto_map"
    r"|(torch_)?dtype|transformers_version|tokenizer_class|id2label|label2id|problem_type|initializer_range"
    r"|use_cache|cache_implementation|output_\w+|return_dict\w*|chunk_size_feed_forward|pretraining_tp"
    r"|is_llama_config|max_sequence_length|model_max_length|task_specific_params"
    r"|do_sample|temperature|top_[kp]|repetition_penalty|(max|min)_length|attention_dropout|hidden_dropout"
)
SHAPE = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
}  # fmt: skip
# Fields that `parse` reads.
READ = {
    "model_type", "max_position_embeddings", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling",
    "rope_parameters", "rope_local_base_freq", "tie_word_embeddings", "attention_bias", "sliding_window",
    "use_sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern",
    "max_window_layers", "architectures", "no_rope_layers", "no_rope_layer_interval", "query_pre_attn_scalar",
    "rms_norm_eps", "hidden_act", "hidden_activation",
}  # fmt: skip
LAYER_TYPES: Mapping[str, LayerType] = {"full_attention": "full", "sliding_attention": "window"}
# Fields with one value that changes nothing, beside null.
INERT = {
    "partial_rotary_factor": 1, "attention_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1,
    "is_causal": True,
}  # fmt: skip
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
        self.files: dict[str, Path] = {}
        for shard in self._shards():
            with self._open(shard) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping, and cannot be iterated)
                    if name in self.files:
                        raise UnsupportedModelError(
                            f"{self.files[name]} and {shard.name} both hold {name!r}; fetch the folder again"
                        )
                    self.files[name] = shard

    @property
    def config(self) -> LlamaConfig:
        """The student's config, as `read_config` reads it."""
        return read_config(self.directory)

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
    passed = ", ".join(sorted(set(values) - SHAPE - READ))
    log.info("%s: passed over, since they change no logit: %s", path, passed or "no field")
    if config.tie_embeddings and has_own_head(directory):
        log.warning("%s says tie_word_embeddings, but the weights have a head of their own: it is used", path)
        return dataclasses.replace(config, tie_embeddings=False)
    return config


def parse(values: Mapping[str, Any]) -> LlamaConfig:
    """The student's config for the fields of a config.json. Raises as `read_config`."""
    name = values.get("model_type")
    if name not in FAMILIES:
        raise UnsupportedModelError(f"model_type {name!r} is not supported; known: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    _check_fields(values, family)
    values = {**family.defaults, **values}
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    biased = bool(values.get("attention_bias"))
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
        output_bias=biased and name != "qwen2",
        query_scalar=float(values.get("query_pre_attn_scalar", 0)),
        **_layer_types(values),
        max_positions=values.get("max_position_embeddings", 2048),
    )
    return build(LlamaConfig, {**found, **family.traits})


def _check_fields(values: Mapping[str, Any], family: Family) -> None:
    """Refuses a field that could change the way from tokens to logits and that nothing here reads."""
    missing = sorted(SHAPE - set(values))
    if missing:
        raise UnsupportedModelError(f"field {missing[0]!r} is missing")
    if values.get("quantization_config") is not None:
        method = dict(values["quantization_config"]).get("quant_method", "an unnamed method")
        raise UnsupportedModelError(
            f"quantization_config: the weights are quantised by {method}, which is not read here; fetch the "
            "model in float32, bfloat16 or float16, from which such a folder was made"
        )
    classes = values.get("architectures") or ["ForCausalLM"]
    if not any(name.endswith("ForCausalLM") for name in classes):
        raise UnsupportedModelError(
            f"architectures: {classes[0]} predicts no next token, or has another head"
        )
    for name, value in values.items():
        off = value is None or (value == INERT[name] if name in INERT else value is False)
        if name not in SHAPE | READ and not off and not NEUTRAL.fullmatch(name):
            raise UnsupportedModelError(
                f"field {name!r} ({value!r:.60}) is not supported, and could change what the model computes"
            )
    own = family.traits.get("activation", "silu")
    for name in ("hidden_act", "hidden_activation"):
        if (value := values.get(name)) is not None and ACTIVATIONS.get(value) != own:
            known = " or ".join(repr(known) for known, ours in ACTIVATIONS.items() if ours == own)
            raise UnsupportedModelError(f"{name}={value!r} is not supported, only {known}")


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of rotary positions of a config, from `rope_parameters` or the older fields."""
    plain = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    new = values.get("rope_parameters") or {}
    full = new.get("full_attention", {} if "sliding_attention" in new else new)
    found = _stretch({**plain, **(values.get("rope_scaling") or {}), **full})
    if "rope_local_base_freq" not in values:
        return found
    windowed = _stretch({"rope_theta": values["rope_local_base_freq"], **new.get("sliding_attention", {})})
    if "rope_scaling" in windowed:
        raise UnsupportedModelError("rope_parameters.sliding_attention: only rope_type default is supported")
    return {**found, "window_rope_theta": windowed["rope_theta"]}


def _stretch(rope: dict[str, Any]) -> dict[str, Any]:
    """The keys `rope_theta` and `rope_scaling` for one set of rotary settings."""
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


def _layer_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys `sliding_window` and `layer_types`: only windows that some layer has."""
    family, count = values["model_type"], values["num_hidden_layers"]
    window = values.get("sliding_window") or 0
    if family in ("qwen2", "qwen3", "smollm3") and not values.get("use_sliding_window"):
        window = 0
    named = values.get("layer_types")
    types: tuple[LayerType, ...]
    if named and (unknown := sorted(set(named) - set(LAYER_TYPES))):
        raise UnsupportedModelError(
            f"layer_types: {unknown[0]!r} is not supported; known: {', '.join(LAYER_TYPES)}"
        )
    if named:
        types = tuple(LAYER_TYPES[name] for name in named)
    elif family == "gemma3_text":
        pattern = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or 6
        types = layer_pattern(count, pattern, "window", "full")
    elif family in ("qwen2", "qwen3"):
        types = tuple("full" if layer < values["max_window_layers"] else "window" for layer in range(count))
    else:
        types = (LAYER_TYPES["sliding_attention" if family == "mistral" else "full_attention"],) * count
    if not window:
        types = tuple("full" for _ in types)
    if family == "smollm3":
        if "window" in types:
            raise UnsupportedModelError("use_sliding_window=True is not supported for smollm3")
        turned = values.get("no_rope_layers")  # 0 for a layer without rotary positions
        types = tuple("full" if one else "no_rope" for one in (turned or ())[:count])
        if turned is None:
            types = layer_pattern(count, values["no_rope_layer_interval"], "full", "no_rope")
    if "window" not in types:
        window = 0
    plain = set(types) in ({"full"}, {"window"})
    return {"sliding_window": window, "layer_types": () if plain and len(types) == count else types}


def _family(config: LlamaConfig) -> str:
    """The family that may compute this student."""
    if config.norms != "before":
        return "gemma3_text" if config.norms == "both" else "olmo2"
    if config.query_key_norm == "head":
        return "qwen3"
    if "no_rope" in config.layer_types:
        return "smollm3"
    if config.qkv_bias and not config.output_bias:
        return "qwen2"
    return "mistral" if config.sliding_window else "llama"


def unparse(config: LlamaConfig) -> dict[str, Any]:
    """The fields of a student's config.json, with rotary settings in the current and the older form.

    Raises:
      UnsupportedModelError: no Hugging Face family computes this student.
    """
    family, scaling = _family(config), config.rope_scaling
    names = ROPE_FIELDS if scaling.kind == "llama3" else {"factor": "factor"}
    stretch = {name: getattr(scaling, ours) for name, ours in names.items()}
    stretched = {} if scaling.kind == "none" else {"rope_type": scaling.kind, **stretch}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, **stretched}
    values = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
    if stretched:
        values["rope_scaling"] = stretched
    if family == "gemma3_text":
        windowed = {"rope_type": "default", "rope_theta": config.window_rope_theta}
        values |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": int(config.query_scalar),
            "rope_local_base_freq": config.window_rope_theta,
            "rope_parameters": {"full_attention": rope, "sliding_attention": windowed},
        }
    else:
        values["hidden_act"] = "silu"
    if family not in ("qwen2", "mistral"):  # whose biases are not to choose
        values["attention_bias"] = config.qkv_bias
    if family in ("llama", "smollm3"):
        values["mlp_bias"] = False
    if family in ("qwen2", "qwen3", "smollm3"):
        values["use_sliding_window"] = config.sliding_window > 0
        values["max_window_layers"] = config.num_layers
    if family != "mistral" and family != "llama":
        values["layer_types"] = [
            "sliding_attention" if kind == "window" else "full_attention" for kind in config.types
        ]
    if family == "smollm3":
        values["no_rope_layers"] = [int(kind != "no_rope") for kind in config.types]
    if config.sliding_window or family == "gemma3_text":
        values["sliding_window"] = config.sliding_window or None
    default = LlamaConfig(vocab_size=1)
    run = {name: getattr(default, name) for name in ("vocab_multiple", *RUN)}  # these change no logit
    if parse(values) != dataclasses.replace(config, **run):
        raise UnsupportedModelError(
            f"no Hugging Face family computes this student; {family} comes near: {config}"
        )
    return values
