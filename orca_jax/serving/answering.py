"""From what a client asks to sequences for the worker, and from what comes of them to deltas.

`Answerer.chat` and `Answerer.complete` check a request and make a `Call` of it; `Answerer.deltas` runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.records import Message
from orca_jax.serving.detokenizer import Detokenizer
from orca_jax.serving.errors import Refused
from orca_jax.serving.guard import Limits
from orca_jax.serving.local import LocalStudent
from orca_jax.serving.prompt_log_probs import LogProbsRequest, PromptLogProbs
from orca_jax.serving.protocol import ChatRequest, CommonRequest, CompletionRequest
from orca_jax.serving.vocabulary import Vocabulary
from orca_jax.serving.worker import Overloaded, Worker
from orca_jax.student.engine import Generated, Request

Reason = Literal["stop", "length"]


class Prompt(NamedTuple):
    """Ids int32 [n]; `hidden` of the first are not the client's. `text` is what it sent, if that was text."""

    ids: np.ndarray
    hidden: int = 0
    text: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.hidden


class Entry(NamedTuple):
    """One token, its log-probability (None for the first of all), and the likeliest ids in its place."""

    token: int
    log_prob: float | None
    likeliest: tuple[tuple[int, float], ...]


class Delta(NamedTuple):
    """More of a reply's text; the last one has a reason, the number of tokens, and entries if asked."""

    choice: int
    text: str
    reason: Reason | None = None
    tokens: int = 0
    entries: list[Entry] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a request comes to.

    Attributes:
      prompts: one a sequence asked for; choice `i` is of prompt `i // n`.
      n: choices a prompt.
      requests: one a choice; empty where nothing is to be said.
      words: reads the replies.
      top: how many likeliest ids to give with log-probabilities; None: no log-probabilities.
      echo: whether the prompts are part of the answer.
      ending: whether the token that stops a reply has an entry too.
      stream: whether text is wanted as it comes.
    """

    prompts: tuple[Prompt, ...]
    n: int
    requests: tuple[Request, ...]
    words: Detokenizer
    top: int | None
    echo: bool = False
    ending: bool = False
    stream: bool = False

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def only_reads(self) -> bool:
        """Whether reading the prompts tells the replies: no token, or the likeliest one."""
        return self.top is not None and all(
            request.max_tokens == 1 and request.temperature == 0 for request in self.requests
        )

    def prompt(self, index: int) -> Prompt:
        return self.prompts[index // self.n]


class Answerer:
    """Answers requests with one student."""

    def __init__(self, student: LocalStudent, worker: Worker, limits: Limits):
        self.student, self.worker, self.limits = student, worker, limits
        self.vocabulary = Vocabulary(student.tokenizer, student.layout)
        # Prompt and reply as the client counts them: a place is kept for a beginning of sequence put before.
        self.max_length = student.generator.max_length - 1
        self._stop_ids = student.stop_ids

    # Checking

    def chat(self, asked: ChatRequest) -> Call:
        """Raises Refused where it cannot be answered."""
        roles = {"developer": "system"}
        messages = [Message(roles.get(turn.role, turn.role), turn.text) for turn in asked.messages]
        if messages[-1].role != "user":
            raise Refused(400, "the last message must be the user's", param="messages")
        try:
            prompt = Prompt(self.student.prompt(messages))
        except (LayoutError, TokenizerError) as error:
            raise Refused(400, str(error), param="messages") from error
        if asked.top_logprobs and not asked.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return self._call(
            asked,
            [prompt],
            asked.max_completion_tokens or asked.max_tokens,
            words=Detokenizer(self.student.tokenizer, self.student.layout, asked.stops),
            top=asked.top_logprobs if asked.logprobs else None,
        )

    def complete(self, asked: CompletionRequest) -> Call:
        """Raises Refused where it cannot be answered."""
        if asked.max_tokens == 0 and not asked.echo:
            raise Refused(400, "max_tokens: 0 needs echo: true", param="max_tokens")
        return self._call(
            asked,
            self._prompts(asked.prompt),
            asked.max_tokens,
            words=Detokenizer(self.student.tokenizer, None, asked.stops),
            top=asked.logprobs,
            echo=asked.echo,
            ending=True,
        )

    def _prompts(self, asked: str | Sequence[Any]) -> list[Prompt]:
        several = not isinstance(asked, str) and not isinstance(asked[0], int)
        return [self._prompt(one) for one in (asked if several else [asked])]

    def _prompt(self, asked: str | Sequence[int]) -> Prompt:
        if isinstance(asked, str):
            ids, _ = self.vocabulary.begun(self.vocabulary.plain(asked))
            prompt = Prompt(np.array(ids, np.int32), 0, asked)
        else:
            ids, hidden = self.vocabulary.begun(asked)
            prompt = Prompt(np.array(ids, np.int32), hidden)
            if max(asked) >= self.student.generator.engine.config.vocab_size:
                raise Refused(400, f"prompt: there is no id {max(asked)}", param="prompt")
        if not len(prompt.ids):
            raise Refused(
                400, "the prompt is empty, and this student's texts begin with no token", param="prompt"
            )
        return prompt

    def _call(self, asked: CommonRequest, prompts: list[Prompt], max_tokens: int | None, **rest: Any) -> Call:
        # More than rows and queue hold would be told to come again for ever.
        most = min(self.limits.sequences, self.worker.slots + self.worker.queue)
        if len(prompts) * asked.n > most:
            message = f"{len(prompts)} prompts times n={asked.n} are more than {most} sequences"
            raise Refused(400, message, param="n")
        limits = [self._limit(prompt, max_tokens) for prompt in prompts]
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        requests = [
            self._request(asked, prompt, limit, seed, number, rest["words"])
            for prompt, limit in zip(prompts, limits)
            for number in range(asked.n)
            if limit
        ]
        return Call(prompts=tuple(prompts), n=asked.n, requests=tuple(requests), stream=asked.stream, **rest)

    def _limit(self, prompt: Prompt, max_tokens: int | None) -> int:
        """Tokens that a reply may have."""
        limits = self.limits
        space = min(self.max_length - prompt.tokens, limits.output_tokens)
        if prompt.tokens > limits.prompt_tokens:
            raise Refused(
                400,
                f"the prompt has {prompt.tokens} tokens; {limits.prompt_tokens} may be asked for",
                code="context_length_exceeded",
            )
        if space < 1 or (max_tokens or 0) > space:
            raise Refused(
                400,
                f"the prompt has {prompt.tokens} tokens, and {max_tokens or 1} are to follow; "
                f"{self.max_length} fit in all, {limits.output_tokens} may follow",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return space if max_tokens is None else max_tokens

    def _request(
        self, asked: CommonRequest, prompt: Prompt, limit: int, seed: int, number: int, words: Detokenizer
    ) -> Request:
        """Like `endpoint.StudentEndpoint`, so that a seed gives one reply over either way."""
        return Request(
            prompt=prompt.ids,
            max_tokens=limit,
            temperature=asked.temperature,
            top_k=max(asked.top_k, 0),
            top_p=asked.top_p,
            seed=seed,
            number=zlib.crc32(prompt.ids.tobytes()) + number,
            stop=words.ends if words.stops else None,
        )

    # Running

    def admit(self, call: Call) -> None:
        """Raises Refused where the queue has no room for it."""
        try:
            self.worker.admit(call.choices)
        except Overloaded as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise Refused(429, str(error), code="overloaded", headers=headers) from error

    async def deltas(self, call: Call) -> AsyncGenerator[Delta, None]:
        """Text and ends of all choices, as they come; closed early, it frees what the call holds."""
        if call.echo:
            for index in range(call.choices):
                yield Delta(index, self._echoed(call.prompt(index)))
        if call.top is not None:
            for delta in await self._with_log_probs(call):
                yield delta
            return
        if not call.requests:
            for index in range(call.choices):
                yield Delta(index, "", "length")
            return
        async with contextlib.aclosing(self._said(call)) as said:
            async for delta in said:
                yield delta

    def _echoed(self, prompt: Prompt) -> str:
        return self.vocabulary.decode(prompt.ids.tolist()) if prompt.text is None else prompt.text

    async def _said(self, call: Call) -> AsyncGenerator[Delta, None]:
        tokens: list[list[int]] = [[] for _ in call.requests]
        shown = [""] * len(call.requests)
        async with contextlib.aclosing(self.worker.ask(call.requests)) as events:
            async for index, advance in events:
                tokens[index] += advance.tokens
                if advance.finished is not None:
                    text = call.words.text(tokens[index])[len(shown[index]) :]
                    yield Delta(index, text, _reason(advance.finished), len(tokens[index]))
                elif call.stream and (text := call.words.stable_text(tokens[index])[len(shown[index]) :]):
                    shown[index] += text
                    yield Delta(index, text)

    async def _with_log_probs(self, call: Call) -> list[Delta]:
        """All choices; their log-probabilities are by one reading of each whole sequence."""
        assert call.top is not None
        if call.only_reads:
            prompts = [LogProbsRequest(prompt.ids, max(call.top, 1)) for prompt in call.prompts]
            reads = await self.worker.results(prompts)
            return [self._read_only(call, index, reads[index // call.n]) for index in range(call.choices)]
        replies = await self.worker.results(call.requests)
        spoken = [self._spoken(call, reply) for reply in replies]
        wholes = [np.concatenate([call.prompt(i).ids, ids]) for i, ids in enumerate(spoken)]
        reads = await self.worker.results([LogProbsRequest(whole, call.top) for whole in wholes])
        return [
            Delta(
                index,
                call.words.text(reply.tokens.tolist()),
                _reason(reply),
                len(reply.tokens),
                _entries(call, index, wholes[index], reads[index]),
            )
            for index, reply in enumerate(replies)
        ]

    def _spoken(self, call: Call, reply: Generated) -> np.ndarray:
        """A reply's ids, and the one that stopped it where that is to have an entry."""
        tokens = reply.tokens.tolist()
        by_token = call.ending and reply.stopped and call.words.ends(tokens) is None
        return np.array(tokens + list(self._stop_ids[:1] if by_token else ()), np.int32)

    def _read_only(self, call: Call, index: int, read: PromptLogProbs) -> Delta:
        """A choice whose reply is nothing, or the likeliest token."""
        prompt = call.prompt(index).ids
        if not call.requests:
            return Delta(index, "", "length", 0, _entries(call, index, prompt, read))
        token = int(read.top_ids[-1, 0])
        whole = PromptLogProbs(
            np.append(read.log_probs, read.top_log_probs[-1, 0]), read.top_ids, read.top_log_probs
        )
        entries = _entries(call, index, np.append(prompt, token), whole)
        stopped = token in self._stop_ids or call.words.ends([token]) is not None
        if stopped and not call.ending:
            entries = entries[:-1]
        said = [] if token in self._stop_ids else [token]
        return Delta(index, call.words.text(said), "stop" if stopped else "length", len(said), entries)


def _reason(reply: Generated) -> Reason:
    return "stop" if reply.stopped else "length"


def _entries(call: Call, index: int, whole: np.ndarray, read: PromptLogProbs) -> list[Entry]:
    """Of the tokens that the client gets; those in place `i` depend on the tokens before `i`."""
    prompt, top = call.prompt(index), call.top or 0
    start = prompt.hidden if call.echo else len(prompt.ids)
    found = []
    for place in range(start, len(whole)):
        if not place:
            found.append(Entry(int(whole[0]), None, ()))
            continue
        likeliest = zip(read.top_ids[place - 1, :top].tolist(), read.top_log_probs[place - 1, :top].tolist())
        found.append(Entry(int(whole[place]), float(read.log_probs[place - 1]), tuple(likeliest)))
    return found
