"""The student over HTTP, as OpenAI's API: the app and its server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orca_jax.serving.completions import Service
from orca_jax.serving.local import LocalStudent
from orca_jax.serving.protocol import ApiError, ChatRequest, CompletionRequest, failed, invalid

LOCAL = ("localhost", "127.0.0.1", "::1")
SHORTEST_TOKEN = 16  # characters
CLIENT_LEFT = 499  # in the metrics only


def read_token(variable: str) -> str:
    """The token in an environment variable; empty where there is none.

    Raises:
      ValueError: it is too short to be a secret, or has characters that no header can have.
    """
    found = os.environ.get(variable, "").strip()
    if found and (len(found) < SHORTEST_TOKEN or not found.isascii()):
        raise ValueError(f"the token in {variable} must have {SHORTEST_TOKEN} ASCII characters at least")
    return found


class Guard:
    """ASGI middleware: checks a request's host name, token and body, counts it, and reports errors.

    With an empty `token` none is needed, and only local names of this host are served: otherwise a web page
    could make a browser send requests to a local server under another host's name.
    """

    def __init__(self, app: ASGIApp, *, token: str, max_body: int, counts: dict[str, float]):
        self.app, self._token, self._max_body, self._counts = app, token.encode(), max_body, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._counts["orca_requests_open"] += 1
        try:
            if scope["path"] != "/health":
                self._check_client(Headers(scope=scope))
            body = [await self._body(receive)] if scope["method"] == "POST" else []

            async def received() -> Message:
                return {"type": "http.request", "body": body.pop()} if body else await receive()

            await self.app(scope, received, counting)
        except ApiError as error:
            await error.response(scope, receive, counting)
        except Exception as error:
            if status:  # a reply has begun
                raise
            await failed(scope["path"], error).response(scope, receive, counting)
        finally:
            path = f'path="{getattr(scope.get("route"), "path", "other")}"'
            self._counts["orca_requests_open"] -= 1
            self._counts[f'orca_requests_total{{{path},status="{status or CLIENT_LEFT}"}}'] += 1
            self._counts[f"orca_request_seconds_sum{{{path}}}"] += time.monotonic() - started
            self._counts[f"orca_request_seconds_count{{{path}}}"] += 1

    def _check_client(self, headers: Headers) -> None:
        if self._token:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(token.strip().encode(), self._token):
                message = "give the server's token: Authorization: Bearer TOKEN"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            return
        with contextlib.suppress(ValueError):  # no host's name
            if urlsplit(f"//{headers.get('host', '')}").hostname in LOCAL:
                return
        raise ApiError(403, "this server answers to the name localhost only")

    async def _body(self, receive: Receive) -> bytes:
        """Strict JSON: no NaN, no half of a surrogate pair, no endless nesting; or nothing."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self._max_body:
                raise ApiError(413, f"the body has more than {self._max_body} bytes")
        try:
            from_json(body.decode(json.detect_encoding(body)) or "{}", allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON in UTF-8: {error}", code="json_invalid") from error
        return body


def make_app(
    student: LocalStudent, *, name: str, token: str = "", queue: int = 256, max_body: int = 2 * 2**20
) -> FastAPI:
    """The app, which serves a student under a name; its worker (`app.state.worker`) ends with its lifespan.

    Args:
      token: see `Guard`.
      queue: sequences that may wait.
      max_body: bytes of a request's body.
    """
    service = Service(student, name, queue=queue)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.worker = service.worker
    app.add_middleware(Guard, token=token, max_body=max_body, counts=service.counts)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: Any) -> Response:
        if not isinstance(error, ApiError):
            error = ApiError(error.status_code, str(error.detail), headers=error.headers)
        return error.response

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: Any) -> Response:
        return invalid(error.errors()).response

    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def check_model(given: str) -> None:
        if given != service.name:
            message = f"no model {given!r:.100}; this server has {service.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Response:
        check_model(body.model)
        return await asyncio.to_thread(service.chat, body)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest) -> Response:
        check_model(body.model)
        return await asyncio.to_thread(service.text, body)

    description = {
        "id": service.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "orca_jax",
        "root": service.student.identity,
        "max_model_len": service.max_length,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [description]}

    @app.get("/v1/models/{given:path}")
    async def model(given: str) -> dict[str, Any]:
        check_model(given)
        return description

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not service.worker.alive:
            raise ApiError(503, "the engine's thread has ended; its log says how")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        worker = service.worker
        now = {"sequences_running": worker.running, "sequences_waiting": worker.waiting, "rows": worker.slots}
        counts = service.counts | {f"orca_{name}": count for name, count in now.items()}
        return "".join(f"{name} {count}\n" for name, count in counts.items())


def make_server(
    app: FastAPI, *, host: str, port: int, token: str, grace: float, connections: int = 1024
) -> uvicorn.Server:
    """An HTTP server; at SIGTERM or SIGINT open requests have `grace` seconds to end.

    Raises:
      ValueError: other hosts could connect, and there is no token.
    """
    if host not in LOCAL and not token:
        raise ValueError(f"host {host} lets other hosts connect; put a token into the environment")
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(grace),
            timeout_keep_alive=30,
            limit_concurrency=connections,
            lifespan="on",
        )
    )
