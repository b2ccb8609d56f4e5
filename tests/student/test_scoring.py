"""Scores are the full forward pass's, whatever the batch, the padding and the order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student import engine
from orca_jax.student.scoring import Scorer, ScoreRequest
from tests.student.students import SMALL, logits, make_params, make_tokens

PROMPTS = [make_tokens(size, seed=size) for size in (7, 1, 30, 12, 64, 5, 90)]
CONTINUATIONS = [make_tokens(size, seed=100 + size) for size in (3, 1, 20, 9, 2, 40, 5)]


@functools.cache
def make_scorer(batch_tokens=4096, config=SMALL):
    return Scorer(make_params(config), config, batch_tokens=batch_tokens)


@functools.cache
def scored():
    return make_scorer().score(PROMPTS, CONTINUATIONS)


def expected(prompt, continuation, config=SMALL):
    """Log-probabilities of an unpadded forward pass, in float64, and its likeliest ids."""
    whole = np.concatenate([prompt, continuation])
    scores = logits(make_params(config), whole, config, length=160)[len(prompt) - 1 : -1].astype(np.float64)
    normal = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
    normal -= scores.max(-1, keepdims=True)
    return normal[np.arange(len(continuation)), continuation], scores.argmax(-1)


def test_scores_are_those_of_the_full_forward_pass():
    for prompt, continuation, score in zip(PROMPTS, CONTINUATIONS, scored(), strict=True):
        log_probs, best = expected(prompt, continuation)
        np.testing.assert_allclose(score.log_probs, log_probs, atol=1e-5)
        assert score.total == pytest.approx(log_probs.sum(), abs=1e-4)
        assert score.greedy == (best == continuation).all()


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_batch_size_and_padding_change_nothing(batch_tokens):
    for one, other in zip(make_scorer(batch_tokens).score(PROMPTS, CONTINUATIONS), scored(), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
        assert one.greedy == other.greedy


@given(order=st.permutations(range(len(PROMPTS))), count=st.integers(1, len(PROMPTS)))
@settings(max_examples=5)
def test_company_and_order_change_nothing(order, count):
    chosen = order[:count]
    found = make_scorer(300).score([PROMPTS[i] for i in chosen], [CONTINUATIONS[i] for i in chosen])
    for index, score in zip(chosen, found, strict=True):
        np.testing.assert_allclose(score.log_probs, scored()[index].log_probs, atol=1e-5)


def test_a_greedy_reply_is_scored_as_it_was_drawn():
    running = engine.Engine(make_params(SMALL), SMALL, slots=2, max_length=128)
    running.add(engine.Request(prompt=PROMPTS[2], max_tokens=10))
    (advance,) = running.step()
    (score,) = make_scorer().score([PROMPTS[2]], [advance.finished.tokens])
    assert score.greedy
    np.testing.assert_allclose(score.log_probs, advance.finished.log_probs, atol=1e-5)


def test_probabilities_of_all_one_token_continuations_sum_to_one():
    every = np.arange(SMALL.vocab_size, dtype=np.int32)[:, None]
    found = make_scorer().score([PROMPTS[0]] * len(every), list(every))
    assert np.exp([score.total for score in found]).sum() == pytest.approx(1, abs=1e-5)
    assert sum(score.greedy for score in found) == 1


def test_bfloat16_is_near():
    found = Scorer(make_params(SMALL), SMALL, dtype=jnp.bfloat16).score(PROMPTS, CONTINUATIONS)
    for one, other in zip(found, scored(), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=0.5)


def test_nothing_to_score_gives_nothing():
    assert make_scorer().score([], []) == []


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_part_is_named(empty):
    pair = [[PROMPTS[0], PROMPTS[1]], [CONTINUATIONS[0], CONTINUATIONS[1]]]
    pair[empty][1] = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="prompt 1 or its continuation is empty"):
        make_scorer().score(*pair)


def test_parameters_stay_where_they_are():
    scorer = make_scorer()
    again = Scorer(scorer.params, scorer.config)
    shared = jax.tree.map(
        lambda a, b: a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer(), scorer.params, again.params
    )
    assert all(jax.tree.leaves(shared))


def whole(tokens, top=1):
    """A request for all of a sequence, and for the likeliest ids behind it."""
    return ScoreRequest(tokens, np.append(tokens[1:], 0), top)


@pytest.mark.parametrize("top", [0, 3, 20])
def test_whole_sequences_and_their_likeliest_ids_are_the_full_forward_passes(top):
    sequences = [make_tokens(size, size) for size in (1, 2, 9, 70, 5)]
    scores = make_scorer().score_batch([whole(tokens, top) for tokens in sequences])
    for tokens, score in zip(sequences, scores, strict=True):
        expected = np.asarray(jax.nn.log_softmax(logits(make_params(SMALL), tokens, SMALL)))
        of_tokens = expected[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(score.log_probs[:-1], of_tokens, atol=1e-5)
        likeliest = -np.sort(-expected, axis=-1)[:, :top]
        np.testing.assert_allclose(score.top_log_probs, likeliest, atol=1e-5)
        np.testing.assert_allclose(
            np.take_along_axis(expected, score.top_ids, axis=-1), score.top_log_probs, atol=1e-5
        )


def test_a_whole_sequence_and_its_continuation_have_the_same_numbers():
    """One form of log-probabilities: evaluation and server differ in rounding alone."""
    together = make_scorer().score_batch(
        [whole(np.concatenate(pair)) for pair in zip(PROMPTS[:4], CONTINUATIONS)]
    )
    for prompt, score, other in zip(PROMPTS, together, scored()):
        np.testing.assert_allclose(score.log_probs[len(prompt) - 1 : -1], other.log_probs, atol=1e-5)


def test_a_likeliest_token_has_the_very_same_number_twice():
    running = engine.Engine(make_params(SMALL), SMALL, slots=2, max_length=128)
    prompt = np.array([1, 7, 9], np.int32)
    running.add(engine.Request(prompt=prompt, max_tokens=16))
    (advance,) = running.step()
    (score,) = make_scorer().score_batch([whole(np.concatenate([prompt, advance.finished.tokens]))])
    assert (score.log_probs[2:-1] == score.top_log_probs[2:-1, 0]).all()
    np.testing.assert_allclose(score.log_probs[2:-1], advance.finished.log_probs, atol=1e-5)


def test_a_batch_has_a_largest_size():
    short, long = whole(make_tokens(60)), whole(make_tokens(2000))
    fits = make_scorer().fits
    assert fits([long])
    assert not fits([long, long])
    assert not fits([short] * 4 + [long])
    assert fits([short] * 16)
    assert not fits([short] * 17)
