"""Groups are served round robin, a cancelled one frees its rows, and a failure reaches those that it hit."""

import asyncio
import collections
import contextlib

import numpy as np
import pytest

pytest.importorskip("fastapi")

from orca_jax.serving.prompt_log_probs import LogProbsRequest
from orca_jax.serving.worker import Overloaded, RequestGroup, RoundRobin, Worker
from orca_jax.student.engine import Request
from tests.serving.served import make_student, slowed, until


@pytest.fixture(scope="module")
def generator(tokenizer):
    return make_student(tokenizer).generator


@pytest.fixture
def worker(generator):
    worker = Worker(generator, queue=3)
    yield worker
    worker.close()


@pytest.fixture
def slow(generator, monkeypatch):
    worker = Worker(slowed(generator, monkeypatch), queue=3)
    yield worker
    worker.close()


def request(number, max_tokens=20):
    return Request(prompt=np.array([1, 5 + number], np.int32), max_tokens=max_tokens)


def group(size):
    return RequestGroup(lambda index, event: None, collections.deque(enumerate([request(0)] * size)))


def test_groups_take_turns_and_may_be_cancelled():
    turns, groups = (
        RoundRobin(),
        {name: group(size) for name, size in (("a", 4), ("b", 1), ("c", 2), ("d", 3))},
    )
    for one in groups.values():
        turns.add(one)
    turns.remove(groups["d"])
    turns.remove(groups["d"])
    names = {id(one): name for name, one in groups.items()}
    assert len(turns) == 7
    taken = [turns.next()[:2] for _ in range(7)]
    assert [(names[id(one)], index) for one, index in taken] == [
        ("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("a", 2), ("a", 3),
    ]  # fmt: skip
    assert not turns


def test_results_are_the_generators(worker, generator):
    requests = [request(number) for number in range(9)]
    said = asyncio.run(worker.results(requests))
    expected = generator.generate([one.prompt for one in requests], max_tokens=20)
    assert [one.tokens.tolist() for one in said] == [one.tokens.tolist() for one in expected]


def test_a_small_group_does_not_wait_for_a_large_one(worker):
    ended = []

    async def ask(name, requests):
        await worker.results(requests)
        ended.append(name)

    async def both():
        large = asyncio.create_task(ask("large", [request(n) for n in range(40)]))
        await asyncio.sleep(0)
        await asyncio.gather(large, ask("small", [request(0)]))

    asyncio.run(both())
    assert ended == ["small", "large"]


def test_cancelled_groups_free_rows_and_places(slow):
    async def leave():
        async with contextlib.aclosing(slow.submit([request(n, 100) for n in range(9)])) as events:
            await anext(events)
            assert slow.running == 4
            assert slow.waiting >= 4
        waiting = asyncio.create_task(slow.results([request(0)]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    until(lambda: slow.running == slow.waiting == 0)


def test_no_more_are_admitted_than_rows_and_queue_hold(slow):
    slow.admit(7)
    with pytest.raises(Overloaded, match="0 sequences are waiting already; come again in 1 s"):
        slow.admit(8)

    async def ask():
        async with contextlib.aclosing(slow.submit([request(n, 100) for n in range(6)])) as events:
            await anext(events)
            waiting = slow.waiting
            slow.admit(3 - waiting)
            with pytest.raises(Overloaded, match=f"{waiting} sequences"):
                slow.admit(4 - waiting)

    asyncio.run(ask())


def test_wrong_requests_and_prompts_that_fail_hit_their_callers_only(worker, monkeypatch):
    async def ask():
        monkeypatch.setattr(worker._scorer, "score", lambda batch: 1 // 0)
        return await asyncio.gather(
            worker.results([request(0, max_tokens=0)]),
            worker.results([LogProbsRequest(np.array([1, 2], np.int32), 1)]),
            worker.results([request(0)]),
            return_exceptions=True,
        )

    wrong, unread, right = asyncio.run(ask())
    assert isinstance(wrong, ValueError)
    assert isinstance(unread, ZeroDivisionError)
    assert len(right[0].tokens) == 20


def test_a_worker_that_cannot_go_on_says_so(generator, monkeypatch):
    monkeypatch.setattr(generator, "new_engine", lambda: 1 // 0)
    worker = Worker(generator)
    until(lambda: not worker.alive)
    with pytest.raises(RuntimeError, match="is closed"):
        asyncio.run(worker.results([request(0)]))
    worker.close()
