"""The JSON that clients send and get: OpenAI's chat completions, completions and models, vLLM's tokenizers.

Types are strict, and a field that is not known is refused: a setting that is not obeyed must not go
unnoticed. `metadata`, `service_tier`, `store` and `user` change no reply, and are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_STOPS = 16
Id = Annotated[int, Field(ge=0, lt=2**31)]
# A list's first fault is enough: a million of them would take minutes and gigabytes to name.
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, Field(max_length=10_000_000)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
IdLists = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
Off = Annotated[float, Field(ge=0, le=0)]


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, sent: Any) -> Any:
        """Refuses the first unknown field, whose like there may be many of."""
        unknown = [name for name in sent if name not in cls.model_fields] if isinstance(sent, dict) else []
        if unknown:
            raise PydanticCustomError(
                "unknown_field", "there is no field {name}", {"name": ascii(unknown[0])[:100]}
            )
        return sent


class StreamOptions(Sent):
    include_usage: bool = False


class Asked(Sent):
    """What both kinds of completions ask for.

    `top_k` is ours: sampling from so many likeliest ids. Penalties and `logit_bias` must be off.
    """

    model: str
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, ge=0, le=1)
    top_k: int | None = Field(0, ge=0, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Off | None = 0
    presence_penalty: Off | None = 0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Part(Sent):
    type: Literal["text"]
    text: str


class ChatMessage(Sent):
    """A turn; a developer's is a system message. `name` is not shown to the student."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    name: str | None = None

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class PlainText(Sent):
    type: Literal["text"]


class ChatRequest(Asked):
    """`max_tokens` is the older name of `max_completion_tokens`; without either, what the limits allow."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: PlainText | None = None


class CompletionRequest(Asked):
    """`prompt` is text, ids, or a list of either; with `echo`, it is part of the answer."""

    prompt: Text | Texts | Ids | IdLists
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = False


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
