"""GGUF files as model folders: a header as a student's config, and tensors read by slices, dequantised.

A header is read as the fields of a config.json, and written from them. llama.cpp's rotary positions turn
neighbouring numbers of `llama` and `smollm3` where Hugging Face's turn halves, so rows of queries and keys
are reordered; and its norms of Gemma have the one added.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax.data.tokenizer_gguf import PREFIX, Header, library, read
from orca_jax.student import llama
from orca_jax.student.huggingface_folder import EMBEDDING, HEAD, UnsupportedModelError, parse
from orca_jax.student.presets import LlamaConfig, RopeScaling

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "smollm3", "olmo2")},
    "gemma3": "gemma3_text",
}
PERMUTED = ("llama", "smollm3")
SQUARE = ("qwen2", "olmo2")  # llama.cpp has no other head_dim than hidden_size / num_attention_heads for them
REQUIRED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# What changes nothing of the way from tokens to logits, beside what is zero or false.
NEUTRAL = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
TOKENS, OUTPUT, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"
OUTSIDE = {TOKENS: EMBEDDING, OUTPUT: HEAD, "output_norm.weight": "model.norm.weight"}
INSIDE = {
    "attn_norm": "input_layernorm",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
# Of those with norms of what attention and feed-forward give.
INSIDE_AFTER = {
    **INSIDE,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER = re.compile(r"(blk|model\.layers)\.(\d+)\.(.+)\.(weight|bias)")
STRETCH = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def names(architecture: str) -> dict[str, str]:
    """A layer's tensors in GGUF, without `blk.N.` and `.weight`, to Hugging Face's."""
    return INSIDE_AFTER if architecture in ("gemma3", "olmo2") else INSIDE


def order(rows: int, head_dim: int) -> np.ndarray:
    """The row of GGUF that each row of Hugging Face's queries or keys is, where they are reordered."""
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def is_permuted(architecture: str, tensor: str) -> bool:
    """Whether the rows of a tensor, by Hugging Face's name, are reordered."""
    return architecture in PERMUTED and re.search(r"self_attn\.[qk]_proj", tensor) is not None


class Gguf:
    """The tensors of a GGUF file under Hugging Face's names, as `Folder` has those of a model folder.

    Raises:
      GgufError: the file is torn.
      UnsupportedModelError: no student here has its architecture.
    """

    def __init__(self, path: Path):
        self.directory = path
        self._header = read(path)
        self._architecture = str(self._header.values.get("general.architecture"))
        if self._architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{path}: general.architecture {self._architecture!r} is not supported; known: "
                f"{', '.join(ARCHITECTURES)}"
            )
        inside = names(self._architecture)
        self._own = {}
        for name in set(self._header.tensors) - {FREQUENCIES}:
            match = LAYER.fullmatch(name)
            local = inside.get(match[3]) if match else None
            theirs = f"model.layers.{match[2]}.{local}.{match[4]}" if match and local else name
            self._own[OUTSIDE.get(name, theirs)] = name
        self.files = dict.fromkeys(self._own, path)

    @functools.cached_property
    def config(self) -> LlamaConfig:
        """The student's config.

        Raises:
          UnsupportedModelError: a key is missing, unknown or has a value that is not supported.
        """
        factors = self._dequantised(FREQUENCIES) if FREQUENCIES in self._header.tensors else None
        try:
            config = parse(fields(self._header, factors))
            if factors is not None and not np.allclose(stretch(config), factors, rtol=1e-4):
                raise UnsupportedModelError(f"{FREQUENCIES} stretches otherwise than Llama 3.1 to 3.3")
        except ValueError as error:
            raise UnsupportedModelError(f"{self.directory}: {error}") from error
        ids = len(self._header.values.get(f"{PREFIX}tokens", ()))
        if config.vocab_size < ids:
            raise UnsupportedModelError(
                f"{self.directory}: its tokenizer has {ids} ids, its embedding {config.vocab_size} rows; it "
                "is made of two models"
            )
        return config

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
          UnsupportedModelError: there is none of that name, or its type is not read.
        """
        if tensor not in self._own:
            raise UnsupportedModelError(f"{self.directory} has no tensor {tensor!r}, nor GGUF's for it")
        found = self._header.tensors[self._own[tensor]]
        if found.type not in TYPES:
            raise UnsupportedModelError(
                f"{self.directory}: {self._own[tensor]!r} is of type {found.type}, not one of "
                f"{', '.join(TYPES)}"
            )
        return found.shape

    def read(self, tensor: str, *index: slice) -> np.ndarray:
        """A slice of a tensor as float32, as numpy slices: nothing past the end."""
        rows: slice | np.ndarray = index[0]
        if is_permuted(self._architecture, tensor):
            rows = order(self.shape(tensor)[0], self.config.head_dim)[rows]
        value = self._dequantised(self._own[tensor], rows)[(slice(None), *index[1:])]
        shifted = self.config.norm_around_one and tensor.endswith("norm.weight")
        return value - np.float32(1) if shifted else value

    def _dequantised(self, name: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Rows of a tensor; only their bytes are read, and their pages released with the array."""
        gguf, found = library(), self._header.tensors[name]
        kind = gguf.GGMLQuantizationType[found.type]
        shape = gguf.quant_shape_to_byte_shape(found.shape, kind)
        raw = np.memmap(self.directory, np.uint8, "r", found.offset, shape if len(shape) > 1 else (1, *shape))
        if len(shape) > 1:
            return np.asarray(gguf.dequantize(np.ascontiguousarray(raw[rows]), kind))
        return np.asarray(gguf.dequantize(raw, kind))[0, rows]


def stretch(config: LlamaConfig) -> np.ndarray:
    """What each rotary frequency is divided by, float32 [head_dim / 2]."""
    plain = llama.frequencies(dataclasses.replace(config, rope_scaling=RopeScaling()))
    return (plain / llama.frequencies(config)).astype(np.float32)


def fields(header: Header, factors: np.ndarray | None = None) -> dict[str, Any]:
    """The fields of a config.json that a header stands for.

    Args:
      factors: what rotary frequencies are divided by, if the file says so.

    Raises:
      ValueError: a key is missing, unknown or has a value that is not supported.
    """
    architecture = header.values["general.architecture"]
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): one for key, one in header.values.items() if key.startswith(prefix)}
    missing = [prefix + name for name in REQUIRED if name not in own]
    missing += [] if TOKENS in header.tensors else [TOKENS]
    if missing:
        raise UnsupportedModelError(f"{missing[0]} is missing")
    if odd := [name for name, value in own.items() if isinstance(value, list)]:
        raise UnsupportedModelError(f"{prefix}{odd[0]} differs by layer, which is not supported")
    found = {field: own.pop(name) for name, field in REQUIRED.items()}
    heads = found["num_attention_heads"]
    head_dim = own.pop("attention.key_length", found["hidden_size"] // heads)
    if architecture in SQUARE and head_dim * heads != found["hidden_size"]:
        raise UnsupportedModelError(
            f"{prefix}attention.key_length ({head_dim}) times heads is no hidden size"
        )
    found |= {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": header.tensors[TOKENS].shape[0],
        "num_key_value_heads": own.pop("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_theta": own.pop("rope.freq_base", 10_000.0),
        "tie_word_embeddings": OUTPUT not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        **_rope_scaling(own, factors if architecture == "llama" else None),
    }
    if architecture == "gemma3":  # what llama.cpp has in its code
        of_27b = found["num_hidden_layers"] == 62
        found["query_pre_attn_scalar"] = found["hidden_size"] // heads if of_27b else head_dim
        found["rope_local_base_freq"] = own.pop("rope.freq_base_swa", 10_000.0)
        found["sliding_window"] = own.pop("attention.sliding_window", None)
    inert = {
        "vocab_size": found["vocab_size"],
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
        "attention.causal": True,
    }
    for name, value in own.items():
        if name not in NEUTRAL and (value != inert[name] if name in inert else value):
            raise UnsupportedModelError(f"{prefix}{name} ({value!r:.60}) is not supported")
    return found


def _rope_scaling(own: dict[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
    kind, factor = own.pop("rope.scaling.type", "none"), own.pop("rope.scaling.factor", 0)
    if factors is not None:
        llama3 = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **STRETCH}
        return {"rope_scaling": llama3}
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(f"rope.scaling.type {kind!r} is not supported; known: none, linear")
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}} if kind == "linear" else {}


def header_values(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A header's values for the fields of a config.json, without the tokenizer; the reverse of `fields`."""
    own = {name: values[field] for name, field in REQUIRED.items()}
    own |= {
        "vocab_size": values["vocab_size"],
        "attention.head_count_kv": values["num_key_value_heads"],
        **dict.fromkeys(("attention.key_length", "attention.value_length"), values["head_dim"]),
        "rope.dimension_count": values["head_dim"],
        "rope.freq_base": values["rope_theta"],
    }
    scaling = values.get("rope_scaling", {})
    if scaling.get("rope_type") == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling["factor"]}
    if architecture == "gemma3":
        own["attention.sliding_window"] = values["sliding_window"] or 0
        own["rope.freq_base_swa"] = values["rope_local_base_freq"]
    named = {f"{architecture}.{name}": value for name, value in own.items()}
    return {"general.architecture": architecture, **named}
