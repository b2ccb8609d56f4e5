from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

from orca_jax.queries.system_messages import (
    COLLECTIONS,
    MULTIPLE_CHOICE_SHARES,
    MessageSet,
    Style,
    all_messages,
    draw,
    get,
    measured_shares,
    message_hash,
    read_set,
    recognise,
)
from orca_jax.records import Query

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
PAPER = MessageSet(all_messages())
PREFIX = {"cot": "cot", "niv": "niv2", "t0": "t0", "flan": "flan2021"}  # OpenOrca's id prefixes


@pytest.mark.parametrize(
    ("texts", "digest"),
    [
        (
            ["Don\u2019t guess; think step-bystep.", "Don't guess; think step-by-\nstep."],
            "bcc234bdcf77b5dbeb214d711ed03bb58657e3a3e8f57a5f4646c5551a9f595f",
        ),
        (
            [
                "Row  # :  a \ufb01eld,\nUse: it\u00a0twice (\uff12\u00d7).",
                "Row #: a field, use: it twice (2\u00d7).",
            ],
            "d4713a47c74da50101ff95c8bda6c5db7b4046bc57396c9c7170ea861a9e94c7",
        ),
        (["", " \n\t#:"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_worked_examples(texts, digest):
    assert {message_hash(text) for text in texts} == {digest}


def test_there_are_sixteen_distinct_messages():
    messages = all_messages()
    assert list(messages) == list(range(1, 17))
    assert len({message_hash(message.text) for message in messages.values()}) == 16
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
    with pytest.raises(ValueError, match="no system message 17"):
        get(17)


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


def asked(collection, count, multiple_choice_share=0.0):
    return [
        Query(f"{collection}.{n}", "", collection, "task", multiple_choice=n < multiple_choice_share * count)
        for n in range(count)
    ]


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_allocation_reproduces_figure_6(collection):
    """Chi-square over 20,000 queries: they are too few to tell our shares from the figure's."""
    multiple_choice = MULTIPLE_CHOICE_SHARES.get(collection, 0.3)
    given = PAPER.assign(asked(collection, 20_000, multiple_choice), seed=0)
    counts = Counter(query.system_message_id for query in given)
    shares = {m.id: m.shares[collection] for m in all_messages().values() if m.shares[collection]}
    assert counts.keys() == shares.keys()
    expected = [20_000 * share / sum(shares.values()) for share in shares.values()]
    found = stats.chisquare([counts[id] for id in shares], expected)
    assert found.pvalue > 0.001
    uniform_over_all = stats.chisquare([counts.get(id, 0) for id in all_messages()])
    assert uniform_over_all.pvalue < 1e-9


@pytest.mark.parametrize("share", [0.21, 0.35, 0.5, 0.9])
def test_shares_hold_whatever_part_is_multiple_choice(share):
    messages = MessageSet(all_messages(), {"flan2021": share})
    kinds = [messages.weights("flan2021", multiple_choice=kind) for kind in (True, False)]
    assert all(sum(weights.values()) == pytest.approx(1) for weights in kinds)
    total = sum(m.shares["flan2021"] for m in all_messages().values())
    for message in all_messages().values():
        of_all = share * kinds[0].get(message.id, 0) + (1 - share) * kinds[1].get(message.id, 0)
        assert of_all == pytest.approx(message.shares["flan2021"] / total)


def test_half_multiple_choice_means_five_messages_or_three():
    weights = PAPER.weights("flan2021", multiple_choice=True)
    assert weights.keys() == {3, 4, 7, 8, 10}
    assert all(weight == pytest.approx(0.2, abs=0.002) for weight in weights.values())
    assert PAPER.weights("flan2021", multiple_choice=False).keys() == {3, 4, 7}


def test_fewer_multiple_choice_queries_than_messages_for_them():
    weights = MessageSet(all_messages(), {"flan2021": 0.1}).weights("flan2021", multiple_choice=True)
    assert {id for id, weight in weights.items() if weight > 1e-9} == {8, 10}


def test_a_query_has_its_message_whatever_its_neighbours_and_the_run():
    queries = asked("niv2", 300)
    first = {query.id: query.system_message_id for query in PAPER.assign(queries, 1)}
    again = {query.id: query.system_message_id for query in PAPER.assign(queries[::-2], 1)}
    assert again.items() <= first.items()
    assert first != {query.id: query.system_message_id for query in PAPER.assign(queries, 2)}


def test_only_multiple_choice_gets_the_messages_for_it():
    given = list(PAPER.assign(asked("flan2021", 5000, 0.5), 0))
    assert {8, 10} & {q.system_message_id for q in given if q.multiple_choice} == {8, 10}
    assert not {8, 10} & {q.system_message_id for q in given if not q.multiple_choice}


def test_measured_shares_are_those_of_the_queries():
    queries = [*asked("t0", 40, 0.25), *asked("cot", 10)]
    assert measured_shares(queries) == {"t0": 0.25, "cot": 0.0}


def test_a_collection_without_messages_is_an_error():
    with pytest.raises(ValueError, match=r"no system message is for queries without options of .*'poems'"):
        PAPER.weights("poems", multiple_choice=False)
    with pytest.raises(ValueError, match="query q: no system message has a share above 0"):
        draw({1: 0.0}, "q", 0)


def write_set(tmp_path, entries):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_a_users_own_messages(tmp_path):
    entries = [
        {"id": 1, "text": ""},
        {"id": 2, "text": "Ahoy!", "shares": {"cot": 0.0, "*": 3.0}, "style": "bare"},
        {"id": 7, "text": "Pick.", "multiple_choice_only": True},
    ]
    messages = read_set(write_set(tmp_path, entries))
    assert messages.weights("cot", multiple_choice=False) == {1: 1.0}
    assert messages.weights("t0", multiple_choice=False) == pytest.approx({1: 0.25, 2: 0.75})
    assert messages.weights("puzzles", multiple_choice=True).keys() == {1, 2, 7}
    assert messages.messages[2].style is Style.BARE
    given = Counter(q.system_message_id for q in messages.assign(asked("t0", 4000), 0))
    assert given[2] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"id": 1}, "expected a list of messages"),
        ([], "expected a list of messages"),
        ([{"id": 1}], "message 0: text must be str"),
        ([{"id": 1, "text": "\ud83d"}], "message 0: text has half a surrogate pair"),
        ([{"id": True, "text": ""}], "message 0: id must be int"),
        ([{"id": 1, "text": "", "weight": 2}], "message 0: expected fields among id, text"),
        ([{"id": 1, "text": "", "shares": {"t0": -1}}], "message 0: shares must map"),
        ([{"id": 1, "text": "", "style": "loud"}], "message 0: style must be bare"),
        ([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}], "message 1: a second message with id 1"),
    ],
)
def test_errors_in_a_users_messages_are_named(tmp_path, entries, message):
    with pytest.raises(ValueError, match=rf"messages\.json.*{message}"):
        read_set(write_set(tmp_path, entries))


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "messages.json"
    path.write_text("1: Ahoy!", encoding="utf-8")
    with pytest.raises(ValueError, match=r"messages\.json: not JSON"):
        read_set(path)
