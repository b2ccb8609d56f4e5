"""The student as an endpoint: many requests at once, what goes wrong is a reply, and collection asks it."""

import asyncio
import contextlib
import dataclasses

import pytest

from orca_jax.records import Message, Outcome, Sampling
from orca_jax.serving.local import LocalStudent, StudentEndpoint
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Ledger
from tests.student.students import SMALL, make_params

SAMPLING = Sampling(max_tokens=8, seed=3)
WARM = dataclasses.replace(SAMPLING, temperature=1.0)
QUESTIONS = [(Message("user", f"Is {n} red?"),) for n in range(7)]


@pytest.fixture(scope="module")
def student(tokenizer):
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    return LocalStudent(
        make_params(config), config, tokenizer, "chatml", checkpoint="c", batch_size=4, max_length=128
    )


@pytest.fixture(scope="module")
def endpoint(student):
    with contextlib.closing(StudentEndpoint(student)) as endpoint:
        yield endpoint


def ask(endpoint, questions, sampling):
    async def gather():
        return await asyncio.gather(*(endpoint.reply(question, sampling) for question in questions))

    return asyncio.run(gather())


def test_replies_are_the_students(student, endpoint):
    assert ask(endpoint, QUESTIONS, SAMPLING) == student.answer(QUESTIONS, SAMPLING)
    assert endpoint.identity == student.identity


def test_a_seed_repeats_a_reply_in_any_company(endpoint):
    together = ask(endpoint, QUESTIONS, WARM)
    assert [ask(endpoint, [question], WARM)[0] for question in reversed(QUESTIONS)] == together[::-1]
    assert ask(endpoint, QUESTIONS, dataclasses.replace(WARM, seed=4)) != together


def test_without_a_seed_each_reply_is_another(endpoint):
    unseeded = dataclasses.replace(WARM, seed=None)
    replies = ask(endpoint, [QUESTIONS[0]] * 6, unseeded)
    assert len({reply.text for reply in replies}) > 1


@pytest.mark.parametrize(
    ("messages", "sampling", "said"),
    [
        ([Message("user", "why " * 200)], SAMPLING, "prompt exceeds 128 tokens"),
        ([Message("assistant", "A")], SAMPLING, "LayoutError: turns must be"),
        (
            [Message("user", "A")],
            dataclasses.replace(SAMPLING, max_tokens=0),
            "max_tokens=0 must be at least 1",
        ),
    ],
    ids=["too long", "wrong turns", "no tokens"],
)
def test_what_cannot_be_answered_is_an_error_reply_and_the_others_stand(endpoint, messages, sampling, said):
    async def gather():
        return await asyncio.gather(
            endpoint.reply(messages, sampling), endpoint.reply(QUESTIONS[0], SAMPLING)
        )

    wrong, right = asyncio.run(gather())
    assert (wrong.outcome, wrong.text) == (Outcome.ERROR, "")
    assert said in wrong.raw["error"]
    assert right.outcome is not Outcome.ERROR


def test_a_cancelled_request_frees_its_place(endpoint):
    async def cancel_some():
        tasks = [asyncio.create_task(endpoint.reply(question, SAMPLING)) for question in QUESTIONS]
        await asyncio.sleep(0)
        for task in tasks[:5]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        return ended, await endpoint.reply(QUESTIONS[0], SAMPLING)

    ended, after = asyncio.run(cancel_some())
    assert all(isinstance(one, asyncio.CancelledError) for one in ended[:5])
    assert [one.outcome for one in (*ended[5:], after)] == [Outcome.LENGTH] * 3


def test_a_failing_engine_fails_its_requests_and_is_replaced(student, monkeypatch):
    made, new_engine = [], student.generator.new_engine

    def breaking():
        engine = new_engine()
        if not made:
            monkeypatch.setattr(engine, "step", lambda: 1 // 0)
        made.append(engine)
        return engine

    monkeypatch.setattr(student.generator, "new_engine", breaking)
    with contextlib.closing(StudentEndpoint(student)) as endpoint:
        (failed,) = ask(endpoint, QUESTIONS[:1], SAMPLING)
        (answered,) = ask(endpoint, QUESTIONS[:1], SAMPLING)
    assert "ZeroDivisionError" in failed.raw["error"]
    assert answered == student.answer(QUESTIONS[:1], SAMPLING)[0]


def test_closed_it_says_so(student):
    endpoint = StudentEndpoint(student)
    endpoint.close()
    endpoint.close()
    (reply,) = ask(endpoint, QUESTIONS[:1], SAMPLING)
    assert "the endpoint is closed" in reply.raw["error"]


def test_closing_ends_what_is_under_way(student):
    async def close_while_asking():
        endpoint = StudentEndpoint(student)
        tasks = [asyncio.create_task(endpoint.reply(question, SAMPLING)) for question in QUESTIONS]
        await asyncio.sleep(0)
        await asyncio.to_thread(endpoint.close)
        return await asyncio.gather(*tasks)

    replies = asyncio.run(close_while_asking())
    assert all(r.outcome is not Outcome.ERROR or "was closed" in r.raw["error"] for r in replies)


def test_collection_asks_it_and_pays_once(student, endpoint, tmp_path):
    requests = [Request(question, WARM) for question in QUESTIONS]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = collect_all(endpoint, requests, ledger, concurrency=5)
        stored = []
        again = collect_all(endpoint, requests, ledger, on_reply=lambda asked: stored.append(asked.stored))
    assert [reply.text for reply in first] == [reply.text for reply in again]
    assert stored == [True] * len(QUESTIONS)
