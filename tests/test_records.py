"""Records: JSON and back without loss, and what is wrong named by its field."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.records import (
    Item,
    Message,
    Outcome,
    Query,
    RecordError,
    Reply,
    Sampling,
    Trace,
    Usage,
    from_json,
    to_json,
)

TEXT = st.text(max_size=10)
OUTCOMES = st.sampled_from(Outcome)
EXTRA = st.dictionaries(TEXT.map("x_{}".format), st.none() | st.integers() | TEXT, max_size=2)
MAYBE = st.none() | TEXT
IDS = st.none() | st.integers(1, 16)
QUERIES = st.builds(Query, TEXT, TEXT, TEXT, TEXT, TEXT, st.booleans(), IDS, MAYBE, TEXT, EXTRA)
REPLIES = st.builds(Reply, OUTCOMES, TEXT, st.builds(Usage, st.integers(0), st.integers(0)), EXTRA)
ITEMS = st.builds(
    Item, TEXT, TEXT, TEXT, st.integers(), TEXT, OUTCOMES, st.booleans(), MAYBE, MAYBE, IDS, EXTRA
)

TRACE = Trace(
    id="cot.1/gpt-4/0",
    query_id="cot.1",
    sample=0,
    messages=(Message("system", "s"), Message("user", "u"), Message("assistant", "a")),
    collection="cot",
    task="aqua",
    system_message_id=3,
    teacher="gpt-4",
    sampling=Sampling(stop=("x",)),
    outcome=Outcome.OK,
)


@given(record=QUERIES | REPLIES | ITEMS)
def test_a_record_is_read_back_from_its_json(record):
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


def test_a_trace_is_read_back_from_its_json():
    assert from_json(Trace, json.loads(json.dumps(to_json(TRACE)))) == TRACE


def test_json_holds_plain_values_and_no_empty_extra():
    row = to_json(TRACE)
    assert row["outcome"] == "ok"
    assert type(row["outcome"]) is str
    assert row["messages"][1] == {"role": "user", "content": "u"}
    assert row["sampling"]["stop"] == ["x"]
    assert "extra" not in row


def test_unknown_keys_are_kept_in_extra():
    row = to_json(TRACE) | {"extra": {"old": 1}, "rating": 5}
    trace = from_json(Trace, row)
    assert trace.extra == {"old": 1, "rating": 5}
    assert dataclasses.replace(trace, extra={}) == TRACE


def test_missing_fields_are_named():
    with pytest.raises(RecordError, match="Query lacks text, task"):
        from_json(Query, {"id": "1", "collection": "cot"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 1}, "Trace.id: expected str, got 1"),
        ({"sample": "0"}, "Trace.sample: expected int, got '0'"),
        ({"sample": True}, "Trace.sample: expected int, got True"),
        ({"outcome": "fine"}, "Trace.outcome: expected Outcome, got 'fine'"),
        ({"system_message_id": "3"}, r"Trace.system_message_id: expected int \| None, got '3'"),
        ({"messages": "hello"}, "Trace.messages: expected tuple"),
        ({"messages": [{"role": "tool", "content": ""}]}, "Trace.messages: expected tuple"),
        ({"messages": [{"role": "user"}]}, "Trace.messages: expected tuple"),
        ({"sampling": {"temperature": "hot"}}, "Trace.sampling: expected Sampling"),
        ({"extra": [1]}, "Trace.extra: expected Mapping"),
    ],
)
def test_an_ill_typed_field_is_named(change, message):
    with pytest.raises(RecordError, match=message):
        from_json(Trace, to_json(TRACE) | change)


@pytest.mark.parametrize("row", [None, [1], "text", 3])
def test_a_record_must_be_an_object(row):
    with pytest.raises(RecordError, match="a Query must be a JSON object"):
        from_json(Query, row)


def test_a_whole_number_may_stand_for_a_float():
    assert from_json(Sampling, {"temperature": 1}).temperature == 1.0


def test_null_is_the_default_of_a_field_that_has_one():
    assert from_json(Message, {"role": "user", "content": "Q", "weight": None}) == Message("user", "Q")
    assert (
        from_json(Query, {"id": "1", "text": "t", "collection": "c", "task": "k", "extra": None}).extra == {}
    )
    with pytest.raises(RecordError, match=r"Query\.text: expected str, got None"):
        from_json(Query, {"id": "1", "text": None, "collection": "c", "task": "k"})


def test_an_unknown_role_is_named_with_the_known_ones():
    with pytest.raises(RecordError, match="unknown role 'tool'; known: system, user, assistant"):
        Message("tool", "x")


def test_the_answer_is_the_last_thing_the_assistant_said():
    turns = (*TRACE.messages, Message("user", "u2"), Message("assistant", "a2"))
    assert dataclasses.replace(TRACE, messages=turns).answer == "a2"
    assert dataclasses.replace(TRACE, messages=TRACE.messages[:2]).answer == ""


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRACE.id = "other"
