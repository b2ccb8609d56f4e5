"""Packed equals unpacked, for every attention backend, in logits and in gradients.

Each row below is compared with its examples as rows of their own. The comparison is trusted because it
fails by far once the mask between segments is dropped.
"""

import dataclasses
import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data.rows import Row
from orca_jax.student import attention, attention_kernels, llama
from orca_jax.student.attention import BACKENDS, attend, choose
from orca_jax.student.parameters import per_layer, stacked
from orca_jax.training.loss import total_losses
from tests.student.numpy_attention import numpy_attention
from tests.student.students import SMALL, make_params, make_tokens

BOUND = 1e-5
ROW = 331  # no multiple of any backend's block
ROWS = (
    (60, 1, 130, 1, 97, 30),  # ends in padding; a segment over two blocks; single tokens
    (200, 3, 128),  # full; a segment of exactly one block
    (1, 1, 1, 90, 127, 2, 1),
)
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


class Result(NamedTuple):
    """Logits of the examples one after another [n, vocab_size], and the gradient of their summed loss."""

    logits: Any
    gradient: Any


def make_batch(rows, row_length):
    """Rows of segments of the given sizes, with random tokens, targets and weights by example."""
    batch = Row(*(np.zeros((len(rows), row_length), kind) for kind in "iifii"))
    number = 0
    for row, sizes in enumerate(rows):
        start = 0
        for segment, size in enumerate(sizes, 1):
            here = (row, slice(start, start + size))
            batch.tokens[here], batch.targets[here] = make_tokens((2, size), seed=number)
            batch.loss_weights[here] = np.random.default_rng(number).random(size)
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
        total, _ = total_losses(hidden, head, batch, config.vocab_size, batch.tokens.shape[1])
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


@pytest.mark.parametrize(
    "scan", [pytest.param(False, id="unrolled", marks=pytest.mark.proof), pytest.param(True, id="scanned")]
)
@EVERY_BACKEND
def test_packed_equals_unpacked(backend, scan):
    config = dataclasses.replace(SMALL, attention=backend, scan_layers=scan)
    logits, gradient = differences(result(PACKED, config), result(UNPACKED, config))
    assert logits <= BOUND
    assert gradient <= BOUND


LONG = [
    pytest.param(name, marks=pytest.mark.proof) for name in BACKENDS if name not in ("reference", "splash")
]


@pytest.mark.parametrize("backend", ["reference", "splash", *LONG])
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


def heads(length, seed=0, dtype=jnp.float32, counts=(4, 2)):
    """Query [2, t, n, 8] and key and value [2, t, k, 8], of 4 and 2 heads if nothing is said."""
    random = np.random.default_rng(seed)
    query_heads, kv_heads = counts
    return [
        jnp.asarray(random.standard_normal((2, length, n, 8)), dtype)
        for n in (query_heads, kv_heads, kv_heads)
    ]


@functools.partial(jax.jit, static_argnames=("backend", "window"))
def mixed_and_gradients(inputs, segment_ids, backend, window):
    """Attention, and the gradients by query, key and value of a sum with weights that differ everywhere."""

    def total(query, key, value):
        mixed = attend(query, key, value, segment_ids, backend=backend, window=window)
        weights = jnp.sin(jnp.arange(mixed[0].size, dtype=jnp.float32)).reshape(mixed[0].shape)
        return (mixed * weights).sum(), mixed

    gradients, mixed = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)
    return mixed, gradients


SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [60, 130, 100, 10]), np.repeat([1, 2, 3], [1, 259, 40])])


@pytest.mark.parametrize("counts", [(4, 4), (6, 2)], ids=str)
@EVERY_BACKEND
def test_query_heads_share_key_value_heads_by_groups_of_neighbours(backend, counts):
    inputs = heads(40, counts=counts)
    segments = np.stack([np.repeat([1, 2, 0], [11, 25, 4]), np.repeat([1], [40])])
    mixed = attend(*inputs, jnp.asarray(segments), backend=backend)
    np.testing.assert_allclose(mixed, numpy_attention(*inputs, segments, 0), atol=1e-5)


@pytest.mark.parametrize("window", [1, 128, 131, 10_000])
@EVERY_BACKEND
def test_a_window_ends_where_numpy_says_within_segments(backend, window):
    """Windows of one token, of a block, over blocks, and longer than a row."""
    inputs, segments = heads(300), jnp.asarray(SEGMENTS)
    mixed, gradients = mixed_and_gradients(inputs, segments, backend, window)
    np.testing.assert_allclose(mixed, numpy_attention(*inputs, SEGMENTS, window), atol=1e-5)
    _, expected = mixed_and_gradients(inputs, segments, "reference", window)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5 * max(1, np.abs(other).max()))


@EVERY_BACKEND
def test_packed_equals_unpacked_with_a_window_smaller_than_a_segment(backend):
    """Values and gradients of a row are those of its segments as rows of their own."""
    window, inputs = 37, heads(300)
    mixed, gradients = mixed_and_gradients(inputs, jnp.asarray(SEGMENTS), backend, window)
    for row, segment in ((0, 2), (1, 2)):
        inside = SEGMENTS[row] == segment
        alone = np.tile(inside[inside].astype(np.int32), (2, 1))

        def total(*cut, alone=alone, inside=inside):
            own = attend(*cut, jnp.asarray(alone), backend=backend, window=window)
            weights = np.sin(np.arange(mixed[0].size)).reshape(mixed[0].shape)[inside]
            return (own[0] * weights).sum(), own

        cut = [x[jnp.asarray([row, row])][:, inside] for x in inputs]
        own_gradients, own = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*cut)
        np.testing.assert_allclose(mixed[row, inside], own[0], atol=1e-5)
        for packed, unpacked in zip(gradients, own_gradients, strict=True):
            np.testing.assert_allclose(packed[row, inside], unpacked[0], atol=2e-5)


@pytest.mark.parametrize("window", [0, 3])
@EVERY_BACKEND
def test_any_packing_is_attended_as_numpy_does(backend, window):
    @given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), seed=st.integers(0, 99))
    @settings(max_examples=5)
    def check(sizes, seed):
        row = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:32]
        segments = np.stack([np.pad(row, (0, 32 - len(row))), np.ones(32, int)])
        inputs = heads(32, seed=seed)
        mixed, _ = mixed_and_gradients(inputs, jnp.asarray(segments), backend, window)
        np.testing.assert_allclose(mixed, numpy_attention(*inputs, segments, window), atol=1e-5)

    check()


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match=r"0 \(none\) or a number of tokens, got -4"):
        attend(*heads(3), jnp.ones((2, 3), jnp.int32), window=-4)


@pytest.mark.parametrize("window", [0, 37])
@EVERY_BACKEND
def test_a_segment_that_changes_leaves_the_others_bit_for_bit(backend, window):
    """Values and gradients of all but the second segment, whatever that one's query, key and value are."""
    one, segments = heads(300), jnp.asarray(SEGMENTS)
    changed = (SEGMENTS == 2)[:, :, None, None]
    two = [jnp.where(changed, 3 * other, x) for x, other in zip(one, heads(300, seed=1), strict=True)]
    mixed, gradients = mixed_and_gradients(one, segments, backend, window)
    others, other_gradients = mixed_and_gradients(two, segments, backend, window)
    for before, after in zip((mixed, *gradients), (others, *other_gradients), strict=True):
        np.testing.assert_array_equal(before[SEGMENTS != 2], after[SEGMENTS != 2])
        assert np.abs(before - after)[SEGMENTS == 2].max() > 0.1


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(("head_dim", "counts"), [(64, (4, 2)), (128, (2, 2))], ids=str)
def test_in_16_bits_cudnn_is_the_reference_and_packed_is_unpacked(head_dim, counts, window):
    """In XLA here; by its kernel where the tests run on a GPU (`TEST_PLATFORM=cuda`)."""
    random = np.random.default_rng(0)
    shapes = [(2, 300, n, head_dim) for n in (counts[0], counts[1], counts[1])]
    exact = [jnp.asarray(random.standard_normal(shape), jnp.bfloat16).astype(jnp.float32) for shape in shapes]
    half, segments = [x.astype(jnp.bfloat16) for x in exact], jnp.asarray(SEGMENTS)
    expected = flat(mixed_and_gradients(exact, segments, "reference", window))
    found = flat(mixed_and_gradients(half, segments, "cudnn", window))
    leaking = flat(mixed_and_gradients(half, (segments > 0).astype(jnp.int32), "cudnn", window))
    row, inside = 0, SEGMENTS[0] == 2
    alone = [jnp.where(inside[:, None, None], x[jnp.array([row, row])], 0) for x in half]
    own = flat(mixed_and_gradients(alone, jnp.asarray(np.stack([inside, inside])), "cudnn", window))
    for one, other, leaked, cut in zip(found, expected, leaking, own, strict=True):
        assert error(one, other) < 0.01
        assert error(one[row, inside], cut[row, inside]) < 0.01
        assert error(leaked, other) > 0.1
        assert not one[SEGMENTS == 0].any()


def flat(result):
    mixed, gradients = result
    return [np.asarray(x, np.float32) for x in (mixed, *gradients)]


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@EVERY_BACKEND
def test_a_row_of_padding_gives_zeros_and_no_nan(backend):
    def total(query, key, value):
        return attend(query, key, value, jnp.zeros((2, 130), jnp.int32), backend=backend).sum()

    query, key, value = heads(130)
    gradients = jax.grad(total, argnums=(0, 1, 2))(query, key, value)
    assert float(total(query, key, value)) == 0
    assert all(not np.asarray(gradient).any() for gradient in gradients)


@EVERY_BACKEND
def test_large_scores_do_not_overflow(backend):
    query, key, value = heads(40)
    mixed = attend(1e3 * query, 1e3 * key, value, jnp.ones((2, 40), jnp.int32), backend=backend)
    assert np.isfinite(mixed).all()
    assert np.abs(mixed).max() <= np.abs(value).max() * (1 + 1e-6)


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_and_gradients_have_the_inputs_type(backend, dtype):
    inputs = heads(9, dtype=dtype)
    mixed, gradients = mixed_and_gradients(inputs, jnp.ones((2, 9), jnp.int32), backend, 0)
    assert mixed.dtype == dtype
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3
    exact = numpy_attention(*inputs, np.ones((2, 9)), 0)
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=1e-5 if dtype == jnp.float32 else 0.03)


def test_every_name_stands_for_itself():
    assert [choose(name) for name in BACKENDS] == list(BACKENDS)


@pytest.mark.parametrize(
    ("platform", "head_dim", "name", "why"),
    [
        ("cpu", 128, "causal_blocks", "fastest on CPUs"),
        ("tpu", 128, "splash", "the kernel for TPUs"),
        ("tpu", 1024, "blockwise", "heads of 1024 are larger than splash takes"),
        ("gpu", 128, "cudnn", "the kernel for GPUs"),
    ],
)
def test_auto_goes_by_platform_and_says_why_once(platform, head_dim, name, why, monkeypatch, caplog):
    attention_kernels.say.cache_clear()
    monkeypatch.setattr(attention, "platform", lambda: platform)
    with caplog.at_level(logging.INFO, "orca_jax.student.attention_kernels"):
        assert [choose("auto", head_dim) for _ in range(3)] == [name] * 3
    assert len(caplog.messages) == 1
    assert f"attention: {name}, by auto on {platform}: " in caplog.messages[0]
    assert why in caplog.messages[0]


def test_auto_takes_no_kernel_that_an_old_gpu_lacks(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [type("T4", (), {"compute_capability": "7.5"})])
    assert choose("auto", 128) == "blockwise"


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"student\.attention='flash'; known: auto, reference"):
        attend(*heads(3), jnp.ones((2, 3), jnp.int32), backend="flash")
