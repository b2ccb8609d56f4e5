"""The decoder computes what the papers say, whatever the view, the cache, the padding or the compute type."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orca_jax.student import llama
from orca_jax.student.attention import BACKENDS
from orca_jax.student.decoding import Prefill
from orca_jax.student.parameters import per_layer, stacked
from orca_jax.student.presets import RopeScaling
from tests.student import numpy_llama
from tests.student.students import (
    GEMMA3,
    OLMO2,
    QWEN3,
    SMALL,
    SMOLLM3,
    apply,
    logits,
    make_params,
    make_tokens,
)

EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
LINEAR = RopeScaling(kind="linear", factor=4.0)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_length=64)
SHAPES = {
    "Qwen3": QWEN3,
    "Gemma 3": GEMMA3,
    "OLMo 2": OLMO2,
    "SmolLM3": SMOLLM3,
    "grouped queries": SMALL,
    "one key-value head": dataclasses.replace(SMALL, num_kv_heads=1),
    "multi-head, tied": dataclasses.replace(SMALL, num_kv_heads=4, tie_embeddings=True, rope_theta=5e5),
    "query biases": dataclasses.replace(SMALL, qkv_bias=True),
    "all biases": dataclasses.replace(SMALL, qkv_bias=True, output_bias=True, rope_scaling=LINEAR),
    "sliding window": dataclasses.replace(SMALL, sliding_window=7),
    "stretched positions": dataclasses.replace(SMALL, rope_scaling=LLAMA3, rope_theta=500.0),
    "wide heads": dataclasses.replace(SMALL, head_dim=24, hidden_size=20, num_layers=3, norm_epsilon=1e-2),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_the_plain_numpy_model(config):
    params, tokens = make_params(config), make_tokens(30)
    expected = numpy_llama.forward(params, tokens, config)
    assert np.abs(logits(params, tokens, config) - expected).max() <= 1e-5 * np.abs(expected).max()


@EVERY_BACKEND
def test_every_backend_computes_the_plain_numpy_model(backend):
    config = dataclasses.replace(SMALL, attention=backend)
    params, tokens = make_params(SMALL), make_tokens(150)
    expected = numpy_llama.forward(params, tokens, config)
    assert np.abs(logits(params, tokens, config) - expected).max() <= 1e-5 * np.abs(expected).max()


@EVERY_BACKEND
def test_layers_that_differ_are_the_plain_numpy_model_scanned_too(backend):
    config = dataclasses.replace(GEMMA3, attention=backend)
    params, tokens = make_params(config), make_tokens(150)
    expected = numpy_llama.forward(params, tokens, config)
    for some, view in ((params, config), stacked(params, config)):
        assert np.abs(logits(some, tokens, view) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", [SMALL, GEMMA3, SMOLLM3, OLMO2], ids=["small", "gemma", "smollm", "olmo"])
def test_stacked_and_per_layer_parameters_are_two_views_of_one_tree(config):
    params = make_params(config)
    scanned, scan_config = stacked(params, config)
    again, unrolled = per_layer(scanned, scan_config)
    assert (scan_config.scan_layers, unrolled) == (True, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    tokens = make_tokens(30)
    found, expected = logits(scanned, tokens, scan_config), logits(params, tokens, config)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("config", [GEMMA3, SMOLLM3, OLMO2, QWEN3], ids=["gemma", "smollm", "olmo", "qwen"])
@pytest.mark.parametrize("scan", [False, True])
def test_packed_equals_unpacked_in_every_family(config, scan):
    view, config = (stacked if scan else per_layer)(make_params(config), config)
    lengths = (21, 9, 30)
    parts = [make_tokens(length, seed=length) for length in lengths]
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    segments = np.repeat([1, 2, 3], lengths).astype(np.int32)
    row = np.concatenate(parts)[None]
    packed, _ = llama.apply(view, row, positions[None], segments[None], config=config)
    alone = np.concatenate([logits(view, part, config) for part in parts])
    packed = packed[0, :, : config.vocab_size]
    np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_views_of_what_already_has_the_view_are_the_same_tree():
    params = make_params(SMALL)
    scanned, scan_config = stacked(params, SMALL)
    assert per_layer(params, SMALL)[0] is params
    assert stacked(scanned, scan_config)[0] is scanned


def test_views_keep_numpy_arrays_on_the_host():
    params = jax.tree.map(np.asarray, make_params(SMALL))
    scanned, scan_config = stacked(params, SMALL)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(scanned))
    jax.tree.map(np.testing.assert_array_equal, per_layer(scanned, scan_config)[0], params)


def test_initial_parameters_have_the_views_trees():
    scan_config = dataclasses.replace(SMALL, scan_layers=True)
    shapes = jax.eval_shape(lambda: llama.init(scan_config, 0))
    expected = jax.eval_shape(lambda: stacked(llama.init(SMALL, 0), SMALL)[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def test_initial_parameters_are_small_random_and_depend_on_the_seed():
    init = jax.jit(llama.init, static_argnums=(0, 1))
    one, same, other = (init(SMALL, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["unembed"], other["unembed"])
    # Kernels keep the variance of their input; embeddings are as large as what is added to them.
    assert np.std(one["unembed"]) == pytest.approx(SMALL.hidden_size**-0.5, rel=0.1)
    assert np.std(one["embed"]["embedding"]) == pytest.approx(1, rel=0.1)
    np.testing.assert_array_equal(one["norm"]["scale"], 1)


@pytest.mark.parametrize("remat", ["none", "products", "full"])
@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_changes_no_gradient(remat, scan):
    params, config = make_params(SMALL), dataclasses.replace(SMALL, remat=remat)
    if scan:
        params, config = stacked(params, config)
    gradient, _ = per_layer(jax.jit(jax.grad(total), static_argnums=1)(params, config), config)
    expected = jax.jit(jax.grad(total), static_argnums=1)(make_params(SMALL), SMALL)
    difference = norm(jax.tree.map(jnp.subtract, gradient, expected))
    assert difference <= 1e-5 * norm(expected)


def total(params, config):
    tokens = make_tokens(30)[None]
    ones, positions = np.ones_like(tokens), np.arange(30)[None]
    scores, _ = llama.apply(params, tokens, positions, ones, config=config)
    return jnp.sum(jnp.sin(scores[..., : config.vocab_size]))


def norm(tree):
    return np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))


def test_ids_that_pad_the_vocabulary_have_no_probability():
    tokens = make_tokens(8)[None]
    scores, _ = apply(make_params(SMALL), tokens, np.arange(8)[None], np.ones_like(tokens), config=SMALL)
    assert scores.shape == (1, 8, 128)
    assert np.isneginf(scores[..., 97:]).all()
    assert np.isfinite(scores[..., :97]).all()


@EVERY_BACKEND
@pytest.mark.parametrize("length", [40, 128, 201])
def test_padding_never_changes_a_log_probability(backend, length):
    config, params, tokens = (
        dataclasses.replace(SMALL, attention=backend),
        make_params(SMALL),
        make_tokens(33),
    )
    bare = jax.nn.log_softmax(logits(params, tokens, config))
    padded = jax.nn.log_softmax(logits(params, tokens, config, length=length))
    np.testing.assert_allclose(padded, bare, rtol=0, atol=2e-5)


@EVERY_BACKEND
def test_what_stands_in_the_padding_does_not_matter(backend):
    config, params = dataclasses.replace(SMALL, attention=backend), make_params(SMALL)
    segments = (np.arange(60) < 33).astype(np.int32)[None]
    positions = np.where(segments > 0, np.arange(60), 0)
    rows = [np.where(segments > 0, make_tokens(60, seed=0), make_tokens(60, seed=seed)) for seed in (1, 2)]
    one, two = (apply(params, row, positions, segments, config=config)[0][:, :33] for row in rows)
    np.testing.assert_array_equal(one, two)


@EVERY_BACKEND
def test_no_token_sees_a_later_one(backend):
    config, params = dataclasses.replace(SMALL, attention=backend), make_params(SMALL)
    tokens = make_tokens(140)
    changed = np.where(np.arange(140) < 100, tokens, (tokens + 1) % 97)
    one, two = (logits(params, row, config) for row in (tokens, changed))
    np.testing.assert_array_equal(one[:100], two[:100])
    assert np.abs(one[100:] - two[100:]).max(axis=-1).min() > 1e-3


def test_the_scanned_view_refuses_a_cache():
    params, config = stacked(make_params(SMALL), SMALL)
    one = np.ones((1, 1), np.int32)
    with pytest.raises(ValueError, match="per_layer"):
        llama.apply(params, one, one, one, (Prefill(),) * config.num_layers, config=config)


def test_bfloat16_computes_nearly_the_same_and_returns_float32():
    params, tokens = make_params(SMALL), make_tokens(30)
    row, positions, ones = tokens[None], np.arange(30)[None], np.ones((1, 30), np.int32)
    scores, _ = apply(params, row, positions, ones, config=SMALL, dtype=jnp.bfloat16)
    expected = logits(params, tokens, SMALL)
    assert scores.dtype == jnp.float32
    assert np.abs(scores[0, :, :97] - expected).max() < 0.05 * np.abs(expected).max()
