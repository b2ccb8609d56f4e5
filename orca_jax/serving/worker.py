"""One thread that owns an engine and a reader; event loops ask it, and hear what comes.

What one asker wants together is a *flow*. Flows take turns, a sequence at a time, so that one of many
sequences does not keep the others waiting; a flow that is left gives its rows and its places back.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from orca_jax.serving.prompt_log_probs import LogProbsRequest, PromptScorer
from orca_jax.student.engine import Advance, Engine, Generator, Request

log = logging.getLogger(__name__)
Work = Request | LogProbsRequest
Tell = Callable[[int, Any], None]  # the sequence's index, and an Advance, a Read or an Exception
SMOOTHING = 0.1  # share of the newest interval in the mean time between ends
LONGEST_WAIT = 60  # seconds that anyone is asked to wait before coming again


class Overloaded(RuntimeError):
    """No room for more waiting sequences; `retry_after` is when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} sequences are waiting already; come again in {retry_after} s")
        self.retry_after = retry_after


@dataclasses.dataclass(eq=False)
class RequestGroup:
    """The sequences that one asker wants together."""

    tell: Tell
    waiting: collections.deque[tuple[int, Work]]
    left: bool = False


class RoundRobin:
    """Flows with waiting sequences, which take turns."""

    def __init__(self) -> None:
        self._flows: collections.deque[RequestGroup] = collections.deque()

    def __len__(self) -> int:
        return sum(len(flow.waiting) for flow in self._flows)

    def add(self, flow: RequestGroup) -> None:
        if flow.waiting:
            self._flows.append(flow)

    def next(self) -> tuple[RequestGroup, int, Work]:
        flow = self._flows.popleft()
        index, work = flow.waiting.popleft()
        self.add(flow)
        return flow, index, work

    @property
    def first(self) -> Any:
        return self._flows[0].waiting[0][1]

    def remove(self, flow: RequestGroup) -> None:
        if flow in self._flows:
            self._flows.remove(flow)


class Eta:
    """The mean time between sequences' ends, while there are any."""

    def __init__(self) -> None:
        self.interval, self._last = 0.0, 0.0

    def ended(self) -> None:
        now = time.monotonic()
        if self._last:
            interval = min(now - self._last, 1.0)
            self.interval += SMOOTHING * (interval - self.interval)
        self._last = now

    def wait(self, sequences: int) -> int:
        """Seconds after which so many will have ended; 1 to `LONGEST_WAIT`."""
        return min(max(round(sequences * self.interval), 1), LONGEST_WAIT)


class Worker:
    """Runs one student's engine and reader while there is something to do; for any number of askers.

    Args:
      generator: whose engine this is; nothing else may use what `new_engine` returns.
      queue: sequences that may wait; only `admit` looks at it.
    """

    def __init__(self, generator: Generator, *, queue: int = 256):
        self.slots, self.queue = generator.engine.slots, queue
        self._generator = generator
        self._reader = PromptScorer(generator)
        self._changed = threading.Condition()
        self._saying, self._reading = RoundRobin(), RoundRobin()
        self._running: dict[int, tuple[RequestGroup, int]] = {}
        self._left: list[RequestGroup] = []
        self._pace = Eta()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="student", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Sequences that no row or batch has taken yet."""
        with self._changed:
            return len(self._saying) + len(self._reading) + max(len(self._running) - self.slots, 0)

    @property
    def running(self) -> int:
        return min(len(self._running), self.slots)

    def admit(self, sequences: int) -> None:
        """Raises Overloaded where so many more do not fit the queue."""
        waiting = self.waiting
        if waiting + sequences > self.queue + self.slots - self.running:
            raise Overloaded(waiting, self._pace.wait(waiting))

    async def ask(self, work: Sequence[Work]) -> AsyncGenerator[tuple[int, Any], None]:
        """What comes of each, by its index, until all have ended: Advances of requests, a Read of a reading.

        One that is closed before its end (use `contextlib.aclosing`) frees what it holds.

        Raises:
          RuntimeError: the worker was closed.
          Exception: whatever the engine failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def tell(index: int, event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

        flow = self._submit(work, tell)
        try:
            left = len(work)
            while left:
                index, event = await events.get()
                if isinstance(event, Exception):
                    raise event
                left -= not isinstance(event, Advance) or event.finished is not None
                yield index, event
        finally:
            self._leave(flow)

    async def results(self, work: Sequence[Work]) -> list[Any]:
        """The Generated of each request and the Read of each reading, in order; raises as `ask` does."""
        found: dict[int, Any] = {}
        events = self.ask(work)
        try:
            async for index, event in events:
                found[index] = event.finished if isinstance(event, Advance) else event
        finally:
            await events.aclose()
        return [found[index] for index in range(len(work))]

    def close(self) -> None:
        """Ends the thread; whoever still waits gets a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # What askers do

    def _submit(self, work: Sequence[Work], tell: Tell) -> RequestGroup:
        flow = RequestGroup(tell, collections.deque(enumerate(work)))
        with self._changed:
            if self._closed:
                raise RuntimeError("the endpoint is closed")
            readings = bool(work) and isinstance(work[0], LogProbsRequest)
            (self._reading if readings else self._saying).add(flow)
            self._changed.notify()
        return flow

    def _leave(self, flow: RequestGroup) -> None:
        with self._changed:
            flow.left = True
            self._saying.remove(flow)
            self._reading.remove(flow)
            self._left.append(flow)
            self._changed.notify()

    # What the thread does

    def _work(self) -> None:
        try:
            engine = self._generator.new_engine()
            while self._wait():
                try:
                    self._forget(engine)
                    self._read()
                    self._feed(engine)
                    for advance in engine.step():
                        self._advance(advance)
                except Exception as error:  # out of memory, say: the next requests get a fresh engine
                    log.exception("the engine failed; %d sequences with it", len(self._running))
                    self._fail(self._running.values(), error)
                    self._running.clear()
                    engine = self._generator.new_engine()
        except Exception:
            log.exception("there can be no engine")
        finally:
            self._end()

    def _wait(self) -> bool:
        """Waits until there is something to do; whether to go on."""
        with self._changed:
            while not (self._closed or self._left or self._running or self._saying or self._reading):
                self._changed.wait()
            return not self._closed

    def _forget(self, engine: Engine) -> None:
        with self._changed:
            left, self._left = self._left, []
        for ticket in [ticket for ticket, (flow, _) in self._running.items() if flow in left]:
            engine.cancel(ticket)
            del self._running[ticket]

    def _feed(self, engine: Engine) -> None:
        """Fills the engine's rows and one place more, so that it knows of someone waiting for a row."""
        while len(self._running) <= self.slots:
            with self._changed:
                if not self._saying:
                    return
                flow, index, request = self._saying.next()
            assert isinstance(request, Request)
            try:
                self._running[engine.add(request)] = flow, index
            except ValueError as error:
                self._fail([(flow, index)], error)

    def _advance(self, advance: Advance) -> None:
        flow, index = self._running[advance.ticket]
        if advance.finished is not None:
            del self._running[advance.ticket]
            self._pace.ended()
        _tell(flow, index, advance)

    def _read(self) -> None:
        """Reads one batch of those that wait to be read."""
        batch: list[Any] = []
        places: list[tuple[RequestGroup, int]] = []
        with self._changed:
            while self._reading and self._reader.fits([*batch, self._reading.first]):
                flow, index, reading = self._reading.next()
                batch.append(reading)
                places.append((flow, index))
        if not batch:
            return
        try:
            for (flow, index), read in zip(places, self._reader.read(batch)):
                self._pace.ended()
                _tell(flow, index, read)
        except Exception as error:
            log.exception("reading %d sequences failed", len(batch))
            self._fail(places, error)

    def _fail(self, places: Any, error: Exception) -> None:
        for flow, index in places:
            _tell(flow, index, error)

    def _end(self) -> None:
        """Tells all who wait that nothing more comes."""
        with self._changed:
            self._closed = True
            places = list(self._running.values())
            for turns in (self._saying, self._reading):
                while turns:
                    flow, index, _ = turns.next()
                    places.append((flow, index))
            self._running.clear()
        self._fail(places, RuntimeError("the endpoint was closed"))


def _tell(flow: RequestGroup, index: int, event: Any) -> None:
    """Tells a flow, unless it or its event loop has gone."""
    if flow.left:
        return
    try:
        flow.tell(index, event)
    except RuntimeError:  # its event loop is closed
        flow.left = True
