"""Blockwise attention: memory linear in the length, blocks of any size, and which pairs are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student import attention
from orca_jax.student.attention_xla import _pairs, blockwise
from tests.student.numpy_attention import numpy_attention


def temporary_bytes(backend, length, window=0):
    """What value and gradient need beside their inputs and results, as the compiler says."""

    def total(query, key, value, segment_ids):
        mixed = attention.attend(query, key, value, segment_ids, backend=backend, window=window)
        return jnp.square(mixed).sum()

    shapes = [jax.ShapeDtypeStruct((1, length, n, 16), jnp.float32) for n in (4, 2, 2)]
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(*shapes, segments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("window", [0, 700])
def test_memory_grows_with_the_length_and_not_with_its_square(window):
    """From 8192 on the rows outgrow a block's scores, which do not grow."""
    one, two = (temporary_bytes("blockwise", length, window) for length in (8192, 16384))
    assert two / one == pytest.approx(2, rel=0.1)
    plain_one, plain_two = (temporary_bytes("reference", length, window) for length in (8192, 16384))
    assert plain_two / plain_one == pytest.approx(4, rel=0.1)
    assert one < plain_one / 100


@pytest.mark.parametrize(("block", "window"), [(1, 0), (7, 40), (64, 0), (64, 1), (1000, 40)])
def test_blocks_of_any_size_give_the_same(block, window):
    random = np.random.default_rng(0)
    inputs = [jnp.asarray(random.standard_normal((1, 150, n, 8)), jnp.float32) for n in (4, 2, 2)]
    segments = np.repeat([1, 2, 3, 0], [70, 1, 72, 7])[None]
    mixed = jax.jit(blockwise, static_argnames=("window", "block"))(
        *inputs, jnp.asarray(segments), window=window, block=block
    )
    np.testing.assert_allclose(mixed, numpy_attention(*inputs, segments, window), atol=1e-5)


@given(count=st.integers(1, 9), block=st.integers(1, 9), window=st.integers(0, 50))
@settings(max_examples=30)
def test_pairs_are_the_blocks_that_the_mask_leaves(count, block, window):
    queries, keys = np.indices((count * block, count * block))
    seen = (queries >= keys) & ((queries - keys < window) if window else True)
    expected = {(i // block, j // block) for i, j in np.argwhere(seen)}
    found = [tuple(pair) for pair in np.stack(_pairs(count, block, window), axis=1).tolist()]
    assert set(found) == expected
    assert len(found) == len(expected)
