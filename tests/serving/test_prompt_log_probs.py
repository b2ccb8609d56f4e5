"""Scores are the student's own log-probabilities, and a likeliest token has one number, not two."""

import jax
import numpy as np
import pytest

from orca_jax.serving.prompt_log_probs import LogProbsRequest, PromptScorer
from tests.serving.served import make_student
from tests.student.students import logits, make_tokens


@pytest.fixture(scope="module")
def generator(tokenizer):
    return make_student(tokenizer).generator


@pytest.fixture(scope="module")
def scorer(generator):
    return PromptScorer(generator)


@pytest.mark.parametrize("top", [0, 1, 3, 20])
def test_scores_are_the_students(scorer, generator, tokenizer, top):
    sequences = [make_tokens(size, size, tokenizer.vocab_size) for size in (1, 2, 9, 70, 5)]
    scores = scorer.score([LogProbsRequest(tokens, top) for tokens in sequences])
    engine = generator.engine
    for tokens, score in zip(sequences, scores, strict=True):
        expected = np.asarray(jax.nn.log_softmax(logits(engine.params, tokens, engine.config)))
        of_tokens = expected[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(score.log_probs, of_tokens, atol=1e-4)
        likeliest = -np.sort(-expected, axis=-1)[:, :top]
        np.testing.assert_allclose(score.top_log_probs, likeliest, atol=1e-4)
        np.testing.assert_allclose(
            np.take_along_axis(expected, score.top_ids, axis=-1), score.top_log_probs, atol=1e-4
        )


def test_the_likeliest_token_has_the_same_number_twice(scorer, generator):
    prompt = np.array([1, 7, 9], np.int32)
    (said,) = generator.generate([prompt], max_tokens=30)
    (score,) = scorer.score([LogProbsRequest(np.concatenate([prompt, said.tokens]), 1)])
    greedy = score.log_probs[2:] == score.top_log_probs[2:-1, 0]
    assert greedy.all()
    np.testing.assert_allclose(score.log_probs[2:], said.log_probs, atol=1e-4)


def test_batches_have_a_largest_size(scorer):
    short, long = LogProbsRequest(make_tokens(60), 1), LogProbsRequest(make_tokens(2000), 1)
    assert scorer.fits([long])
    assert not scorer.fits([long, long])
    assert not scorer.fits([short] * 4 + [long])
    assert scorer.fits([short] * 16)
    assert not scorer.fits([short] * 17)
