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
from typing import Any, TypeVar

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
    try:
        if not text.isascii():
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


def to_json(record: Any) -> Any:
    """A record as plain JSON values; the inverse of `from_json`. See `LEFT_OUT`."""
    if isinstance(record, str):
        return str(record)  # of an Outcome too
    if dataclasses.is_dataclass(record):
        row = {}
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if field.name not in LEFT_OUT or value != LEFT_OUT[field.name]:
                row[field.name] = to_json(value)
        return row
    if isinstance(record, tuple):
        return [to_json(entry) for entry in record]
    return dict(record) if isinstance(record, Mapping) else record


def from_json(record_type: type[Record], row: Any) -> Record:
    """Builds a record from JSON values; unknown keys go to `extra`, null is a default where there is one.

    Raises:
      RecordError: a field is missing or of the wrong type; the message names it.
    """
    if not isinstance(row, dict):
        raise RecordError(f"a {record_type.__name__} must be a JSON object, not {row!r:.80}")
    checked: Any = record_type  # a type, which mypy does not know to be hashable
    fields, values, missing = _fields(checked), dict[str, Any](), []
    for name, (hint, convert, required) in fields.items():
        if required and name not in row:
            missing.append(name)
        elif required or row.get(name) is not None:
            try:
                values[name] = convert(row[name])
            except (TypeError, ValueError) as error:
                where = f"{record_type.__name__}.{name}"
                raise RecordError(f"{where}: expected {hint}, got {row[name]!r:.80}") from error
    if missing:
        raise RecordError(f"{record_type.__name__} lacks {', '.join(missing)}")
    if "extra" in fields and (unknown := row.keys() - fields.keys()):
        values["extra"] = values.get("extra", {}) | {key: row[key] for key in row if key in unknown}
    return record_type(**values)


@functools.cache
def _fields(record_type: Any) -> dict[str, tuple[str, Callable[[Any], Any], bool]]:
    """Of each field by name: its type, what checks a value of it, and whether it must be given."""
    return {
        field.name: (
            str(field.type),
            CONVERTERS.get(str(field.type), lambda value: value),
            field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(record_type)
    }


def _exactly(*types: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(value)
        return value

    return convert


def _message(value: Any) -> Message:
    """`from_json`, faster for what is as it should be: traces are mostly messages."""
    if type(value) is dict and value.keys() == {"role", "content"} and type(value["content"]) is str:
        return Message(value["role"], value["content"])
    return from_json(Message, value)


# By a field's type; each raises TypeError or ValueError for a value of another.
CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "str": _exactly(str),
    "str | None": _exactly(str, type(None)),
    "int": _exactly(int),
    "int | None": _exactly(int, type(None)),
    "float": lambda value: float(_exactly(int, float)(value)),
    "bool": _exactly(bool),
    "tuple[str, ...]": lambda value: tuple(map(_exactly(str), _exactly(list, tuple)(value))),
    "tuple[Message, ...]": lambda value: tuple(map(_message, _exactly(list, tuple)(value))),
    "Mapping[str, Any]": lambda value: dict(_exactly(dict)(value)),
    "Outcome": Outcome,
    "Sampling": lambda value: from_json(Sampling, value),
    "Usage": lambda value: from_json(Usage, value),
}
