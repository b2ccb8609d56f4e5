"""Puts requests to an endpoint, many at a time, and pays for no answer that the ledger holds.

Nothing is reported before it is committed. A request keeps its place among the `concurrency`
requests in flight until its reply is committed, so a kill costs at most that many paid replies.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from orca_jax.asking.endpoint import Endpoint, Request, request_id
from orca_jax.asking.ledger import Answer, Attempt, Ledger
from orca_jax.records import Outcome, Reply

LOOK_AHEAD = 256  # requests looked up together in the ledger
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request's reply. `index` is its place among the requests, `created` ISO 8601 in UTC.

    `stored` says that the ledger held the reply already and nothing was paid for it now.
    """

    index: int
    request: Request
    reply: Reply
    created: str
    stored: bool


async def ask(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    concurrency: int = 32,
    retries: int = 2,
) -> AsyncGenerator[Asked, None]:
    """Yields a reply for each request, as they come, each one committed to the ledger before.

    Requests are read as they are needed, so there may be millions of them. Equal requests waiting
    together are asked once. An endpoint that raises, or answers `Outcome.ERROR`, is asked again at
    the end of the waiting requests, `retries` times; then the failed reply is yielded, and a later
    call asks again.

    Raises:
      LedgerError: the ledger cannot be written to.
      ValueError: `concurrency` is below 1, or `retries` below 0.
    """
    if concurrency < 1 or retries < 0:
        raise ValueError(f"concurrency {concurrency} must be at least 1, retries {retries} at least 0")
    queue = _Queue(endpoint.identity, requests, ledger, retries)
    running: dict[asyncio.Task[Attempt], _Pending] = {}
    try:
        while True:
            if len(queue.waiting) < concurrency:
                for asked in queue.refill():
                    yield asked
            while queue.waiting and len(running) < concurrency:
                pending = queue.waiting.popleft()
                running[asyncio.create_task(_attempt(endpoint, pending.request))] = pending
            if running:
                # While there are free places and more requests, only look who is done.
                timeout = None if queue.exhausted or len(running) == concurrency else 0
                done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                ended = [task for task in running if task in done]  # in the order they were asked
                for asked in queue.settle([(running.pop(task), task.result()) for task in ended]):
                    yield asked
            elif queue.exhausted:
                return
    finally:
        await _stop(running, ledger)


def ask_all(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    concurrency: int = 32,
    retries: int = 2,
    on_reply: Callable[[Asked], None] | None = None,
) -> list[Reply]:
    """Like `ask`, but waits for all: the replies in the order of the requests.

    `on_reply` is called with each one as it comes. May be called from a notebook.
    """

    async def gather() -> list[Reply]:
        replies: dict[int, Reply] = {}
        asking = ask(endpoint, requests, ledger, concurrency=concurrency, retries=retries)
        async with contextlib.aclosing(asking):
            async for asked in asking:
                replies[asked.index] = asked.reply
                if on_reply is not None:
                    on_reply(asked)
        return [replies[index] for index in range(len(replies))]

    return _run(gather())


@dataclasses.dataclass(slots=True)
class _Pending:
    """A request to be asked for the callers at `indices`."""

    key: bytes
    request: Request
    indices: list[int]
    failures: int = 0


class _Queue:
    """The requests that wait, filled from `requests` through the ledger."""

    def __init__(self, identity: str, requests: Iterable[Request], ledger: Ledger, retries: int):
        self.waiting: collections.deque[_Pending] = collections.deque()
        self.exhausted = False
        self._identity = identity
        self._source = enumerate(requests)
        self._ledger = ledger
        self._retries = retries
        self._unsettled: dict[bytes, _Pending] = {}  # waiting or in flight

    def refill(self) -> list[Asked]:
        """Takes in the next few requests; returns those that the ledger answers."""
        if self.exhausted:
            return []
        chunk = list(itertools.islice(self._source, LOOK_AHEAD))
        self.exhausted = len(chunk) < LOOK_AHEAD
        keys = [request_id(self._identity, request) for _, request in chunk]
        answers = self._ledger.get_many(keys)
        stored = []
        for key, (index, request) in zip(keys, chunk, strict=True):
            if key in answers:
                stored.append(_asked(index, request, answers[key], stored=True))
            else:
                self._add(key, index, request)
        return stored

    def settle(self, ended: list[tuple[_Pending, Attempt]]) -> list[Asked]:
        """Commits attempts; returns what is settled and puts failures back into the queue."""
        settled = []
        answers = self._ledger.record(attempt for _, attempt in ended)
        for (pending, _), answer in zip(ended, answers, strict=True):
            if answer.reply.outcome is Outcome.ERROR and pending.failures < self._retries:
                pending.failures += 1
                self.waiting.append(pending)
            else:
                del self._unsettled[pending.key]
                settled += [_asked(index, pending.request, answer, stored=False) for index in pending.indices]
        return settled

    def _add(self, key: bytes, index: int, request: Request) -> None:
        if key in self._unsettled:
            self._unsettled[key].indices.append(index)
            return
        pending = _Pending(key, request, [index])
        self._unsettled[key] = pending
        self.waiting.append(pending)


def _asked(index: int, request: Request, answer: Answer, *, stored: bool) -> Asked:
    return Asked(index, request, answer.reply, answer.created, stored)


async def _attempt(endpoint: Endpoint, request: Request) -> Attempt:
    started = time.monotonic()
    try:
        reply = await endpoint.reply(request.messages, request.sampling)
        if not isinstance(reply, Reply):
            raise TypeError(f"endpoint {endpoint.identity} returned {reply!r:.80}, not a Reply")
    except Exception as error:  # whatever one request meets must not end the others
        reply = Reply(Outcome.ERROR, "", raw={"error": f"{type(error).__name__}: {error}"})
    return Attempt(endpoint.identity, request, reply, time.monotonic() - started)


async def _stop(running: Iterable[asyncio.Task[Attempt]], ledger: Ledger) -> None:
    """Cancels what is in flight, and commits what has come in the meantime: it is paid for."""
    running = list(running)
    for task in running:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    ledger.record(attempt for attempt in ended if isinstance(attempt, Attempt))


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end, in a thread of its own where a loop (a notebook's) runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    return _run_in_thread(coroutine)


def _run_in_thread(coroutine: Coroutine[Any, Any, Result]) -> Result:
    started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]]
    started = concurrent.futures.Future()

    async def main() -> Result:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await coroutine

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(asyncio.run, main())
        try:
            return result.result()
        except KeyboardInterrupt:  # only this thread hears of it
            loop, task = started.result()
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(task.cancel)
            raise
