"""The loss is held against a plain form under autodiff."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data.alternatives import Alternatives
from orca_jax.data.rows import Row, SoftTargets, tempered
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import loss
from orca_jax.training.loss import (
    Loss,
    chunk_size,
    distillation_loss,
    pick,
    token_cross_entropy,
    total_losses,
)
from tests.training import synthetic

ROWS, LENGTH, WIDTH, PADDED = 2, 7, 12, 32


def total_loss(*arguments):
    return total_losses(*arguments)[0]


def inputs(seed, vocab_size=29, scale=1.0):
    random = np.random.default_rng(seed)
    hidden = jnp.asarray(random.normal(size=(ROWS, LENGTH, WIDTH)) * scale, jnp.float32)
    head = jnp.asarray(random.normal(size=(WIDTH, PADDED)), jnp.float32)
    targets = jnp.asarray(random.integers(vocab_size, size=(ROWS, LENGTH)), jnp.int32)
    weights = jnp.asarray(
        random.random((ROWS, LENGTH)) * random.integers(2, size=(ROWS, LENGTH)), jnp.float32
    )
    return hidden, head, Row(targets, targets, weights, jnp.ones_like(targets), jnp.zeros_like(targets))


def plain(hidden, head, batch, vocab_size, chunk=None):
    """log(sum(exp)) less the target's score, over the real ids alone."""
    scores = hidden @ head[:, :vocab_size]
    picked = jnp.sum(jax.nn.one_hot(batch.targets, vocab_size) * scores, axis=-1)
    return jnp.sum((jax.nn.logsumexp(scores, axis=-1) - picked) * batch.loss_weights)


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


@pytest.mark.parametrize(("vocab_size", "scale"), [(29, 5.0), (PADDED, 0.1)])
def test_value_and_gradients_equal_autodiff_of_the_plain_form(vocab_size, scale):
    arguments = inputs(0, vocab_size, scale)
    found, gradients = jax.value_and_grad(total_loss, (0, 1))(*arguments, vocab_size, LENGTH)
    expected, expected_gradients = jax.value_and_grad(plain, (0, 1))(*arguments, vocab_size)
    assert relative(found, expected) < 1e-6
    for name, mine, theirs in zip(("hidden", "head"), gradients, expected_gradients):
        assert relative(mine, theirs) < 1e-6, name


def test_a_further_term_is_differentiated_without_more_code(monkeypatch):
    """Here a z-loss: it may use every logit, and need not repeat how the loss is cut and weighted."""
    hidden, head, batch = inputs(8)
    cross_entropy = loss.token_loss

    def with_term(scores, batch):
        return cross_entropy(scores, batch) + 0.1 * jnp.square(jax.nn.logsumexp(scores, axis=-1))

    def plain_with_term(hidden, head):
        squares = jnp.square(jax.nn.logsumexp(hidden @ head[:, :29], axis=-1))
        return plain(hidden, head, batch, 29) + 0.1 * jnp.sum(squares * batch.loss_weights)

    monkeypatch.setattr(loss, "token_loss", with_term)
    found, gradients = jax.value_and_grad(total_loss, (0, 1))(hidden, head, batch, 29, 3)
    expected, expected_gradients = jax.value_and_grad(plain_with_term, (0, 1))(hidden, head)
    assert relative(found, expected) < 1e-6
    for mine, theirs in zip(gradients, expected_gradients):
        assert relative(mine, theirs) < 1e-6


def test_picked_entries_have_the_gradient_of_indexing():
    scores, ids = jnp.arange(12.0).reshape(3, 4), jnp.asarray([3, 0, 2])
    np.testing.assert_array_equal(pick(scores, ids), [3, 4, 10])
    gradient = jax.grad(lambda scores: pick(scores, ids) @ jnp.asarray([1.0, 2.0, 3.0]))(scores)
    np.testing.assert_array_equal(gradient, [[0, 0, 0, 1], [2, 0, 0, 0], [0, 0, 3, 0]])


@settings(max_examples=5)
@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3, allow_subnormal=False))
def test_gradient_scales_with_the_cotangent(seed, factor):
    hidden, head, batch = inputs(seed)
    scaled = jax.grad(lambda h: factor * total_loss(h, head, batch, 29, LENGTH))(hidden)
    once = jax.grad(lambda h: total_loss(h, head, batch, 29, LENGTH))(hidden)
    np.testing.assert_allclose(scaled, factor * once, rtol=1e-5, atol=1e-6)


def test_padded_ids_have_no_probability_and_no_gradient():
    """The real ids share all of it, and no weight of the padding is trained."""
    hidden, head, batch = inputs(1)
    every = (jnp.full_like(batch.targets, token_id) for token_id in range(29))
    probabilities = sum(jnp.exp(-token_cross_entropy(hidden, head, ids, 29, LENGTH)) for ids in every)
    np.testing.assert_allclose(probabilities, 1, rtol=1e-5)
    d_head = jax.grad(total_loss, 1)(hidden, head, batch, 29, LENGTH)
    assert (d_head[:, 29:] == 0).all()
    assert (d_head[:, :29] != 0).any()


def test_unsupervised_positions_have_no_gradient():
    hidden, head, batch = inputs(3)
    weights = np.asarray(batch.loss_weights)
    d_hidden = np.asarray(jax.grad(total_loss)(hidden, head, batch, 29, LENGTH))
    assert (weights == 0).any()
    assert (d_hidden[weights == 0] == 0).all()
    assert (np.abs(d_hidden[weights > 0]).max(-1) > 0).all()


def test_bfloat16_hidden_keeps_a_float32_loss_and_head_gradient():
    hidden, head, batch = inputs(4)
    value, (d_hidden, d_head) = jax.value_and_grad(total_loss, (0, 1))(
        hidden.astype(jnp.bfloat16), head, batch, 29, LENGTH
    )
    expected, (wide_hidden, wide_head) = jax.value_and_grad(plain, (0, 1))(hidden, head, batch, 29)
    assert (value.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    assert relative(value, expected) < 0.02
    assert relative(d_hidden, wide_hidden) < 0.05
    assert relative(d_head, wide_head) < 0.05


def test_mean_divides_once_and_is_zero_without_weight():
    assert Loss(jnp.float32(6), jnp.float32(4)).mean == 1.5
    assert Loss(jnp.float32(0), jnp.float32(0)).mean == 0


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_neither_value_nor_gradients(chunk):
    """Sizes that do not divide the length, too; the last chunk is then filled up."""
    hidden, head, batch = inputs(5)
    found, gradients = jax.value_and_grad(total_loss, (0, 1))(hidden, head, batch, 29, chunk)
    expected, whole = jax.value_and_grad(total_loss, (0, 1))(hidden, head, batch, 29, LENGTH)
    assert relative(found, expected) < 1e-6
    for name, mine, theirs in zip(("hidden", "head"), gradients, whole):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert relative(mine, theirs) < 1e-6, name
    each, at_once = (token_cross_entropy(hidden, head, batch.targets, 29, size) for size in (chunk, LENGTH))
    np.testing.assert_allclose(each, at_once, rtol=1e-6, atol=1e-6)


def test_chunks_in_bfloat16_add_up_the_heads_gradient_in_float32():
    hidden, head, batch = inputs(6)
    found, expected = (
        jax.grad(total_loss, 1)(hidden.astype(jnp.bfloat16), head, batch, 29, chunk) for chunk in (2, LENGTH)
    )
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


# --- Soft targets


second = jax.jit(distillation_loss)


def soft_inputs(seed, top, vocab_size=29, temperature=1.0, weight=1.0):
    """Inputs with the `top` likeliest ids of a random teacher, and the whole distributions of that."""
    hidden, head, batch = inputs(seed, vocab_size)
    teacher = np.random.default_rng(seed + 1).normal(size=(ROWS, LENGTH, vocab_size)) * 2
    teacher -= np.logaddexp.reduce(teacher, axis=-1, keepdims=True)
    found = Alternatives.unknown(ROWS * LENGTH, top)
    ids = np.argsort(-teacher, axis=-1)[..., :top].reshape(-1, top)
    found.set(slice(None), ids, np.take_along_axis(teacher.reshape(-1, vocab_size), ids, -1))
    weights = weight * tempered(found.log_probs, temperature)
    soft = SoftTargets(
        jnp.asarray(found.ids.reshape(ROWS, LENGTH, top)),
        jnp.asarray(weights.reshape(ROWS, LENGTH, top + 1), jnp.float32),
        jnp.full((ROWS, LENGTH), 1 / temperature, jnp.float32),
    )
    return hidden, head, batch._replace(soft_targets=soft), teacher


def buckets(log_probs, ids):
    """Log-probabilities [..., k + 1] of ids [..., k] and of all others together, in float64."""
    log_probs = np.asarray(log_probs, np.float64)
    rest = log_probs.copy()
    np.put_along_axis(rest, ids, -np.inf, -1)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(rest).sum(-1, keepdims=True))
    return np.concatenate([np.take_along_axis(log_probs, ids, -1), rest], -1)


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_the_whole_vocabulary_it_is_dense_kl_and_the_teachers_entropy(temperature):
    hidden, head, batch, teacher = soft_inputs(1, 29, temperature=temperature, weight=0.7)
    scores = hidden @ head[:, :29]
    p, q = (softmax(np.asarray(one, np.float64) / temperature) for one in (teacher, scores))
    dense = (p * np.log(p / q)).sum(-1) - (p * np.log(p)).sum(-1)
    found = second(scores, batch.soft_targets)
    np.testing.assert_allclose(found, 0.7 * dense, rtol=1e-5, atol=1e-5)
    both, alone = (jax.jit(loss.token_loss)(scores, b) for b in (batch, batch._replace(soft_targets=None)))
    np.testing.assert_allclose(both - alone, found, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_of_few_ids_all_others_are_one_outcome(temperature):
    hidden, head, batch, teacher = soft_inputs(2, 4, temperature=temperature)
    scores = np.asarray(hidden @ head[:, :29], np.float64)
    ids = np.asarray(batch.soft_targets.ids)
    log_q = buckets(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True), ids)
    p, q = softmax(buckets(teacher, ids) / temperature), softmax(log_q / temperature)
    found = second(jnp.asarray(scores, jnp.float32), batch.soft_targets)
    np.testing.assert_allclose(found, -(p * np.log(q)).sum(-1), rtol=1e-5)


def test_the_rest_of_a_student_that_is_sure_is_exact():
    """1 - the sum of probabilities would be 0 in float32, and its logarithm infinite."""
    scores = jnp.zeros((1, 1, 29)).at[0, 0, 3].set(60.0)
    soft = SoftTargets(jnp.array([[[3]]]), jnp.array([[[0.5, 0.5]]]), jnp.ones((1, 1)))
    value, gradient = jax.jit(jax.value_and_grad(lambda s: distillation_loss(s, soft).sum()))(scores)
    assert value == pytest.approx(0.5 * (60 - np.log(28)), rel=1e-6)
    assert gradient[0, 0, 3] == pytest.approx(0.5)


def test_gradients_of_soft_targets_are_those_of_differences():
    hidden, head, batch, _ = soft_inputs(3, 4, temperature=1.5, weight=0.5)
    with jax.enable_x64(True):
        hidden_64, head_64, batch_64 = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, (hidden, head, batch)
        )

        @jax.jit
        def value(hidden, head):
            losses = loss.token_loss(hidden @ head[:, :29], batch_64)
            return jnp.sum(losses * batch_64.loss_weights)

        jax.test_util.check_grads(value, (hidden_64, head_64), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
        expected = jax.jit(jax.grad(value, (0, 1)))(hidden_64, head_64)
    gradients = jax.grad(total_loss, (0, 1))(hidden, head, batch, 29, 3)
    for mine, theirs in zip(gradients, expected):
        assert relative(mine, theirs) < 1e-5


def test_where_nothing_is_known_of_the_teacher_there_is_no_second_term():
    hidden, head, batch, _ = soft_inputs(4, 4)
    soft = batch.soft_targets
    unknown = jnp.arange(LENGTH) % 2 == 0
    soft = soft._replace(
        ids=jnp.where(unknown[:, None], -1, soft.ids), weights=jnp.where(unknown[:, None], 0, soft.weights)
    )
    scores = hidden @ head[:, :29]
    found = second(scores, soft)
    assert (found[:, unknown] == 0).all()
    assert (found[:, ~unknown] > 0).all()
    without = batch._replace(soft_targets=None)
    plain_loss = jax.jit(jax.grad(lambda s, b: loss.token_loss(s, b).sum()))
    mixed, alone = plain_loss(scores, batch._replace(soft_targets=soft)), plain_loss(scores, without)
    np.testing.assert_allclose(mixed[:, unknown], alone[:, unknown], atol=1e-7)


def test_the_second_term_is_measured_apart():
    hidden, head, batch, _ = soft_inputs(5, 4)
    total, added = loss.total_losses(hidden, head, batch, 29, 2)
    expected = jnp.sum(second(hidden @ head[:, :29], batch.soft_targets) * batch.loss_weights)
    assert relative(added, expected) < 1e-6
    alone = total_loss(hidden, head, batch._replace(soft_targets=None), 29, 2)
    assert relative(total - added, alone) < 1e-6
    metrics = Loss(total, batch.loss_weights.sum(), added).metrics()
    assert metrics["loss"] == pytest.approx(float(alone / batch.loss_weights.sum()), rel=1e-6)
