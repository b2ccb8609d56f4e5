"""Deltas as OpenAI's JSON: whole answers, and the events of a stream."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Literal

from orca_jax.serving.answering import Call, Delta, Entry
from orca_jax.serving.protocol import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    Likely,
    Logprobs,
    Said,
    Usage,
)
from orca_jax.serving.vocabulary import Vocabulary

DONE = "data: [DONE]\n\n"


@dataclasses.dataclass
class Renderer:
    """Renders the answer to one call.

    Attributes:
      kind: of completion.
      model, fingerprint: of the same names in the answer.
    """

    kind: Literal["chat", "text"]
    call: Call
    vocabulary: Vocabulary
    model: str
    fingerprint: str
    reply_tokens: int = 0

    def __post_init__(self) -> None:
        name = "chatcmpl" if self.kind == "chat" else "cmpl"
        self._head: dict[str, Any] = {
            "id": f"{name}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    @property
    def usage(self) -> Usage:
        prompt, reply = self.call.prompt_tokens, self.reply_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=reply, total_tokens=prompt + reply)

    async def whole(self, deltas: AsyncIterator[Delta]) -> Answer:
        """The answer, when all choices have ended."""
        texts = [""] * self.call.choices
        ends: dict[int, Delta] = {}
        async for delta in deltas:
            texts[delta.choice] += delta.text
            self.reply_tokens += delta.tokens
            if delta.reason is not None:
                ends[delta.choice] = delta
        choices: list[Any] = [
            self._choice(ends[index]._replace(text=text)) for index, text in enumerate(texts)
        ]
        form = ChatCompletion if self.kind == "chat" else Completion
        return form(choices=choices, usage=self.usage, **self._head)

    async def events(self, deltas: AsyncIterator[Delta], with_usage: bool) -> AsyncGenerator[str, None]:
        """Server-sent events: a chunk a delta, and then the usage if wanted."""
        if self.kind == "chat":
            for index in range(self.call.choices):
                yield self._event([ChatChunkChoice(index=index, delta=Said(role="assistant", content=""))])
        async for delta in deltas:
            self.reply_tokens += delta.tokens
            yield self._event([self._chunk(delta)])
        if with_usage:
            yield self._event([], self.usage)
        yield DONE

    def _event(self, choices: Sequence[Any], usage: Usage | None = None) -> str:
        form = ChatChunk if self.kind == "chat" else Completion
        return f"data: {form(choices=list(choices), usage=usage, **self._head).model_dump_json()}\n\n"

    def _choice(self, delta: Delta) -> ChatChoice | CompletionChoice:
        if self.kind == "text":
            return self._chunk(delta)  # type: ignore[return-value]
        assert delta.reason is not None
        return ChatChoice(
            index=delta.choice,
            message=Said(role="assistant", content=delta.text),
            finish_reason=delta.reason,
            logprobs=self._chat_logprobs(delta.entries),
        )

    def _chunk(self, delta: Delta) -> ChatChunkChoice | CompletionChoice:
        if self.kind == "text":
            logprobs = None if delta.entries is None else self._logprobs(delta)
            return CompletionChoice(
                index=delta.choice, text=delta.text, finish_reason=delta.reason, logprobs=logprobs
            )
        return ChatChunkChoice(
            index=delta.choice,
            delta=Said(content=delta.text),
            finish_reason=delta.reason,
            logprobs=self._chat_logprobs(delta.entries),
        )

    # Log-probabilities

    def _logprobs(self, delta: Delta) -> Logprobs:
        entries, prompt = delta.entries or [], self.call.prompt(delta.choice)
        ids = [entry.token for entry in entries]
        lengths = self.vocabulary.lengths(ids)
        # A text's ids may spell a space before it, which is not the text's.
        extra = 0
        if self.call.echo and prompt.text is not None:
            extra = sum(lengths[: prompt.tokens]) - len(prompt.text)
        offsets = [max(sum_before - extra, 0) for sum_before in _before(lengths)]
        return Logprobs(
            tokens=[self.vocabulary.name(token) for token in ids],
            token_logprobs=[entry.log_prob for entry in entries],
            top_logprobs=[self._likeliest(entry) for entry in entries],
            text_offset=offsets,
        )

    def _likeliest(self, entry: Entry) -> dict[str, float] | None:
        """By name, the likeliest first; of ids of one name the likelier. The token itself is always there."""
        if entry.log_prob is None:
            return None
        named: dict[str, float] = {}
        for token, log_prob in (*entry.likeliest, (entry.token, entry.log_prob)):
            named.setdefault(self.vocabulary.name(token), log_prob)
        return named

    def _chat_logprobs(self, entries: list[Entry] | None) -> ChatLogprobs | None:
        if entries is None:
            return None
        content = [
            ChatLogprob(
                **self._likely(entry.token, entry.log_prob or 0.0).model_dump(),
                top_logprobs=[self._likely(*one) for one in entry.likeliest],
            )
            for entry in entries
        ]
        return ChatLogprobs(content=content)

    def _likely(self, token: int, log_prob: float) -> Likely:
        return Likely(token=self.vocabulary.name(token), logprob=log_prob, bytes=self.vocabulary.bytes(token))


def _before(lengths: Sequence[int]) -> list[int]:
    """The sum of what comes before each."""
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return sums[:-1]
