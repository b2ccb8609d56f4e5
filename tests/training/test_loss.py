"""The loss is held against a plain form under autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config import LlamaConfig
from orca_jax.training import loss
from orca_jax.training.loss import Loss, chunk_size, cross_entropy, token_cross_entropy
from tests.training import synthetic

ROWS, LENGTH, WIDTH, PADDED = 2, 7, 12, 32


def inputs(seed, vocab_size=29, scale=1.0):
    random = np.random.default_rng(seed)
    hidden = jnp.asarray(random.normal(size=(ROWS, LENGTH, WIDTH)) * scale, jnp.float32)
    head = jnp.asarray(random.normal(size=(WIDTH, PADDED)), jnp.float32)
    targets = jnp.asarray(random.integers(vocab_size, size=(ROWS, LENGTH)), jnp.int32)
    weights = jnp.asarray(
        random.random((ROWS, LENGTH)) * random.integers(2, size=(ROWS, LENGTH)), jnp.float32
    )
    return hidden, head, targets, weights


def plain(hidden, head, targets, weights, vocab_size):
    """log(sum(exp)) less the target's score, over the real ids alone."""
    scores = hidden @ head[:, :vocab_size]
    picked = jnp.sum(jax.nn.one_hot(targets, vocab_size) * scores, axis=-1)
    return jnp.sum((jax.nn.logsumexp(scores, axis=-1) - picked) * weights)


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


@pytest.mark.parametrize("vocab_size", [29, PADDED])
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_value_and_gradients_equal_autodiff_of_the_plain_form(vocab_size, scale):
    arguments = inputs(0, vocab_size, scale)
    places = (0, 1, 3)
    found, gradients = jax.value_and_grad(cross_entropy, places)(*arguments, vocab_size)
    expected, expected_gradients = jax.value_and_grad(plain, places)(*arguments, vocab_size)
    assert relative(found, expected) < 1e-6
    for name, mine, theirs in zip(("hidden", "head", "weights"), gradients, expected_gradients):
        assert relative(mine, theirs) < 1e-6, name


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3, allow_subnormal=False))
def test_gradient_scales_with_the_cotangent(seed, factor):
    hidden, head, targets, weights = inputs(seed)
    scaled = jax.grad(lambda h: factor * cross_entropy(h, head, targets, weights, 29))(hidden)
    once = jax.grad(lambda h: cross_entropy(h, head, targets, weights, 29))(hidden)
    np.testing.assert_allclose(scaled, factor * once, rtol=1e-5, atol=1e-6)


def test_padded_ids_have_no_probability_and_no_gradient():
    """The real ids share all of it, and no weight of the padding is trained."""
    hidden, head, targets, weights = inputs(1)
    every = (jnp.full_like(targets, token_id) for token_id in range(29))
    probabilities = sum(jnp.exp(-token_cross_entropy(hidden, head, ids, 29)) for ids in every)
    np.testing.assert_allclose(probabilities, 1, rtol=1e-5)
    d_head = jax.grad(cross_entropy, 1)(hidden, head, targets, weights, 29)
    assert (d_head[:, 29:] == 0).all()
    assert (d_head[:, :29] != 0).any()


def test_values_in_the_padding_do_not_matter():
    hidden, head, targets, weights = inputs(2)
    other = head.at[:, 29:].set(1e4)
    assert cross_entropy(hidden, head, targets, weights, 29) == cross_entropy(
        hidden, other, targets, weights, 29
    )


def test_unsupervised_positions_have_no_gradient():
    hidden, head, targets, weights = inputs(3)
    d_hidden = np.asarray(jax.grad(cross_entropy)(hidden, head, targets, weights, 29))
    assert (np.asarray(weights) == 0).any()
    assert (d_hidden[np.asarray(weights) == 0] == 0).all()
    assert (np.abs(d_hidden[np.asarray(weights) > 0]).max(-1) > 0).all()


def test_bfloat16_hidden_keeps_a_float32_loss_and_head_gradient():
    hidden, head, targets, weights = inputs(4)
    value, (d_hidden, d_head) = jax.value_and_grad(cross_entropy, (0, 1))(
        hidden.astype(jnp.bfloat16), head, targets, weights, 29
    )
    expected, (wide_hidden, wide_head) = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights, 29)
    assert (value.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    assert relative(value, expected) < 0.02
    assert relative(d_hidden, wide_hidden) < 0.05
    assert relative(d_head, wide_head) < 0.05


def test_mean_divides_once_and_is_zero_without_weight():
    assert Loss(jnp.float32(6), jnp.float32(4)).mean == 1.5
    assert Loss(jnp.float32(0), jnp.float32(0)).mean == 0


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, LENGTH, 100])
def test_chunks_change_neither_value_nor_gradients(chunk):
    """Sizes that do not divide the length, too; the last chunk is then filled up."""
    arguments, places = inputs(5), (0, 1, 3)
    found, gradients = jax.value_and_grad(cross_entropy, places)(*arguments, 29, chunk)
    expected, whole = jax.value_and_grad(cross_entropy, places)(*arguments, 29)
    assert relative(found, expected) < 1e-6
    for name, mine, theirs in zip(("hidden", "head", "weights"), gradients, whole):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert relative(mine, theirs) < 1e-6, name
    each = token_cross_entropy(*arguments[:3], 29, chunk)
    np.testing.assert_allclose(each, token_cross_entropy(*arguments[:3], 29), rtol=1e-6, atol=1e-6)


def test_chunks_in_bfloat16_add_up_the_heads_gradient_in_float32():
    hidden, head, targets, weights = inputs(6)
    take = jax.grad(cross_entropy, 1)
    found = take(hidden.astype(jnp.bfloat16), head, targets, weights, 29, 2)
    expected = take(hidden.astype(jnp.bfloat16), head, targets, weights, 29)
    assert found.dtype == jnp.float32
    assert relative(found, expected) < 1e-6


@settings(max_examples=50)
@given(
    rows=st.integers(1, 64),
    length=st.integers(1, 5000),
    vocab_size=st.integers(1, 200_000),
    remat=st.sampled_from(["none", "full"]),
)
def test_a_chunks_logits_fit_the_budget(rows, length, vocab_size, remat):
    config = LlamaConfig(vocab_size=vocab_size, remat=remat)
    size, budget = (
        chunk_size(config, rows, length),
        loss.LOGITS_BUDGET if remat == "none" else loss.LOGITS_BUDGET_WITH_REMAT,
    )
    assert 1 <= size <= length
    position = 4 * rows * config.padded_vocab_size
    assert position * size <= budget or position * (size - 1) <= budget  # rounded up to a whole position
    if size < length:
        assert position * length > budget


def test_devices_share_the_logits():
    """Rows over data and fsdp, ids over tensor: what one device holds counts."""
    config = LlamaConfig(vocab_size=32_001, remat="full")
    alone = chunk_size(config, 16, 2048)
    with jax.set_mesh(synthetic.mesh(2, 2, 2)):
        together = chunk_size(config, 16, 2048)
    assert (alone, together) == (128, 1024)
