"""Generation: greedy is the full pass's argmax, sampling draws from the nucleus, company does not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student.generation import Generator, draw, nucleus
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


def test_the_company_in_a_batch_does_not_matter(greedy):
    generator = make_generator()
    for prompt, reply in zip(PROMPTS, greedy):
        (alone,) = generator.generate([prompt], max_tokens=NEW)
        np.testing.assert_array_equal(alone.tokens, reply.tokens)


def test_a_long_companion_takes_no_room_from_a_short_prompt():
    generator = make_generator(max_length=70)
    short, _ = generator.generate([PROMPTS[0], PROMPTS[4]], max_tokens=NEW)
    assert len(short.tokens) == NEW


def test_prompt_and_reply_fit_the_longest_sequence():
    generator = make_generator(max_length=70)
    (reply,) = generator.generate([PROMPTS[4]], max_tokens=NEW)
    assert (len(reply.tokens), reply.stopped) == (70 - 64, False)


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


def test_a_prompt_draws_by_its_place_and_not_by_its_company():
    generator = make_generator()
    changed = [PROMPTS[0], *reversed(PROMPTS[1:])]
    one, two = (generator.generate(p, max_tokens=NEW, temperature=1.0, seed=3)[0] for p in (PROMPTS, changed))
    np.testing.assert_array_equal(one.tokens, two.tokens)


def test_equal_prompts_at_other_places_draw_differently():
    replies = make_generator().generate([PROMPTS[0]] * 4, max_tokens=NEW, temperature=1.0)
    assert len({tuple(reply.tokens.tolist()) for reply in replies}) == 4


def test_sampled_first_tokens_have_the_models_probabilities():
    prompt, temperature = PROMPTS[3], 1.5
    generator = make_generator(batch_size=250)
    replies = generator.generate([prompt] * 2000, max_tokens=1, temperature=temperature)
    expected = np.asarray(jax.nn.softmax(logits(make_params(SMALL), prompt, SMALL)[-1] / temperature))
    counts = np.bincount([reply.tokens[0] for reply in replies], minlength=SMALL.vocab_size)
    assert within_chance(counts, expected)


def within_chance(counts, probabilities):
    """Whether every count is within 5 standard deviations of what it should be."""
    total = counts.sum()
    deviation = np.sqrt(total * probabilities * (1 - probabilities))
    return (np.abs(counts - total * probabilities) <= 5 * deviation + 1).all()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (2.0, 0.9)])
def test_draws_follow_temperature_and_nucleus(temperature, top_p):
    scores = np.array([1.0, 3.0, 0.5, 2.0, -1.0, 2.5], np.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(draw)(jnp.tile(scores, (20_000, 1)), keys, jnp.float32(temperature), jnp.float32(top_p))
    probabilities = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    expected = nucleus_of(probabilities, top_p)
    counts = np.bincount(drawn, minlength=6)
    assert not counts[expected == 0].any()
    assert within_chance(counts, expected)


def nucleus_of(probabilities, top_p):
    """Likeliest first until their sum reaches `top_p`; the others get none, the rest are normalised."""
    kept, total = np.zeros_like(probabilities), 0.0
    for index in np.argsort(-probabilities):
        if total >= top_p - 1e-6:
            break
        kept[index] = probabilities[index]
        total += probabilities[index]
    return kept / kept.sum()


@given(
    scores=st.lists(st.integers(-80, 80), min_size=1, max_size=20, unique=True),
    top_p=st.floats(0.01, 1.0),
)
@settings(max_examples=80)
def test_the_nucleus_is_the_smallest_set_that_is_likely_enough(scores, top_p):
    padded = np.full((1, 20), -np.inf, np.float32)
    padded[0, : len(scores)] = np.array(scores) / 10
    probabilities = np.asarray(jax.nn.softmax(padded))[0]
    kept = np.isfinite(np.asarray(nucleus(padded, jnp.float32(top_p)))[0])
    inside, outside = probabilities[kept], probabilities[~kept]
    assert kept[probabilities.argmax()]
    assert inside.sum() >= top_p - 1e-5
    assert inside.sum() - inside.min() < top_p + 1e-5
    assert not len(outside) or inside.min() > outside.max()


def test_the_nucleus_leaves_scores_as_they_are():
    scores = jnp.array([[1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(nucleus(scores, jnp.float32(1.0)), scores)
    np.testing.assert_array_equal(nucleus(scores, jnp.float32(0.5)), [[-np.inf, 3.0, -np.inf]])


def test_the_likeliest_id_stays_even_at_top_p_zero():
    kept = nucleus(jnp.array([[1.0, 3.0, 2.0]]), jnp.float32(0.0))
    np.testing.assert_array_equal(kept, [[-np.inf, 3.0, -np.inf]])


def test_no_prompts_give_no_replies():
    assert make_generator().generate([], max_tokens=NEW) == []


@pytest.mark.parametrize(("size", "max_length"), [(0, 128), (128, 128), (200, 128)])
def test_a_prompt_without_room_is_named(size, max_length):
    generator = make_generator(max_length=max_length)
    with pytest.raises(ValueError, match=f"prompt 1 has {size} tokens; 1 to {max_length - 1} fit"):
        generator.generate([PROMPTS[0], make_tokens(size)], max_tokens=NEW)


def test_tied_embeddings_generate_too():
    config = dataclasses.replace(SMALL, tie_embeddings=True)
    (reply,) = make_generator(params=make_params(config), config=config).generate([PROMPTS[0]], max_tokens=1)
    assert reply.tokens[0] == logits(make_params(config), PROMPTS[0], config)[-1].argmax()
