"""From a config file's dictionary to frozen dataclasses, once, with errors that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


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
