"""The JSON of the server: OpenAI's requests for chat completions and completions, and its errors.

Types are strict, and unknown fields are refused, so that no setting is ignored in silence. `null` in an
optional field is the same as leaving it out, so that a client can send a reply back as a turn. Of settings
that the student does not have (tools, penalties), the neutral values are accepted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)
# Settings that the student does not have, with their neutral values.
NEUTRAL: dict[str, Any] = {
    "annotations": [],
    "best_of": 1,
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "include_obfuscation": False,
    "logit_bias": {},
    "modalities": ["text"],
    "presence_penalty": 0,
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "suffix": "",
    "tool_calls": [],
    "tool_choice": "none",
    "tools": [],
    "verbosity": "medium",
}
# Settings that change no reply.
IGNORED = {"metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"}
IGNORED |= {"safety_identifier", "service_tier", "store", "user"}
Id = Annotated[int, Field(ge=0, lt=2**31)]
# Only a list's first error is reported: a million of them would take minutes and gigabytes.
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, Field(max_length=10_000_000)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, values: Any) -> Any:
        """Leaves out what changes nothing, and refuses the first unknown field; there may be a great many."""
        if not isinstance(values, dict):
            return values
        given = {}
        for name, value in values.items():
            if name in cls.model_fields:
                given[name] = value
            elif value is not None and name not in IGNORED and NEUTRAL.get(name) != value:
                context = {"field": name, "name": ascii(name)[:100]}
                kind = "unsupported_field" if name in NEUTRAL else "unknown_field"
                raise PydanticCustomError(kind, "there is no field {name} here; leave it out", context)
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(StrictModel):
    include_usage: bool = False


class CommonRequest(StrictModel):
    """The fields of both kinds of requests.

    `top_k` is vLLM's: sampling from so many likeliest ids, or from all (0, -1).
    """

    model: str
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class Part(StrictModel):
    type: Literal["text"]
    text: str


class ChatMessage(StrictModel):
    """A turn; a developer's is a system message. `name` is not shown to the student.

    An assistant's turn may have no content, which is an empty one.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] = Field(None, validate_default=True)
    name: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _or_empty(cls, content: Any, others: ValidationInfo) -> Any:
        return "" if content is None and others.data.get("role") == "assistant" else content

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatRequest(CommonRequest):
    """`max_tokens` is the older name of `max_completion_tokens`; without either, what there is room for."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class CompletionRequest(CommonRequest):
    """`prompt` is text, ids, or a list of either; with `echo`, it is part of the completion."""

    prompt: Text | Texts | Ids | IdLists
    max_tokens: int = Field(16, ge=0, lt=2**31)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False


class ApiError(HTTPException):
    """A request that is not answered, and why; `param` names the field."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def failed(what: str, error: Exception) -> ApiError:
    """The reply after an error of the server, without details; the log has the traceback."""
    log.error("%s failed", what, exc_info=error)
    return ApiError(500, "the server failed; its log says how")


def invalid(errors: Sequence[Any]) -> ApiError:
    """The first error of a request's validation; names the field, without the types that pydantic tried."""
    first = errors[0]
    where = (*first["loc"], first.get("ctx", {}).get("field", ""))
    fields = itertools.takewhile(
        lambda part: isinstance(part, int) or (part.isidentifier() and part != "str"),
        (part for part in where if part != "body"),
    )
    param = ".".join(map(str, fields))[:100] or None
    return ApiError(400, f"{param or 'the body'}: {first['msg'][:300]}", param, first["type"])
