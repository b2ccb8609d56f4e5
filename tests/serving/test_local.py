"""The local student: replies in order, outcomes as an endpoint's, and an identity of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from orca_jax.data import layouts
from orca_jax.records import Message, Outcome, Sampling, Usage
from orca_jax.serving.local import LocalStudent
from tests.student.students import SMALL, logits, make_params

SAMPLING = Sampling(max_tokens=8)
CONVERSATIONS = [
    [Message("user", "Is it red?")],
    [Message("system", "Be brief."), Message("user", "2 + 2 = ?")],
    [Message("user", "A"), Message("assistant", "B"), Message("user", "C")],
]


@pytest.fixture(scope="module")
def config(tokenizer):
    return dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)


@pytest.fixture(scope="module")
def make_student(config, tokenizer):
    def make(*, params=None, layout="chatml", **given):
        params = make_params(config) if params is None else params
        options = {"checkpoint": "c", "max_length": 128, "batch_size": 4, **given}
        return LocalStudent(params, config, tokenizer, layout, **options)

    return make


def ids_of(conversation, tokenizer, layout="chatml"):
    return layouts.encode(conversation, layout, tokenizer).tokens


def always(token, config):
    """Parameters of a student that answers one token whatever it is asked."""
    params = jax.tree.map(np.zeros_like, make_params(config))
    params["embed"]["embedding"] = np.ones_like(params["embed"]["embedding"])
    params["norm"]["scale"] = np.ones_like(params["norm"]["scale"])
    params["unembed"] = np.zeros_like(params["unembed"])
    params["unembed"][:, token] = 1
    return params


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_replies_are_what_the_generator_says_to_the_layouts_prompt(make_student, tokenizer, layout):
    student = make_student(layout=layout, max_length=256)
    replies = student.answer(CONVERSATIONS, SAMPLING)
    for conversation, reply in zip(CONVERSATIONS, replies, strict=True):
        prompt = ids_of(conversation, tokenizer, layout)
        (generated,) = student.generator.generate([prompt], max_tokens=8)
        said = tokenizer.decode(generated.tokens.tolist())
        before, after = layouts.answer_frame(layout, tokenizer)
        assert reply.text == said.removeprefix(before).removesuffix(after)
        assert reply.usage == Usage(len(prompt), len(generated.tokens))


def test_a_reply_that_the_limit_cuts_says_so(make_student, config, tokenizer):
    (letter,) = tokenizer.encode("a", first=False)
    (reply,) = make_student(params=always(letter, config)).answer(CONVERSATIONS[:1], SAMPLING)
    assert (reply.outcome, reply.text) == (Outcome.LENGTH, "a" * 8)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_the_layouts_stop_token_ends_a_reply(make_student, config, tokenizer, layout):
    stop = layouts.stop_ids(layout, tokenizer)[0]
    (reply,) = make_student(params=always(stop, config), layout=layout, max_length=256).answer(
        CONVERSATIONS[:1], SAMPLING
    )
    assert (reply.outcome, reply.text, reply.usage.completion_tokens) == (Outcome.EMPTY, "", 0)


def test_a_stop_text_ends_a_reply_before_it(make_student):
    student = make_student()
    (whole,) = student.answer(CONVERSATIONS[:1], SAMPLING)
    stops = ("never said", whole.text[3:5], whole.text[2:4])
    (reply,) = student.answer(CONVERSATIONS[:1], dataclasses.replace(SAMPLING, stop=stops))
    assert whole.text.startswith(reply.text)
    assert len(reply.text) <= 2
    assert not any(stop in reply.text for stop in stops)
    assert reply.outcome in (Outcome.OK, Outcome.EMPTY)


def test_a_prompt_without_room_is_an_error_reply_and_the_others_stand(make_student):
    student = make_student()
    long = [Message("user", "why " * 200)]
    replies = student.answer([CONVERSATIONS[0], long, CONVERSATIONS[1]], SAMPLING)
    assert (replies[1].outcome, replies[1].raw) == (Outcome.ERROR, {"error": "prompt exceeds 128 tokens"})
    assert [replies[0], replies[2]] == student.answer(CONVERSATIONS[:2], SAMPLING)


def test_nothing_but_long_prompts_is_answered_too(make_student):
    replies = make_student().answer([[Message("user", "why " * 200)]], SAMPLING)
    assert [reply.outcome for reply in replies] == [Outcome.ERROR]


def test_a_seed_repeats_a_sampled_reply(make_student):
    student = make_student()
    one, same, other = (
        student.answer(CONVERSATIONS, dataclasses.replace(SAMPLING, temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_identity_is_of_checkpoint_tokenizer_layout_and_type(make_student):
    same, again = make_student().identity, make_student(max_length=100, dtype="float32").identity
    others = [{"checkpoint": "d"}, {"layout": "orca"}, {"dtype": "bfloat16"}]
    assert same == again
    assert len({same, *(make_student(**other).identity for other in others)}) == 4
    assert same.startswith("student-")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [(), ("e",)])
def test_a_stream_says_what_the_whole_reply_does(make_student, temperature, stop):
    student = make_student()
    sampling = Sampling(temperature, max_tokens=40, stop=stop, seed=3)
    (whole,) = student.answer(CONVERSATIONS[:1], sampling)
    deltas = list(student.stream(CONVERSATIONS[0], sampling))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.reply for delta in deltas] == [None] * (len(deltas) - 1) + [whole]


def test_a_stream_that_is_left_leaves_the_student_free(make_student):
    student = make_student()
    stream = student.stream(CONVERSATIONS[0], Sampling(max_tokens=40))
    next(stream)
    stream.close()
    assert not student.generator.engine.busy


def test_a_stream_of_a_long_prompt_is_its_error(make_student):
    (delta,) = make_student().stream([Message("user", "why " * 200)], SAMPLING)
    assert (delta.text, delta.reply.outcome) == ("", Outcome.ERROR)


def test_replies_as_they_finish_are_those_in_order(make_student):
    student = make_student()
    assert dict(student.as_finished(CONVERSATIONS, SAMPLING)) == dict(
        enumerate(student.answer(CONVERSATIONS, SAMPLING))
    )


def test_numbers_say_what_each_conversation_draws_by(make_student):
    student = make_student()
    warm = dataclasses.replace(SAMPLING, temperature=1.0, seed=3)
    in_order = student.answer(CONVERSATIONS, warm)
    backwards = dict(student.as_finished(CONVERSATIONS[::-1], warm, numbers=[2, 1, 0]))
    assert [backwards[i] for i in (2, 1, 0)] == in_order


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_the_likelihood_of_an_answer_is_that_of_its_tokens(make_student, config, tokenizer, layout):
    student = make_student(layout=layout, max_length=256)
    (score,) = student.log_likelihoods([(CONVERSATIONS[1], "It is 4.")])
    answered = [*CONVERSATIONS[1], Message("assistant", "It is 4.")]
    whole, prompt = (ids_of(one, tokenizer, layout) for one in (answered, CONVERSATIONS[1]))
    end = len(prompt) + len(score.log_probs)
    every = jax.nn.log_softmax(logits(make_params(config), whole, config))
    expected = every[np.arange(len(prompt) - 1, end - 1), whole[len(prompt) : end]]
    np.testing.assert_allclose(score.log_probs, expected, atol=1e-4)
    assert whole[end] == layouts.stop_ids(layout, tokenizer)[0]


def test_a_greedy_reply_is_the_likeliest_answer(make_student):
    student = make_student()
    (reply,) = student.answer(CONVERSATIONS[:1], SAMPLING)
    asked = [(CONVERSATIONS[0], text) for text in (reply.text, "never said")]
    scores = student.log_likelihoods(asked)
    # The text's own tokens may be others than those that were drawn; where they are not, they are greedy.
    tokens = student.tokenizer.encode(reply.text, first=False)
    (drawn,) = student.generator.generate([student.prompt(CONVERSATIONS[0])], max_tokens=8)
    assert scores[0].greedy == (tokens == drawn.tokens.tolist())
    assert not scores[1].greedy
    assert student.log_likelihoods([]) == []


@pytest.mark.parametrize("layout", ["chatml", "plain"])
def test_going_on_continues_the_answer_before_the_end_of_its_turn(make_student, tokenizer, layout):
    student = make_student(layout=layout)
    pairs = [(conversation, "It is") for conversation in CONVERSATIONS]
    for (conversation, text), reply in zip(pairs, student.go_on(pairs, SAMPLING), strict=True):
        ids = ids_of([*conversation, Message("assistant", text)], tokenizer, layout).tolist()
        end = max(place for place, token in enumerate(ids) if token in student.stop_ids)
        (generated,) = student.generator.generate([np.array(ids[:end], np.int32)], max_tokens=8)
        assert reply.text == tokenizer.decode(generated.tokens.tolist())
