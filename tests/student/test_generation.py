"""Generation: greedy is the full pass's argmax, draws have its probabilities, the batch changes nothing."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.student.engine import LEAST_SHARED, Generator, common_prefix
from orca_jax.student.parameters import stacked
from tests.student.students import SMALL, logits, make_params, make_tokens

PROMPTS = [make_tokens(size, seed=size) for size in (7, 1, 30, 12, 64, 5)]
NEW = 12


def make_generator(*, stop_ids=(), batch_size=4, max_length=128, params=None, config=SMALL):
    params = make_params(SMALL) if params is None else params
    return Generator(params, config, stop_ids=stop_ids, batch_size=batch_size, max_length=max_length)


@pytest.fixture(scope="module")
def greedy():
    return make_generator().generate(PROMPTS, max_tokens=NEW)


def test_greedy_is_the_argmax_of_the_full_forward_pass_step_by_step(greedy):
    for prompt, reply in zip(PROMPTS, greedy):
        tokens = prompt
        for _ in range(NEW):
            best = logits(make_params(SMALL), tokens, SMALL, length=128)[-1].argmax()
            tokens = np.append(tokens, np.int32(best))
        assert reply.tokens.tolist() == tokens[len(prompt) :].tolist()
        assert not reply.stopped


def test_scanned_parameters_generate_the_same(greedy):
    params, config = stacked(make_params(SMALL), SMALL)
    replies = make_generator(params=params, config=config).generate(PROMPTS, max_tokens=NEW)
    for reply, expected in zip(replies, greedy):
        np.testing.assert_array_equal(reply.tokens, expected.tokens)


def test_a_stop_id_ends_a_reply_and_is_no_part_of_it(greedy):
    stops = (int(greedy[0].tokens[5]), int(greedy[3].tokens[0]))
    replies = make_generator(stop_ids=stops).generate(PROMPTS, max_tokens=NEW)
    for reply, unstopped in zip(replies, greedy):
        found = np.flatnonzero(np.isin(unstopped.tokens, stops))
        assert reply.stopped or not len(found)
        expected = unstopped.tokens[: found[0]] if len(found) else unstopped.tokens
        np.testing.assert_array_equal(reply.tokens, expected)
    assert replies[0].stopped
    assert len(replies[3].tokens) == 0


def test_only_ids_of_the_vocabulary_are_drawn():
    replies = make_generator().generate(PROMPTS, max_tokens=NEW, temperature=5.0)
    ids = np.concatenate([reply.tokens for reply in replies])
    assert ids.min() >= 0
    assert ids.max() < SMALL.vocab_size


def test_equal_seeds_repeat_and_other_seeds_do_not():
    generator = make_generator()
    one, same, other = (
        [
            reply.tokens.tolist()
            for reply in generator.generate(PROMPTS, max_tokens=NEW, temperature=1.0, seed=seed)
        ]
        for seed in (3, 3, 4)
    )
    assert one == same
    assert all(left != right for left, right in zip(one, other))


def test_equal_prompts_at_other_indices_draw_differently():
    replies = make_generator().generate([PROMPTS[0]] * 4, max_tokens=NEW, temperature=1.0)
    assert len({tuple(reply.tokens.tolist()) for reply in replies}) == 4


def test_sampled_first_tokens_have_the_models_probabilities():
    prompt, temperature = PROMPTS[3], 1.5
    generator = make_generator(batch_size=250)
    replies = generator.generate([prompt] * 2000, max_tokens=1, temperature=temperature)
    expected = np.asarray(jax.nn.softmax(logits(make_params(SMALL), prompt, SMALL)[-1] / temperature))
    counts = np.bincount([reply.tokens[0] for reply in replies], minlength=SMALL.vocab_size)
    deviation = np.sqrt(2000 * expected * (1 - expected))
    assert (np.abs(counts - 2000 * expected) <= 5 * deviation + 1).all()


def test_no_prompts_give_no_replies():
    assert make_generator().generate([], max_tokens=NEW) == []


@pytest.mark.parametrize(("size", "max_length"), [(0, 128), (128, 128)])
def test_a_prompt_without_room_is_named(size, max_length):
    generator = make_generator(max_length=max_length)
    with pytest.raises(ValueError, match=f"prompt 1 has {size} tokens; 1 to {max_length - 1} fit"):
        generator.generate([PROMPTS[0], make_tokens(size)], max_tokens=NEW)


def test_replies_are_yielded_as_they_finish():
    generator = make_generator(batch_size=2)
    order = [index for index, _ in generator.as_finished(PROMPTS[:2], max_tokens=[40, 1])]
    assert order == [1, 0]


def test_closing_the_iterator_cancels_its_requests(greedy):
    generator = make_generator(batch_size=2)
    replies = generator.as_finished(PROMPTS, max_tokens=NEW)
    next(replies)
    replies.close()
    assert not generator.engine.busy
    (reply,) = generator.generate(PROMPTS[:1], max_tokens=NEW)
    np.testing.assert_array_equal(reply.tokens, greedy[0].tokens)


def test_a_common_prefix_changes_nothing():
    start = make_tokens(40, seed=9)
    prompts = [np.concatenate([start, prompt]) for prompt in PROMPTS[:3]]
    generator = make_generator(max_length=256)
    assert common_prefix(prompts) >= 40
    together = generator.generate(prompts, max_tokens=NEW, temperature=1.0, seed=2)
    for index, (prompt, reply) in enumerate(zip(prompts, together)):
        (alone,) = generator.generate([prompt], max_tokens=NEW, temperature=1.0, seed=2, numbers=[index])
        np.testing.assert_array_equal(alone.tokens, reply.tokens)
        np.testing.assert_allclose(alone.log_probs, reply.log_probs, atol=1e-4)


@given(start=st.integers(0, 80), tails=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_the_common_prefix_is_what_all_share(start, tails):
    prompts = [np.array([7] * start + list(range(i, i + size)), np.int32) for i, size in enumerate(tails)]
    found = common_prefix(prompts)
    if len(prompts) < 2:
        assert found == 0
        return
    positions = zip(*(prompt.tolist() for prompt in prompts))
    shared = next((n for n, column in enumerate(positions) if len(set(column)) > 1), min(map(len, prompts)))
    assert found == (shared if shared >= LEAST_SHARED else 0)


def test_a_refused_request_cancels_the_others_of_its_call(greedy):
    generator = make_generator()
    with pytest.raises(ValueError, match="max_tokens=0 must be at least 1"):
        generator.generate(PROMPTS[:2], max_tokens=[4, 0])
    assert not generator.engine.busy
    assert generator.generate(PROMPTS[:2], max_tokens=4)


def test_another_engine_over_the_same_parameters(greedy):
    generator = make_generator()
    other = generator.new_engine()
    assert other is not generator.engine
    pairs = zip(jax.tree.leaves(other.params), jax.tree.leaves(generator.engine.params))
    assert all(a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in pairs)
