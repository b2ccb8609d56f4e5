"""The student over HTTP, as OpenAI's API: the app and its server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.types import Send

from orca_jax import __version__
from orca_jax.serving import errors
from orca_jax.serving.answering import Answerer, Call
from orca_jax.serving.errors import Refused
from orca_jax.serving.guard import CLIENT_LEFT, LOCAL, Guard, Limits, Metrics
from orca_jax.serving.local import LocalStudent
from orca_jax.serving.protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    ErrorAnswer,
    Health,
    Model,
    Models,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from orca_jax.serving.rendering import Renderer
from orca_jax.serving.worker import Worker

Found = TypeVar("Found")
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is not answered; the message says why."},
    "5XX": {"model": ErrorAnswer, "description": "The server failed."},
}
STREAMS: dict[int | str, dict[str, Any]] = {
    **RESPONSES,
    200: {"content": {"text/event-stream": {}}},
}


class JsonRequest(Request):
    """A request whose body is strict JSON: no NaN, no half of a surrogate pair, no endless nesting."""

    async def json(self) -> Any:
        """Raises Refused where it is not."""
        body = await self.body()
        try:
            return from_json(body.decode(json.detect_encoding(body)), allow_inf_nan=False)
        except ValueError as error:
            raise Refused(400, f"the body is not JSON in UTF-8: {error}", code="json_invalid") from error


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


class Stream(StreamingResponse):
    """Events, whose source is closed at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]):
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


class Service:
    """One student, served under a name."""

    def __init__(self, student: LocalStudent, name: str, limits: Limits):
        self.student, self.name, self.limits = student, name, limits
        self.worker = Worker(student.generator, queue=limits.queue)
        self.answerer = Answerer(student, self.worker, limits)
        self.metrics = Metrics(self.worker)
        self.model = Model(
            id=name, created=int(time.time()), root=student.identity, max_model_len=self.answerer.max_length
        )

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise Refused(
                404,
                f"no model {name!r:.100}; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def answer(self, request: Request, call: Call, renderer: Renderer, with_usage: bool) -> Response:
        self.answerer.admit(call)
        self.metrics.prompt_tokens.inc(call.prompt_tokens)
        deltas = self.answerer.deltas(call)
        if call.stream:
            return Stream(self._events(deltas, renderer, with_usage))
        async with contextlib.aclosing(deltas):
            whole = await unless_left(request, renderer.whole(deltas))
        if whole is None:
            self.metrics.left.inc()
            return Response(status_code=CLIENT_LEFT)
        self.metrics.reply_tokens.inc(renderer.reply_tokens)
        return Response(whole.model_dump_json(), media_type="application/json")

    async def _events(
        self, deltas: AsyncGenerator[Any, None], renderer: Renderer, with_usage: bool
    ) -> AsyncGenerator[str, None]:
        """The stream's events; an error after the first one is the last event."""
        try:
            async with contextlib.aclosing(deltas):
                async for event in renderer.events(deltas, with_usage):
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.left.inc()
            raise
        except Exception as error:
            answer = errors.failed("a stream", error).response
            yield f"data: {bytes(answer.body).decode()}\n\n"
        finally:
            self.metrics.reply_tokens.inc(renderer.reply_tokens)


async def unless_left(request: Request, work: Awaitable[Found]) -> Found | None:
    """The result of `work`; None, and the work is cancelled, if the client disconnects first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(student: LocalStudent, *, name: str, token: str = "", limits: Limits | None = None) -> FastAPI:
    """The app; `token` empty: it serves local clients only, see `guard.Guard`.

    `app.state.service` is its `Service`, whose worker ends with the app's lifespan.
    """
    service = Service(student, name, limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(
        title="orca_jax",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=RESPONSES,
    )
    app.router.route_class = JsonRoute
    app.state.service = service
    app.add_middleware(Guard, token=token, limits=service.limits, metrics=service.metrics)
    errors.install(app)
    _add_completions(app, service)
    _add_tokenizer(app, service)
    _add_rest(app, service)
    forms = app.openapi()["components"]["schemas"]
    for form in (ChatRequest, CompletionRequest):
        forms[form.__name__]["properties"]["model"]["enum"] = [name]
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    vocabulary, fingerprint = service.answerer.vocabulary, service.student.identity

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.check_model(body.model)
        call = await asyncio.to_thread(service.answerer.chat, body)
        renderer = Renderer("chat", call, vocabulary, service.name, fingerprint)
        return await service.answer(request, call, renderer, body.stream_options.include_usage)

    @app.post("/v1/completions", response_model=Completion, responses=STREAMS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        call = await asyncio.to_thread(service.answerer.complete, body)
        renderer = Renderer("text", call, vocabulary, service.name, fingerprint)
        return await service.answer(request, call, renderer, body.stream_options.include_usage)


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    vocabulary = service.answerer.vocabulary

    @app.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> Tokenized:
        service.check_model(body.model)
        ids = (vocabulary.tokenize if body.parse_special else vocabulary.plain)(body.prompt)
        if body.add_special_tokens:
            ids, _ = vocabulary.begun(ids)
        return Tokenized(tokens=ids, count=len(ids), max_model_len=service.answerer.max_length)

    @app.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> Detokenized:
        service.check_model(body.model)
        return Detokenized(prompt=vocabulary.detokenize(body.tokens))

    @app.get("/tokenizer_info")
    def tokenizer_info() -> TokenizerInfo:
        size = service.student.tokenizer.vocab_size
        return TokenizerInfo(
            **vocabulary.special_names, chat_template=vocabulary.chat_template, vocab_size=size
        )


def _add_rest(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    def models() -> Models:
        return Models(data=[service.model])

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Model:
        service.check_model(name)
        return service.model

    @app.get("/health")
    def health() -> Health:
        if not service.worker.alive:
            raise Refused(503, "the engine's thread has ended; its log says how")
        return Health()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def make_server(app: FastAPI, *, host: str, port: int, token: str, grace: float) -> uvicorn.Server:
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
            lifespan="on",
        )
    )
