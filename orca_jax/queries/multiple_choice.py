"""Does a query list options to choose from? Messages 8 and 10 are given to such queries only.

A query is multiple choice if it sets out the admissible answers as a list: lettered, numbered, with
bullets, or after a heading such as "Options:". "Yes or no?" inside a sentence is no list. A query that
lists options in order to have something written about them ("generate a negative review") is none either.

FLAN's templates vary the heading (OPT, Choices, Pick from, ...), the mark ("- ", "+ ", "[-] ", "(A) ",
"a). ", "[II] ", "(1). ") and the separator (line break or semicolon), so marks are recognised by kind.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SHORT = 100  # characters; what an option in running text may have
_ALPHABETS = (
    tuple("abcdefghijklmnopqrstuvwxyz"),
    ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"),
    tuple(map(str, range(1, 27))),
)
_MARK = re.compile(
    r"""(?:(?P<start>^[ \t]*)|(?<=[\s;:.,?]))
    (?P<mark>
        (?:[-+*•][ \t]+)?[\[(]?(?P<label>[A-Za-z]|[ivx]{1,4}|[IVX]{1,4}|\d\d?)[\])]?[.:]?  # (A) a). [II] - B:
      | [\[(][-+*][\])] | [-+*•]
    )
    (?:(?<=[\])])[ \t]*|[ \t]+|(?<=\n[-+•])|(?<=\n[ ][-+•]))(?=[^\s\])])""",
    re.VERBOSE | re.MULTILINE,
)
_WORDS = r"options?|opt|choices|alternatives|categories|labels|descriptors|answers|choose|pick|select"
# The announcement of a list, with at most a few words between it and the first mark.
_ANNOUNCED = re.compile(
    rf"\b(?:{_WORDS})\b[^.?!:\n]{{0,80}}[.?!:]*\s*\Z"  # "Options:", "Pick your answer from the following."
    rf"|\b(?:{_WORDS}|one)\b[^\n]{{0,40}}[:.?]\s*\Z"  # "Choose one between A and B."
    r"|\bwhich\b[^\n]{0,200}\?\s*\Z",  # "Which of these sentences is wrong?"
    re.IGNORECASE,
)
_QUESTION = re.compile(r"(?:\?|_|\b(?:what|is|on|to|of))[\"' ).]*\s*\Z")
_UNFINISHED = re.compile(r"[a-z,][\"']?\s*\Z")  # a sentence that the options end
_COMMA_LIST = re.compile(
    r"\b(?:options?|choices|categories|labels|descriptors|topics|classes)\b[^:\n]{0,20}:\s*"
    r"([^,\n:]{1,60}(?:, [^,\n:]{1,60}){2,})",
    re.IGNORECASE,
)
_WRITES = re.compile(
    r"\b(?:generate|write|compose|predict|create|make up|come up with|imagine|invent|produce)\b"
    r"\s+(?:an?|some|possible|new)\b[^.?!\n]{0,40}"
    r"\b(?:questions?|reviews?|tweets?|sentences?|phrases?|passages?|articles?|texts?|hypothesis"
    r"|premise|story|context|paragraph)\b",
    re.IGNORECASE,
)
# The answer is given, and its reason asked for.
_ANSWERED = re.compile(r"\b(?:justif(?:y|ies)|arrive at|rationale)\b[^\n]{0,60}\Z", re.IGNORECASE)


class _Mark(NamedTuple):
    """One mark: `style` is its form without the label, `start` and `end` its place in the text."""

    style: str
    label: str
    starts_line: bool
    start: int
    end: int


def is_multiple_choice(text: str, target: str | None = None) -> bool:
    """Whether a query sets out options to choose from: one with a target that is no option does not."""
    found = options(text)
    if len(found) < 2 or _ANSWERED.search(text.rstrip()):
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    if any(_WRITES.search(line) for line in (lines[0][:300], lines[-1][-300:])):
        return False
    if not target:
        return True
    # A target may be an option's text, its beginning (an option read too far) or its label.
    wanted = _plain(target)
    if len(wanted) <= 1 or wanted in _ALPHABETS[1]:
        return True
    return any(f" {wanted} " in f" {_plain(option)} " or wanted.endswith(_plain(option)) for option in found)


def options(text: str) -> tuple[str, ...]:
    """The options a query lists, in order, without their marks; empty where it lists none."""
    for run in _runs(text):
        if _is_list(text, run):
            return tuple(_items(text, run))
    listed = _COMMA_LIST.search(text)
    return tuple(part.strip() for part in listed[1].split(",")) if listed else ()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _runs(text: str) -> list[list[_Mark]]:
    """Marks of one style that count up from the first label, or bullets of one style; the last run first."""
    by_style: dict[str, list[_Mark]] = {}
    for match in _MARK.finditer(text):
        label, mark = match["label"] or "", match["mark"]
        if label and mark == label:
            continue  # a bare letter or number is a word
        style = mark.replace(label, "A" if label.isupper() else "a", 1) if label else mark
        place = match["start"] is not None, match.start("mark"), match.end()
        by_style.setdefault(style, []).append(_Mark(style, label.lower(), *place))
    found: list[list[_Mark]] = []
    for alike in by_style.values():
        if alike[0].label:
            found += [run for alphabet in _ALPHABETS for run in _counted(alike, alphabet)]
            continue
        # Bullets with nothing but their items between them: no item goes on in a second line.
        blocks = [alike[:1]]
        for last, bullet in itertools.pairwise(alike):
            if "\n" in text[last.end : bullet.start].strip():
                blocks.append([])
            blocks[-1].append(bullet)
        for block in blocks:  # from the announced one on: those before it are dashes of the text
            announced = [place for place, bullet in enumerate(block[:-1]) if _announced(text, bullet)]
            asked = [place for place, bullet in enumerate(block[:-1]) if _asked(text, bullet)]
            found.append(block[announced[0] if announced else (asked or [0])[-1] :])
    return sorted((run for run in found if len(run) > 1), key=lambda run: run[-1].start, reverse=True)


def _announced(text: str, mark: _Mark) -> bool:
    return _ANNOUNCED.search(text[max(0, mark.start - 240) : mark.start]) is not None


def _asked(text: str, mark: _Mark) -> bool:
    return _QUESTION.search(text[max(0, mark.start - 40) : mark.start]) is not None


def _counted(marks: Sequence[_Mark], alphabet: Sequence[str]) -> Iterator[list[_Mark]]:
    run: list[_Mark] = []
    for mark in marks:
        if mark.label == alphabet[len(run) % len(alphabet)]:
            run.append(mark)
        elif mark.label == alphabet[0]:
            yield run
            run = [mark]
    yield run


def _is_list(text: str, run: list[_Mark]) -> bool:
    label, style, items = run[0].label, run[0].style, list(_items(text, run))
    announced, asked = _announced(text, run[0]), _asked(text, run[0])
    # A list that runs on in a sentence: "1) positive, and 2) negative".
    if label and "A" not in style and any(item.endswith((" and", " or")) for item in items):
        return False
    if announced or (not label and len(style) == 3):
        return True
    if not label:  # bare bullets without announcement follow a question, by lines or as three short items
        if all(mark.starts_line for mark in run):
            return asked or _UNFINISHED.search(text[: run[0].start][-20:]) is not None
        return asked and len(run) > 2 and max(map(len, items)) < SHORT
    if label.isdigit() or style == "A:":
        return False
    if style[0] in "([-+*•" or run[0].starts_line:
        return "A" in style or len(run) > 2 or asked
    return "A" in style and len(run) > 2 and asked


def _items(text: str, run: list[_Mark]) -> Iterator[str]:
    ends = [mark.start for mark in run[1:]]
    for mark, end in zip(run, [*ends, len(text)]):
        item = text[mark.end : end]
        if end == len(text):
            item = item.lstrip().split("\n", 1)[0]
        yield item.strip(" \t\n\r;,").removesuffix(".")
