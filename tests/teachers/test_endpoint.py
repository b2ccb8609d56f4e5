"""A request's id: equal requests share it, and any difference changes it."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orca_jax.records import ROLES, Message, Sampling
from orca_jax.teachers.endpoint import Request, request_id

TEXT = st.text(max_size=8)
FIELDS = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "max_tokens": st.integers(1, 9999),
    "stop": st.lists(TEXT, max_size=3).map(tuple),
    "seed": st.none() | st.integers(),
    "top_logprobs": st.integers(0, 20),
}
MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), TEXT), max_size=3).map(tuple)
REQUESTS = st.builds(Request, MESSAGES, st.builds(Sampling, **FIELDS), st.integers(0, 99))


@settings(max_examples=100, deadline=None)
@given(one=st.tuples(TEXT, REQUESTS), other=st.tuples(TEXT, REQUESTS))
def test_ids_differ_where_anything_does(one, other):
    assert (request_id(*one) == request_id(*other)) == (one == other)
    assert len(request_id(*one)) == 16


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sampling)])
@settings(max_examples=30, deadline=None)
@given(data=st.data(), request=REQUESTS)
def test_every_field_of_sampling_counts(field, data, request):
    value = data.draw(FIELDS[field])
    assume(value != getattr(request.sampling, field))
    changed = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **{field: value}))
    assert request_id("teacher", changed) != request_id("teacher", request)


def test_text_cannot_move_between_messages_or_fields():
    def key(*contents, identity="teacher"):
        return request_id(identity, Request(tuple(Message("user", content) for content in contents)))

    keys = [
        key("ab"),
        key("a", "b"),
        key("", "ab"),
        key('a", "b'),
        key("b", identity="teachera"),
        key("a\ud83d"),
    ]
    assert len(set(keys)) == len(keys)


def test_equal_numbers_are_equal_whatever_their_type():
    one, other = (Request((), Sampling(temperature=value, top_p=value)) for value in (1, 1.0))
    assert one == other
    assert request_id("teacher", one) == request_id("teacher", other)


@settings(max_examples=200, deadline=None)
@given(identity=TEXT, request=REQUESTS)
def test_an_id_is_the_hash_of_a_json_text(identity, request):
    drawn = request.sampling
    form = [identity, [[one.role, one.content] for one in request.messages], drawn.temperature, drawn.top_p]
    form += [drawn.max_tokens, drawn.stop, drawn.seed, request.sample]
    form += [drawn.top_logprobs] if drawn.top_logprobs else []
    expected = hashlib.blake2b(json.dumps(form).encode(), digest_size=16).digest()
    assert request_id(identity, request) == expected


def test_ids_stand():
    request = Request(
        (Message("system", "Be brief."), Message("user", "Wer? é")), Sampling(0.7, stop=("\n",)), 3
    )
    assert request_id("gpt-4", request).hex() == "73810a085a0bf066df06bf4983414ce9"
