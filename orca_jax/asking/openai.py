"""Anything that speaks OpenAI's chat completions, through the `openai` client.

One `OpenAIEndpoint` is one address, one model or deployment and one key: OpenAI, Azure OpenAI, vLLM,
SGLang, llama.cpp, Ollama or a server of our own. It sends one request at a time as it is told to;
limits and several endpoints are `pool.Pool`'s. The key is read from the environment and is in no
text that leaves this module.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from orca_jax.asking import completions
from orca_jax.asking.api_config import EndpointError, OpenAIConfig
from orca_jax.asking.completions import Sent
from orca_jax.asking.endpoint import EndpointRefused, Fault
from orca_jax.records import Message, Reply, Sampling

SHORTEST_SECRET = 8  # a shorter key could be a common word, and replies would be garbled
KEYLESS = "none"
AZURE_TOKEN = "AZURE_OPENAI_AD_TOKEN"  # the `openai` client prefers it to a key
LOGGERS = ("httpcore", "httpx", "openai")
# The client looks through all idle connections of its pool at every request: several small pools are faster.
POOLS = 8
_LIMITS = re.compile(r"x-ratelimit-|retry-after|date$")


class OpenAIEndpoint:
    """One address, model and key.

    Raises:
      EndpointError: the environment holds no such key.
    """

    def __init__(self, config: OpenAIConfig):
        self.config = config
        self.identity = config.model
        self._key = _key(config)
        self._secrets = [s for s in (self._key, os.environ.get(AZURE_TOKEN, "")) if len(s) >= SHORTEST_SECRET]
        self._clients: list[openai.AsyncOpenAI] = []
        self._turns: Iterator[openai.AsyncOpenAI] = iter(())
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def label(self) -> str:
        """What the endpoint is called in logs: host and model."""
        return f"{urlsplit(self.config.base_url).hostname}/{self.config.model}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Asks once, with no regard to limits.

        Raises:
          EndpointRefused: wrong key, unknown model or exhausted quota.
        """
        sent = await self.send(messages, sampling)
        if sent.reading.fault is Fault.REFUSED:
            raise EndpointRefused(self.refusal(sent.status, sent.reading.message), sent.reading.reply)
        return sent.reading.reply

    async def send(self, messages: Sequence[Message], sampling: Sampling) -> Sent:
        """Sends one request; whatever happens is a reading."""
        body = completions.body(
            self.config.model,
            messages,
            sampling,
            limit_name=self.config.limit_name,
            parameters=self.config.parameters,
        )
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await self._post(body)
        except Exception as error:  # a connection fails in many ways, and each is an outcome
            return Sent(_failure(error, self.config).cleaned(self.scrub))
        content_type = response.headers.get("content-type", "")
        reading = completions.read(response.status_code, response.content, content_type)
        told = {name: self.scrub(value) for name, value in response.headers.items() if _LIMITS.match(name)}
        return Sent(reading.cleaned(self.scrub), told, response.status_code)

    def refusal(self, status: int | None, said: str) -> str:
        """What its user should know of an endpoint that answers nobody."""
        return f"{self.label}: {completions.advice(status, said)} (the server says: {said})"

    async def close(self) -> None:
        clients, self._clients = self._clients, []
        if self._loop is asyncio.get_running_loop():
            for client in clients:
                await client.close()

    def client(self) -> openai.AsyncOpenAI:
        """The next of the `openai` clients of the running event loop; connections belong to their loop."""
        loop = asyncio.get_running_loop()
        if not self._clients or self._loop is not loop:
            context = httpx2.create_ssl_context()
            self._clients = [_make_client(self.config, self._key, context) for _ in range(POOLS)]
            self._turns, self._loop = itertools.cycle(self._clients), loop
            _guard(self._secrets)
        return next(self._turns)

    def scrub(self, value: Any) -> Any:
        """A JSON value without the key, which a server may repeat in what it says."""
        if isinstance(value, str):
            return _without(value, self._secrets)
        if isinstance(value, Mapping):
            return {self.scrub(name): self.scrub(entry) for name, entry in value.items()}
        return [self.scrub(entry) for entry in value] if isinstance(value, list) else value

    async def _post(self, body: dict[str, Any]) -> httpx2.Response:
        try:
            return await self.client().post("/chat/completions", cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            return error.response


class _Scrubbing(logging.Filter):
    """Takes secrets out of what HTTP libraries log: at DEBUG they show whatever headers a server sent."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if any(secret in message for secret in self.secrets):
            record.msg, record.args = _without(message, self.secrets), None
        return True


_SCRUBBING = _Scrubbing()


def _guard(secrets: Iterable[str]) -> None:
    """Keeps these secrets out of the logs; a filter works on the very logger that is written to."""
    _SCRUBBING.secrets.update(secrets)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(LOGGERS)]:
        logging.getLogger(name).addFilter(_SCRUBBING)


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return text


class _TooLarge(Exception):
    """An answer is not read to its end; the message says why."""


class _Bounded(httpx2.AsyncByteStream):
    """A response's bytes, as long as they are few enough."""

    def __init__(self, stream: httpx2.AsyncByteStream, largest: int):
        self._stream = stream
        self._largest = self._left = largest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise _TooLarge(f"an answer of more than {self._largest} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _make_client(config: OpenAIConfig, key: str, context: ssl.SSLContext) -> openai.AsyncOpenAI:
    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            # Not asked for, and a few bytes can unpack to any size.
            raise _TooLarge("a compressed answer, which was not asked for; let no proxy compress it")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, config.largest)

    http = httpx2.AsyncClient(
        verify=context,
        timeout=httpx2.Timeout(config.timeout, connect=min(30.0, config.timeout)),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        event_hooks={"response": [bound]},
        follow_redirects=False,  # a redirect would take the key elsewhere
    )
    common: dict[str, Any] = {
        "api_key": key,
        "max_retries": 0,  # the queue retries, by the limits
        "http_client": http,
        "default_headers": {"Accept-Encoding": "identity"},
    }
    if config.api_version:
        endpoint, version = config.base_url, config.api_version
        return openai.AsyncAzureOpenAI(azure_endpoint=endpoint, api_version=version, **common)
    return openai.AsyncOpenAI(base_url=config.base_url, **common)


def _failure(error: Exception, config: OpenAIConfig) -> completions.Reading:
    """A request that no answer came back for."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    unsent = any(isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout) for cause in causes)
    if too_large := next((cause for cause in causes if isinstance(cause, _TooLarge)), None):
        fault, message = Fault.TOO_LARGE, str(too_large)
    elif any(isinstance(cause, TimeoutError | openai.APITimeoutError) for cause in causes):
        fault, message = Fault.TIMEOUT, f"no answer within {config.timeout:g} s"
    else:
        fault = Fault.CONNECTION
        message = ": ".join(f"{type(cause).__name__} {cause}".strip() for cause in causes)
    return completions.failed(fault, None, message, maybe_paid=not unsent)


def _key(config: OpenAIConfig) -> str:
    if not config.key_variable:
        return KEYLESS
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise EndpointError(
            f"{config.model!r}: the environment variable {config.key_variable} is not set; put the "
            "key into it, or set key_variable to '' for a server that needs none"
        )
    return key
