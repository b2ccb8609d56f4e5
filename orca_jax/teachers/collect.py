"""Puts requests to an endpoint, many at a time, and pays for no answer that the ledger holds.

`concurrency` coroutines, the slots, each take the next request, and keep it until it is settled: reserve
budget, wait for the limits, note in the ledger, send, record, and again after a failure. Nothing is reported
before it is committed, so a kill costs at most as many paid replies as there are slots.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from orca_jax.records import Outcome, Reply
from orca_jax.scrubbing import scrub
from orca_jax.teachers.endpoint import CollectionStopped, Endpoint, Fault, Request, request_id
from orca_jax.teachers.ledger import Answer, Attempt, Ledger
from orca_jax.teachers.limits import full_jitter
from orca_jax.teachers.pool import Pool

Result = TypeVar("Result")
TICK = 0.5
LOOK_AHEAD = 256  # requests looked up together in the ledger
HOPELESS = 20  # requests that failed for good, before any was answered
UNCOUNTED = (Fault.RATE_LIMIT, Fault.REFUSED)
FOR_GOOD = (Fault.REQUEST, Fault.TOO_LONG)


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
    together are sent once. A request that raises, or ends in `Outcome.ERROR`, is sent again `retries` times,
    each time after a random part of `backoff` seconds, doubled with every failure; then the failed reply is
    yielded, and a later call sends it again. A failure for the request's own fault is not sent again; one for
    a limit or an endpoint that refuses everything does not count against the retries.

    Raises:
      CollectionStopped: no further request may be sent. Those in flight are waited for, committed and
        yielded before.
      LedgerError: the ledger cannot be written to, or another process collects from this endpoint with it.
    """
    with ledger.claim(endpoint.identity):
        slots = _Slots(endpoint, requests, ledger, retries, backoff)
        work = asyncio.create_task(slots.run(concurrency))
        try:
            while (collected := await slots.settled.get()) is not None:
                yield collected
            if slots.stopped is not None:
                raise slots.stopped
        finally:
            slots.stop(CollectionStopped("the collection is left early"))
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if isinstance(endpoint, Pool):
                await endpoint.close()


class _Slots:
    """The requests of one call of `collect` that are not settled, and the coroutines that send them."""

    def __init__(
        self, endpoint: Endpoint, requests: Iterable[Request], ledger: Ledger, retries: int, backoff: float
    ):
        self.settled: asyncio.Queue[Collected | None] = asyncio.Queue(LOOK_AHEAD)  # None: no more will come
        self.stopped: BaseException | None = None
        self._endpoint, self._ledger = endpoint, ledger
        self._retries, self._backoff = retries, backoff
        self._source = enumerate(requests)
        self._waiting: collections.deque[tuple[bytes, Request]] = collections.deque()
        self._indices: dict[bytes, list[int]] = {}  # of the requests that wait or are in a slot
        self._reading = asyncio.Lock()
        self._idle: set[asyncio.Task[Any]] = set()  # slots with nothing in flight
        self._answered, self._failed = 0, 0

    async def run(self, slots: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(slots):
                    group.create_task(self._slot())
        except BaseExceptionGroup as failed:
            self.stopped = failed.exceptions[0]
        await self.settled.put(None)

    def stop(self, why: CollectionStopped) -> None:
        """Lets the slots end what is in flight, and begin nothing."""
        self.stopped = self.stopped or why
        for task in self._idle:
            task.cancel()

    @contextlib.contextmanager
    def _waiting_idle(self) -> Iterator[None]:
        """A time in which this slot has nothing in flight and is ended by `stop`."""
        if self.stopped:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            yield
        finally:
            self._idle.discard(task)

    async def _slot(self) -> None:
        """Takes one request after the other, each until it is settled."""
        try:
            while (taken := await self._next()) is not None:
                key, request = taken
                answer = await self._answer(request)
                self._check(answer.reply)
                for index in self._indices.pop(key):
                    settled = Collected(index, request, answer.reply, answer.created, stored=False)
                    await self.settled.put(settled)
        except CollectionStopped as stopped:
            self.stop(stopped)

    async def _next(self) -> tuple[bytes, Request] | None:
        """The next request without an answer; None when there is none, or none may be sent."""
        async with self._reading:
            while not self.stopped and not self._waiting:
                chunk = [
                    (index, request_id(self._endpoint.identity, request), request)
                    for index, request in itertools.islice(self._source, LOOK_AHEAD)
                ]
                if not chunk:
                    return None
                found, stored = self._ledger.get_many(key for _, key, _ in chunk), []
                for index, key, request in chunk:  # at once: whatever is awaited may settle one of them
                    known = found.get(key)
                    if known and known.reply.outcome is not Outcome.ERROR:
                        stored.append(Collected(index, request, known.reply, known.created, stored=True))
                    elif key in self._indices:
                        self._indices[key].append(index)
                    else:
                        self._indices[key] = [index]
                        self._waiting.append((key, request))
                for one in stored:
                    await self.settled.put(one)
            return None if self.stopped else self._waiting.popleft()

    async def _answer(self, request: Request) -> Answer:
        """Sends a request until it is answered or has failed for good."""
        failures = 0
        while True:
            answer = await self._send(request)
            fault = answer.reply.raw.get("fault")
            if answer.reply.outcome is not Outcome.ERROR or fault in FOR_GOOD:
                return answer
            failures += fault not in UNCOUNTED
            if failures > self._retries:
                return answer
            with self._waiting_idle():
                await asyncio.sleep(full_jitter(self._backoff, max(1, failures)))

    async def _send(self, request: Request) -> Answer:
        """Sends a request once, within limits and budget; returns what then stands in the ledger."""
        endpoint, ledger = self._endpoint, self._ledger
        if not isinstance(endpoint, Pool):
            return await self._record(request, endpoint.reply(request.messages, request.drawn))
        async with contextlib.AsyncExitStack() as stack:
            with self._waiting_idle():
                admission = await stack.enter_async_context(endpoint.admit(request))
            (note,) = ledger.note(endpoint.identity, [(request, admission.bound)])
            return await self._record(request, endpoint.send(admission), note)

    async def _record(
        self, request: Request, sending: Coroutine[Any, Any, Reply], note: int | None = None
    ) -> Answer:
        """Waits for the reply and commits it; whatever one request meets does not end the others."""
        identity, started = self._endpoint.identity, time.monotonic()
        try:
            reply = await sending
            if not isinstance(reply, Reply):
                raise TypeError(f"endpoint {identity} returned {reply!r:.80}, not a Reply")
        except CollectionStopped as stopped:
            self.stop(stopped)
            reply = stopped.reply or Reply(Outcome.ERROR, "", raw={"error": scrub(str(stopped))})
        except Exception as error:
            reply = Reply(Outcome.ERROR, "", raw={"error": scrub(f"{type(error).__name__}: {error}")})
        seconds = time.monotonic() - started
        (answer,) = self._ledger.record([Attempt(identity, request, reply, seconds, note=note)])
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # an endpoint answers this too, to say that nothing was sent
        return answer

    def _check(self, reply: Reply) -> None:
        """Stops where the first requests all failed for good, so that the rest would too."""
        failed = reply.outcome is Outcome.ERROR
        self._answered += not failed
        self._failed += failed and reply.raw.get("fault") != Fault.TOO_LONG
        if self._failed >= HOPELESS and not self._answered:
            name, said = self._endpoint.identity, reply.raw.get("error", "no reason given")
            self.stop(
                CollectionStopped(
                    f"{name}: the first {self._failed} requests all failed, the last with: {said}; correct "
                    "the endpoint's settings and run again"
                )
            )


def collect_each(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    on_reply: Callable[[Collected], None],
    *,
    on_tick: Callable[[], None] | None = None,
    **options: Any,
) -> None:
    """Like `collect`, but waits for all; `on_reply` is called with each as it comes, and nothing is kept.

    `on_tick` is called every half second, also while nothing comes, in a thread of its own: what it does
    holds up no request. `options` are those of `collect`. May be called from a notebook.
    """

    async def tick(ended: asyncio.Event) -> None:
        while on_tick is not None and not ended.is_set():
            await asyncio.to_thread(on_tick)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), TICK)

    async def run() -> None:
        ticking = asyncio.create_task(tick(ended := asyncio.Event()))
        try:
            async with contextlib.aclosing(collect(endpoint, requests, ledger, **options)) as collection:
                async for collected in collection:
                    on_reply(collected)
        finally:
            ended.set()
            await ticking

    run_here(run())


def collect_all(
    endpoint: Endpoint,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    on_reply: Callable[[Collected], None] | None = None,
    **options: Any,
) -> list[Reply]:
    """Like `collect_each`; returns the replies in the order of the requests."""
    replies: dict[int, Reply] = {}

    def keep(collected: Collected) -> None:
        replies[collected.index] = collected.reply
        if on_reply is not None:
            on_reply(collected)

    collect_each(endpoint, requests, ledger, keep, **options)
    return [replies[index] for index in range(len(replies))]


def run_here(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end, in a thread of its own where a loop (a notebook's) runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    with contextlib.closing(loop), concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(loop.run_until_complete, task).result()
        except KeyboardInterrupt:  # only this thread hears of it, at any of its steps
            loop.call_soon_threadsafe(task.cancel)
            raise
