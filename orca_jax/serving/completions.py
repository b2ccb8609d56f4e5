"""From a client's request to sequences for the worker, and from their results to OpenAI's JSON."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import TORN, Detokenizer, LocalStudent, engine_settings, prompt_number
from orca_jax.serving.protocol import ApiError, ChatRequest, CommonRequest, CompletionRequest, failed
from orca_jax.serving.worker import Worker
from orca_jax.student.engine import Generated, Request
from orca_jax.student.scoring import Score, ScoreRequest

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Prompt(NamedTuple):
    """Ids int32 [n], of which the last `tokens` are the client's, and their text."""

    ids: np.ndarray
    tokens: int
    text: str


class Service:
    """One student, its worker and the name it is served by; makes a `Completion` of each request.

    Args:
      queue: sequences that may wait.
    """

    def __init__(self, student: LocalStudent, name: str, *, queue: int):
        self.student, self.name = student, name
        self.worker = Worker(student.generator)
        self.capacity, self.admitted = self.worker.slots + queue, 0  # sequences
        self.counts: dict[str, float] = collections.defaultdict(float)  # of the page of metrics
        # Prompt and reply as the client counts them: a place is kept for a beginning of sequence put before.
        self.max_length = student.generator.max_length - 1
        first = int(student.prompt([Message("user", "Hello")])[0])
        self._bos = [first] if first == student.tokenizer.bos_id else []
        self.token_name = functools.cache(self._token_name)

    def chat(self, request: ChatRequest) -> Completion:
        """Raises ApiError where it cannot be answered."""
        if request.messages[-1].role != "user":
            raise ApiError(400, "the last message must be the user's", "messages")
        if request.top_logprobs and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        roles = {"developer": "system"}
        try:
            turns = [Message(roles.get(turn.role, turn.role), turn.text) for turn in request.messages]
            ids = self.student.prompt(turns)
        except (LayoutError, TokenizerError) as error:
            raise ApiError(400, str(error), "messages") from error
        top = request.top_logprobs if request.logprobs else None
        max_tokens = request.max_completion_tokens or request.max_tokens
        return Completion(self, request, [Prompt(ids, len(ids), "")], max_tokens, top)

    def text(self, request: CompletionRequest) -> Completion:
        """Raises ApiError where it cannot be answered."""
        if request.max_tokens == 0 and not request.echo:
            raise ApiError(400, "max_tokens: 0 needs echo: true", "max_tokens")
        several = not isinstance(request.prompt, str) and not isinstance(request.prompt[0], int)
        given: Any = request.prompt if several else [request.prompt]
        prompts = list(map(self._prompt, given))
        return Completion(self, request, prompts, request.max_tokens, request.logprobs, request.echo)

    def _prompt(self, given: str | list[int]) -> Prompt:
        """A raw prompt behind the beginning of sequence; a text spells no control token."""
        tokenizer = self.student.tokenizer
        if isinstance(given, str):
            ids = self._bos + (tokenizer.encode(given, first=True) if given else [])
            if not ids:
                message = "the prompt is empty, and this student's texts begin with no token"
                raise ApiError(400, message, "prompt")
            return Prompt(np.array(ids, np.int32), len(ids), given)
        if max(given) >= self.student.generator.engine.config.vocab_size:
            raise ApiError(400, f"prompt: there is no id {max(given)}", "prompt")
        ids = given if given[:1] == self._bos else self._bos + given
        return Prompt(np.array(ids, np.int32), len(given), tokenizer.decode(given))

    def _token_name(self, token_id: int) -> str:
        """What one id is called: its text, or where that is none or part of a character, its piece."""
        tokenizer = self.student.tokenizer
        if token_id >= tokenizer.vocab_size:
            return f"<unused {token_id}>"
        text, piece = tokenizer.decode([token_id]), tokenizer.token_text(token_id)
        return piece if not text or TORN in text or BYTE.fullmatch(piece) else text


class Completion(Response):
    """The response to one request, whole or as events; a client that leaves cancels it.

    Args:
      max_tokens: of each choice; None: as many as fit.
      top: how many likeliest ids to give with log-probabilities; None: no log-probabilities.
      echo: whether the prompts are part of the reply.

    Raises:
      ApiError: the request does not fit.
    """

    def __init__(
        self,
        service: Service,
        request: CommonRequest,
        prompts: list[Prompt],
        max_tokens: int | None,
        top: int | None,
        echo: bool = False,
    ):
        super().__init__()
        self.service, self.request, self.top, self.echo = service, request, top, echo
        self.chat = chat = isinstance(request, ChatRequest)
        if len(prompts) * request.n > service.capacity:  # could never be admitted
            message = f"{len(prompts)} prompts times n={request.n} are more than {service.capacity} sequences"
            raise ApiError(400, message, "n")
        layout = service.student.layout if chat else None
        self._detokenizer = Detokenizer(service.student.tokenizer, layout, request.stops)
        self.prompts = [prompt for prompt in prompts for _ in range(request.n)]  # one a choice
        self.prompt_tokens, self.reply_tokens = sum(prompt.tokens for prompt in prompts), 0
        seed = secrets.randbits(32) if request.seed is None else request.seed
        self._requests = []  # one a choice; none where no token is to be generated
        for number, prompt in enumerate(self.prompts):
            space = service.max_length - prompt.tokens
            if space < 1 or (max_tokens or 0) > space:
                message = f"the prompt has {prompt.tokens} tokens, and {max_tokens or 1} are to follow; "
                message += f"{service.max_length} fit in all"
                raise ApiError(400, message, "max_tokens", "context_length_exceeded")
            if max_tokens == 0:
                continue
            sampling = Sampling(request.temperature, request.top_p, max_tokens or space, seed=seed)
            settings = engine_settings(sampling, self._detokenizer, max(request.top_k, 0))
            draws = prompt_number(prompt.ids) + number % request.n
            self._requests.append(Request(prompt=prompt.ids, number=draws, **settings))
        chat_kind = "chat.completion.chunk" if request.stream else "chat.completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": chat_kind if chat else "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.student.identity,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError where the queue has no room."""
        service, sequences = self.service, len(self.prompts)
        if service.admitted + sequences > service.capacity:
            message = f"{service.admitted} sequences are running or waiting; come again in 1 s"
            raise ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        service.admitted += sequences
        reply = self._stream(send) if self.request.stream else self._whole(scope, receive, send)
        replying, leaving = asyncio.ensure_future(reply), asyncio.ensure_future(leave())
        try:
            await asyncio.wait((replying, leaving), return_when=asyncio.FIRST_COMPLETED)
            if replying.done():
                replying.result()
            else:
                service.counts["orca_clients_left_total"] += 1
        finally:
            replying.cancel()
            leaving.cancel()
            await asyncio.gather(replying, leaving, return_exceptions=True)
            service.admitted -= sequences
            service.counts["orca_prompt_tokens_total"] += self.prompt_tokens
            service.counts["orca_reply_tokens_total"] += self.reply_tokens

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply when all choices have ended."""
        replies = enumerate(await self._replies())
        choices = [self._finished(index, reply, logprobs) for index, (reply, logprobs) in replies]
        await JSONResponse(self._body(choices, usage=True))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        """Sends events as they come; an error is the last one."""

        async def event(data: str, more: bool = True) -> None:
            body = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        try:
            async with contextlib.aclosing(self._deltas()) as deltas:
                async for choice in deltas:
                    await event(json.dumps(self._body([choice])))
            if self.request.stream_options.include_usage:
                await event(json.dumps(self._body([], usage=True)))
            last = "[DONE]"
        except Exception as error:
            last = json.dumps(failed("a stream", error).body)
        await event(last, more=False)

    async def _deltas(self) -> AsyncGenerator[dict[str, Any], None]:
        """More and more of the choices, as it comes; closed early, it frees what the request holds."""
        if self.chat:
            for index in range(len(self.prompts)):
                yield self._choice(index, "", role=True)
        if self.top is not None or not self._requests:
            for index, (reply, logprobs) in enumerate(await self._replies()):
                yield self._finished(index, reply, logprobs)
            return
        if self.echo:
            for index, prompt in enumerate(self.prompts):
                yield self._choice(index, prompt.text)
        tokens: list[list[int]] = [[] for _ in self._requests]
        sent = [0] * len(self._requests)
        async with contextlib.aclosing(self.service.worker.submit(self._requests)) as events:
            async for index, advance in events:
                tokens[index] += advance.tokens
                if advance.finished is None:
                    text = self._detokenizer.stable_text(tokens[index])
                else:
                    text = self._detokenizer.text(advance.finished.tokens.tolist())
                    self.reply_tokens += len(advance.finished.tokens)
                if text[sent[index] :] or advance.finished is not None:
                    yield self._choice(index, text[sent[index] :], advance.finished)
                sent[index] = len(text)

    def _body(self, choices: list[dict[str, Any]], usage: bool = False) -> dict[str, Any]:
        prompt, reply = self.prompt_tokens, self.reply_tokens
        counts = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        return {**self._head, "choices": choices, "usage": counts if usage else None}

    def _choice(
        self,
        index: int,
        text: str,
        reply: Generated | None = None,
        logprobs: dict[str, Any] | None = None,
        role: bool = False,
    ) -> dict[str, Any]:
        """A choice's JSON, or that of more of it; `reply` is given once it has ended."""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            message = {**({"role": "assistant"} if role else {}), "content": text}
            content = {"delta" if self.request.stream else "message": message}
        reason = None if reply is None else "stop" if reply.stopped else "length"
        return {"index": index, **content, "finish_reason": reason, "logprobs": logprobs}

    def _finished(self, index: int, reply: Generated, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """All of a choice."""
        self.reply_tokens += len(reply.tokens)
        text = self._detokenizer.text(reply.tokens.tolist())
        text = self.prompts[index].text + text if self.echo else text
        return self._choice(index, text, reply, logprobs, role=not self.request.stream)

    async def _replies(self) -> list[tuple[Generated, dict[str, Any] | None]]:
        """The choices with their log-probabilities, which come from one pass over each whole sequence."""
        worker = self.service.worker
        if self.top is None and self._requests:
            return [(reply, None) for reply in await worker.results(self._requests)]

        async def scored(sequences: Sequence[np.ndarray]) -> list[Score]:
            # The target behind a sequence is not known; of what follows it, the likeliest ids are wanted.
            every = [ScoreRequest(ids, np.append(ids[1:], 0), self.top or 1) for ids in sequences]
            return await worker.results(every)

        prompts = [prompt.ids for prompt in self.prompts]
        in_one_pass = all(one.max_tokens == 1 and one.temperature == 0 for one in self._requests)
        if in_one_pass:  # the replies are empty, or the likeliest token
            scores = await scored(prompts)
            replies = [self._likeliest(score) for score in scores]
        else:
            replies = await worker.results(self._requests)
        stop = np.array([] if self.chat else self.service.student.stop_ids[:1], np.int32)
        sequences = []
        for ids, reply in zip(prompts, replies):
            # In a text, the token that stopped it has log-probabilities too.
            by_token = reply.stopped and self._detokenizer.ends(reply.tokens.tolist()) is None
            sequences.append(np.concatenate([ids, reply.tokens, stop if by_token else stop[:0]]))
        if not in_one_pass:
            scores = await scored(sequences)
        return [
            (reply, None if self.top is None else self._logprobs(prompt, ids.tolist(), score, self.top))
            for reply, prompt, ids, score in zip(replies, self.prompts, sequences, scores)
        ]

    def _likeliest(self, score: Score) -> Generated:
        """What follows a prompt: nothing where nothing is to be generated, or the likeliest token."""
        token = int(score.top_ids[-1, 0])
        stopped = bool(self._requests) and token in self.service.student.stop_ids
        tokens = [token] if self._requests and not stopped else []
        end = self._detokenizer.ends(tokens)
        return Generated(np.array(tokens[:end], np.int32), stopped or end is not None, score.log_probs[:0])

    def _logprobs(self, prompt: Prompt, ids: list[int], score: Score, top: int) -> dict[str, Any]:
        """Of ids that a score is of, or of which it gives the last one as the likeliest."""
        name = self.service.token_name
        shown = slice(len(prompt.ids) - (prompt.tokens if self.echo else 0), len(ids))
        log_probs = [None, *score.log_probs[:-1].tolist(), float(score.top_log_probs[-1, 0])][shown]
        pairs = zip(score.top_ids[:, :top].tolist(), score.top_log_probs[:, :top].tolist())
        likeliest = [[], *(list(zip(*pair)) for pair in pairs)][shown]
        ids = ids[shown]
        if self.chat:

            def described(token: int, log_prob: float | None) -> dict[str, Any]:
                byte = BYTE.fullmatch(name(token))
                spelled = [int(byte[1], 16)] if byte else list(name(token).encode())
                return {"token": name(token), "logprob": log_prob, "bytes": spelled}

            return {
                "content": [
                    {**described(token, log_prob), "top_logprobs": [described(*one) for one in tops]}
                    for token, log_prob, tops in zip(ids, log_probs, likeliest)
                ]
            }
        by_name: list[dict[str, float] | None] = []
        for token, log_prob, tops in zip(ids, log_probs, likeliest):
            named: dict[str, Any] = {}  # of ids of one name the likelier; the token itself is always there
            for one, its_log_prob in (*tops, (token, log_prob)):
                named.setdefault(name(one), its_log_prob)
            by_name.append(None if log_prob is None else named)
        return {"tokens": [name(one) for one in ids], "token_logprobs": log_probs, "top_logprobs": by_name}
