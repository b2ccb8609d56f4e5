"""What is checked of a request before the app sees it (host name, token, number open, size), and metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import time
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orca_jax.serving.errors import Refused, failed
from orca_jax.serving.worker import Worker

LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health",)
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)  # of the histogram
SHORTEST_TOKEN = 16  # characters
CLIENT_LEFT = 499  # in the log and the metrics only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for.

    Attributes:
      body_bytes, body_seconds: of a request's body, and of the time it may take to come.
      prompt_tokens, output_tokens: of one sequence; both together must fit the engine besides.
      sequences: prompts times `n` of one request.
      queue: sequences that may wait.
      requests: that may be open at a time, streams among them.
    """

    body_bytes: int = 2 * 2**20
    body_seconds: float = 30.0
    prompt_tokens: int = 2**31
    output_tokens: int = 2**31
    sequences: int = 128
    queue: int = 256
    requests: int = 256

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be more than 0")


def read_token(variable: str) -> str:
    """The token in an environment variable; empty where there is none.

    Raises:
      ValueError: it is too short to be a secret, or has characters that no header can have.
    """
    found = os.environ.get(variable, "").strip()
    if found and (len(found) < SHORTEST_TOKEN or not found.isascii()):
        raise ValueError(f"the token in {variable} must have {SHORTEST_TOKEN} ASCII characters at least")
    return found


class Metrics:
    """What a server counts, for Prometheus; each server has a registry of its own."""

    def __init__(self, worker: Worker):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("orca_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.left = Counter("orca_clients_left", "Requests whose client left first.", registry=registry)
        self.prompt_tokens = Counter("orca_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.reply_tokens = Counter("orca_reply_tokens", "Tokens of replies.", registry=registry)
        self.seconds = Histogram(
            "orca_request_seconds",
            "From a request's head to its answer's end.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.open = Gauge("orca_requests_open", "Requests being answered.", registry=registry)
        for name, text, value in (
            ("orca_sequences_running", "Rows of the engine in use.", lambda: worker.running),
            ("orca_sequences_waiting", "Sequences without a row.", lambda: worker.waiting),
            ("orca_rows", "Rows of the engine.", lambda: worker.slots),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def page(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)


class Guard:
    """ASGI middleware; with an empty `token` none is needed, and only local names of this host are served.

    Otherwise a web page could make a browser send requests to a local server under another host's name.
    """

    def __init__(self, app: ASGIApp, *, token: str, limits: Limits, metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self._token, self._open = token.encode(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._open += 1
        self.metrics.open.set(self._open)
        try:
            if refused := self._refusal(scope):
                await refused.response(scope, receive, counting)
            else:
                await self.app(scope, _Body(receive, Headers(scope=scope), self.limits), counting)
        except Exception as error:
            if status:  # an answer has begun
                raise
            await failed(scope["path"], error).response(scope, receive, counting)
        finally:
            self._open -= 1
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.open.set(self._open)
            self.metrics.requests.labels(path, status or CLIENT_LEFT).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - started)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if scope["path"] in OPEN_PATHS:
            return None
        if not self._token and _host(headers.get("host", "")) not in LOCAL:
            return Refused(403, "this server answers to the name localhost only")
        if self._token and not self._known(headers.get("authorization", "")):
            return Refused(
                401,
                "give the server's token: Authorization: Bearer TOKEN",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] == "POST" and self._open > self.limits.requests:
            message = f"{self._open - 1} requests are open; come again in 1 s"
            return Refused(429, message, code="overloaded", headers={"Retry-After": "1"})
        return None

    def _known(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode(), self._token)


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


class _Body:
    """A request's `receive`, which raises Refused for a body that is too large or too slow."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits):
        self._receive, self._limits = receive, limits
        self._deadline = time.monotonic() + limits.body_seconds
        self._read, self._whole = 0, False
        length = headers.get("content-length", "0")
        self._announced = int(length) if length.isdecimal() else 0

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        self._check(self._announced)
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"the body took more than {self._limits.body_seconds} s") from None
        self._read += len(message.get("body", b""))
        self._check(self._read)
        self._whole = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise Refused(413, f"the body has more than {self._limits.body_bytes} bytes")
