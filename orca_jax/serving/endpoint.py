"""Our student as an endpoint: any number of requests at a time, from any event loop, one engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import queue
import secrets
import threading
import zlib
from collections.abc import Sequence
from typing import Any

from orca_jax.records import Message, Outcome, Reply, Sampling
from orca_jax.serving.local import LocalStudent
from orca_jax.serving.words import Words
from orca_jax.student.engine import Engine, Generated, Request

Answered = concurrent.futures.Future[Generated]


class StudentEndpoint:
    """Answers what `asking` asks; a context manager. A thread of its own runs the engine.

    Requests that wait together share the engine's rows, and a reply depends on its own conversation and
    sampling alone. Without a seed, each reply to a sampled request is another.
    """

    def __init__(self, student: LocalStudent):
        self._student = student
        self._worker = _Worker(student)

    @property
    def identity(self) -> str:
        """A hash of checkpoint, tokenizer and layout."""
        return self._student.identity

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers a conversation; what goes wrong with it is an error reply that says so."""
        try:
            return await self._reply(messages, sampling)
        except Exception as error:  # a request that cannot be answered must not end the others
            return Reply(Outcome.ERROR, "", raw={"error": f"{type(error).__name__}: {error}"})

    async def _reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        student = self._student
        prompt = student.prompt(messages)
        if not student.fits(prompt):
            return student.too_long()
        if sampling.seed is None:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(32))
        # Conversations of one seed draw differently, and each always alike.
        request = student.request(prompt, sampling, number=zlib.crc32(prompt.tobytes()))
        generated = await asyncio.wrap_future(self._worker.submit(request))
        return student.reply(len(prompt), generated, Words(student.tokenizer, student.layout, sampling.stop))

    def close(self) -> None:
        """Ends the thread; requests that still run get an error reply."""
        self._worker.close()

    def __enter__(self) -> StudentEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """A thread that owns an engine and runs it while there is something to do."""

    def __init__(self, student: LocalStudent):
        self._student = student
        self._inbox: queue.SimpleQueue[tuple[Request, Answered] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._running: dict[int, Answered] = {}
        self._thread = threading.Thread(target=self._work, name="student-endpoint", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Answered:
        """Raises RuntimeError after `close`."""
        answered: Answered = concurrent.futures.Future()
        with self._lock:  # so that no request comes behind the None that ends the thread
            if self._closed:
                raise RuntimeError("the endpoint is closed")
            self._inbox.put((request, answered))
        return answered

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        engine = self._student.generator.new_engine()
        while self._take(engine):
            self._forget_cancelled(engine)
            try:
                for advance in engine.step():
                    if advance.finished is not None:
                        _settle(self._running.pop(advance.ticket), advance.finished)
            except Exception as error:  # out of memory, say: the next requests get a fresh engine
                self._fail(error)
                engine = self._student.generator.new_engine()
        self._fail(RuntimeError("the endpoint was closed"))

    def _take(self, engine: Engine) -> bool:
        """Queues what has come, waiting for it if there is nothing to do; whether to go on."""
        while not engine.busy or not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                return False
            request, answered = job
            try:
                self._running[engine.add(request)] = answered
            except ValueError as error:
                _settle(answered, error)
        return True

    def _forget_cancelled(self, engine: Engine) -> None:
        for ticket in [ticket for ticket, answered in self._running.items() if answered.cancelled()]:
            engine.cancel(ticket)
            del self._running[ticket]

    def _fail(self, error: Exception) -> None:
        while self._running:
            _settle(self._running.popitem()[1], error)


def _settle(answered: Answered, outcome: Any) -> None:
    """Hands over a result or an exception, unless the one who asked has gone."""
    if not answered.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        answered.set_exception(outcome)
    else:
        answered.set_result(outcome)
