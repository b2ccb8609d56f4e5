"""The records that pass between rooms, all immutable, and their JSON form.

A `Query` is a question; an endpoint answers a conversation of `Message`s with a `Reply`; a query
together with its reply is a `Trace`; an examined reply is an `Item`. File formats are in
`orca_jax.record_files`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, TypeVar

ROLES = ("system", "user", "assistant")
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
    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RecordError(f"unknown role {self.role!r}; known: {', '.join(ROLES)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn. `temperature` 0 is greedy; `max_tokens` bounds the reply."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
    """One examined reply. `correct` is False where nothing could be parsed (`answer` is None)."""

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
    """A record as plain JSON values; the inverse of `from_json`. Empty `extra`/`raw` are left out."""
    row: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in ("extra", "raw"):
            if value:
                row[field.name] = dict(value)
        else:
            row[field.name] = _plain(value)
    return row


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, enum.StrEnum) else value


class _Reader:
    """Checks one JSON object's fields while a record is built from it."""

    def __init__(self, record_type: type, row: Any):
        if not isinstance(row, Mapping):
            raise RecordError(f"a {record_type.__name__} must be a JSON object, not {row!r:.80}")
        self.record_type = record_type
        self.row = row

    def build(self) -> Any:
        fields = dataclasses.fields(self.record_type)
        known = {field.name for field in fields}
        values = {field.name: self._value(field) for field in fields if field.name in self.row}
        unknown = {key: value for key, value in self.row.items() if key not in known}
        if unknown and "extra" in known:
            values["extra"] = {**values.get("extra", {}), **unknown}
        missing = [f.name for f in fields if f.name not in values and _required(f)]
        if missing:
            raise RecordError(f"{self.record_type.__name__} lacks {', '.join(missing)}")
        return self.record_type(**values)

    def _value(self, field: dataclasses.Field[Any]) -> Any:
        value = self.row[field.name]
        convert = _CONVERTERS.get(str(field.type))
        if convert is None:
            return value
        try:
            return convert(value)
        except (TypeError, ValueError, KeyError) as error:
            where = f"{self.record_type.__name__}.{field.name}"
            raise RecordError(f"{where}: expected {field.type}, got {value!r:.80}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _exactly(*types: type) -> Any:
    def convert(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(value)
        return value

    return convert


def _messages(value: Any) -> tuple[Message, ...]:
    return tuple(from_json(Message, entry) for entry in _exactly(list, tuple)(value))


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
    return _Reader(record_type, row).build()
