"""Stacked (scanned) and per-layer views of parameters or parts of them, their number types, and precision."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from orca_jax.student import sharding
from orca_jax.student.llama import Params
from orca_jax.student.presets import LlamaConfig

VOCABULARY = {"embed/embedding": 0, "unembed": 1}  # the axis of ids


def compute_dtype(name: str) -> Any:
    """The number type of that name; `auto` is bfloat16 on TPUs and GPUs, and float32 on CPUs."""
    automatic = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(automatic if name == "auto" else name)


def in_dtype(function: Callable[..., Any], dtype: Any, **settings: Any) -> Callable[..., Any]:
    """`function` with a compute type, to be compiled: products of float32 are float32 on every platform.

    Otherwise TPUs round their operands to bfloat16, and GPUs to TF32.
    """
    precision = "highest" if dtype == jnp.float32 else None

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*arguments, dtype=dtype, **settings)

    return traced


def dtype_of(path: str, dtype: Any) -> Any:
    """The type of the parameter of a path where matrices are of type `dtype`: norms stay float32."""
    return jnp.dtype(jnp.float32 if path.endswith("scale") else dtype)


def cast(params: Params, dtype: Any) -> Params:
    """Parameters of the types of `dtype_of`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype_of(sharding.path_name(path), dtype)), params
    )


def per_layer(params: Params, config: LlamaConfig) -> tuple[Params, LlamaConfig]:
    """The view with one subtree per layer, which decoding uses, and its config."""
    unrolled = dataclasses.replace(config, scan_layers=False)
    if "layers" not in params:
        return params, unrolled
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(config.num_layers)
    }
    return {**rest, **layers}, unrolled


def stacked(params: Params, config: LlamaConfig) -> tuple[Params, LlamaConfig]:
    """The view with a leading layer axis, which scanning uses, and its config."""
    scanned = dataclasses.replace(config, scan_layers=True)
    names = [f"layer_{i}" for i in range(config.num_layers)]
    if names[0] not in params:
        return params, scanned
    rest = {name: value for name, value in params.items() if name not in names}
    layers = jax.tree.map(
        lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves),
        *(params[name] for name in names),
    )
    return {**rest, "layers": layers}, scanned


def for_decoding(
    params: Params, config: LlamaConfig, dtype: Any, mesh: Mesh | None
) -> tuple[Params, LlamaConfig]:
    """The per-layer view on its devices, and its config; matrices in the compute type, norms in float32.

    Casting once here saves reading float32 matrices for every token. What is so already is not copied.
    """
    params, config = per_layer(params, config)
    params = cast(params, dtype)
    placed = jax.device_put(params, sharding.shardings(params, mesh) if mesh else None)
    return placed, dataclasses.replace(config, remat="none")


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters are sharded over, or None if that is not more than one device."""
    for leaf in jax.tree.leaves(params):
        placed = getattr(leaf, "sharding", None)
        if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh) and placed.mesh.size > 1:
            return placed.mesh
    return None


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """`jax.set_mesh(mesh)`, or a null context without a mesh."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def resize_vocabulary(params: Params, saved: LlamaConfig, wanted: LlamaConfig) -> Params:
    """Parameters with the ids of `wanted`, at least the saved ones; new ids start at the mean of those."""
    if wanted.vocab_size == saved.vocab_size:
        return params

    def resized(path: Any, table: jax.Array) -> jax.Array:
        name = sharding.path_name(path)
        if name not in VOCABULARY:
            return table
        axis = VOCABULARY[name]
        kept = jax.lax.slice_in_dim(table, 0, saved.vocab_size, axis=axis)
        mean = kept.mean(axis, keepdims=True)
        new = jnp.repeat(mean, wanted.padded_vocab_size - saved.vocab_size, axis)
        return jnp.concatenate([kept, new], axis)

    return jax.tree_util.tree_map_with_path(resized, params)
