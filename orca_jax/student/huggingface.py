"""Loading Hugging Face weights to device shards, and exporting students and adapters.

A model folder has [out, in] tensors, one for each layer; a student's kernels are [in, out] and, with
`scan_layers`, stacked. Each process reads only the slices that its devices hold.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from orca_jax.artifacts import atomic_write
from orca_jax.data.tokenizer_gguf import find
from orca_jax.student import llama, sharding
from orca_jax.student.gguf import Gguf
from orca_jax.student.huggingface_folder import (
    ADAPTER,
    BLOCK_ROWS,
    CONFIG_FILE,
    EMBEDDING,
    HEAD,
    INDEX,
    SINGLE,
    Folder,
    UnsupportedModelError,
    unparse,
)
from orca_jax.student.parameters import VOCABULARY, dtype_of, per_layer
from orca_jax.student.presets import LlamaConfig

SHARD_BYTES = 2 << 30  # of an exported model's files, and the memory that an export needs
DTYPES = {name: jnp.dtype(name) for name in ("float32", "bfloat16", "float16")}
LAYER = re.compile(r"^layers/|^layer_(\d+)/")
TENSORS = {
    "embed/embedding": EMBEDDING,
    "unembed": HEAD,
    "norm/scale": "model.norm.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "attention_out_norm/scale": "post_attention_layernorm.weight",
    "feed_forward_norm/scale": "pre_feedforward_layernorm.weight",
    "feed_forward_out_norm/scale": "post_feedforward_layernorm.weight",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    **{
        f"attention/{ours}/{kind}": f"self_attn.{theirs}_proj.{name}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
        for kind, name in (("kernel", "weight"), ("bias", "bias"))
    },
    **{f"feed_forward/{name}/kernel": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # computed, not learned; old files carry it
PEFT_PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


class _Place(NamedTuple):
    """The tensor of a parameter, or of one layer of it, and whether that is the transpose."""

    tensor: str
    transposed: bool


def place(path: str, config: LlamaConfig, layer: int | str | None = None) -> _Place:
    """The tensor of a parameter's path; `layer` picks one of a stacked parameter."""
    match = LAYER.match(path)
    local = path[match.end() :] if match else path
    number = layer if match and match.group(1) is None else match and match.group(1)
    prefix = "" if match is None else f"model.layers.{number}."
    # Where a layer has two norms, the second is named by what lies before it.
    same = local == "feed_forward_norm/scale" and config.norms == "before"
    name = TENSORS["attention_out_norm/scale" if same else local]
    return _Place(prefix + name, local == "unembed" or local.endswith("kernel"))


def load(
    directory: str | os.PathLike[str], config: LlamaConfig, mesh: Mesh, dtype: Any = np.float32
) -> llama.Params:
    """Parameters of a model folder or a GGUF file on the mesh; a process reads what its devices hold.

    Matrices get the type `dtype`, norms float32: see `parameters.dtype_of`.
    Vocabulary rows that the folder does not have are initialised to the mean of its rows.

    Raises:
      UnsupportedModelError: a tensor is missing, of another shape than config.json says, no floats, not
        finite, or left over; or `config` has fewer ids than the folder.
    """
    file = find(directory)
    folder = Gguf(file) if file else Folder(directory)
    shapes = jax.eval_shape(lambda: llama.init(config, 0))
    _check(folder, shapes, config)

    def array(key: Any, leaf: jax.ShapeDtypeStruct, where: Any) -> jax.Array:
        path = sharding.path_name(key)

        @functools.lru_cache(maxsize=1)  # replicas request the same part one after the other
        def part(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
            index = tuple(slice(*bound) for bound in bounds)
            return _part(folder, config, path, index, dtype_of(path, dtype))

        def callback(index: Any) -> np.ndarray:
            return part(tuple(one.indices(size)[:2] for one, size in zip(index, leaf.shape, strict=True)))

        return jax.make_array_from_callback(leaf.shape, where, callback)

    return jax.tree_util.tree_map_with_path(array, shapes, sharding.shardings(shapes, mesh))


def _check(folder: Folder | Gguf, shapes: llama.Params, config: LlamaConfig) -> None:
    own = folder.config
    if config.vocab_size < own.vocab_size:
        raise UnsupportedModelError(
            f"{folder.directory} has {own.vocab_size} ids, more than the {config.vocab_size} that are wanted"
        )
    as_saved = dataclasses.replace(config, vocab_size=own.vocab_size)
    expected = {tensor.name: tensor.shape for tensor in tensors(shapes, as_saved)}
    for tensor, shape in expected.items():
        found = folder.shape(tensor)
        if found != shape:
            raise UnsupportedModelError(
                f"{folder.files[tensor]}: {tensor!r} has shape {found}, not {shape} as its config says: "
                "weights and config are of different models; fetch the folder again"
            )
    tied = {HEAD} if own.tie_embeddings else set()
    for name in sorted(set(folder.files) - set(expected) - tied):
        if not BUFFERS.search(name):
            file = folder.files[name]
            raise UnsupportedModelError(f"{file} has a tensor {name!r} that no student here uses")


class Tensor(NamedTuple):
    """One tensor of a model folder, and the parameter (or layer of a stacked one) that it holds."""

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None
    transposed: bool


def tensors(params: llama.Params, config: LlamaConfig) -> Iterator[Tensor]:
    """The tensors of a model folder for parameters, or for their shapes."""
    for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = sharding.path_name(key)
        stacked = path.startswith("layers/")
        for layer in range(config.num_layers) if stacked else (None,):
            name, transposed = place(path, config, layer)
            shape = leaf.shape[1:] if stacked else leaf.shape
            shape = shape[::-1] if transposed else shape
            shape = (config.vocab_size, config.hidden_size) if path in VOCABULARY else shape
            yield Tensor(name, shape, path, layer, transposed)


def _part(
    folder: Folder | Gguf, config: LlamaConfig, path: str, index: tuple[slice, ...], dtype: Any
) -> np.ndarray:
    """A part of one parameter, finite."""
    if path.startswith("layers/"):
        value = np.empty([one.stop - one.start for one in index], dtype)
        for row, layer in zip(value, range(index[0].start, index[0].stop), strict=True):
            row[...] = _read(folder, place(path, config, layer), index[1:])
    else:
        value = _read(folder, place(path, config), index).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(value.sum(dtype=np.float32))  # its sum tells in one pass
    if suspect and not np.isfinite(value).all():
        tensor = place(path, config, "*").tensor
        raise UnsupportedModelError(f"{folder.directory}: {tensor} holds NaN or infinity; fetch it again")
    return value


def _read(folder: Folder | Gguf, where: _Place, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a parameter; vocabulary rows that the folder lacks are the mean row, summed in float64."""
    rows, *columns = index[::-1] if where.transposed else index
    found = folder.read(where.tensor, rows, *columns)
    if missing := rows.stop - rows.start - len(found):
        saved, total = folder.shape(where.tensor)[0], np.float64(0)
        for start in range(0, saved, BLOCK_ROWS):
            block = folder.read(where.tensor, slice(start, start + BLOCK_ROWS), *columns)
            total = total + block.astype(np.float64).sum(axis=0)
        mean = np.broadcast_to(total / saved, (missing, *found.shape[1:]))
        found = np.concatenate([found.astype(np.float32), mean.astype(np.float32)])
    return found.T if where.transposed else found


# Export


def export(
    params: llama.Params,
    config: LlamaConfig,
    directory: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    special: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes safetensors shards with their index, config.json and generation_config.json.

    One shard at a time is in memory. The vocabulary's padding is cut off. A tied head is not written.

    Args:
      special: `bos_token_id`, `eos_token_id` (the one trained to end an answer) and `pad_token_id`.

    Returns:
      The number of parameters written.

    Raises:
      UnsupportedModelError: no Hugging Face family computes this student.
      ValueError: the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; known: {', '.join(DTYPES)}")
    kind = DTYPES[dtype]
    unnamed = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # transformers would guess them
    directory, values = Path(directory), {**unparse(config), **unnamed, "dtype": dtype, **(special or {})}
    flat = {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in sorted(tensors(params, config), key=order):
        needed = math.prod(tensor.shape) * kind.itemsize
        if shards[-1] and size + needed > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += needed
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip([SINGLE] if len(shards) == 1 else names, shards, strict=True):
        _write_shard(directory / name, {tensor.name: value(flat, tensor, kind) for tensor in shard})
    count = sum(math.prod(tensor.shape) for shard in shards for tensor in shard)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
        write_index(directory, weight_map, {"total_size": count * kind.itemsize})
    _write_json(directory / CONFIG_FILE, values)
    _write_json(directory / "generation_config.json", {"do_sample": False, **(special or {})})
    return count


def order(tensor: Tensor) -> list[int]:
    """Tensors outside of layers first, then layer by layer."""
    return [int(part) if part.isdigit() else -1 for part in tensor.name.split(".")]


def value(flat: Mapping[str, jax.Array], tensor: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    """A tensor's numbers, of parameters by their paths."""
    leaf = flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer]
    whole = np.asarray(leaf).T if tensor.transposed else np.asarray(leaf)
    # Fewer rows than the parameter's where the vocabulary is padded.
    return np.ascontiguousarray(whole[: tensor.shape[0]]).astype(dtype)


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        os.chmod(temporary, 0o644)  # safetensors lets nobody else read it
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_index(directory: Path, weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    """Writes the index: `weight_map` from tensors to files, and `metadata`."""
    _write_json(directory / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
        file.write("\n")


# Adapters


def export_adapters(params: llama.Params, config: LlamaConfig, directory: str | os.PathLike[str]) -> int:
    """Writes the adapters of `params` in PEFT's format; returns how many parameters they have.

    Raises:
      ValueError: there are none.
    """
    tensors, modules = {}, set()
    for key, leaf in jax.tree_util.tree_flatten_with_path(per_layer(params, config)[0])[0]:
        layer, _, part = sharding.path_name(key).rpartition("/")  # such as layer_0/attention/query, lora_a
        if part in PEFT_PARTS:
            module = place(f"{layer}/kernel", config).tensor.removesuffix(".weight")
            modules.add(module.split(".")[-1])
            name = f"base_model.model.{module}.{PEFT_PARTS[part]}.weight"
            tensors[name] = np.ascontiguousarray(np.asarray(leaf).T, np.float32)
    if not tensors:
        raise ValueError("the student has no adapters; train it with student.lora.rank, or export it whole")
    with atomic_write(Path(directory) / "adapter_model.safetensors", "wb") as file:
        file.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    _write_json(Path(directory) / ADAPTER, values)
    return sum(tensor.size for tensor in tensors.values())
