"""Stacked (scanned) and per-layer views of the parameters, and their form for decoding."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from orca_jax.student import sharding
from orca_jax.student.llama import Params
from orca_jax.student.presets import LlamaConfig


def per_layer(params: Params, config: LlamaConfig) -> tuple[Params, LlamaConfig]:
    """The view with one subtree per layer, which decoding uses, and its config."""
    unrolled = dataclasses.replace(config, scan_layers=False)
    if not config.scan_layers:
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
    if config.scan_layers:
        return params, scanned
    names = [f"layer_{i}" for i in range(config.num_layers)]
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

    Casting once here saves reading float32 matrices for every token.
    """
    params, config = per_layer(params, config)

    def cast(path: Any, leaf: Any) -> Any:
        return leaf.astype(jnp.float32 if sharding.path_name(path).endswith("scale") else dtype)

    cast_params = jax.tree_util.tree_map_with_path(cast, params)
    placed = jax.device_put(cast_params, sharding.shardings(cast_params, mesh) if mesh else None)
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


def resize_vocabulary(table: np.ndarray, saved: LlamaConfig, wanted: LlamaConfig) -> np.ndarray:
    """An embedding [v, d] padded for `wanted`; new ids, and the padding, start at the mean of the saved ids.

    Raises:
      ValueError: `wanted` has fewer ids.
    """
    if wanted.vocab_size < saved.vocab_size:
        raise ValueError(f"{wanted.vocab_size} ids are fewer than the {saved.vocab_size} of the weights")
    kept = np.asarray(table)[: saved.vocab_size]
    mean = kept.astype(np.float64).mean(axis=0).astype(kept.dtype)
    new = wanted.padded_vocab_size - saved.vocab_size
    return np.concatenate([kept, np.broadcast_to(mean, (new, len(mean)))])
