"""Draws follow temperature, top-k and top-p, row by row; log-probabilities are of the whole distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student.sampling import SamplingParams, draw, likeliest, log_prob, truncate

SCORES = np.array([1.0, 3.0, 0.5, 2.0, -1.0, 2.5], np.float32)
DRAWS = 20_000
NO_TOP_K = jnp.zeros(1, jnp.int32)


def within_chance(counts, probabilities):
    """Whether every count is within 5 standard deviations of what it should be."""
    total = counts.sum()
    deviation = np.sqrt(total * probabilities * (1 - probabilities))
    return (np.abs(counts - total * probabilities) <= 5 * deviation + 1).all()


def of_rows(rows, temperature, top_k=0, top_p=1.0):
    return SamplingParams(
        jnp.full(rows, temperature, jnp.float32),
        jnp.full(rows, top_k, jnp.int32),
        jnp.full(rows, top_p, jnp.float32),
    )


def allowed(probabilities, top_k, top_p):
    """Likeliest first, `top_k` of them at most, until their share reaches `top_p`; normalised."""
    order = np.argsort(-probabilities)[: top_k or None]
    share = probabilities[order] / probabilities[order].sum()
    before = np.cumsum(share) - share
    kept = order[before < top_p - 1e-6]
    found = np.zeros_like(probabilities)
    found[kept] = probabilities[kept]
    return found / found.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 0, 0.7), (2.0, 0, 0.9), (1.0, 2, 1.0), (2.0, 4, 0.8), (1.0, 9, 1.0)],
)
def test_draws_follow_temperature_top_k_and_top_p(temperature, top_k, top_p):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    drawn = jax.jit(draw)(jnp.tile(SCORES, (DRAWS, 1)), keys, of_rows(DRAWS, temperature, top_k, top_p))
    probabilities = np.exp(SCORES / temperature) / np.exp(SCORES / temperature).sum()
    expected = allowed(probabilities, top_k, top_p)
    counts = np.bincount(drawn.ids, minlength=6)
    assert not counts[expected == 0].any()
    assert within_chance(counts, expected)
    plain = SCORES - np.log(np.exp(SCORES).sum())
    np.testing.assert_allclose(drawn.log_probs, plain[drawn.ids], atol=1e-6)


def test_each_row_is_drawn_by_its_own_settings():
    """Greedy, sampled, top-k 1 and top-p 0 rows side by side; a row alone draws the same."""
    scores = jnp.tile(SCORES, (40, 1))
    keys = jax.random.split(jax.random.key(1), 40)
    kind = np.arange(40) % 4
    rows = SamplingParams(
        jnp.where(kind == 0, 0.0, 3.0), jnp.where(kind == 2, 1, 0), jnp.where(kind == 3, 0.0, 1.0)
    )
    together = draw(scores, keys, rows).ids
    assert set(np.asarray(together[kind != 1]).tolist()) == {1}
    assert len(set(np.asarray(together[kind == 1]).tolist())) > 2
    for row in range(8):
        one = slice(row, row + 1)
        alone = draw(scores[one], keys[one], SamplingParams(*(setting[one] for setting in rows))).ids
        assert alone[0] == together[row]


@given(
    scores=st.lists(st.integers(-80, 80), min_size=1, max_size=20, unique=True),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, 25),
)
@settings(max_examples=100)
def test_what_is_kept_is_the_smallest_set_that_is_likely_enough(scores, top_p, top_k):
    padded = np.full((1, 20), -np.inf, np.float32)
    padded[0, : len(scores)] = np.array(scores) / 10
    kept = np.isfinite(np.asarray(truncate(padded, np.array([top_k]), np.array([top_p], np.float32)))[0])
    likeliest = np.argsort(-padded[0])[: min(top_k or 20, len(scores))]
    share = np.asarray(jax.nn.softmax(padded[0][likeliest]))
    size = kept.sum()
    assert set(np.flatnonzero(kept)) == set(likeliest[:size].tolist())
    assert share[:size].sum() >= top_p - 1e-5
    assert share[: size - 1].sum() < top_p + 1e-5


def test_what_is_kept_keeps_its_scores():
    scores = jnp.array([[1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(truncate(scores, NO_TOP_K, jnp.ones(1)), scores)
    np.testing.assert_array_equal(truncate(scores, NO_TOP_K, jnp.full(1, 0.5)), [[-np.inf, 3.0, -np.inf]])


def test_the_likeliest_id_stays_even_at_top_p_zero():
    kept = truncate(jnp.array([[1.0, 3.0, 2.0]]), NO_TOP_K, jnp.zeros(1))
    np.testing.assert_array_equal(kept, [[-np.inf, 3.0, -np.inf]])


def test_masked_ids_change_no_log_probability():
    padded = jnp.concatenate([SCORES, jnp.full(4, -jnp.inf)])
    for token in range(6):
        assert log_prob(padded, jnp.int32(token)) == pytest.approx(
            log_prob(jnp.array(SCORES), jnp.int32(token))
        )


def test_the_likeliest_is_the_first_of_equals_and_always_an_id():
    scores = jnp.array([[0.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, -1.0], [jnp.nan, jnp.nan, jnp.nan]])
    np.testing.assert_array_equal(likeliest(scores), [1, 2, 2])
