"""Anything that speaks OpenAI's chat completions, through the `openai` client.

One `OpenAIEndpoint` is one address, one model or deployment and one key: OpenAI, Azure OpenAI, vLLM,
SGLang, llama.cpp, Ollama or a server of our own. It sends one request at a time as it is told to;
limits and several endpoints are `pool.Pool`'s. The key is read from the environment and is in no
text that leaves this module. A request of which no byte of the body went out was never sent.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import openai

from orca_jax.config_teachers import OpenAIConfig
from orca_jax.records import Message, Sampling
from orca_jax.scrubbing import EndpointError, guard, read_key, scrub
from orca_jax.teachers import completions
from orca_jax.teachers.completions import Response
from orca_jax.teachers.endpoint import Fault

KEYLESS = "none"
CONNECT_SECONDS = 30.0
AZURE_TOKEN = "AZURE_OPENAI_AD_TOKEN"  # read by the `openai` client, as are:
HEADERS = "OPENAI_CUSTOM_HEADERS"  # lines of "NAME: VALUE"
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
LOGGERS = ("httpcore", "httpx", "openai")
_LIMITS = re.compile(r"x-ratelimit-|retry-after|date$")


class OpenAIEndpoint:
    """One address, model and key.

    Raises:
      EndpointError: the environment holds no such key, or certificates or a proxy that cannot be used.
    """

    def __init__(self, config: OpenAIConfig):
        self.config = config
        self._key = read_key(config.model, config.key_variable) if config.key_variable else KEYLESS
        guard(*_of_environment())
        try:
            self._context = httpx2.create_ssl_context()
            _http_client(config, self._context)
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            raise EndpointError(
                f"{self.label}: no connection can be set up: {_named(error)}; correct SSL_CERT_FILE, "
                "SSL_CERT_DIR and the proxies (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) in the environment"
            ) from None
        self._client: openai.AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def label(self) -> str:
        """What the endpoint is called in logs: host and model."""
        return f"{urlsplit(self.config.base_url).hostname}/{self.config.model}"

    async def send(self, messages: Sequence[Message], sampling: Sampling) -> Response:
        """Sends one request; whatever happens is a response, even to be cancelled before it is sent."""
        config = self.config
        body = completions.body(config, messages, sampling)
        body_sent = asyncio.Event()
        _BODY_SENT.set(body_sent)
        try:
            async with asyncio.timeout(config.timeout):
                try:
                    answer = await self.client().post("/chat/completions", cast_to=httpx2.Response, body=body)
                except openai.APIStatusError as error:
                    answer = error.response
        except asyncio.CancelledError:
            if body_sent.is_set():
                raise
            return completions.failed(Fault.CONNECTION, None, "interrupted before it was sent")
        except Exception as error:  # a connection fails in many ways, and each is an outcome
            return _failure(error, config, sent=body_sent.is_set()).cleaned(sampling.max_tokens)
        content_type = answer.headers.get("content-type", "")
        response = completions.read(answer.status_code, answer.content, content_type)
        told = {name: scrub(value) for name, value in answer.headers.items() if _LIMITS.match(name)}
        cleaned = response.cleaned(sampling.max_tokens)
        return dataclasses.replace(cleaned, headers=told, status=answer.status_code)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()

    def client(self) -> openai.AsyncOpenAI:
        """The `openai` client of the running event loop; connections belong to their loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = _make_client(self.config, self._key, self._context), loop
            # A filter works on the very logger that is written to.
            for name in [name for name in logging.root.manager.loggerDict if name.startswith(LOGGERS)]:
                logging.getLogger(name).addFilter(_SCRUBBING)
        return self._client


class _Scrubbing(logging.Filter):
    """Takes secrets out of what HTTP libraries log: at DEBUG they show whatever headers a server sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (clean := scrub(message)) != message:
            record.msg, record.args = clean, None
        return True


_SCRUBBING = _Scrubbing()


def _of_environment() -> Iterator[str]:
    """The secrets that the HTTP libraries take from the environment themselves."""
    yield os.environ.get(AZURE_TOKEN, "")
    for line in os.environ.get(HEADERS, "").splitlines():
        name, _, value = line.partition(":")
        if _SECRET_HEADER.search(name):
            yield value.strip().rpartition(" ")[2]
    for address in urllib.request.getproxies().values():
        user, at, _ = address.rpartition("://")[2].rpartition("@")
        if at:
            for text in (user, unquote(user)):
                yield text
                yield text.partition(":")[2]


class _TooLarge(Exception):
    """An answer is not read to its end; the message says why."""


_BODY_SENT: contextvars.ContextVar[asyncio.Event] = contextvars.ContextVar("body_sent")


class _Outgoing(httpx2.AsyncByteStream):
    """A request's body, which notes that it begins to go out: connections are there, and headers are sent."""

    def __init__(self, stream: httpx2.AsyncByteStream, sent: asyncio.Event):
        self._stream, self._sent = stream, sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._sent.set()
        async for chunk in self._stream:
            yield chunk


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


def _http_client(config: OpenAIConfig, context: ssl.SSLContext) -> httpx2.AsyncClient:
    async def watch(request: httpx2.Request) -> None:
        if (sent := _BODY_SENT.get(None)) is not None:  # not of the Batch API
            assert isinstance(request.stream, httpx2.AsyncByteStream)
            request.stream = _Outgoing(request.stream, sent)

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            # Not asked for, and a few bytes can unpack to any size.
            raise _TooLarge("a compressed answer, which was not asked for; let no proxy compress it")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, config.largest)

    return httpx2.AsyncClient(
        verify=context,
        timeout=httpx2.Timeout(config.timeout, connect=min(CONNECT_SECONDS, config.timeout)),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        event_hooks={"request": [watch], "response": [bound]},
        follow_redirects=False,  # a redirect would take the key elsewhere
    )


def _make_client(config: OpenAIConfig, key: str, context: ssl.SSLContext) -> openai.AsyncOpenAI:
    # After a stream llama.cpp may close a connection unannounced, and the next request on it would be lost.
    once = {"Connection": "close"} if config.stream else {}
    common: dict[str, Any] = {
        "api_key": key,
        "max_retries": 0,  # the queue retries, by the limits
        "http_client": _http_client(config, context),
        "default_headers": {"Accept-Encoding": "identity", **once},
    }
    if config.api_version:
        endpoint, version = config.base_url, config.api_version
        return openai.AsyncAzureOpenAI(azure_endpoint=endpoint, api_version=version, **common)
    return openai.AsyncOpenAI(base_url=config.base_url, **common)


def _failure(error: Exception, config: OpenAIConfig, *, sent: bool) -> Response:
    """A request that no answer came back for; one that was not sent cannot have been paid for."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if too_large := next((cause for cause in causes if isinstance(cause, _TooLarge)), None):
        fault, message = Fault.TOO_LARGE, str(too_large)
    elif any(isinstance(cause, TimeoutError | openai.APITimeoutError) for cause in causes):
        seconds = config.timeout if sent else min(CONNECT_SECONDS, config.timeout)
        fault, message = Fault.TIMEOUT, f"no {'answer' if sent else 'connection'} within {seconds:g} s"
    else:
        fault = Fault.CONNECTION
        message = ": ".join(map(_named, causes))
    return completions.failed(fault, None, message, maybe_paid=sent)


def _named(error: BaseException) -> str:
    return scrub(f"{type(error).__name__} {error}".strip())
