"""Students as GGUF files, which llama.cpp runs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from orca_jax.data.tokenizer_gguf import PREFIX, Header, Tensor, library, metadata
from orca_jax.student import gguf, huggingface, llama, sharding
from orca_jax.student.huggingface_folder import UnsupportedModelError, parse, unparse
from orca_jax.student.presets import RUN, LlamaConfig

# Types of matrices, and llama.cpp's number for a file of them. Norms and biases are float32, as there.
DTYPES = {"float32": ("F32", 0), "float16": ("F16", 1), "bfloat16": ("BF16", 32), "q8_0": ("Q8_0", 7)}


class _Out(NamedTuple):
    """A tensor of the file, of the parameter or constant that it holds."""

    name: str
    type: str
    shape: tuple[int, ...]
    source: huggingface.Tensor | None


def export(
    params: llama.Params,
    config: LlamaConfig,
    path: Path,
    *,
    tokenizer: Mapping[str, str],
    dtype: str = "float32",
    stop: Sequence[int] = (),
) -> int:
    """Writes a student as one file, which appears whole or not at all; one tensor at a time is in memory.

    Args:
      tokenizer: the files of a Hugging Face tokenizer's folder, with the chat template.
      stop: ids that end an answer.

    Returns:
      The number of parameters written.

    Raises:
      UnsupportedModelError: llama.cpp has no architecture that computes this student.
      TokenizerError: it knows no such tokenizer.
      ValueError: the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; known of GGUF: {', '.join(DTYPES)}")
    values = unparse(config)
    by_family = {family: name for name, family in gguf.ARCHITECTURES.items()}
    architecture = by_family.get(values["model_type"], "llama")
    tensors = [*_tensors(params, config, architecture, DTYPES[dtype][0])]
    header = gguf.header_values(architecture, values) | metadata(tokenizer, config.vocab_size)
    _check(config, Header(header, {one.name: Tensor(one.type, one.shape, 0) for one in tensors}))
    if stop and stop[0] != header.get(f"{PREFIX}eos_token_id"):
        header[f"{PREFIX}eot_token_id"] = int(stop[0])
    header |= {"general.type": "model", "general.file_type": DTYPES[dtype][1]}
    header["general.quantization_version"] = library().GGML_QUANT_VERSION
    flat = {sharding.path_name(key): leaf for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    arrays = (_array(one, flat, config, architecture) for one in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write(temporary, header, tensors, arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(math.prod(one.shape) for one in tensors if one.source)


def _tensors(params: llama.Params, config: LlamaConfig, architecture: str, kind: str) -> Iterator[_Out]:
    outside = {theirs: name for name, theirs in gguf.OUTSIDE.items()}
    inside = {theirs: name for name, theirs in gguf.names(architecture).items()}
    for one in sorted(huggingface.tensors(params, config), key=huggingface.order):
        match = gguf.LAYER.fullmatch(one.name)
        name = f"blk.{match[2]}.{inside[match[3]]}.{match[4]}" if match else outside[one.name]
        block = library().GGML_QUANT_SIZES[library().GGMLQuantizationType[kind]][0]
        own = "F32" if len(one.shape) == 1 else "F16" if one.shape[-1] % block else kind
        yield _Out(name, own, one.shape, one)
    if config.rope_scaling.kind == "llama3":
        yield _Out(gguf.FREQUENCIES, "F32", (config.head_dim // 2,), None)


def _check(config: LlamaConfig, header: Header) -> None:
    """Raises UnsupportedModelError if what is written stands for another student."""
    factors = gguf.stretch(config) if gguf.FREQUENCIES in header.tensors else None
    default = LlamaConfig(vocab_size=1)
    wanted = dataclasses.replace(
        config, **{name: getattr(default, name) for name in ("vocab_multiple", *RUN)}
    )
    if (found := parse(gguf.fields(header, factors))) != wanted:
        names = [one.name for one in dataclasses.fields(config)]
        differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
        raise UnsupportedModelError(
            f"GGUF has no way to say this student's {differing[0]}={getattr(config, differing[0])!r:.80} of "
            f"architecture {header.values['general.architecture']}"
        )


def _array(one: _Out, flat: Mapping[str, jax.Array], config: LlamaConfig, architecture: str) -> np.ndarray:
    """A tensor's numbers, float32, as llama.cpp has them."""
    if one.source is None:
        return gguf.stretch(config)
    value = huggingface.value(flat, one.source, np.dtype(np.float32))
    if gguf.is_permuted(architecture, one.source.name):
        value[gguf.order(len(value), config.head_dim)] = value.copy()
    shifted = config.norm_around_one and one.name.endswith("norm.weight")
    return value + np.float32(1) if shifted else value


def _write(
    path: Path, header: Mapping[str, Any], tensors: Sequence[_Out], arrays: Iterator[np.ndarray]
) -> None:
    package = library()
    kinds = [package.GGMLQuantizationType[one.type] for one in tensors]
    types = package.GGUFValueType
    with contextlib.closing(package.GGUFWriter(path, header["general.architecture"])) as writer:
        for name, value in header.items():
            if isinstance(value, list):
                writer.add_array(name, value)
            elif name != "general.architecture":  # which the writer has
                unsigned = isinstance(value, int) and not isinstance(value, bool)
                writer.add_key_value(name, value, types.UINT32 if unsigned else types.get_type(value))
        for one, kind in zip(tensors, kinds):
            size = math.prod(package.quant_shape_to_byte_shape(one.shape, kind))
            writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array, kind in zip(arrays, kinds):
            writer.write_tensor_data(package.quantize(array, kind))
