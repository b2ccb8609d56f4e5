"""The records that pass between packages, all immutable, and their JSON form.

A `Query` is a question; an endpoint answers a conversation of `Message`s with a `Reply`; a query
together with its reply is a `Trace`; an evaluated reply is an `Item`. File formats are in
`orca_jax.files`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

ROLES = ("system", "user", "assistant")
# Fields that are left out of the JSON form where they have these values.
LEFT_OUT: Mapping[str, Any] = {"extra": {}, "raw": {}, "top_logprobs": 0, "weight": 1.0}
Record = TypeVar("Record")


class RecordError(ValueError):
    """A record cannot be read; the message names the field, and readers add file and line."""


class Outcome(enum.StrEnum):
    """How a request ended. Only traces with `OK` are trained on."""

    OK = "ok"
    LENGTH = "length"  # cut off by the token limit
    FILTERED = "filtered"  # withheld by the provider's content filter
    REFUSED = "refused"  # the model declined
    EMPTY = "empty"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` scales the loss of an assistant's turn; 0: nothing is learnt from it."""

    role: str
    content: str
    weight: float = dataclasses.field(default=1.0, repr=False)  # oracles draw by a message's repr

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RecordError(f"unknown role {self.role!r}; known: {', '.join(ROLES)}")
        if not 0 <= self.weight < math.inf:
            raise RecordError(f"weight {self.weight!r} must be a number of 0 or more")


def check_turns(messages: Sequence[Message]) -> None:
    """Raises RecordError unless: an optional system message, then user and assistant in turn."""
    turns = [message.role for message in messages]
    spoken = turns[1:] if turns[:1] == ["system"] else turns
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2):
        raise RecordError(
            f"turns must be [system], user, assistant, user, ...; got {', '.join(turns) or 'nothing'}"
        )


def half_pair(text: str) -> str:
    """The first half of a surrogate pair in a text, escaped; empty for a text that UTF-8 can hold."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])
    return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn. `temperature` 0 is greedy; `max_tokens` bounds the reply.

    `top_logprobs` asks for the log-probabilities of so many alternatives a token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; `sum(usages, Usage())` adds up."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        prompt = self.prompt_tokens + other.prompt_tokens
        return Usage(prompt, self.completion_tokens + other.completion_tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered. `raw` keeps the provider's own fields."""

    outcome: Outcome
    text: str
    usage: Usage = Usage()
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A question without its system text: the message's id stands for it (paper, section 3.1)."""

    id: str
    text: str
    collection: str
    task: str
    template_type: str = "zs"
    multiple_choice: bool = False
    system_message_id: int | None = None
    target: str | None = None
    source: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One conversation with a teacher. The last message is the teacher's answer when there is one.

    `id` names the (query, teacher, sample) triple; unknown columns of an input file are in `extra`.
    """

    id: str
    query_id: str
    sample: int
    messages: tuple[Message, ...]
    collection: str
    task: str
    system_message_id: int | None
    teacher: str
    sampling: Sampling
    outcome: Outcome
    usage: Usage = Usage()
    created: str = ""
    target: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The last assistant message's text, or the empty string."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One evaluated reply. `correct` is False where nothing could be parsed (`answer` is None)."""

    benchmark: str
    task: str
    id: str
    seed: int
    mode: str
    outcome: Outcome
    correct: bool
    answer: str | None = None
    target: str | None = None
    system_message_id: int | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values; the inverse of `from_json`. See `LEFT_OUT`."""
    row: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name not in LEFT_OUT or value != LEFT_OUT[field.name]:
            row[field.name] = _plain(value)
    return row


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, enum.StrEnum) else value


class _Field(NamedTuple):
    """What is checked of one field; `convert` raises TypeError, ValueError or KeyError."""

    name: str
    type: str
    convert: Callable[[Any], Any] | None
    required: bool


@functools.cache
def _fields(record_type: type) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            field.name,
            str(field.type),
            _CONVERTERS.get(str(field.type)),
            field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(record_type)
    )


def _exactly(*types: type) -> Any:
    def convert(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(value)
        return value

    return convert


def _messages(value: Any) -> tuple[Message, ...]:
    return tuple(map(_message, _exactly(list, tuple)(value)))


def _message(value: Any) -> Message:
    """`from_json`, faster for what is as it should be: traces are mostly messages."""
    if type(value) is dict and value.keys() == {"role", "content"} and type(value["content"]) is str:
        return Message(value["role"], value["content"])
    if isinstance(value, dict) and value.get("weight", 1.0) is None:  # a column of Parquet without a value
        value = {key: entry for key, entry in value.items() if key != "weight"}
    return from_json(Message, value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return dict(_exactly(dict)(value or {}))


_CONVERTERS = {
    "str": _exactly(str),
    "str | None": _exactly(str, type(None)),
    "int": _exactly(int),
    "int | None": _exactly(int, type(None)),
    "float": lambda value: float(_exactly(int, float)(value)),
    "bool": _exactly(bool),
    "tuple[str, ...]": lambda value: tuple(map(_exactly(str), _exactly(list, tuple)(value))),
    "tuple[Message, ...]": _messages,
    "Mapping[str, Any]": _mapping,
    "Outcome": Outcome,
    "Sampling": lambda value: from_json(Sampling, value),
    "Usage": lambda value: from_json(Usage, value),
}


def from_json(record_type: type[Record], row: Any) -> Record:
    """Builds a record from JSON values; unknown keys go to `extra`.

    Raises:
      RecordError: a field is missing or of the wrong type; the message names it.
    """
    if not isinstance(row, dict):
        raise RecordError(f"a {record_type.__name__} must be a JSON object, not {row!r:.80}")
    checked: Any = record_type  # a type, which mypy does not know to be hashable
    fields, values = _fields(checked), dict[str, Any]()
    for name, hint, convert, _ in fields:
        if name in row:
            try:
                values[name] = convert(row[name]) if convert else row[name]
            except (TypeError, ValueError, KeyError) as error:
                where = f"{record_type.__name__}.{name}"
                raise RecordError(f"{where}: expected {hint}, got {row[name]!r:.80}") from error
    if len(values) < len(row) and any(field.name == "extra" for field in fields):
        unknown = {key: value for key, value in row.items() if key not in values}
        values["extra"] = {**values.get("extra", {}), **unknown}
    missing = [field.name for field in fields if field.required and field.name not in values]
    if missing:
        raise RecordError(f"{record_type.__name__} lacks {', '.join(missing)}")
    return record_type(**values)
