"""Small students with weights large enough that every part of the network matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.student import llama, presets
from orca_jax.student.presets import LlamaConfig, RopeScaling
from orca_jax.student.sharding import path_name

SMALL = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_multiple=32,
    scan_layers=False,
)

QWEN3 = dataclasses.replace(SMALL, query_key_norm="head", tie_embeddings=True)
GEMMA3 = dataclasses.replace(
    SMALL, **presets.GEMMA3, num_layers=3, query_scalar=24.0, tie_embeddings=True, sliding_window=7,
    layer_types=("window", "full", "window"), window_rope_theta=100.0, norm_epsilon=1e-3,
    rope_scaling=RopeScaling(kind="linear", factor=4.0),
)  # fmt: skip
OLMO2 = dataclasses.replace(SMALL, **presets.OLMO2, rope_theta=5e5)
SMOLLM3 = dataclasses.replace(SMALL, layer_types=("full", "no_rope"), tie_embeddings=True)

apply = jax.jit(llama.apply, static_argnames=("config", "dtype"))


@functools.cache
def make_params(config, seed=0):
    """Random float32 parameters: kernels keep variance, norms differ from one."""
    random = np.random.default_rng(seed)

    def leaf(path, shape):
        drawn = random.standard_normal(shape.shape)
        if path_name(path).endswith("scale"):
            return jnp.asarray((0 if config.norm_around_one else 1) + 0.2 * drawn, jnp.float32)
        if path_name(path).endswith("bias"):
            return jnp.asarray(0.3 * drawn, jnp.float32)
        fan_in = 1 if path_name(path).endswith("embedding") else shape.shape[-2]
        return jnp.asarray(drawn / np.sqrt(fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: llama.init(config, 0)))


def make_tokens(size, seed=0, vocab_size=SMALL.vocab_size):
    """Random ids, int32 [size]."""
    return np.random.default_rng(seed).integers(0, vocab_size, size).astype(np.int32)


def logits(params, tokens, config, *, length=None):
    """Logits [n, vocab_size] of one unpacked sequence, padded to `length`."""
    size = len(tokens)
    padding = (length or size) - size
    row = np.pad(tokens, (0, padding))[None]
    segments = np.pad(np.ones(size, np.int32), (0, padding))[None]
    positions = np.pad(np.arange(size, dtype=np.int32), (0, padding))[None]
    return np.asarray(
        apply(params, row, positions, segments, config=config)[0][0, :size, : config.vocab_size]
    )
