"""One thread that runs an engine and a scorer; event loops submit work, and results arrive through callbacks.

The sequences of one caller are a group. Groups are served round robin, a sequence at a time, so that a group
of many sequences does not keep the others waiting; a cancelled group frees its rows and its places.
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
Callback = Callable[[int, Any], None]  # the sequence's index; an Advance, PromptLogProbs or an Exception
SMOOTHING = 0.1  # share of the newest interval in the mean time between ends
LONGEST_WAIT = 60  # seconds: the largest `retry_after`


class Overloaded(RuntimeError):
    """No room for more waiting sequences; `retry_after` is when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} sequences are waiting already; come again in {retry_after} s")
        self.retry_after = retry_after


@dataclasses.dataclass(eq=False)
class RequestGroup:
    """The sequences that one caller submits together."""

    callback: Callback
    waiting: collections.deque[tuple[int, Work]]
    cancelled: bool = False

    def publish(self, index: int, event: Any) -> None:
        """Calls back, unless the group is cancelled or its event loop is closed."""
        if self.cancelled:
            return
        try:
            self.callback(index, event)
        except RuntimeError:  # its event loop is closed
            self.cancelled = True


class RoundRobin:
    """Groups with waiting sequences, one sequence of each in turn."""

    def __init__(self) -> None:
        self._groups: collections.deque[RequestGroup] = collections.deque()

    def __len__(self) -> int:
        return sum(len(group.waiting) for group in self._groups)

    def add(self, group: RequestGroup) -> None:
        if group.waiting:
            self._groups.append(group)

    def next(self) -> tuple[RequestGroup, int, Work]:
        group = self._groups.popleft()
        index, work = group.waiting.popleft()
        self.add(group)
        return group, index, work

    @property
    def first(self) -> Any:
        return self._groups[0].waiting[0][1]

    def remove(self, group: RequestGroup) -> None:
        if group in self._groups:
            self._groups.remove(group)


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
    """Runs one student's engine and scorer while there is work; for any number of callers.

    Args:
      generator: whose engine this is; nothing else may use what `new_engine` returns.
      queue: sequences that may wait; only `admit` looks at it.
    """

    def __init__(self, generator: Generator, *, queue: int = 256):
        self.slots, self.queue = generator.engine.slots, queue
        self._generator = generator
        self._scorer = PromptScorer(generator)
        self._changed = threading.Condition()
        self._to_generate, self._to_score = RoundRobin(), RoundRobin()
        self._running: dict[int, tuple[RequestGroup, int]] = {}
        self._cancelled: list[RequestGroup] = []
        self._eta = Eta()
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
            return len(self._to_generate) + len(self._to_score) + max(len(self._running) - self.slots, 0)

    @property
    def running(self) -> int:
        return min(len(self._running), self.slots)

    def admit(self, sequences: int) -> None:
        """Raises Overloaded where so many more do not fit the queue."""
        waiting = self.waiting
        if waiting + sequences > self.queue + self.slots - self.running:
            raise Overloaded(waiting, self._eta.wait(waiting))

    async def submit(self, work: Sequence[Work]) -> AsyncGenerator[tuple[int, Any], None]:
        """Yields (index, event) until all work is done: Advances of requests, PromptLogProbs of the others.

        Closing it early (use `contextlib.aclosing`) cancels what is left.

        Raises:
          RuntimeError: the worker was closed.
          Exception: whatever the engine failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def callback(index: int, event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

        group = RequestGroup(callback, collections.deque(enumerate(work)))
        with self._changed:
            if self._closed:
                raise RuntimeError("the endpoint is closed")
            scored = bool(work) and isinstance(work[0], LogProbsRequest)
            (self._to_score if scored else self._to_generate).add(group)
            self._changed.notify()
        try:
            unfinished = len(work)
            while unfinished:
                index, event = await events.get()
                if isinstance(event, Exception):
                    raise event
                unfinished -= not isinstance(event, Advance) or event.finished is not None
                yield index, event
        finally:
            with self._changed:
                group.cancelled = True
                self._to_generate.remove(group)
                self._to_score.remove(group)
                self._cancelled.append(group)
                self._changed.notify()

    async def results(self, work: Sequence[Work]) -> list[Any]:
        """The Generated or PromptLogProbs of each, in order; raises as `submit` does."""
        found: dict[int, Any] = {}
        events = self.submit(work)
        try:
            async for index, event in events:
                found[index] = event.finished if isinstance(event, Advance) else event
        finally:
            await events.aclose()
        return [found[index] for index in range(len(work))]

    def close(self) -> None:
        """Ends the thread; callers that still wait get a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # In the worker's thread

    def _work(self) -> None:
        try:
            engine = self._generator.new_engine()
            while self._wait():
                try:
                    with self._changed:
                        cancelled, self._cancelled = self._cancelled, []
                    for ticket in [t for t, (group, _) in self._running.items() if group in cancelled]:
                        engine.cancel(ticket)
                        del self._running[ticket]
                    self._score()
                    self._feed(engine)
                    for advance in engine.step():
                        self._advance(advance)
                except Exception as error:  # out of memory, say: the next requests get a fresh engine
                    log.exception("the engine failed; %d sequences with it", len(self._running))
                    self._fail(self._running.values(), error)
                    self._running.clear()
                    engine = self._generator.new_engine()
        except Exception:
            log.exception("no engine could be made")
        finally:
            self._end()

    def _wait(self) -> bool:
        """Waits until there is something to do; False once the worker is closed."""
        with self._changed:
            waiting = (self._running, self._to_generate, self._to_score)
            self._changed.wait_for(lambda: self._closed or self._cancelled or any(waiting))
            return not self._closed

    def _feed(self, engine: Engine) -> None:
        """Fills the engine's rows and queues one request more, by which the engine sees that others wait."""
        while len(self._running) <= self.slots:
            with self._changed:
                if not self._to_generate:
                    return
                group, index, request = self._to_generate.next()
            assert isinstance(request, Request)
            try:
                self._running[engine.add(request)] = group, index
            except ValueError as error:
                self._fail([(group, index)], error)

    def _advance(self, advance: Advance) -> None:
        group, index = self._running[advance.ticket]
        if advance.finished is not None:
            del self._running[advance.ticket]
            self._eta.ended()
        group.publish(index, advance)

    def _score(self) -> None:
        """Scores one batch of the waiting prompts."""
        batch: list[Any] = []
        places: list[tuple[RequestGroup, int]] = []
        with self._changed:
            while self._to_score and self._scorer.fits([*batch, self._to_score.first]):
                group, index, request = self._to_score.next()
                batch.append(request)
                places.append((group, index))
        if not batch:
            return
        try:
            for (group, index), found in zip(places, self._scorer.score(batch)):
                self._eta.ended()
                group.publish(index, found)
        except Exception as error:
            log.exception("scoring %d prompts failed", len(batch))
            self._fail(places, error)

    def _fail(self, places: Any, error: Exception) -> None:
        for group, index in places:
            group.publish(index, error)

    def _end(self) -> None:
        """Fails all work that is not done."""
        with self._changed:
            self._closed = True
            places = list(self._running.values())
            for waiting in (self._to_generate, self._to_score):
                while waiting:
                    group, index, _ = waiting.next()
                    places.append((group, index))
            self._running.clear()
        self._fail(places, RuntimeError("the endpoint was closed"))
