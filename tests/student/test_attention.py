"""Packed equals unpacked, for every attention backend, in logits and in gradients.

Each row below is compared with its examples as rows of their own. The comparison is trusted because it
fails by far once the mask between segments is dropped.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student import llama
from orca_jax.student.attention import BACKENDS, attend, attend_to_cache, choose
from orca_jax.student.parameters import per_layer, stacked
from orca_jax.training.loss import cross_entropy
from tests.student.students import SMALL, make_params, make_tokens

BOUND = 1e-5
ROW = 331  # no multiple of any backend's block
ROWS = (
    (60, 1, 130, 1, 97, 30),  # ends in padding; a segment over two blocks; single tokens
    (200, 3, 128),  # full; a segment of exactly one block
    (1, 1, 1, 90, 127, 2, 1),
)
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


class Batch(NamedTuple):
    """Arrays [b, t] as a training step takes them."""

    tokens: Any
    targets: Any
    weights: Any
    segment_ids: Any
    positions: Any


class Result(NamedTuple):
    """Logits of the examples one after another [n, vocab_size], and the gradient of their summed loss."""

    logits: Any
    gradient: Any


def make_batch(rows, row_length):
    """Rows of segments of the given sizes, with random tokens, targets and weights by example."""
    batch = Batch(*(np.zeros((len(rows), row_length), kind) for kind in "iifii"))
    number = 0
    for row, sizes in enumerate(rows):
        start = 0
        for segment, size in enumerate(sizes, 1):
            here = (row, slice(start, start + size))
            batch.tokens[here], batch.targets[here] = make_tokens((2, size), seed=number)
            batch.weights[here] = np.random.default_rng(number).random(size)
            batch.segment_ids[here] = segment
            batch.positions[here] = np.arange(size)
            start, number = start + size, number + 1
    return batch


PACKED = make_batch(ROWS, ROW)
UNPACKED = make_batch([(size,) for sizes in ROWS for size in sizes], max(map(max, ROWS)))
UNMASKED = PACKED._replace(segment_ids=(PACKED.segment_ids > 0).astype(np.int32))


@jax.jit(static_argnames="config")
def compute(params, batch, config):
    def loss(params):
        hidden, _ = llama.hidden(params, batch.tokens, batch.positions, batch.segment_ids, config=config)
        head = llama.head(params, config)
        total = cross_entropy(hidden, head, batch.targets, batch.weights, config.vocab_size)
        return total, llama.logits(hidden, head, config.vocab_size)

    gradient, scores = jax.grad(loss, has_aux=True)(params)
    return scores[..., : config.vocab_size], gradient


def result(batch, config):
    params = make_params(SMALL)
    params = stacked(params, SMALL)[0] if config.scan_layers else params
    scores, gradient = compute(params, batch, config)
    return Result(np.asarray(scores)[batch.segment_ids > 0], per_layer(gradient, config)[0])


def differences(one, other):
    """Of logits, by the largest logit; of gradients, in relative norm over all parameters."""
    logits = np.abs(one.logits - other.logits).max() / np.abs(other.logits).max()
    return logits, norm(jax.tree.map(jnp.subtract, one.gradient, other.gradient)) / norm(other.gradient)


def norm(tree):
    return np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@EVERY_BACKEND
def test_packed_equals_unpacked(backend, scan):
    config = dataclasses.replace(SMALL, attention=backend, scan_layers=scan)
    logits, gradient = differences(result(PACKED, config), result(UNPACKED, config))
    assert logits <= BOUND
    assert gradient <= BOUND


@EVERY_BACKEND
def test_without_the_mask_the_comparison_fails_by_far(backend):
    config = dataclasses.replace(SMALL, attention=backend)
    logits, gradient = differences(result(UNMASKED, config), result(UNPACKED, config))
    assert logits >= 100 * BOUND
    assert gradient >= 100 * BOUND


@EVERY_BACKEND
def test_every_backend_is_the_reference(backend):
    expected = result(PACKED, dataclasses.replace(SMALL, attention="reference"))
    logits, gradient = differences(result(PACKED, dataclasses.replace(SMALL, attention=backend)), expected)
    assert logits <= BOUND
    assert gradient <= BOUND


@EVERY_BACKEND
def test_padding_takes_no_part_in_gradients(backend):
    """Nonsense in the padding's tokens changes no bit of the gradient."""
    config = dataclasses.replace(SMALL, attention=backend)
    nonsense = np.where(PACKED.segment_ids > 0, PACKED.tokens, make_tokens(PACKED.tokens.shape, seed=9))
    one, two = result(PACKED, config), result(PACKED._replace(tokens=nonsense), config)
    np.testing.assert_array_equal(one.logits, two.logits)
    jax.tree.map(np.testing.assert_array_equal, one.gradient, two.gradient)


def heads(length, seed=0, dtype=jnp.float32):
    """Query [2, t, 4, 8] and key and value [2, t, 2, 8]."""
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.standard_normal((2, length, n, 8)), dtype) for n in (4, 2, 2)]


@EVERY_BACKEND
def test_a_row_of_padding_gives_zeros_and_no_nan(backend):
    def total(query, key, value):
        return attend(query, key, value, jnp.zeros((2, 130), jnp.int32), backend=backend).sum()

    query, key, value = heads(130)
    gradients = jax.grad(total, argnums=(0, 1, 2))(query, key, value)
    assert float(total(query, key, value)) == 0
    assert all(not np.asarray(gradient).any() for gradient in gradients)


@EVERY_BACKEND
def test_the_first_token_of_a_segment_sees_itself_only(backend):
    query, key, value = heads(20)
    segments = jnp.asarray([[1] * 7 + [2] * 13, [1] + [2] * 19])
    mixed = attend(query, key, value, segments, backend=backend)
    for row, start in ((0, 0), (0, 7), (1, 0), (1, 1)):
        np.testing.assert_allclose(mixed[row, start], np.repeat(value[row, start], 2, axis=0), atol=1e-6)


@EVERY_BACKEND
def test_large_scores_do_not_overflow(backend):
    query, key, value = heads(40)
    mixed = attend(1e3 * query, 1e3 * key, value, jnp.ones((2, 40), jnp.int32), backend=backend)
    assert np.isfinite(mixed).all()
    assert np.abs(mixed).max() <= np.abs(value).max() * (1 + 1e-6)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_result_has_the_querys_type(backend, dtype):
    assert attend(*heads(9, dtype=dtype), jnp.ones((2, 9), jnp.int32), backend=backend).dtype == dtype


@given(filled=st.integers(1, 12), garbage=st.floats(-1e4, 1e4))
@settings(max_examples=15)
def test_slots_of_the_cache_that_come_later_are_not_seen(filled, garbage):
    query, keys, values = heads(12)
    positions = jnp.full((2, 1), filled - 1)
    clean = attend_to_cache(query[:, :1], keys, values, positions)
    dirty = (x.at[:, filled:].set(garbage) for x in (keys, values))
    np.testing.assert_array_equal(attend_to_cache(query[:, :1], *dirty, positions), clean)


def test_auto_is_a_known_backend():
    assert choose("auto") in BACKENDS
    assert [choose(name) for name in BACKENDS] == list(BACKENDS)


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"student\.attention='flash'; known: auto, reference"):
        attend(*heads(3), jnp.ones((2, 3), jnp.int32), backend="flash")
