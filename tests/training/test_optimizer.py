"""AdamW's updates, which the step scales by the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from orca_jax.config_check import build
from orca_jax.student import llama, sharding
from orca_jax.training.step import OptimizerConfig, decayed, make_optimizer
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


def state_bytes(kind, params):
    state = jax.eval_shape(make_optimizer(OptimizerConfig(kind=kind)).init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_bytes_of_each_kind():
    """Two float32 moments; one of them in bfloat16; a row and a column of each matrix."""
    params = {"layers": {"up": {"kernel": jnp.zeros((3, 128, 256))}}}
    size = 3 * 128 * 256
    assert state_bytes("adamw", params) == 8 * size + 4
    assert state_bytes("adamw_bf16", params) == 6 * size + 4
    assert state_bytes("adafactor", params) < 0.02 * 4 * size


def test_moments_in_bfloat16_give_nearly_the_same_updates():
    random, updates = np.random.default_rng(0), {}
    gradients = [{"unembed": jnp.asarray(random.normal(size=(3, 2)), jnp.float32)} for _ in range(5)]
    params = {"unembed": PARAMS["unembed"]}
    for kind in ("adamw", "adamw_bf16"):
        optimizer = make_optimizer(OptimizerConfig(kind=kind))
        state = optimizer.init(params)
        for gradient in gradients:
            updates[kind], state = optimizer.update(gradient, state, params)
    wide, narrow = (np.asarray(updates[kind]["unembed"]) for kind in ("adamw", "adamw_bf16"))
    np.testing.assert_allclose(narrow, wide, atol=0.02)
    assert (narrow != wide).any()
    assert narrow.dtype == np.float32


def test_adafactors_first_update_of_a_rank_one_gradient_is_its_sign():
    """Row and column means then hold all that there is to know of the second moments."""
    random = np.random.default_rng(1)
    gradient = {
        "unembed": jnp.asarray(np.outer(random.normal(size=128), random.normal(size=130)), jnp.float32)
    }
    params = jax.tree.map(jnp.ones_like, gradient)
    optimizer = make_optimizer(OptimizerConfig(kind="adafactor", clip_norm=1e9))
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(update["unembed"], np.sign(gradient["unembed"]), rtol=1e-3)


def test_adafactor_bounds_an_updates_size():
    quiet, loud = ({"unembed": jnp.full((128, 128), size, jnp.float32)} for size in (1e-3, 1.0))
    params = jax.tree.map(jnp.ones_like, quiet)
    optimizer = make_optimizer(OptimizerConfig(kind="adafactor", clip_norm=1e9))
    state = optimizer.init(params)
    for _ in range(9):
        _, state = optimizer.update(quiet, state, params)
    update, _ = optimizer.update(loud, state, params)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(update["unembed"]))), 1.0, rtol=1e-3)


def test_adafactors_state_has_a_place_on_every_mesh():
    params = jax.eval_shape(lambda: llama.init(synthetic.STUDENT, 0))
    params["layers"]["feed_forward"]["up"]["kernel"] = jax.ShapeDtypeStruct((2, 128, 256), jnp.float32)
    state = jax.eval_shape(make_optimizer(OptimizerConfig(kind="adafactor")).init, params)
    placed = sharding.shardings(state, synthetic.mesh(2, 2, 2))
    rows = placed[1][0].v_row["layers"]["feed_forward"]["up"]["kernel"]
    whole = placed[1][0].v["embed"]["embedding"]
    assert rows.is_fully_replicated
    assert whole.spec == jax.sharding.PartitionSpec("tensor", "fsdp")


def test_an_unknown_kind():
    with pytest.raises(ValueError, match=r"'optimizer\.kind' must be 'adamw', 'adamw_bf16' or 'adafactor'"):
        build(OptimizerConfig, {"kind": "adam"}, "optimizer")
