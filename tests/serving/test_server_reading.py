"""Readings are the student's own log-probabilities, and a likeliest token has one number, not two."""

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
def reader(generator):
    return PromptScorer(generator)


@pytest.mark.parametrize("top", [0, 1, 3, 20])
def test_readings_are_the_students(reader, generator, tokenizer, top):
    sequences = [make_tokens(size, size, tokenizer.vocab_size) for size in (1, 2, 9, 70, 5)]
    reads = reader.read([LogProbsRequest(tokens, top) for tokens in sequences])
    engine = generator.engine
    for tokens, read in zip(sequences, reads, strict=True):
        expected = np.asarray(jax.nn.log_softmax(logits(engine.params, tokens, engine.config)))
        of_tokens = expected[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(read.log_probs, of_tokens, atol=1e-4)
        likeliest = -np.sort(-expected, axis=-1)[:, :top]
        np.testing.assert_allclose(read.top_log_probs, likeliest, atol=1e-4)
        np.testing.assert_allclose(
            np.take_along_axis(expected, read.top_ids, axis=-1), read.top_log_probs, atol=1e-4
        )


def test_the_likeliest_token_has_the_same_number_twice(reader, generator):
    prompt = np.array([1, 7, 9], np.int32)
    (said,) = generator.generate([prompt], max_tokens=30)
    (read,) = reader.read([LogProbsRequest(np.concatenate([prompt, said.tokens]), 1)])
    greedy = read.log_probs[2:] == read.top_log_probs[2:-1, 0]
    assert greedy.all()
    np.testing.assert_allclose(read.log_probs[2:], said.log_probs, atol=1e-4)


def test_batches_have_a_largest_size(reader):
    short, long = LogProbsRequest(make_tokens(60), 1), LogProbsRequest(make_tokens(2000), 1)
    assert reader.fits([long])
    assert not reader.fits([long, long])
    assert not reader.fits([short] * 4 + [long])
    assert reader.fits([short] * 16)
    assert not reader.fits([short] * 17)
