"""Conversations of every schema: what changes a prompt or the loss is honoured or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax import conversations
from orca_jax.records import Message, RecordError
from tests.test_trace_files import WORDS
from tests.test_trace_files import conversations as drawn

SYSTEM, ASKED, SAID = Message("system", "S"), Message("user", "Q"), Message("assistant", "A")
TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def messages(row, **options):
    return conversations.read(row, **options).messages


def turns(said, role="role", text="content", names=None):
    return [
        {
            role: (names or {}).get(m.role, m.role),
            text: m.content,
            **({} if m.weight == 1 else {"weight": m.weight}),
        }
        for m in said
    ]


@given(said=drawn(), parts=st.booleans(), beside=st.booleans(), column=st.sampled_from(conversations.TURNS))
def test_turns_are_read_in_every_spelling(said, parts, beside, column):
    names = {"system": "developer", "user": "Human", "assistant": "bing"}
    for row in (turns(said), turns(said, "from", "value", names), turns(said, "role", "value", names)):
        if parts:
            row = [
                {
                    key: [{"type": "text", "text": text}] if key in ("content", "value") else text
                    for key, text in turn.items()
                }
                for turn in row
            ]
        system = {}
        if beside and said[0].role == "system":
            system, row = {"system": said[0].content}, row[1:]
        assert messages({column: row, **system, "answer": "not read", "question": "not read"}) == said


@given(said=drawn(turns=1, weighted=False))
def test_texts_are_read_in_every_schema(said):
    *system, asked, answered = said
    beside = {"system": system[0].content if system else None}
    for question, answer in conversations.TEXTS.values():
        assert messages({question: asked.content, answer: answered.content, **beside}) == said
        assert messages({**beside, question: asked.content, answer: answered.content, "weight": 0}) == (
            *system,
            asked,
            Message("assistant", answered.content, 0.0),
        )


@given(said=drawn(weighted=False))
def test_history_and_lists_of_turns_as_prompt_and_completion(said):
    *before, asked, answered = said
    system, earlier = before[: len(before) % 2], before[len(before) % 2 :]
    pairs = [[one.content, other.content] for one, other in zip(earlier[::2], earlier[1::2])]
    row = {"instruction": asked.content, "input": "", "output": answered.content, "history": pairs}
    assert messages({**row, "system_prompt": system[0].content if system else ""}) == said
    # TRL's loss is on completions only.
    unlearnt = [Message(m.role, m.content, float(m.role != "assistant")) for m in before]
    row = {"prompt": turns([*before, asked]), "completion": turns([answered])}
    assert messages(row) == (*unlearnt, asked, answered)


def test_an_input_stands_below_its_instruction():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert messages(row)[0] == Message("user", "Add.\n1 and 2")


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"weight": 0}, 0.0),
        ({"weight": 0.0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"weight": None}, 1.0),
        ({"train": False}, 0.0),
        ({"training": True}, 1.0),
        ({"loss": False, "weight": 1}, 0.0),
        ({"loss_scale": 2}, 2.0),
        ({"mask": True}, 0.0),
        ({"mask": 0}, 1.0),
    ],
)
def test_the_loss_of_a_turn_is_honoured(keys, weight):
    said = messages({"messages": [TURNS[0], {**TURNS[1], **keys}]})
    assert said == (ASKED, Message("assistant", "A", weight))
    assert messages({"messages": [{**TURNS[0], **{key: 0 for key in keys if key != "mask"}}, TURNS[1]]}) == (
        ASKED,
        SAID,
    )


CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": CALL}]},
            "'tool_calls'",
        ),
        ({"messages": [TURNS[0], {**TURNS[1], "tool_calls": CALL}]}, "'tool_calls'"),
        ({"messages": [TURNS[0], {**TURNS[1], "function_call": {"name": "f"}}]}, "'function_call'"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}, *TURNS]}, "'content' is null"),
        ({"messages": [{"role": "user", "content": None}, TURNS[1]]}, "'content' is null"),
        ({"messages": [*TURNS, {"role": "function", "content": "4"}]}, "unknown role 'function'"),
        ({"conversations": [{"from": "observation", "value": "4"}]}, "unknown role 'observation'"),
        ({"messages": TURNS, "tools": CALL}, "'tools' is not read"),
        ({"messages": TURNS, "images": ["a.png"]}, "'images' is not read"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]]}, "not 'image_url'"),
        ({"messages": [{**TURNS[0], "weight": 1}, TURNS[1]]}, "loss is asked for on a user's turn"),
        ({"messages": [TURNS[0], {**TURNS[1], "weight": -1}]}, "'weight' must be"),
        ({"messages": [TURNS[0], {**TURNS[1], "weight": "0"}]}, "'weight' must be"),
        ({"messages": [TURNS[0], {**TURNS[1], "train": float("nan")}]}, "'train' must be"),
        ({"messages": [TURNS[0], {**TURNS[1], "train_detail": [{"begin_offset": 0}]}]}, "'train_detail'"),
        ({"messages": TURNS, "weight": "heavy"}, "'weight' must be"),
        (
            {"messages": [{"role": "system", "content": "T"}, *TURNS], "system": "S"},
            "different system messages",
        ),
        ({"messages": TURNS, "system": "S", "system_prompt": "T"}, "different system messages"),
        ({"messages": TURNS, "system": ["S"]}, "column 'system' must be text"),
        ({"messages": TURNS, "conversations": TURNS[:1]}, "hold different conversations"),
        ({"messages": [{**TURNS[0], "from": "gpt"}, TURNS[1]]}, "'role' and 'from' differ"),
        ({"messages": [TURNS[0], TURNS[0], TURNS[1]]}, "got user, user, assistant"),
        ({"messages": [TURNS[1]]}, "got assistant"),
        ({"messages": [{"role": "system", "content": "S"}]}, "got system"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": ["Q", "A"]}, "a turn must be an object"),
        ({"messages": [{"role": "user", "content": " \n"}, TURNS[1]]}, "a user's turn is empty"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "\ude00"}]}, "half a surrogate pair"),
        ({"prompt": "Q", "completion": "A", "history": "old"}, "'history' must be pairs"),
        ({"prompt": "Q", "completion": "A", "instruction": "Q", "output": "A"}, "keep one pair"),
        ({"instruction": "", "output": "A"}, "'instruction' is empty"),
        ({"prompt": "Q"}, "column 'completion' is missing"),
    ],
)
def test_what_cannot_be_trained_on_as_it_stands_is_refused(row, reason):
    with pytest.raises(RecordError, match=reason):
        messages(row)


@pytest.mark.parametrize("nothing", [None, [], "", "[]"])
def test_columns_that_say_nothing_are_no_reason(nothing):
    row = {"messages": [TURNS[0], {**TURNS[1], "tool_calls": nothing}], "tools": nothing, "system": None}
    assert messages(row) == (ASKED, SAID)


def test_the_same_system_message_twice_is_one():
    row = {"system": "S", "messages": [{"role": "system", "content": "S"}, *TURNS]}
    assert messages(row) == (SYSTEM, ASKED, SAID)


def test_other_columns_and_keys_of_turns_are_kept():
    found = conversations.read(
        {"id": 1, "messages": [{**TURNS[0], "name": "Ann"}, TURNS[1]], "question": "?", "extra": {"a": 1}}
    )
    assert found.messages == (ASKED, SAID)
    assert found.extra == {"question": "?", "a": 1, "messages": [{"name": "Ann"}, {}]}


def test_consecutive_turns_of_a_role_are_joined_if_asked_for():
    row = {"messages": [TURNS[0], {"role": "user", "content": "R"}, TURNS[1], TURNS[1]]}
    joined = (Message("user", "Q\n\nR"), Message("assistant", "A\n\nA"))
    assert messages(row, join_turns=True) == joined
    row["messages"][-1] = {**TURNS[1], "weight": 0}
    with pytest.raises(RecordError, match="got user, assistant, assistant"):
        messages(row, join_turns=True)


KEYS = [*conversations.TURNS, *conversations.SYSTEM, "weight", "history", "input", "extra", "id", "tools"]
KEYS += [name for pair in conversations.TEXTS.values() for name in pair]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.sampled_from(["user", "gpt", "text", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "weight", "type", "text"]), inner
        )
    ),
    max_leaves=12,
)


@given(row=st.dictionaries(st.sampled_from(KEYS), JUNK))
def test_any_row_is_a_conversation_or_refused(row):
    try:
        found = conversations.read(row)
    except RecordError:
        return
    json.dumps([message.content for message in found.messages], ensure_ascii=False).encode()
    assert conversations.checked(found.messages) == found.messages
