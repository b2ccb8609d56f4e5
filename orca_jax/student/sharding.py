"""The mesh, and the sharding rules of parameters, rows and activations.

Axes: `data` replicates parameters, `fsdp` shards them, `tensor` splits heads, features and vocabulary.
Rows are split over data and fsdp together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from orca_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"v_(row|col)/", ()),  # Adafactor's factored moments are vectors, and replicated
    (r"embed/embedding$", ("tensor", "fsdp")),
    (r"unembed$", ("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/kernel$", ("fsdp", "tensor")),
    (r"(output|down)/kernel$", ("tensor", "fsdp")),
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "tensor")),
    (r"(query|key|value)/bias$", ("tensor",)),
    (r"(scale|output/bias)$", (None,)),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices.

    With several slices (of TPUs, or hosts of GPUs) joined by a slower network, only `data`, and `fsdp` where
    `data` is too small, spans that network.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or `tensor` would span slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    automatic = (AxisType.Auto,) * len(AXES)
    if len({slice_of(device) for device in devices}) > 1:
        return Mesh(over_slices(sizes, devices), AXES, axis_types=automatic)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=automatic, devices=devices)


def axis_sizes(config: MeshConfig, devices: int) -> list[int]:
    """The sizes of `AXES` on the given number of devices.

    Raises:
      ValueError: they do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and rest > 0 and devices % rest == 0:
        sizes[sizes.index(-1)] = devices // rest
    if math.prod(sizes) != devices or min(sizes) < 1:
        shown = ", ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(config).items())
        raise ValueError(f"mesh.{{{shown}}} does not divide {devices} devices; at most one axis may be -1")
    return sizes


def slice_of(device: jax.Device) -> int:
    """The index of a device's slice, a set joined by a fast network; 0 if its platform has none."""
    return getattr(device, "slice_index", 0)


def over_slices(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices of several slices as an array of `sizes` (data, fsdp, tensor).

    Raises:
      ValueError: the tensor axis would span slices, or the slices have different sizes.
    """
    counts = np.unique([slice_of(device) for device in devices], return_counts=True)[1]
    left, outer = len(counts), []
    for size in sizes[:2]:
        outer.append(math.gcd(size, left))
        left //= outer[-1]
    if left > 1 or len(set(counts)) > 1:
        shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
        raise ValueError(
            f"mesh.{{{shown}}} cannot be laid over {len(counts)} slices of {', '.join(map(str, counts))} "
            "devices: data x fsdp must be a multiple of the number of slices, and the slices of one size"
        )
    inner = [size // part for size, part in zip(sizes, [*outer, 1])]
    return mesh_utils.create_hybrid_device_mesh(inner, [*outer, 1], devices)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rule(path: str) -> tuple[str | None, ...]:
    """The axes of the first rule that matches a parameter's path.

    Raises:
      ValueError: no rule does.
    """
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for parameter {path!r}; add one to RULES")
    return axes


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A parameter's partition spec by its rule; leading (layer) axes are not split.

    Axes that do not divide a dimension are dropped: the parameter is replicated over them.

    Raises:
      ValueError: no rule matches a parameter of rank one or more.
    """
    if not shape:
        return PartitionSpec()
    axes = rule(path)
    axes = (None,) * (len(shape) - len(axes)) + axes
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape))
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for parameters, or any state with trees of parameters (optimizer moments)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), np.shape(leaf), mesh)), tree
    )


def _fitting(shape: Sequence[int], axes: Sequence[str | None]) -> list[tuple[str, ...] | None]:
    """The axes of the current mesh that each dimension is split over: those that divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    named = [BATCH if axis == "batch" else (axis,) if axis else () for axis in axes]
    return [
        names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None
        for names, size in zip(named, shape, strict=True)
    ]


def shards(shape: Sequence[int], *axes: str | None) -> int:
    """The number of parts of an array of `shape` that `constrain` pins to `axes`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[name] for names in _fitting(shape, axes) for name in names or ())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation's sharding on the current mesh (`jax.set_mesh`), if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*_fitting(x.shape, axes)))


def gathered(weight: jax.Array, dtype: jnp.dtype, path: str) -> jax.Array:
    """A parameter as it is computed with: gathered over `fsdp`, and split by its rule over the other axes."""
    return constrain(weight.astype(dtype), *(None if axis == "fsdp" else axis for axis in rule(path)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, kernel: jax.Array, path: str, reduce_dtype: jnp.dtype) -> jax.Array:
    """x [..., i] times kernel [i, o] in the type of x.

    The kernel's gradient is summed over positions and devices in `reduce_dtype`, or in the type of x if that
    is wider. It is constrained to the parameter's own sharding, so each device sums its own part only:
    without that, the partitioner sometimes sums whole gradients on every device.
    """
    return _product(x, kernel, path, reduce_dtype)[0]


def _product(x: jax.Array, kernel: jax.Array, path: str, reduce_dtype: jnp.dtype) -> Any:
    weight = gathered(kernel, x.dtype, path)
    return jnp.matmul(x, weight), (x, weight, jnp.zeros(0, kernel.dtype))


def _product_gradients(path: str, reduce_dtype: jnp.dtype, saved: Any, gradient: jax.Array) -> Any:
    x, weight, like = saved
    positions = tuple(range(x.ndim - 1))
    # The type in which the product comes out is that in which devices add their parts of it.
    wide = jnp.promote_types(x.dtype, reduce_dtype)
    d_kernel = jnp.tensordot(x, gradient, (positions, positions), preferred_element_type=wide)
    d_x = jnp.tensordot(gradient, weight, (-1, 1))
    return d_x, constrain(d_kernel, *rule(path)).astype(like.dtype)


product.defvjp(_product, _product_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, ids: jax.Array, path: str, dtype: jnp.dtype) -> jax.Array:
    """Rows [b, t, d] of a table [v, d], in `dtype`, of int32 ids [b, t].

    The table's gradient is summed in float32: in bfloat16, an id that is there hundreds of times would lose
    what is small beside its sum so far.
    """
    return _lookup(table, ids, path, dtype)[0]


def _lookup(table: jax.Array, ids: jax.Array, path: str, dtype: jnp.dtype) -> Any:
    rows = constrain(jnp.take(gathered(table, dtype, path), ids, axis=0), "batch", None, None)
    return rows, (ids, jnp.zeros((len(table), 0), table.dtype))


def _lookup_gradients(path: str, dtype: jnp.dtype, saved: Any, gradient: jax.Array) -> Any:
    ids, like = saved
    # Split by features, gradients are added on the devices that hold the rows.
    gradient = constrain(gradient, "data", None, "fsdp").astype(jnp.float32)
    summed = jnp.zeros((len(like), gradient.shape[-1]), jnp.float32).at[ids].add(gradient)
    return constrain(summed, *rule(path)).astype(like.dtype), None


lookup.defvjp(_lookup, _lookup_gradients)


def gathers() -> bool:
    """Whether parameters are split over `fsdp` on the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint` that saves everything but gathered weights, which are gathered again.

    For activations nothing is lost: the input of a sharding constraint is saved in place of its output.
    """
    return bool(primitive.name != "sharding_constraint")
