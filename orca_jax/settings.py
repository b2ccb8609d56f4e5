"""From a config file's dictionary to frozen dataclasses, once, with errors that name the key; and back.

Settings that a manifest keeps are compared with those of today value by value: `differences`.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import itertools
import json
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")
ABSENT = object()
SHOWN = 60  # characters of a long value in an error


class SettingsError(ValueError):
    """A config key is unknown, missing or ill-typed; the message names it and the nearest known one."""


def build(settings_type: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Builds a dataclass, nested ones included, from a mapping.

    Raises:
      SettingsError: a key is unknown, missing, ill-typed or refused by its dataclass.
    """
    hints = typing.get_type_hints(settings_type)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, settings_type))}
    for key in values:
        if key not in fields:
            raise SettingsError(unknown(f"{where}{key}", fields))
    required = [name for name, field in fields.items() if is_required(field)]
    if missing := [f"'{where}{name}'" for name in required if name not in values]:
        keys, are = ("key", "is") if len(missing) == 1 else ("keys", "are")
        raise SettingsError(f"config {keys} {', '.join(missing)} {are} missing")
    built = {key: convert(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        return settings_type(**built)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"config{f' at {where[:-1]}' if where else ''}: {error}") from error


def is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def unknown(path: str, known: Iterable[str]) -> str:
    """What is said of a config key that is none of those `known` at its place."""
    near = difflib.get_close_matches(path.rpartition(".")[2], list(known), 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown config key '{path}'; {hint}"


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or SettingsError naming `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), _mapping(value, where), f"{where}.")
    if origin in (typing.Union, types.UnionType):
        return (
            None
            if value is None
            else convert(next(a for a in arguments if a is not type(None)), value, where)
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"config key '{where}' must be a list, got {value!r:.60}")
        return tuple(convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        return {
            key: convert(arguments[1], entry, f"{where}.{key}")
            for key, entry in _mapping(value, where).items()
        }
    return _scalar(hint, value, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"config key '{where}' must be a mapping, got {value!r:.60}")
    return value


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint not in (bool, object)):
        raise SettingsError(f"config key '{where}' must be {hint.__name__}, got {value!r:.60}")
    return value


def count_keys(settings_type: type) -> int:
    """Keys that a config of this type has; entries of lists and of mappings are data, and not counted."""
    hints = typing.get_type_hints(settings_type)
    nested = [hint for hint in hints.values() if dataclasses.is_dataclass(hint)]
    return len(hints) - len(nested) + sum(count_keys(typing.cast(type, hint)) for hint in nested)


class Section(dict[str, Any]):
    """Settings as JSON values; `defaults` has those of settings that need not be given."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__(values)
        self.defaults = dict(defaults)


def section(part: Any, only: Collection[str] = (), *, without: Collection[str] = ()) -> Section:
    """A dataclass's fields, nested ones too: all, or `only` some, or all `without` some."""
    fields = [f for f in dataclasses.fields(part) if f.name not in without and (not only or f.name in only)]
    values = {field.name: _plain(getattr(part, field.name)) for field in fields}
    return Section(values, {f.name: _plain(default(f)) for f in fields if not is_required(f)})


def joined(*parts: Mapping[str, Any]) -> Section:
    """One section of several, which may be plain mappings; the last one that has a key counts."""
    defaults = (part.defaults for part in parts if isinstance(part, Section))
    return Section(dict(collections.ChainMap(*map(dict, reversed(parts)))), collections.ChainMap(*defaults))


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; MISSING where a value must be given."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return section(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def differences(there: Any, now: Any, where: str = "") -> Iterator[str]:
    """Each leaf that differs, as `curriculum[2].steps: 4 there, 8 now`.

    What `there` lacks and `now` knows a default of (`Section`) had that default: so settings kept before
    there was such a key are those of today. Lists are compared by index.
    """
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        defaults = now.defaults if isinstance(now, Section) else {}
        for key in sorted({*there, *now}):
            place, new = f"{where}.{key}" if where else key, now.get(key, ABSENT)
            if key in there or key not in defaults:
                yield from differences(there.get(key, ABSENT), new, place)
            else:
                usual = differences(defaults[key], new, place)
                yield from (f"{line} (absent there: the default)" for line in usual)
    elif isinstance(there, list | tuple) and isinstance(now, list | tuple):
        for index, (before, after) in enumerate(itertools.zip_longest(there, now, fillvalue=ABSENT)):
            yield from differences(before, after, f"{where}[{index}]")
    elif there is ABSENT or now is ABSENT or (there != now and _text(there) != _text(now)):
        before, after = _shown(_text(there), _text(now))
        yield f"{where}: {before} there, {after} now"


def _text(value: Any) -> str:
    return "absent" if value is ABSENT else repr(json.loads(json.dumps(value, default=str)))


def _shown(*texts: str) -> list[str]:
    """The texts, or where they are long, what is around their first difference."""
    unlike = (place for place, letters in enumerate(zip(*texts)) if len(set(letters)) > 1)
    first = next(unlike, min(map(len, texts)))
    start = max(0, first - SHOWN // 3) if max(map(len, texts)) > SHOWN else 0
    ends = ["…" if len(text) > start + SHOWN else "" for text in texts]
    return [f"{'…' if start else ''}{text[start : start + SHOWN]}{end}" for text, end in zip(texts, ends)]
