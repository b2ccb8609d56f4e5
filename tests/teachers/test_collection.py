"""Recorded answers as a teacher; requests without an answer."""

import asyncio

import pytest

from orca_jax.records import Message, Outcome, Query, Reply, Sampling, Usage
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


# Missing requests


def requests(count):
    return [Request((Message("user", str(number)),)) for number in range(count)]


@pytest.mark.parametrize("answered", [[], range(0, 500, 3), range(500), [499], [0], [3, 77, 78, 401]])
def test_missing(tmp_path, answered):
    asked = requests(500)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record(Attempt("teacher", asked[place], Reply(Outcome.OK, "So.")) for place in answered)
        ledger.record(Attempt("other", request, Reply(Outcome.OK, "So.")) for request in asked)
        found = collection.missing("teacher", iter(asked), ledger)
    assert [place for place, lacks in enumerate(found) if not lacks] == list(answered)
    assert len(found) == 500


def test_failures_are_missing(tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.record([Attempt("teacher", requests(1)[0], Reply(Outcome.ERROR, ""))])
        ledger.note("teacher", [(requests(1)[0], Usage())])
        assert list(collection.missing("teacher", requests(1), ledger)) == [1]
        assert list(collection.missing("teacher", [], ledger)) == []
