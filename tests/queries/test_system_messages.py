from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.queries.system_messages import (
    COLLECTIONS,
    Style,
    all_messages,
    get,
    message_hash,
    normalise,
    recognise,
)

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
PREFIX = {"cot": "cot", "niv": "niv2", "t0": "t0", "flan": "flan2021"}  # OpenOrca's id prefixes


@pytest.mark.parametrize(
    ("texts", "normalised", "digest"),
    [
        (
            ["Don\u2019t guess; think step-bystep.", "Don't guess; think step-by-\nstep."],
            "dontguessthinkstepbystep",
            "bcc234bdcf77b5dbeb214d711ed03bb58657e3a3e8f57a5f4646c5551a9f595f",
        ),
        (
            [
                "Row  # :  a \ufb01eld,\nUse: it\u00a0twice (\uff12\u00d7).",
                "Row #: a field, use: it twice (2\u00d7).",
            ],
            "rowafielduseittwice2",
            "d4713a47c74da50101ff95c8bda6c5db7b4046bc57396c9c7170ea861a9e94c7",
        ),
        (["", " \n\t#:"], "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_worked_examples(texts, normalised, digest):
    for text in texts:
        assert normalise(text) == normalised
        assert message_hash(text) == digest


def test_there_are_sixteen_distinct_messages():
    messages = all_messages()
    assert list(messages) == list(range(1, 17))
    assert len({normalise(message.text) for message in messages.values()}) == 16
    assert len({digest for message in messages.values() for digest in message.published}) == 16
    assert get(1).text == ""


def test_styles_and_multiple_choice():
    styles = {style: {m.id for m in all_messages().values() if m.style is style} for style in Style}
    assert styles[Style.BARE] == {1, 5}
    assert styles[Style.SIMPLE] == {4}
    assert styles[Style.ANSWER_FIRST] == {8, 10}
    assert {m.id for m in all_messages().values() if m.multiple_choice_only} == {8, 10}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_shares_of_a_collection_sum_to_one(collection):
    assert sum(m.shares[collection] for m in all_messages().values()) == pytest.approx(1, abs=0.002)


def test_our_wording_is_not_the_published_one():
    assert all(message_hash(m.text) not in m.published for m in all_messages().values() if m.id != 1)


@pytest.mark.parametrize("message_id", range(1, 17))
def test_ours_are_recognised_however_spaced(message_id):
    text = get(message_id).text
    assert recognise(text) == recognise(f" {text.upper()}\n") == message_id


def test_part_of_a_message_is_not_recognised():
    assert recognise(get(11).text.rsplit(". ", 1)[1]) is None
    assert recognise("You are a pirate.") is None
    assert recognise(None) == 1


def test_unknown_id_is_named():
    with pytest.raises(KeyError, match="no system message 17"):
        get(17)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="real data absent")
def test_real_rows_are_recognised_and_allowed_in_their_collection():
    rows = [json.loads(line) for line in (DATA / "openorca/gpt4_600.jsonl").open(encoding="utf-8")]
    assert len(rows) == 600
    for row in rows:
        message_id = recognise(row["system_prompt"])
        assert message_id is not None, row["id"]
        collection = PREFIX[row["id"].split(".")[0]]
        assert get(message_id).shares[collection] > 0, row["id"]
