"""The 16 system messages: purpose, our wording, style of answer, and recognition by hash.

Purposes and allocation are those of Orca (arXiv 2306.02707, section 3.1.1, Table 2 and Figure 6); the
wording is ours. `system_messages.csv` holds the sha256 of each published text (`;`-separated, after
`normalise`) and its share in each sub-collection, read off Figure 6.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import functools
import hashlib
import importlib.resources
import unicodedata
from collections.abc import Mapping

DATA_FILE = "system_messages.csv"
COLLECTIONS = ("cot", "niv2", "t0", "flan2021")
_QUOTES = {code: "'" if code < 0x201C else '"' for code in range(0x2018, 0x2020)}


class Style(enum.StrEnum):
    """What form of answer a system message asks for."""

    BARE = "bare"  # the answer alone
    STEPS = "steps"  # step by step, then the answer
    SIMPLE = "simple"  # the same in a child's words
    ANSWER_FIRST = "answer_first"  # the answer, then why


@dataclasses.dataclass(frozen=True, slots=True)
class SystemMessage:
    """One of the 16. `shares` is its part (0 to 1) of each sub-collection, `published` its known hashes."""

    id: int
    text: str
    purpose: str
    multiple_choice_only: bool
    style: Style
    shares: Mapping[str, float]
    published: tuple[str, ...]


# id: (style, purpose, text)
_OURS: dict[int, tuple[Style, str, str]] = {
    1: (Style.BARE, "no system text", ""),
    2: (
        Style.STEPS,
        "a self-contained, detailed answer",
        "Answer in full, so that a reader needs nothing else to understand you.",
    ),
    3: (
        Style.STEPS,
        "a long, detailed answer",
        "You will be handed some work. Write a thorough answer of good length.",
    ),
    4: (
        Style.SIMPLE,
        "always explain, in very simple language",
        "Say everything in small, easy words, and always tell why, as to a young child.",
    ),
    5: (
        Style.BARE,
        "plain instruction following, short answers",
        "Do exactly what the instructions ask and add nothing.",
    ),
    6: (
        Style.STEPS,
        "an information-seeking persona and a self-contained, detailed answer",
        "You look up facts for people. Give an answer so complete that nobody has to look elsewhere.",
    ),
    7: (
        Style.STEPS,
        "a task with step-by-step reasoning and justification",
        "Carry out the task as well as you can. Reason in steps and justify each of them.",
    ),
    8: (
        Style.ANSWER_FIRST,
        "multiple choice: answer first, then why the others are wrong, in very simple language",
        "Name the right option first. Then tell a young child why the other options are not right.",
    ),
    9: (
        Style.STEPS,
        "show how a task's definition led to the answer",
        "A definition and an input follow. Show how the definition takes you from the input to the answer.",
    ),
    10: (
        Style.ANSWER_FIRST,
        "multiple choice: describe the task, answer first, then why the others are wrong",
        "State the task and the right option first, then why the other options fail. "
        "You may use what you know besides the text.",
    ),
    11: (
        Style.STEPS,
        "question answering with step-by-step justification",
        "You look up facts for people. Answer the question in steps, each with its reason.",
    ),
    12: (
        Style.STEPS,
        "follow a task's instructions with step-by-step justification",
        "Keep to the instructions of the task, in steps, and give the reason for each.",
    ),
    13: (
        Style.STEPS,
        "teacher persona: the task, its guidelines and how they lead to the answer",
        "You are a teacher. Put the task in your own words, name its rules "
        "and show how they give the answer.",
    ),
    14: (
        Style.STEPS,
        "translator persona: the guidelines, the solution and how they were used",
        "You speak and translate all languages. Put the rules of the task simply, solve it, "
        "and point out where each rule was used.",
    ),
    15: (
        Style.STEPS,
        "break a task's definition into numbered parts, each with an example",
        "Cut the definition into numbered parts and show each part at work on an example of your own.",
    ),
    16: (
        Style.STEPS,
        "information-seeking persona, no demand on style",
        "You look up facts for people.",
    ),
}
_MULTIPLE_CHOICE_ONLY = (8, 10)


def normalise(text: str | None) -> str:
    """A message's letters and digits in lower case (NFKC, quotes made ASCII); no message is the empty one."""
    plain = unicodedata.normalize("NFKC", text or "").translate(_QUOTES).lower()
    return "".join(c for c in plain if unicodedata.category(c)[0] == "L" or unicodedata.category(c) == "Nd")


def message_hash(text: str | None) -> str:
    """The sha256, in hex, by which a message is recognised."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()


def recognise(text: str | None) -> int | None:
    """The id of a message, ours or published; None means that it is none of the 16."""
    return _ids_by_hash().get(message_hash(text))


def get(message_id: int) -> SystemMessage:
    """The message of an id.

    Raises:
      KeyError: there is no such id.
    """
    try:
        return all_messages()[message_id]
    except KeyError:
        raise KeyError(f"no system message {message_id!r}; ids go from 1 to {len(_OURS)}") from None


@functools.cache
def all_messages() -> Mapping[int, SystemMessage]:
    """All 16 by id, in order."""
    table = importlib.resources.files(__package__).joinpath(DATA_FILE).read_text(encoding="utf-8")
    return {int(row["id"]): _message(row) for row in csv.DictReader(table.splitlines())}


def _message(row: Mapping[str, str]) -> SystemMessage:
    message_id = int(row["id"])
    style, purpose, text = _OURS[message_id]
    return SystemMessage(
        id=message_id,
        text=text,
        purpose=purpose,
        multiple_choice_only=message_id in _MULTIPLE_CHOICE_ONLY,
        style=style,
        shares={collection: float(row[collection]) for collection in COLLECTIONS},
        published=tuple(row["sha256"].split(";")),
    )


@functools.cache
def _ids_by_hash() -> Mapping[str, int]:
    ids: dict[str, int] = {}
    for message in all_messages().values():
        for digest in (message_hash(message.text), *message.published):
            ids[digest] = message.id
    return ids
