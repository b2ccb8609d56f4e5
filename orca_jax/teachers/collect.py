"""Puts requests to an endpoint, many at a time, and pays for no answer that the ledger holds.

Nothing is reported before it is committed. A request keeps its place among the `concurrency`
requests in flight until its reply is committed, so a kill costs at most that many paid replies.
An endpoint with limits admits one request at a time, so nothing overtakes. A commit
takes as long as several requests do, so what comes within `GATHER` seconds is committed together,
and what may be sent at one moment is noted together.

`Queue` holds the requests that are not settled: which are sent next, and which again.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import heapq
import itertools
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from orca_jax.records import Outcome, Reply
from orca_jax.scrubbing import scrub
from orca_jax.teachers.endpoint import (
    Admission,
    CollectionStopped,
    Endpoint,
    Fault,
    Paced,
    Request,
    request_id,
)
from orca_jax.teachers.ledger import Answer, Attempt, Ledger
from orca_jax.teachers.limits import full_jitter

Result = TypeVar("Result")
GATHER = 0.02  # seconds; nothing beside the latency of a teacher
TICK = 0.5
LOOK_AHEAD = 256  # requests looked up together in the ledger
HOPELESS = 20  # requests that failed for good, before any was answered
UNCOUNTED = (Fault.RATE_LIMIT, Fault.REFUSED)
FOR_GOOD = (Fault.REQUEST, Fault.TOO_LONG)


async def collect(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    concurrency: int = 32,
    retries: int = 2,
    backoff: float = 1.0,
) -> AsyncGenerator[Collected, None]:
    """Yields a reply for each request, as they come, each one committed to the ledger before.

    Requests are read as they are needed, so there may be millions of them. Equal requests waiting
    together are sent once. A request that raises, or ends in `Outcome.ERROR`, is sent again after
    the waiting requests, `retries` times (see `Queue.settle` for what is not counted, and
    what is not sent again), after a random part of `backoff` seconds, doubled each time; then the
    failed reply is yielded, and a later call sends it again.

    Raises:
      CollectionStopped: no further request may be sent. Those in flight are waited for, committed and
        yielded before.
      LedgerError: the ledger cannot be written to, or another process collects from this endpoint with it.
      ValueError: `concurrency` is below 1, or `retries` or `backoff` below 0.
    """
    if concurrency < 1 or retries < 0 or not backoff >= 0:
        raise ValueError(
            f"concurrency {concurrency} must be at least 1, retries {retries} and backoff {backoff} 0 or more"
        )
    with ledger.claim(endpoint.identity):
        queue = Queue(endpoint.identity, requests, ledger, retries, backoff)
        collection = _Collection(endpoint, queue, ledger, concurrency)
        collection.start()
        try:
            while not collection.finished():
                await collection.gather()
                for asked in collection.settle():
                    yield asked
            collection.check()
        finally:
            await collection.close()


def collect_each(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    on_reply: Callable[[Collected], None],
    *,
    concurrency: int = 32,
    retries: int = 2,
    backoff: float = 1.0,
    on_tick: Callable[[], None] | None = None,
) -> None:
    """Like `collect`, but waits for all; `on_reply` is called with each as it comes, and nothing is kept.

    `on_tick` is called every half second, also while nothing comes. May be called from a notebook.
    """

    async def run() -> None:
        collection = collect(
            endpoint, requests, ledger, concurrency=concurrency, retries=retries, backoff=backoff
        )
        async with _ticking(on_tick), contextlib.aclosing(collection):
            async for asked in collection:
                on_reply(asked)

    run_here(run())


def collect_all(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    concurrency: int = 32,
    retries: int = 2,
    backoff: float = 1.0,
    on_reply: Callable[[Collected], None] | None = None,
) -> list[Reply]:
    """Like `collect_each`; returns the replies in the order of the requests."""
    replies: dict[int, Reply] = {}

    def keep(asked: Collected) -> None:
        replies[asked.index] = asked.reply
        if on_reply is not None:
            on_reply(asked)

    collect_each(endpoint, requests, ledger, keep, concurrency=concurrency, retries=retries, backoff=backoff)
    return [replies[index] for index in range(len(replies))]


@contextlib.asynccontextmanager
async def _ticking(on_tick: Callable[[], None] | None) -> AsyncIterator[None]:
    """Calls `on_tick` every `TICK` seconds."""

    async def tick() -> None:
        while on_tick is not None:
            on_tick()
            await asyncio.sleep(TICK)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _Collection:
    """One call of `collect`: a task that sends, tasks that wait for replies, and what they have brought."""

    def __init__(self, endpoint: Endpoint, queue: Queue, ledger: Ledger, concurrency: int):
        self.changed = asyncio.Event()  # there is something to settle
        self._endpoint, self._queue, self._ledger = endpoint, queue, ledger
        self._paced = endpoint if isinstance(endpoint, Paced) else None
        self._concurrency = self._free = concurrency
        self._room = asyncio.Event()  # there may be something to send
        self._stored: list[Collected] = []
        self._admitted: list[tuple[Pending, Admission | None]] = []  # to be noted and sent
        self._running: set[asyncio.Task[Attempt]] = set()
        self._ended: list[tuple[Pending, Attempt]] = []
        self._stopped: CollectionStopped | None = None
        self._broken: BaseException | None = None
        self._sending: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sending = asyncio.create_task(self._send())
        self._sending.add_done_callback(lambda _: self.changed.set())

    async def gather(self) -> None:
        """Waits until there is something to settle, and a little longer while it is little."""
        await self.changed.wait()
        if self._running and not self._stored and 4 * len(self._ended) < self._concurrency:
            await asyncio.sleep(GATHER)
        self.changed.clear()

    def settle(self) -> list[Collected]:
        """Commits what has come; returns what is settled, and what the ledger held."""
        stored, self._stored = self._stored, []
        ended, self._ended = self._ended, []
        settled = self._queue.settle(ended)
        self._free += len(ended)
        self._room.set()
        return stored + settled

    def finished(self) -> bool:
        """Whether nothing more will come."""
        assert self._sending is not None
        if self._sending.done() and not self._sending.cancelled() and self._sending.exception() is not None:
            return True
        waiting = self._admitted or self._running or self._ended or self._stored
        return self._broken is not None or (self._sending.done() and not waiting)

    def check(self) -> None:
        """Raises what ended it before its time."""
        assert self._sending is not None
        if self._broken is not None:
            raise self._broken
        if not self._sending.cancelled():
            self._sending.result()
        if self._stopped is not None:
            raise self._stopped

    async def close(self) -> None:
        """Cancels what is in flight, and commits what has come in the meantime: it is paid for."""
        assert self._sending is not None
        self._sending.cancel()
        admitted, self._admitted = self._admitted, []
        self._release(admitted)
        for task in self._running:
            task.cancel()
        await asyncio.gather(self._sending, *self._running, return_exceptions=True)
        self._ledger.record(attempt for _, attempt in self._ended)
        if self._paced is not None:
            await self._paced.close()

    async def _send(self) -> None:
        try:
            while (pending := await self._next()) is not None:
                admission = None
                if self._paced is not None:
                    admission = await self._paced.admit(pending.request.messages, pending.request.drawn)
                self._free -= 1
                self._admitted.append((pending, admission))
                if len(self._admitted) == 1:  # others may follow before the loop comes to this
                    asyncio.get_running_loop().call_soon(self._launch_all)
        except CollectionStopped as stopped:
            self._stopped = stopped

    async def _next(self) -> Pending | None:
        """The next request to send, once there is a place for it; None when there will be no more."""
        while True:
            if not self._stored and self._queue.wants_more(self._concurrency):
                self._stored = self._queue.refill()
                if self._stored:
                    self.changed.set()
            if self._free and (pending := self._queue.pop(4 * self._concurrency)) is not None:
                return pending
            if self._queue.settled() and not self._stored:
                return None
            if not self._queue.wants_more(self._concurrency) or self._stored:
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._queue.next_due()):
                        await self._room.wait()

    def _launch_all(self) -> None:
        """Notes all that was admitted in the ledger, then sends it."""
        admitted, self._admitted = self._admitted, []
        paced = [(pending.request, admission.bound) for pending, admission in admitted if admission]
        try:
            tickets = self._ledger.send(self._endpoint.identity, paced) if paced else []
        except BaseException as error:  # this call is not awaited
            self._release(admitted)
            self._broken = error
            self.changed.set()
            return
        for (pending, admission), ticket in itertools.zip_longest(admitted, tickets):
            self._launch(pending, admission, ticket)

    def _launch(self, pending: Pending, admission: Admission | None, ticket: int | None) -> None:
        request = pending.request
        reply = functools.partial(self._endpoint.reply, request.messages, request.drawn)
        task = asyncio.create_task(
            self._attempt(request, admission.reply if admission is not None else reply, ticket)
        )
        self._running.add(task)
        task.add_done_callback(functools.partial(self._end, pending, admission))

    def _release(self, admitted: list[tuple[Pending, Admission | None]]) -> None:
        for _, admission in admitted:
            if admission is not None:
                admission.release()

    def _end(self, pending: Pending, admission: Admission | None, task: asyncio.Task[Attempt]) -> None:
        self._running.discard(task)
        if admission is not None:
            admission.release()
        if not task.cancelled() and task.exception() is None:
            self._ended.append((pending, task.result()))
        self.changed.set()

    async def _attempt(
        self, request: Request, reply: Callable[[], Awaitable[Reply]], ticket: int | None
    ) -> Attempt:
        identity, started = self._endpoint.identity, time.monotonic()
        try:
            answer = await reply()
            if not isinstance(answer, Reply):
                raise TypeError(f"endpoint {identity} returned {answer!r:.80}, not a Reply")
        except CollectionStopped as stopped:
            self._stopped = self._stopped or stopped
            assert self._sending is not None
            self._sending.cancel()
            answer = stopped.reply or Reply(Outcome.ERROR, "", raw={"error": scrub(str(stopped))})
        except Exception as error:  # whatever one request meets must not end the others
            answer = Reply(Outcome.ERROR, "", raw={"error": scrub(f"{type(error).__name__}: {error}")})
        return Attempt(identity, request, answer, time.monotonic() - started, ticket=ticket)


def run_here(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end, in a thread of its own where a loop (a notebook's) runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    return _run_in_thread(coroutine)


def _run_in_thread(coroutine: Coroutine[Any, Any, Result]) -> Result:
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    interrupted = threading.Event()

    async def main() -> Result:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        if interrupted.is_set():  # `running` may have been read before it was set
            task.cancel()
        return await coroutine

    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(asyncio.run, main()).result()
    except KeyboardInterrupt:  # only this thread hears of it, at any of its steps
        interrupted.set()
        for loop, task in running:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        pool.shutdown()


# The requests that are not settled


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """One request's reply. `index` is its place among the requests, `created` ISO 8601 in UTC.

    `stored` says that the ledger held the reply already and nothing was paid for it now.
    """

    index: int
    request: Request
    reply: Reply
    created: str
    stored: bool


@dataclasses.dataclass(slots=True)
class Pending:
    """A request that is waited for at `indices` of the requests."""

    key: bytes
    request: Request
    indices: list[int]
    tries: int = 0
    failures: int = 0


class Queue:
    """The requests that wait, are in flight or are to be sent again."""

    def __init__(
        self, identity: str, requests: Iterable[Request], ledger: Ledger, retries: int, backoff: float
    ):
        self.exhausted = False
        self._identity = identity
        self._source = enumerate(requests)
        self._ledger = ledger
        self._retries, self._backoff = retries, backoff
        self._waiting: collections.deque[Pending] = collections.deque()
        self._unsettled: dict[bytes, Pending] = {}  # waiting or in flight
        self._delayed: list[tuple[float, int, Pending]] = []  # a heap, by the time when they are due
        self._count = itertools.count()
        self._answered, self._failed = 0, 0

    def wants_more(self, enough: int) -> bool:
        """Whether fewer than `enough` wait, and the source has more."""
        return not self.exhausted and len(self._waiting) < enough

    def refill(self) -> list[Collected]:
        """Takes in the next few requests; returns those that the ledger answers."""
        chunk = list(itertools.islice(self._source, LOOK_AHEAD))
        self.exhausted = len(chunk) < LOOK_AHEAD
        keys = [request_id(self._identity, request) for _, request in chunk]
        answers = self._ledger.get_many(keys)
        stored = []
        for key, (index, request) in zip(keys, chunk, strict=True):
            if key in answers:
                stored.append(_asked(index, request, answers[key], stored=True))
            else:
                if key in self._unsettled:
                    self._unsettled[key].indices.append(index)
                    continue
                pending = Pending(key, request, [index])
                self._unsettled[key] = pending
                self._waiting.append(pending)
        return stored

    def pop(self, most_delayed: int) -> Pending | None:
        """The next request to send, if there is one now.

        While `most_delayed` requests wait after failures there is none: no new requests are sent while the
        server is down.
        """
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._waiting.append(heapq.heappop(self._delayed)[2])
        if not self._waiting or len(self._delayed) >= most_delayed:
            return None
        return self._waiting.popleft()

    def next_due(self) -> float | None:
        """Seconds until a failed request is to be sent again; None if there is none."""
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else None

    def settled(self) -> bool:
        """Whether every request is."""
        return self.exhausted and not self._unsettled

    def settle(self, ended: list[tuple[Pending, Attempt]]) -> list[Collected]:
        """Commits attempts; returns what is settled and puts failures back into the queue.

        A failure for the request's own fault is settled at once; one for a limit or for an endpoint
        that refuses everything does not count against the retries.

        Raises:
          CollectionStopped: the first requests all failed for good, so the rest would too.
        """
        settled = []
        answers = self._ledger.record(attempt for _, attempt in ended)
        for (pending, _), answer in zip(ended, answers, strict=True):
            if answer.reply.outcome is Outcome.ERROR and self._again(pending, answer.reply):
                continue
            del self._unsettled[pending.key]
            self._note(answer.reply)
            settled += [_asked(index, pending.request, answer, stored=False) for index in pending.indices]
        return settled

    def _again(self, pending: Pending, reply: Reply) -> bool:
        """Puts a failed request back, unless it had its chances."""
        fault = reply.raw.get("fault")
        pending.tries += 1
        pending.failures += fault not in UNCOUNTED
        if fault in FOR_GOOD or pending.failures > self._retries:
            return False
        delay = full_jitter(self._backoff, pending.tries)
        if delay:
            heapq.heappush(self._delayed, (time.monotonic() + delay, next(self._count), pending))
        else:
            self._waiting.append(pending)
        return True

    def _note(self, reply: Reply) -> None:
        failed = reply.outcome is Outcome.ERROR
        self._answered += not failed
        self._failed += failed and reply.raw.get("fault") != Fault.TOO_LONG
        if self._failed >= HOPELESS and not self._answered:
            raise CollectionStopped(
                f"{self._identity}: the first {self._failed} requests all failed, the last with: "
                f"{reply.raw.get('error', 'no reason given')}; correct the endpoint's settings and run again"
            )


def _asked(index: int, request: Request, answer: Answer, *, stored: bool) -> Collected:
    return Collected(index, request, answer.reply, answer.created, stored)
