"""The answers that FLAN's files hold, as a teacher."""

import asyncio

import pytest

from orca_jax.queries.recorded import RecordedTeacher
from orca_jax.records import Message, Outcome, Query, Sampling

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
