"""Writes docs/config.md from the comments of orca_jax/config*.py: `python docs/config_page.py`."""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orca_jax import plugins
from orca_jax.config import ExperimentConfig
from orca_jax.config_arms import ArmSetConfig

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Config keys

All keys of a config file. `--config.KEY=VALUE` overrides one: `--config.curriculum[0].steps=20`.
A key without a default must be given; a section is a mapping with the keys of its own table.
This page is written by `python docs/config_page.py` from the comments of `orca_jax/config.py`,
`config_teachers.py` and `config_arms.py`.
"""
TABLE = "| key | type | default | meaning |\n|---|---|---|---|"
BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "min_length": "not empty"}
BOUNDS |= {"multiple_of": "a multiple of {}"}


def page() -> str:
    """The page: one table a section."""
    experiment = _sections("An experiment", ExperimentConfig)
    return "\n".join([HEAD, *experiment, *_sections("A set of arms", ArmSetConfig)])


def _sections(title: str, kind: Any, prefix: str = "") -> Iterator[str]:
    yield f"## {title}\n\n{inspect.cleandoc(kind.__doc__)}\n\n{TABLE}"
    hints, meanings, inner = typing.get_type_hints(kind, include_extras=True), {}, []
    for base in reversed(kind.__mro__[:-1]):
        meanings |= comments(base)
    for field in dataclasses.fields(kind):
        hint, made, meaning = hints[field.name], field.default_factory, meanings[field.name]
        default = field.default if made is dataclasses.MISSING else made()
        kind_of = shown(hint)
        if part := _part(hint):
            path = f"{prefix}{field.name}{'[]' if shown(hint).startswith('list') else ''}"
            inner.append(_sections(f"`{path}`", part, f"{path}."))
            meaning = meaning or " ".join(inspect.cleandoc(part.__doc__).partition("\n\n")[0].split())
            kind_of = shown(hint).replace("section", f"[section](#{re.sub(r'[^a-z_]', '', path)})")
        plain = default is not dataclasses.MISSING and not dataclasses.is_dataclass(default)
        cells = (f"`{field.name}`", kind_of, f"`{default!r}`" if plain else "", meaning)
        yield "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
    yield ""
    for lines in inner:
        yield from lines


def _part(hint: Any) -> Any:
    """The dataclass in a type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_part, typing.get_args(hint))), None)


def shown(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        found = [
            word.format(limit)
            for bound in arguments[1:]
            for name, word in BOUNDS.items()
            if (limit := getattr(bound, name, None)) is not None
        ]
        if tables := [bound for bound in arguments[1:] if isinstance(bound, plugins.Table)]:
            return ", ".join([*(f"`{name!r}`" for name in tables[0].own), "a plugin's"])
        return ", ".join([shown(arguments[0]), *found])
    if origin is typing.Literal:
        return ", ".join(f"`{choice!r}`" for choice in arguments)
    if origin is tuple:
        return f"list of {shown(arguments[0])}"
    if origin in (types.UnionType, typing.Union):
        return f"{shown(arguments[0])} or {'None' if arguments[1] is types.NoneType else shown(arguments[1])}"
    if origin is not None:
        return f"mapping of {shown(arguments[0])} to {shown(arguments[1])}"
    return "section" if dataclasses.is_dataclass(hint) else "anything" if hint is object else hint.__name__


def comments(kind: type) -> dict[str, str]:
    """The comment above or beside each key that a class adds."""
    text = inspect.getsource(kind)
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno - 1
            above = next(i for i in range(first, 0, -1) if not lines[i - 1].strip().startswith("#"))
            said = (
                re.search(r"(?:^|\s)# (.*)", line)
                for line in [*lines[above:first], lines[node.end_lineno - 1]]
            )
            found[ast.unparse(node.target)] = " ".join(match[1] for match in said if match)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
