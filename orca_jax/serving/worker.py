"""One thread that runs an engine and a scorer; event loops submit work, and results arrive through callbacks.

Sequences are served in the order in which they come. A caller that leaves frees its rows at the next step.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, Literal

from orca_jax.student.engine import Advance, Engine, Generator, Request
from orca_jax.student.scoring import ScoreRequest

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """A Request or a ScoreRequest; `publish` takes its Advances, its Score, or an Exception."""

    work: Any
    publish: Callable[[Any], None]


class Worker:
    """Runs one student's engine and scorer while there is work; for any number of callers.

    Args:
      generator: whose student this is; nothing else may use what `new_engine` returns.
    """

    def __init__(self, generator: Generator):
        self.slots = generator.engine.slots
        self._generator, self._scorer = generator, generator.scorer
        self._inbox: queue.SimpleQueue[tuple[Literal["add", "cancel", "close"], Sequence[_Task]]]
        self._inbox = queue.SimpleQueue()
        self._in_engine: dict[int, _Task] = {}  # by ticket; those without a row wait in the engine
        self._to_score: collections.deque[_Task] = collections.deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="student", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def running(self) -> int:
        """Sequences in the engine's rows."""
        return min(len(self._in_engine), self.slots)

    @property
    def waiting(self) -> int:
        """Sequences that no row or batch has taken yet."""
        return len(self._in_engine) - self.running + len(self._to_score)

    async def submit(self, work: Sequence[Request | ScoreRequest]) -> AsyncGenerator[tuple[int, Any], None]:
        """Yields (index, event) until all work is done: Advances of requests, and the others' Scores.

        Closing it early (use `contextlib.aclosing`) cancels what is left.

        Raises:
          RuntimeError: the worker was closed.
          Exception: whatever the engine failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def publish(index: int, event: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

        tasks = [_Task(one, functools.partial(publish, index)) for index, one in enumerate(work)]
        left = len(tasks)
        self._inbox.put(("add", tasks))
        if self._closed:  # looked at after the put: what is in the inbox when it closes is failed
            raise RuntimeError("the endpoint is closed")
        try:
            while left:
                index, event = await events.get()
                if isinstance(event, Exception):
                    raise event
                left -= not isinstance(event, Advance) or event.finished is not None
                yield index, event
        finally:
            if left:
                self._inbox.put(("cancel", tasks))

    async def results(self, work: Sequence[Request | ScoreRequest]) -> list[Any]:
        """The Generated or Score of each, in order; raises as `submit` does."""
        found: dict[int, Any] = {}
        async with contextlib.aclosing(self.submit(work)) as events:
            async for index, event in events:
                found[index] = event.finished if isinstance(event, Advance) else event
        return [found[index] for index in range(len(work))]

    def close(self) -> None:
        """Ends the thread; callers that still wait get a RuntimeError."""
        self._closed = True
        self._inbox.put(("close", []))
        self._thread.join()

    # In the worker's thread

    def _work(self) -> None:
        try:
            engine = self._generator.new_engine()
            while self._receive(engine):
                try:
                    self._score()
                    for advance in engine.step():
                        task = self._in_engine[advance.ticket]
                        if advance.finished is not None:
                            del self._in_engine[advance.ticket]
                        task.publish(advance)
                except Exception as error:  # out of memory, say: the next requests get a fresh engine
                    log.exception("the engine failed; %d sequences with it", len(self._in_engine))
                    _fail(self._in_engine.values(), error)
                    self._in_engine.clear()
                    engine = self._generator.new_engine()
        except Exception:
            log.exception("no engine could be made")
        finally:
            self._closed = True
            left = [*self._in_engine.values(), *self._to_score]
            while not self._inbox.empty():
                message, tasks = self._inbox.get()
                left += tasks if message == "add" else []
            self._in_engine.clear()
            self._to_score.clear()
            _fail(left, RuntimeError("the endpoint was closed"))

    def _receive(self, engine: Engine) -> bool:
        """Takes what is in the inbox, and waits for it while there is nothing else to do; False: the end."""
        while not self._inbox.empty() or not (self._in_engine or self._to_score):
            message, tasks = self._inbox.get()
            if message == "close":
                return False
            if message == "cancel":
                for ticket in [ticket for ticket, task in self._in_engine.items() if task in tasks]:
                    engine.cancel(ticket)
                    del self._in_engine[ticket]
                self._to_score = collections.deque(task for task in self._to_score if task not in tasks)
                continue
            for task in tasks:
                if isinstance(task.work, ScoreRequest):
                    self._to_score.append(task)
                    continue
                try:
                    self._in_engine[engine.add(task.work)] = task
                except ValueError as error:
                    _fail([task], error)
        return True

    def _score(self) -> None:
        """Scores one batch of the waiting sequences."""
        batch: list[_Task] = []
        while self._to_score and self._scorer.fits([task.work for task in (*batch, self._to_score[0])]):
            batch.append(self._to_score.popleft())
        if not batch:
            return
        try:
            for task, score in zip(batch, self._scorer.score_batch([task.work for task in batch])):
                task.publish(score)
        except Exception as error:
            log.exception("scoring %d sequences failed", len(batch))
            _fail(batch, error)


def _fail(tasks: Iterable[_Task], error: Exception) -> None:
    for task in tasks:
        task.publish(error)
