"""From a config's mapping to frozen dataclasses, checked by pydantic, with errors that name the keys."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
EXPECTED = {
    "int_type": "int", "float_type": "float", "string_type": "str", "bool_type": "bool",
    "tuple_type": "a list", "dict_type": "a mapping", "dataclass_type": "a mapping",
    "too_short": "not empty", "string_too_short": "not empty", "too_long": "shorter",
}  # fmt: skip
# Of `Literal[...] | Mapping[...]`: pydantic tries both, and says in the place which one an error is of.
MEMBER = re.compile(r"(literal|dict)\[.*\]")
WORDS = {"greater than or equal to": "at least", "less than or equal to": "at most", "greater than": "above"}


class ConfigError(ValueError):
    """Keys of a config are unknown, missing or wrong; the message names each."""


def build(kind: type[T], values: Any, where: str = "") -> T:
    """Builds a dataclass, nested ones included, from a mapping or a ConfigDict.

    Args:
      where: the key that `values` stand under, for errors.

    Raises:
      ConfigError: keys are unknown, missing, ill-typed or refused by their dataclass.
    """
    from pydantic import ValidationError

    to_json = getattr(values, "to_json_best_effort", functools.partial(json.dumps, values, default=str))
    try:
        return _adapter(typing.cast(Any, kind)).validate_json(to_json(), strict=True, extra="forbid")
    except ValidationError as error:
        found = list(filter(_meant, error.errors(include_url=False)))
    missing = [f"'{_path(where, one['loc'])}'" for one in found if one["type"] == "missing"]
    lines = [_explained(kind, where, one) for one in found if one["type"] != "missing"]
    if missing:
        keys, are = ("key", "is") if len(missing) == 1 else ("keys", "are")
        lines.append(f"config {keys} {', '.join(missing)} {are} missing")
    raise ConfigError("; ".join(lines))


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # 0.1 s, which programs without a config need not spend

    return TypeAdapter(kind)


def _meant(error: Mapping[str, Any]) -> bool:
    """Whether an error is of the member of a union that was meant: a mapping is meant for one."""
    member = next(filter(MEMBER.fullmatch, map(str, error["loc"])), "")
    if member.startswith("literal"):
        return not isinstance(error["input"], Mapping)
    return not (member and error["type"] == "dict_type")


def _explained(kind: Any, where: str, error: Mapping[str, Any]) -> str:
    """One of pydantic's errors, in a config's terms."""
    path, text, got = _path(where, error["loc"]), error["msg"], error["input"]
    if error["type"] == "unexpected_keyword_argument":
        for step in error["loc"][:-1]:
            kind = _inside(kind, step)
        return unknown(path, [field.name for field in dataclasses.fields(_inside(kind))])
    if error["type"] == "value_error":
        cause = error["ctx"]["error"]
        return str(cause) if isinstance(cause, ConfigError) else f"config{path and f' at {path}'}: {cause}"
    for long, short in WORDS.items():
        text = text.replace(long, short)
    expected = EXPECTED.get(error["type"], text.removeprefix("Input should be "))
    known = re.findall("'(.*?)'", expected) if error["type"] == "literal_error" else []
    is_word = isinstance(got, str) and not got.isdecimal()  # no number is meant by one like it
    near = difflib.get_close_matches(got, known, 1, 0.5) if is_word else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    kind_of = "mapping" if isinstance(got, Mapping) else "list" if isinstance(got, list) else ""
    given = f"{'a' if got else 'an empty'} {kind_of}" if kind_of else f"{got!r:.60}"
    if any(MEMBER.fullmatch(str(step)) for step in error["loc"][-1:]):
        expected += " or a mapping"
    place = f"config key '{path}'" if path else "the config"
    return f"{place} must be {expected}, got {given}{hint}"


def _path(where: str, steps: Iterable[str | int]) -> str:
    places = [
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in steps
        if step != "[key]" and not MEMBER.fullmatch(str(step))
    ]
    return (where + "".join(places)).removeprefix(".")


def _inside(kind: Any, step: Any = None) -> Any:
    """The type of a type's entry `step`; without one, the type itself without None."""
    if isinstance(kind, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    if step is None or dataclasses.is_dataclass(kind):
        return kind if step is None else typing.get_type_hints(kind)[step]
    return [one for one in typing.get_args(kind) if one is not ...][-1]


def unknown(path: str, known: Iterable[str]) -> str:
    """The message for a config key that is none of those `known` at its place."""
    near = difflib.get_close_matches(path.rpartition(".")[2], list(known), 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown config key '{path}'; {hint}"


def check_url(url: str, with_key: bool) -> None:
    """Raises ValueError for an address that is none, holds a secret, or would show a key to the network."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("base_url must be http://HOST... or https://HOST...")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"base_url of host {host} holds a user, password or query; leave only the address")
    if with_key and parts.scheme == "http" and not re.fullmatch(r"(.+\.)?localhost|127(\.\d+){3}|::1", host):
        raise ValueError(
            f"base_url of host {host} is not https, and a key would go over the network "
            "readable; use https, a tunnel to localhost, or key_variable '' if the server needs no key"
        )


def check_known(what: str, given: Iterable[object], known: Iterable[object]) -> None:
    if unknown := sorted(set(map(str, given)) - set(map(str, known))):
        raise ValueError(f"{what} {unknown[0]!r}; known: {', '.join(map(str, known))}")


def check_distinct(what: str, names: Sequence[str], more: bool = True, advice: str = "") -> None:
    """Raises ValueError where two of the names are the same, or `more` does not hold; `advice` says what."""
    if len(set(names)) < len(names) or not more:
        raise ValueError(f"{what} need distinct names{advice}; got {', '.join(names)}")


# Keys on the command line


def set_key(part: Any, keys: Sequence[str], text: str, place: str = "") -> None:
    """Sets the config key at the path `keys`; whether there is such a key, loading the config will say."""
    key, *rest = keys
    at: Any = int(key) if isinstance(part, list) and key.isdecimal() else key
    if not isinstance(part, list | dict):
        raise ConfigError(f"config key '{place}' is {part!r:.60}, and has no '{key}'")
    if isinstance(part, list) and at not in range(len(part)):
        raise ConfigError(
            f"config key '{place}' has {len(part)} entries, counted from 0; there is no [{key}]"
        )
    if rest and isinstance(part, dict) and part.get(at) is None:
        part[at] = {}  # a section that is left out by default
    now = part.setdefault(at, None) if isinstance(part, dict) else part[at]
    if rest:
        set_key(
            now, rest, text, f"{place}[{key}]" if isinstance(part, list) else f"{place}.{key}".lstrip(".")
        )
    else:
        part[at] = _value(text, now)


def _value(text: str, now: Any) -> Any:
    """What a text means: itself where a text stands now, else the Python value that it spells, if it does."""
    value: Any = text
    if isinstance(now, bool) and text in ("0", "1"):
        return text == "1"
    if not isinstance(now, str) or re.match(r"\{\s*('|\"|\})", text):  # a mapping may take a word's place
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    if isinstance(now, list) and not isinstance(value, list | tuple):
        return text.split(",") if value is text else [value]
    return value
