"""A reader of the Markdown that this project's programs write, so that a page can show it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

LONG = 30  # characters of a cell that is no figure with its error
_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_CELLS = re.compile(r"(?<!\\)\|")


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Cells as text or Markup; `classes` are the rows', `numbers` says that all but the first are figures."""

    caption: Markup | str
    header: Sequence[object]
    rows: Sequence[Sequence[object]]
    note: str = ""
    classes: Sequence[str] = ()
    numbers: bool = True

    @property
    def wordy(self) -> set[int]:
        """The columns among the numbers that hold texts, or long lists."""
        every = range(1, len(self.header))
        return {at for at in every if any(len(Markup(row[at]).striptags()) > LONG for row in self.rows)}


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One piece of a text: `heading`, `paragraph`, `list` or `table`."""

    kind: str
    text: Markup | str = ""
    entries: tuple[Markup, ...] = ()
    table: Table | None = None


def inline(text: str) -> Markup:
    """Escaped, then `code` and **bold**; images are left out, of links the words are kept."""
    plain = _LINK.sub(r"\1", _IMAGE.sub("", text))
    marked = _BOLD.sub(r"<strong>\1</strong>", _CODE.sub(r"<code>\1</code>", str(escape(plain))))
    return Markup(marked)


def blocks(text: str) -> Iterator[Block]:
    """The pieces of a text; a table's caption is the heading above it."""
    heading = ""
    for part in _parts(text):
        if part[0].startswith("#"):
            heading = part[0].lstrip("# ")
            yield Block("heading", inline(heading))
        elif part[0].startswith("|"):
            yield Block("table", table=_table(part, heading))
        elif part[0].startswith("- "):
            yield Block("list", entries=tuple(inline(line.removeprefix("- ")) for line in part))
        elif shown := inline(" ".join(part)).strip():
            yield Block("paragraph", Markup(shown))


def _parts(text: str) -> Iterator[list[str]]:
    """Lines that belong together: a heading alone, a table, a list, a paragraph."""
    part: list[str] = []
    for line in [*map(str.strip, text.splitlines()), ""]:
        kind = _kind(line)
        if part and (kind != _kind(part[0]) or kind == "heading"):
            yield part
            part = []
        if line:
            part.append(line)


def _kind(line: str) -> str:
    starts = {"#": "heading", "|": "table", "- ": "list"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text" if line else "")


def _table(lines: Sequence[str], caption: str) -> Table:
    rows = [_cells(line) for line in lines]
    rule = "".join(rows[1]) if len(rows) > 1 else ""
    body = rows[2:] if rule and not set(rule) - set("-: ") else rows[1:]
    return Table(inline(caption), rows[0], body)


def _cells(line: str) -> list[Markup]:
    cells = _CELLS.split(line.strip().removeprefix("|").removesuffix("|"))
    return [inline(cell.strip().replace("\\|", "|")) for cell in cells]
