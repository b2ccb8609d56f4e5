"""From a client's request to sequences for the worker, and from their results to deltas.

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
    """More of a reply's text; the last one has a reason, the number of tokens, and entries if wanted."""

    choice: int
    text: str
    reason: Reason | None = None
    tokens: int = 0
    entries: list[Entry] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A request as the worker needs it.

    Attributes:
      prompts: of the request; choice `i` continues prompt `i // n`.
      n: choices a prompt.
      requests: one a choice; empty where no token is to be generated.
      detokenizer: of the replies.
      top: how many likeliest ids to give with log-probabilities; None: no log-probabilities.
      echo: whether the prompts are part of the answer.
      ending: whether the token that stops a reply has an entry too.
      stream: whether text is wanted as it comes.
    """

    prompts: tuple[Prompt, ...]
    n: int
    requests: tuple[Request, ...]
    detokenizer: Detokenizer
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
    def scores_only(self) -> bool:
        """Whether the prompts' scores give the replies: no token, or the likeliest one."""
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

    def chat(self, request: ChatRequest) -> Call:
        """Raises Refused where it cannot be answered."""
        roles = {"developer": "system"}
        messages = [Message(roles.get(turn.role, turn.role), turn.text) for turn in request.messages]
        if messages[-1].role != "user":
            raise Refused(400, "the last message must be the user's", param="messages")
        try:
            prompt = Prompt(self.student.prompt(messages))
        except (LayoutError, TokenizerError) as error:
            raise Refused(400, str(error), param="messages") from error
        if request.top_logprobs and not request.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return self._call(
            request,
            [prompt],
            request.max_completion_tokens or request.max_tokens,
            detokenizer=Detokenizer(self.student.tokenizer, self.student.layout, request.stops),
            top=request.top_logprobs if request.logprobs else None,
        )

    def complete(self, request: CompletionRequest) -> Call:
        """Raises Refused where it cannot be answered."""
        if request.max_tokens == 0 and not request.echo:
            raise Refused(400, "max_tokens: 0 needs echo: true", param="max_tokens")
        return self._call(
            request,
            self._prompts(request.prompt),
            request.max_tokens,
            detokenizer=Detokenizer(self.student.tokenizer, None, request.stops),
            top=request.logprobs,
            echo=request.echo,
            ending=True,
        )

    def _prompts(self, request: str | Sequence[Any]) -> list[Prompt]:
        several = not isinstance(request, str) and not isinstance(request[0], int)
        return [self._prompt(one) for one in (request if several else [request])]

    def _prompt(self, request: str | Sequence[int]) -> Prompt:
        if isinstance(request, str):
            ids, _ = self.vocabulary.begun(self.vocabulary.plain(request))
            prompt = Prompt(np.array(ids, np.int32), 0, request)
        else:
            ids, hidden = self.vocabulary.begun(request)
            prompt = Prompt(np.array(ids, np.int32), hidden)
            if max(request) >= self.student.generator.engine.config.vocab_size:
                raise Refused(400, f"prompt: there is no id {max(request)}", param="prompt")
        if not len(prompt.ids):
            raise Refused(
                400, "the prompt is empty, and this student's texts begin with no token", param="prompt"
            )
        return prompt

    def _call(
        self, request: CommonRequest, prompts: list[Prompt], max_tokens: int | None, **rest: Any
    ) -> Call:
        # More than rows and queue hold could never be admitted.
        most = min(self.limits.sequences, self.worker.slots + self.worker.queue)
        if len(prompts) * request.n > most:
            message = f"{len(prompts)} prompts times n={request.n} are more than {most} sequences"
            raise Refused(400, message, param="n")
        limits = [self._limit(prompt, max_tokens) for prompt in prompts]
        seed = secrets.randbits(32) if request.seed is None else request.seed
        requests = [
            self._request(request, prompt, limit, seed, number, rest["detokenizer"])
            for prompt, limit in zip(prompts, limits)
            for number in range(request.n)
            if limit
        ]
        return Call(
            prompts=tuple(prompts), n=request.n, requests=tuple(requests), stream=request.stream, **rest
        )

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
        self,
        request: CommonRequest,
        prompt: Prompt,
        limit: int,
        seed: int,
        number: int,
        detokenizer: Detokenizer,
    ) -> Request:
        """Like `local.StudentEndpoint`, so that a seed gives one reply over either way."""
        return Request(
            prompt=prompt.ids,
            max_tokens=limit,
            temperature=request.temperature,
            top_k=max(request.top_k, 0),
            top_p=request.top_p,
            seed=seed,
            number=zlib.crc32(prompt.ids.tobytes()) + number,
            stop=detokenizer.ends if detokenizer.stops else None,
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
                prompt = call.prompt(index)
                text = self.vocabulary.decode(prompt.ids.tolist()) if prompt.text is None else prompt.text
                yield Delta(index, text)
        if call.top is not None:
            for delta in await self._with_log_probs(call):
                yield delta
            return
        if not call.requests:
            for index in range(call.choices):
                yield Delta(index, "", "length")
            return
        async with contextlib.aclosing(self._generated(call)) as deltas:
            async for delta in deltas:
                yield delta

    async def _generated(self, call: Call) -> AsyncGenerator[Delta, None]:
        tokens: list[list[int]] = [[] for _ in call.requests]
        shown = [""] * len(call.requests)
        async with contextlib.aclosing(self.worker.submit(call.requests)) as events:
            async for index, advance in events:
                tokens[index] += advance.tokens
                if advance.finished is not None:
                    text = call.detokenizer.text(tokens[index])[len(shown[index]) :]
                    yield Delta(index, text, _reason(advance.finished), len(tokens[index]))
                elif call.stream and (
                    text := call.detokenizer.stable_text(tokens[index])[len(shown[index]) :]
                ):
                    shown[index] += text
                    yield Delta(index, text)

    async def _with_log_probs(self, call: Call) -> list[Delta]:
        """All choices; their log-probabilities come from one pass over each whole sequence."""
        assert call.top is not None
        if call.scores_only:
            prompts = [LogProbsRequest(prompt.ids, max(call.top, 1)) for prompt in call.prompts]
            scores = await self.worker.results(prompts)
            return [self._from_scores(call, index, scores[index // call.n]) for index in range(call.choices)]
        replies = await self.worker.results(call.requests)
        wholes = []
        for index, reply in enumerate(replies):
            tokens = reply.tokens.tolist()
            by_token = call.ending and reply.stopped and call.detokenizer.ends(tokens) is None
            stop = list(self._stop_ids[:1] if by_token else ())  # it has an entry too
            wholes.append(np.concatenate([call.prompt(index).ids, np.array(tokens + stop, np.int32)]))
        scores = await self.worker.results([LogProbsRequest(whole, call.top) for whole in wholes])
        return [
            Delta(
                index,
                call.detokenizer.text(reply.tokens.tolist()),
                _reason(reply),
                len(reply.tokens),
                _entries(call, index, wholes[index], scores[index]),
            )
            for index, reply in enumerate(replies)
        ]

    def _from_scores(self, call: Call, index: int, scores: PromptLogProbs) -> Delta:
        """A choice whose reply is empty, or the likeliest token."""
        prompt = call.prompt(index).ids
        if not call.requests:
            return Delta(index, "", "length", 0, _entries(call, index, prompt, scores))
        token = int(scores.top_ids[-1, 0])
        log_probs = np.append(scores.log_probs, scores.top_log_probs[-1, 0])
        entries = _entries(call, index, np.append(prompt, token), scores._replace(log_probs=log_probs))
        stopped = token in self._stop_ids or call.detokenizer.ends([token]) is not None
        if stopped and not call.ending:
            entries = entries[:-1]
        tokens = [] if token in self._stop_ids else [token]
        text = call.detokenizer.text(tokens)
        return Delta(index, text, "stop" if stopped else "length", len(tokens), entries)


def _reason(reply: Generated) -> Reason:
    return "stop" if reply.stopped else "length"


def _entries(call: Call, index: int, whole: np.ndarray, scores: PromptLogProbs) -> list[Entry]:
    """Of the tokens that the client gets; those in place `i` depend on the tokens before `i`."""
    prompt, top = call.prompt(index), call.top or 0
    start = prompt.hidden if call.echo else len(prompt.ids)
    found = []
    for place in range(start, len(whole)):
        if not place:
            found.append(Entry(int(whole[0]), None, ()))
            continue
        likeliest = zip(
            scores.top_ids[place - 1, :top].tolist(), scores.top_log_probs[place - 1, :top].tolist()
        )
        found.append(Entry(int(whole[place]), float(scores.log_probs[place - 1]), tuple(likeliest)))
    return found
