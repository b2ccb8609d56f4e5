"""Low-rank adapters (Hu et al., arXiv 2106.09685) as an interceptor around linen's dense layers.

An adapted layer has `lora_a` A [in, r] and `lora_b` B [r, out] beside its kernel W [in, out], and computes
x W + (alpha / r) x A B. B starts at zero, so a new adapter changes nothing. Only adapters are trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from orca_jax.config import LoraConfig
from orca_jax.student.sharding import product

INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PEFT's distribution of A
ADAPTER = ("lora_a", "lora_b")


class Split(NamedTuple):
    """A tree of parameters split in two trees, each with None where the other has a leaf."""

    trained: Any
    frozen: Any


@contextlib.contextmanager
def adapting(config: LoraConfig) -> Iterator[None]:
    """Context in which linen's dense layers named in `config.targets` have adapters."""
    if not config.rank:
        yield
        return

    def interceptor(
        layer: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        out = layer(*args, **kwargs)
        module = context.module
        adapted = isinstance(module, nn.Dense) and module.name in config.targets
        return out + _adapter(module, args[0], config) if adapted else out

    with nn.intercept_methods(interceptor):
        yield


def _adapter(module: Any, x: jax.Array, config: LoraConfig) -> jax.Array:
    a = module.param("lora_a", INIT, (x.shape[-1], config.rank), jnp.float32)
    b = module.param("lora_b", nn.initializers.zeros, (config.rank, module.features), jnp.float32)
    narrow = product(x.astype(module.dtype), a, "lora_a", jnp.float32)
    return product(narrow, b, "lora_b", jnp.float32) * (config.alpha / config.rank)


def split(params: Any, config: LoraConfig) -> Split:
    """Splits parameters into trained and frozen: with adapters only these are trained, without them all."""
    if not config.rank:
        return Split(params, jax.tree.map(lambda _: None, params))

    def part(wanted: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (path[-1].key in ADAPTER) == wanted else None, params
        )

    return Split(part(True), part(False))


def in_base_dtype(params: Any, config: LoraConfig) -> Any:
    """Parameters with what is not trained, but norms, in `config.base_dtype`."""
    kept = (*ADAPTER, "scale")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key in kept else leaf.astype(config.base_dtype), params
    )


def joined(parts: Split) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(
        lambda trained, frozen: frozen if trained is None else trained,
        *parts,
        is_leaf=lambda leaf: leaf is None,
    )


def merge(params: Any, config: LoraConfig) -> Any:
    """Folds adapters into their kernels, W + (alpha / r) A B in float32, and drops them."""
    if not isinstance(params, Mapping):
        return params
    merged = {name: merge(entry, config) for name, entry in params.items() if name not in ADAPTER}
    if "lora_a" in params:
        change = jnp.matmul(params["lora_a"], params["lora_b"], precision="highest")
        merged["kernel"] = params["kernel"] + change * (config.alpha / config.rank)
    return merged


def added(params: Any, fresh: Any) -> Any:
    """`params` with the adapters of `fresh`, a tree of the same layers, added."""
    if not isinstance(params, Mapping):
        return params
    both = {name: added(entry, fresh[name]) for name, entry in params.items()}
    return both | {name: fresh[name] for name in ADAPTER if name in fresh}
