"""A student as something that answers conversations: in batches, as a stream, or as an endpoint."""

from __future__ import annotations

import dataclasses
import secrets
import zlib
from collections.abc import Generator as Generates
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from orca_jax import artifacts
from orca_jax.config import LlamaConfig, MeshConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.serving.detokenizer import Detokenizer
from orca_jax.serving.worker import Worker
from orca_jax.student import sharding
from orca_jax.student.engine import Generated, Generator, Request
from orca_jax.student.scoring import Score
from orca_jax.training.students import SavedStudent

Conversation = Sequence[Message]


class Delta(NamedTuple):
    """The next part of a reply's text; the last one comes with the whole reply."""

    text: str
    reply: Reply | None = None


class LocalStudent:
    """Answers conversations in this process, in the layout that the student was trained in."""

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        layout: str,
        *,
        checkpoint: str,
        batch_size: int = 32,
        max_length: int = 2048,
        compiler_options: Mapping[str, str] | None = None,
    ):
        self.tokenizer = tokenizer
        self.layout = layout
        self.stop_ids = layouts.stop_ids(layout, tokenizer)
        self.identity = "student-" + artifacts.digest([checkpoint, tokenizer.fingerprint, layout])[:16]
        self.generator = Generator(
            params,
            config,
            stop_ids=self.stop_ids,
            batch_size=batch_size,
            max_length=max_length,
            compiler_options=compiler_options,
        )

    def answer(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Reply]:
        """A reply to each conversation; one whose prompt leaves no space is an error reply."""
        replies = dict(self.as_finished(conversations, sampling))
        return [replies[index] for index in range(len(conversations))]

    def as_finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        *,
        numbers: Sequence[int] | None = None,
        top_k: int = 0,
    ) -> Iterator[tuple[int, Reply]]:
        """Replies with their conversation's index, as they finish.

        Conversation `i` draws by (the seed, numbers[i]), or by (the seed, i).
        """
        prompts = [self.prompt(conversation) for conversation in conversations]
        fits = [i for i, prompt in enumerate(prompts) if self.fits(prompt)]
        yield from ((i, self.too_long()) for i in range(len(prompts)) if not self.fits(prompts[i]))
        detokenizer = Detokenizer(self.tokenizer, self.layout, sampling.stop)
        generated = self.generator.as_finished(
            [prompts[i] for i in fits],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=top_k,
            top_p=sampling.top_p,
            seed=sampling.seed or 0,
            numbers=fits if numbers is None else [numbers[i] for i in fits],
            stop=detokenizer.ends if detokenizer.stops else None,
        )
        for place, found in generated:
            index = fits[place]
            yield index, self.reply(len(prompts[index]), found, detokenizer)

    def stream(
        self, messages: Conversation, sampling: Sampling, *, number: int = 0, top_k: int = 0
    ) -> Generates[Delta, None, None]:
        """A reply in parts: its deltas' texts joined are the reply's text, and what `answer` gives.

        One at a time, and while nothing else is being answered.
        """
        prompt = self.prompt(messages)
        if not self.fits(prompt):
            yield Delta("", self.too_long())
            return
        detokenizer = Detokenizer(self.tokenizer, self.layout, sampling.stop)
        engine = self.generator.engine
        ticket = engine.add(self.request(prompt, sampling, number=number, top_k=top_k))
        tokens: list[int] = []
        shown = ""
        try:
            while True:
                (advance,) = engine.step()
                tokens += advance.tokens
                if advance.finished is not None:
                    reply = self.reply(len(prompt), advance.finished, detokenizer)
                    yield Delta(reply.text[len(shown) :], reply)
                    return
                new = detokenizer.stable_text(tokens)[len(shown) :]
                shown += new
                yield Delta(new)
        finally:
            engine.cancel(ticket)

    def log_likelihoods(self, pairs: Sequence[tuple[Conversation, str]]) -> list[Score]:
        """How likely each text is as the next answer of its conversation; its end of turn is not counted.

        What the layout writes between prompt and answer (a space, say) is counted.
        """
        prompts, continuations = zip(*(self._continued(*one) for one in pairs)) if pairs else ((), ())
        return self.generator.scorer.score(prompts, continuations)

    def _continued(self, messages: Conversation, text: str) -> tuple[np.ndarray, np.ndarray]:
        prompt = self.prompt(messages)
        whole = layouts.encode([*messages, Message("assistant", text)], self.layout, self.tokenizer)
        spoken = np.flatnonzero(whole.weights[len(prompt) :])
        return prompt, whole.tokens[len(prompt) : len(prompt) + spoken[-1]]

    def prompt(self, messages: Conversation) -> np.ndarray:
        """Ids int32 [n] of a conversation, up to where the answer begins.

        Raises:
          LayoutError: the turns do not alternate.
        """
        return layouts.encode(messages, self.layout, self.tokenizer).tokens

    def fits(self, prompt: np.ndarray) -> bool:
        return len(prompt) < self.generator.max_length

    def too_long(self) -> Reply:
        error = f"prompt exceeds {self.generator.max_length} tokens"
        return Reply(Outcome.ERROR, "", raw={"error": error})

    def request(self, prompt: np.ndarray, sampling: Sampling, *, number: int = 0, top_k: int = 0) -> Request:
        """The engine's request for one reply."""
        detokenizer = Detokenizer(self.tokenizer, self.layout, sampling.stop)
        return Request(
            prompt=prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=top_k,
            top_p=sampling.top_p,
            seed=sampling.seed or 0,
            number=number,
            stop=detokenizer.ends if detokenizer.stops else None,
        )

    def reply(self, prompt_tokens: int, generated: Generated, detokenizer: Detokenizer) -> Reply:
        """The engine's output as a reply."""
        text = detokenizer.text(generated.tokens.tolist())
        stopped = Outcome.OK if text.strip() else Outcome.EMPTY
        outcome = stopped if generated.stopped else Outcome.LENGTH
        return Reply(outcome, text, Usage(prompt_tokens, len(generated.tokens)))


class StudentEndpoint:
    """A local student as an endpoint for `teachers`; a context manager. A thread of its own runs the engine.

    Requests that wait together share the engine's rows, and a reply depends on its own conversation and
    sampling alone. Without a seed, each sampled reply differs.
    """

    def __init__(self, student: LocalStudent):
        self._student = student
        self._worker = Worker(student.generator)

    @property
    def identity(self) -> str:
        """A hash of checkpoint, tokenizer and layout."""
        return self._student.identity

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers a conversation; errors become an error reply with their message."""
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


def load_student(
    source: SavedStudent,
    layout: str = "",
    *,
    tensor: int = 1,
    batch_size: int = 32,
    max_length: int = 2048,
    compiler_options: Mapping[str, str] | None = None,
) -> LocalStudent:
    """A student on disk, ready to answer, its layers split over `tensor` devices.

    Args:
      layout: of prompts; empty: the student's own.

    Raises:
      LayoutError: that is not known, and none is given.
    """
    layout = layout or source.own_layout
    if not layout:
        raise LayoutError(f"{source.tokenizer} does not say its prompt layout; give --layout")
    config = dataclasses.replace(source.config, scan_layers=False)
    mesh = sharding.make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    return LocalStudent(
        source.load(config, mesh),
        config,
        tokenizers.load(source.tokenizer),
        layout,
        checkpoint=source.fingerprint,
        batch_size=batch_size,
        max_length=max_length,
        compiler_options=compiler_options,
    )
