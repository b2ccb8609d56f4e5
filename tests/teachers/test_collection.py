"""Recorded answers as a teacher; the ids of all requests in one file."""

import asyncio

import numpy as np
import pytest

from orca_jax.records import Message, Outcome, Query, Reply, Sampling
from orca_jax.teachers import collection
from orca_jax.teachers.collection import RecordedTeacher
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Attempt, Ledger

QUERIES = [
    Query("cot.1", "1 + 1?", "cot", "sums", target="2", extra={"explanation": "One and one are two."}),
    Query("t0.1", "Good or bad?", "t0", "taste", target="good"),
    Query("t0.2", "Anything?", "t0", "taste"),
]


def ask(kind, question, queries=QUERIES):
    messages = [Message("system", "Be brief."), Message("user", question)]
    return asyncio.run(RecordedTeacher(kind, queries).reply(messages, Sampling()))


def test_targets_are_given_as_they_are():
    assert [ask("targets", q.text).text for q in QUERIES] == ["2", "good", ""]
    assert ask("targets", "1 + 1?").usage.completion_tokens == 1


def test_reasons_come_before_the_target_where_there_are_any():
    assert ask("rationales", "1 + 1?").text == "One and one are two.\nSo the answer is 2."
    assert ask("rationales", "Good or bad?").text == "good"


def test_no_target_is_empty_and_another_question_refused():
    assert ask("targets", "Anything?").outcome is Outcome.EMPTY
    assert ask("targets", "Who are you?").outcome is Outcome.REFUSED


def test_identity_is_that_of_the_answers():
    first, same, other = (
        RecordedTeacher("targets", queries).identity for queries in (QUERIES, list(QUERIES), QUERIES[:2])
    )
    assert first == same != other
    assert RecordedTeacher("rationales", QUERIES).identity != first


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'gold'; known: targets, rationales"):
        RecordedTeacher("gold", QUERIES)


# Ids of requests


def requests(count):
    return [Request((Message("user", str(number)),)) for number in range(count)]


@pytest.mark.parametrize("answered", [[], range(0, 500, 3), range(500), [499], [0]])
def test_missing(tmp_path, answered):
    asked = requests(500)
    assert collection.write_ids(tmp_path / "keys", "teacher", asked) == 500
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record(Attempt("teacher", asked[place], Reply(Outcome.OK, "So.")) for place in answered)
        ledger.record(Attempt("other", request, Reply(Outcome.OK, "So.")) for request in asked)
        found = collection.missing(tmp_path / "keys", ledger)
    np.testing.assert_array_equal(found, sorted(set(range(500)) - set(answered)))


def test_failures_are_missing(tmp_path):
    collection.write_ids(tmp_path / "keys", "teacher", requests(1))
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record([Attempt("teacher", requests(1)[0], Reply(Outcome.ERROR, ""))])
        assert collection.missing(tmp_path / "keys", ledger).tolist() == [0]


def test_no_requests(tmp_path):
    assert collection.write_ids(tmp_path / "keys", "teacher", []) == 0
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record([Attempt("teacher", requests(1)[0], Reply(Outcome.OK, ""))])
        assert collection.missing(tmp_path / "keys", ledger).tolist() == []


def test_another_file(tmp_path):
    (tmp_path / "keys").write_bytes(b"hello")
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(ValueError, match="5 bytes are no whole number"),
    ):
        collection.missing(tmp_path / "keys", ledger)


def test_what_is_unanswered_and_what_was_answered(tmp_path):
    asked = requests(1200)
    collection.write_ids(tmp_path / "keys", "teacher", asked)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record(Attempt("teacher", asked[n], Reply(Outcome.OK, f"re {n}")) for n in range(0, 1200, 2))
        ledger.record([Attempt("teacher", asked[1], Reply(Outcome.ERROR, "", raw={"error": "broken"}))])
        count, missing = collection.unanswered(tmp_path / "keys", ledger, iter(asked))
        found = list(collection.answers(collection.read_ids(tmp_path / "keys"), ledger))
    assert count == 600
    assert list(missing) == asked[1::2]
    assert [answer.reply.text for answer in found[::2]] == [f"re {n}" for n in range(0, 1200, 2)]
    assert found[1].reply.raw == {"error": "broken"}
    assert found[3::2] == [None] * 599
