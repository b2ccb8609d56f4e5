"""Our student as an endpoint: any number of requests at a time, from any event loop, one engine."""

from __future__ import annotations

import dataclasses
import secrets
import zlib
from collections.abc import Sequence

from orca_jax.records import Message, Outcome, Reply, Sampling
from orca_jax.serving.detokenizer import Detokenizer
from orca_jax.serving.local import LocalStudent
from orca_jax.serving.worker import Worker


class StudentEndpoint:
    """Answers what `asking` asks; a context manager. A thread of its own runs the engine.

    Requests that wait together share the engine's rows, and a reply depends on its own conversation and
    sampling alone. Without a seed, each reply to a sampled request is another.
    """

    def __init__(self, student: LocalStudent):
        self._student = student
        self._worker = Worker(student.generator)

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
        (generated,) = await self._worker.results([request])
        return student.reply(
            len(prompt), generated, Detokenizer(student.tokenizer, student.layout, sampling.stop)
        )

    def close(self) -> None:
        """Ends the thread; requests that still run get an error reply."""
        self._worker.close()

    def __enter__(self) -> StudentEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
