"""The worker serves in order, a caller that leaves frees its rows, and a failure hits its callers only."""

import asyncio
import contextlib

import numpy as np
import pytest

pytest.importorskip("fastapi")

from orca_jax.serving.worker import Worker
from orca_jax.student.engine import Request
from orca_jax.student.scoring import ScoreRequest
from tests.serving.served import make_student, slowed, until


@pytest.fixture(scope="module")
def generator(tokenizer):
    return make_student(tokenizer).generator


@pytest.fixture
def worker(generator):
    worker = Worker(generator)
    yield worker
    worker.close()


@pytest.fixture
def slow(generator, monkeypatch):
    worker = Worker(slowed(generator, monkeypatch))
    yield worker
    worker.close()


def request(number, max_tokens=20):
    return Request(prompt=np.array([1, 5 + number], np.int32), max_tokens=max_tokens)


def score_request(*ids):
    return ScoreRequest(np.array(ids, np.int32), np.array(ids[1:] + (0,), np.int32))


def test_results_are_the_generators_and_the_scorers(worker, generator):
    requests = [request(number) for number in range(9)]
    whole = [score_request(1, *range(5, 5 + size)) for size in range(1, 30)]

    async def both():
        return await asyncio.gather(worker.results(requests), worker.results(whole))

    replies, scores = asyncio.run(both())
    expected = generator.generate([one.prompt for one in requests], max_tokens=20)
    assert [one.tokens.tolist() for one in replies] == [one.tokens.tolist() for one in expected]
    own = generator.scorer.score([one.tokens[:1] for one in whole], [one.tokens[1:] for one in whole])
    for score, other in zip(scores, own, strict=True):
        np.testing.assert_allclose(score.log_probs[:-1], other.log_probs, atol=1e-5)


def test_sequences_are_served_in_the_order_in_which_they_come(worker):
    ended = []

    async def ask(name, requests):
        await worker.results(requests)
        ended.append(name)

    async def both():
        large = asyncio.create_task(ask("large", [request(n) for n in range(40)]))
        await asyncio.sleep(0)
        await asyncio.gather(large, ask("small", [request(0)]))

    asyncio.run(both())
    assert ended == ["large", "small"]


def test_a_caller_that_leaves_frees_rows_and_places(slow):
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


def test_wrong_requests_and_prompts_that_fail_hit_their_callers_only(worker, monkeypatch):
    async def ask():
        monkeypatch.setattr(worker._scorer, "score_batch", lambda batch: 1 // 0)
        return await asyncio.gather(
            worker.results([request(0, max_tokens=0)]),
            worker.results([score_request(1, 2)]),
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
