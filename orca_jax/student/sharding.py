"""The mesh and the rules that place parameters, rows and activations on it. All of them on this screen.

Axes: `data` replicates parameters, `fsdp` shards them, `tensor` splits heads, features and vocabulary.
Rows are split over data and fsdp together.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed/embedding$", ("tensor", "fsdp")),
    (r"unembed$", ("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/kernel$", ("fsdp", "tensor")),
    (r"(output|down)/kernel$", ("tensor", "fsdp")),
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "tensor")),
    (r"(query|key|value)/bias$", ("tensor",)),
    (r"(scale|output/bias)$", (None,)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh's axes; -1 (at most once) takes the devices that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and rest > 0 and len(devices) % rest == 0:
        sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        shown = ", ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(config).items())
        raise ValueError(
            f"mesh.{{{shown}}} does not divide {len(devices)} devices; at most one axis may be -1"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The first rule that matches a parameter's path; leading (layer) axes stay whole.

    Axes that do not divide a dimension are dropped there: the parameter is then replicated over them.

    Raises:
      ValueError: no rule matches a parameter of rank one or more.
    """
    if not shape:
        return PartitionSpec()
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for parameter {path!r} of shape {shape}; add one to RULES")
    axes = (None,) * (len(shape) - len(axes)) + axes
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape))
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for parameters, or any state that holds trees of parameters (optimizer moments)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), np.shape(leaf), mesh)), tree
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's sharding on the mesh in force (`jax.set_mesh`); without one, does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    named = [BATCH if axis == "batch" else axis for axis in axes]
    fits = [
        axis if axis and size % math.prod(mesh.shape[a] for a in np.atleast_1d(axis)) == 0 else None
        for axis, size in zip(named, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))
