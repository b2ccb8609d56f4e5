"""GGUF files as llama.cpp's converter writes them, by the package `gguf` alone."""

import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

from orca_jax.student import huggingface
from orca_jax.student.presets import LlamaConfig
from tests.student.students import make_params

ENUMS = {
    name: getattr(gguf.MODEL_ARCH, name.upper()) for name in ("llama", "qwen2", "qwen3", "gemma3", "olmo2")
}
ENUMS["smollm3"] = gguf.MODEL_ARCH.SMOLLM3


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Queries or keys as llama.cpp's rotary positions want them: pairs side by side."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors(config: LlamaConfig, architecture: str) -> dict[str, np.ndarray]:
    """The tensors of `make_params(config)` by llama.cpp's names."""
    names = gguf.get_tensor_name_map(ENUMS[architecture], config.num_layers)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        huggingface.export(make_params(config), config, folder)
        for name, value in safetensors.numpy.load_file(Path(folder) / "model.safetensors").items():
            if architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
                value = permuted(value, config.num_heads if "q_proj" in name else config.num_kv_heads)
            if architecture == "gemma3" and name.endswith("norm.weight"):
                value = value + np.float32(1)
            found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    return found


def values(config: LlamaConfig, architecture: str) -> dict[str, object]:
    """What a header says of a config."""
    own = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
    }
    return {f"{architecture}.{name}": value for name, value in own.items()}


def write(path, architecture, arrays, header, kinds=None):
    """Writes a file; `kinds` are the types of tensors that are not kept as float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in header.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, value in arrays.items():
        kind = (kinds or {}).get(name, gguf.GGMLQuantizationType.F32)
        if isinstance(kind, gguf.GGMLQuantizationType):
            value = gguf.quantize(value, kind)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_student(path, config, architecture="llama", **header):
    """A whole student of `make_params(config)`, without a tokenizer."""
    added = {key.replace("__", "."): value for key, value in header.items()}
    return write(path, architecture, tensors(config, architecture), {**values(config, architecture), **added})


def cut(source, path, layers):
    """The first layers of a student's file, and all else that it has, as it is there."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = layers if name == f"{architecture}.block_count" else field.contents()
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)
    for tensor in reader.tensors:
        _, _, block = tensor.name.partition("blk.")
        if not block or int(block.partition(".")[0]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
