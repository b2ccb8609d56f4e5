"""The mesh and the FLOPs of a step, against what JAX makes of them."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from orca_jax.config import LoraConfig
from orca_jax.planning.workload import MeshShape, formula, layer_parameters, model_flops
from orca_jax.student import llama
from tests.planning.workloads import small

SIZES = st.sampled_from([-1, 1, 2, 4, 8])


def counted(jaxpr):
    """FLOPs of all matrix products of a traced function, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr")]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(counted(one.jaxpr) for one in inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_model_flops_are_those_of_the_traced_forward_pass(tied):
    """Three times its products, and three times half of the attention, which `reference` computes whole."""
    work = small(tie_embeddings=tied, remat="none", attention="reference", vocab_size=256)
    tokens = jnp.zeros((work.batch_rows, work.row_length), jnp.int32)
    params = jax.eval_shape(lambda: llama.init(work.student, 0))
    traced = jax.make_jaxpr(lambda p: llama.apply(p, tokens, tokens, tokens + 1, config=work.student))(params)
    flops = model_flops(work)
    assert 3 * counted(traced.jaxpr) == flops.products + 2 * flops.attention


def test_adapters_spare_the_gradients_of_given_weights():
    whole, adapted = small(), small(lora=LoraConfig(rank=2))
    assert model_flops(adapted).products == model_flops(whole).products * 4 / 6
    assert formula(adapted).startswith("4 x N")
    assert formula(whole).startswith("6 x N")


def test_layers_embeddings_and_last_norm_are_all_parameters():
    for tied in (False, True):
        student = small(tie_embeddings=tied).student
        params = jax.eval_shape(lambda s=student: llama.init(s, 0))
        layer = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["layers"])) // student.num_layers
        assert layer_parameters(student) == layer


def test_rows_that_do_not_divide_are_refused_by_name():
    shape = MeshShape(1, 8, 1)
    assert small(rows=16).part_rows(shape) == 2
    for rows in (4, 12):
        with pytest.raises(ValueError, match=rf"train.batch_rows={rows} .*= 8 devices"):
            small(rows=rows).part_rows(shape)
