"""The JSON of requests and answers: OpenAI's chat completions, completions and models, vLLM's tokenizers.

Types are strict, and unknown fields are refused, so that no setting is ignored in silence. `null` in an
optional field is the same as leaving it out, so that a client can send a reply back as a turn. Of settings
that the student does not have (tools, penalties), the neutral values are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

MOST_STOPS = 16
Id = Annotated[int, Field(ge=0, lt=2**31)]
# Only a list's first error is reported: a million of them would take minutes and gigabytes.
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, Field(max_length=10_000_000)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
# Of settings that the student does not have.
Zero = Annotated[float, Field(ge=0, le=0)]
Empty = Annotated[list[Any], Field(max_length=0)]


def _nullable(schema: dict[str, Any]) -> None:
    """Makes optional fields nullable in a request's JSON schema."""
    schema["additionalProperties"] = {"type": "null"}
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, sent: Any) -> Any:
        """Leaves out nulls, and refuses the first unknown field; there may be a great many."""
        if not isinstance(sent, dict):
            return sent
        given = {name: value for name, value in sent.items() if value is not None}
        for name in given:
            if name not in cls.model_fields:
                context = {"field": name, "name": ascii(name)[:100]}
                raise PydanticCustomError("unknown_field", "there is no field {name}; leave it out", context)
        return given


class StreamOptions(Sent):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class CommonRequest(Sent):
    """The fields of both kinds of completion requests.

    `top_k` is vLLM's: sampling from so many likeliest ids, or from all (0, -1).
    """

    model: str
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # The student does not have these; their neutral values are accepted.
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] = {}
    # These change no reply.
    metadata: dict[str, Any] = {}
    prompt_cache_key: str = ""
    prompt_cache_retention: str = ""
    safety_identifier: str = ""
    service_tier: str = ""
    store: bool = False
    user: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Part(Sent):
    type: Literal["text"]
    text: str


class ChatMessage(Sent):
    """A turn; a developer's is a system message. `name` is not shown to the student.

    An assistant's turn may have no content, which is an empty one.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] = Field(None, validate_default=True)
    name: str = ""
    tool_calls: Empty = []
    annotations: Empty = []

    @field_validator("content", mode="before")
    @classmethod
    def _or_empty(cls, content: Any, others: ValidationInfo) -> Any:
        return "" if content is None and others.data.get("role") == "assistant" else content

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class PlainText(Sent):
    type: Literal["text"]


class ChatRequest(CommonRequest):
    """`max_tokens` is the older name of `max_completion_tokens`; without either, what the limits allow."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    # The student does not have these; their neutral values are accepted.
    function_call: Literal["none"] = "none"
    functions: Empty = []
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none"] = "none"
    response_format: PlainText | None = None
    tool_choice: Literal["none"] = "none"
    tools: Empty = []
    verbosity: Literal["medium"] = "medium"


class CompletionRequest(CommonRequest):
    """`prompt` is text, ids, or a list of either; with `echo`, it is part of the answer."""

    prompt: Text | Texts | Ids | IdLists
    max_tokens: int = Field(16, ge=0, lt=2**31)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    # The student does not have these; their neutral values are accepted.
    best_of: int = Field(1, ge=1, le=1)
    suffix: str = Field("", max_length=0)


class TokenizeRequest(Sent):
    """Names of control tokens in `prompt` become their ids, unless `parse_special` is false."""

    prompt: Text
    model: str | None = None
    add_special_tokens: bool = True
    parse_special: bool = True


class DetokenizeRequest(Sent):
    tokens: Annotated[list[Id], Field(fail_fast=True)]
    model: str | None = None


# Answers


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Likely(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(Likely):
    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]


class Logprobs(BaseModel):
    """Of each token: itself, its log-probability, the likeliest ones, and where its text begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Said(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    index: int
    message: Said
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Said
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None


class CompletionChoice(BaseModel):
    """In a stream, `finish_reason` is null until the last chunk."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: Logprobs | None = None


class Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Completion(Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class Model(BaseModel):
    """`root` is a hash of checkpoint, tokenizer and layout; `max_model_len` counts prompt and reply."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "orca_jax"
    root: str
    max_model_len: int


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """The control tokens' names, and the chat template (jinja) that writes the student's layout."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: Error
