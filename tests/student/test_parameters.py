"""Number types: what is cast to them, and that products of float32 are float32 on every platform."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orca_jax.student import parameters
from orca_jax.student.sharding import path_name
from tests.student import lowering
from tests.student.students import SMALL, make_params

NAMES = ("prefill", "decode", "score")


@pytest.mark.parametrize("name", NAMES)
def test_float32_products_are_float32_on_tpus(name):
    """A TPU computes a product of default precision from operands rounded to bfloat16."""
    program, arguments = lowering.programs(SMALL, "float32")[name]
    text = jax.export.export(program, platforms=["tpu"])(*arguments).mlir_module()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 7  # a layer has as many weights
    assert all("precision = [HIGHEST, HIGHEST] :" in line for line in products)
    assert all("bf16" not in line for line in products)
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_products_take_nothing_wider(name):
    program, arguments = lowering.programs(SMALL, "bfloat16")[name]
    text = jax.export.export(program, platforms=["tpu"])(*arguments).mlir_module()
    products = [line.partition(" : ")[2] for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 7  # a layer has as many weights
    assert all("xf32>" not in line.partition(" -> ")[0] for line in products)


def test_products_inside_the_kernel_for_tpus_are_float32_too():
    config = dataclasses.replace(SMALL, attention="splash")
    program, arguments = lowering.programs(config, "float32")["prefill"]
    text = str(jax.make_jaxpr(program)(*arguments))
    assert "dot_general[" in text[text.index("pallas_call") :]
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


def test_auto_is_float32_on_cpus_and_bfloat16_elsewhere(monkeypatch):
    assert parameters.compute_dtype("auto") == jnp.float32
    assert parameters.compute_dtype("bfloat16") == jnp.bfloat16
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert parameters.compute_dtype("auto") == jnp.bfloat16
    assert parameters.compute_dtype("float32") == jnp.float32


def test_norms_stay_float32():
    params = parameters.cast(make_params(SMALL), jnp.bfloat16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == (jnp.float32 if path_name(path).endswith("scale") else jnp.bfloat16)


def test_what_is_as_wanted_already_is_not_copied():
    wanted, _ = parameters.for_decoding(make_params(SMALL), SMALL, jnp.bfloat16, None)
    again, _ = parameters.for_decoding(wanted, SMALL, jnp.bfloat16, None)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(again)):
        assert one.unsafe_buffer_pointer() == other.unsafe_buffer_pointer()


@pytest.mark.parametrize("scanned", [True, False])
def test_views_of_a_part_are_those_of_the_whole(scanned):
    config = dataclasses.replace(SMALL, scan_layers=scanned)
    view = parameters.per_layer if scanned else parameters.stacked
    params = make_params(config)
    whole, _ = view(params, config)
    rest = {name: value for name, value in params.items() if name in ("embed", "norm", "unembed")}
    layers = {name: value for name, value in params.items() if name not in rest}
    found = {**view(rest, config)[0], **view(layers, config)[0]}
    jax.tree.map(np.testing.assert_array_equal, found, dict(whole))
