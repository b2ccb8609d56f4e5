"""AdamW's updates, which the step scales by the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from orca_jax.student import llama
from orca_jax.training.optimizer import OptimizerConfig, decayed, make_optimizer
from tests.training import synthetic

PARAMS = {"norm": {"scale": jnp.ones(3)}, "unembed": jnp.full((3, 2), 2.0)}


def first_update(gradient, **settings):
    optimizer = make_optimizer(OptimizerConfig(**settings))
    return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]


def test_only_norms_scales_are_spared_from_decay():
    flags = decayed(llama.init(synthetic.STUDENT, 0))
    spared = [path for path, flag in jax.tree_util.tree_leaves_with_path(flags) if not flag]
    assert all(path[-1].key == "scale" for path in spared)
    assert len(spared) == 3  # both norms of the scanned layers, and the last
    assert flags["embed"]["embedding"]
    assert flags["unembed"]


def test_weight_decay_pulls_towards_zero():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    update = first_update(zeros, weight_decay=0.1)
    np.testing.assert_allclose(update["unembed"], 0.1 * PARAMS["unembed"])
    np.testing.assert_array_equal(update["norm"]["scale"], 0)


def test_first_update_is_the_sign_of_the_gradient():
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.01), PARAMS)
    np.testing.assert_allclose(first_update(gradient)["unembed"], -1, rtol=1e-5)


@pytest.mark.parametrize(("size", "clipped"), [(0.01, 0.01), (100.0, 0.5)])
def test_gradients_are_clipped_by_their_global_norm(size, clipped):
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, size / 3), PARAMS)  # norm: size, of 9 entries
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5))
    _, state = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    moments = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
    np.testing.assert_allclose(optax.tree.norm(moments.mu), (1 - 0.9) * clipped, rtol=1e-5)
