"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(HTTPException):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @property
    def response(self) -> JSONResponse:
        body = shape(self.status_code, self.detail, self.param, self.code)
        return JSONResponse(body, self.status_code, self.headers)


def shape(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failed(path: str, error: Exception) -> Refused:
    """The answer after an error of the server, without details; the log has the traceback."""
    log.error("%s failed", path, exc_info=error)
    return Refused(500, "the server failed; its log says how")


def install(app: FastAPI) -> None:
    """Makes an app answer in this shape; other exceptions are handled by `guard.Guard`."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _refused(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, Refused):
        return error.response
    return JSONResponse(shape(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """Names the field, without the names of the types that pydantic tried, which follow it in `loc`."""
    first = error.errors()[0]
    where = (*first["loc"], first.get("ctx", {}).get("field", ""))
    parts = (part for part in where if part != "body")
    fields = itertools.takewhile(
        lambda part: isinstance(part, int) or (part.isidentifier() and part != "str"), parts
    )
    place = ".".join(map(str, fields))[:100] or None
    message = f"{place or 'the body'}: {first['msg'][:300]}"
    return Refused(400, message, param=place, code=first["type"]).response
