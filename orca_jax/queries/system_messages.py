"""The 16 system messages: purpose, our wording, style of answer, and recognition by hash.

Purposes and allocation are those of Orca (arXiv 2306.02707, section 3.1.1, Table 2 and Figure 6); the
wording is ours. `system_messages.csv` holds them, with the sha256 of each published text (`;`-separated,
see `message_hash`) and its share in each sub-collection, read off Figure 6.

A query's message is drawn by hash of a seed and the query's id, so that every teacher and every rerun sees
the same. Messages for multiple choice go to such queries only, the more often the rarer those are, so that
the shares of the whole sub-collection are those of Figure 6; with half of Flan 2021 multiple choice, its
queries get one of five messages (or of three) uniformly.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import enum
import functools
import hashlib
import importlib.resources
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax.records import Query, half_pair

DATA_FILE = "system_messages.csv"
COLLECTIONS = ("cot", "niv2", "t0", "flan2021")
TEXT = "system_text"  # in a query's `extra`: the text of a user's message
ANY = "*"  # in a user's set: the share in every collection that is not named
# The share of multiple choice in the sub-collections whose messages depend on it: Flan 2021's follows from
# Figure 6 if its messages are uniform; T0's is what `multiple_choice` finds in OpenOrca's T0 rows.
MULTIPLE_CHOICE_SHARES: Mapping[str, float] = {"flan2021": 0.5, "t0": 0.3}
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


def message_hash(text: str | None) -> str:
    """The sha256, in hex, by which a message is recognised; no message is the empty one.

    It is that of the letters and digits in lower case (NFKC, quotes made ASCII).
    """
    plain = unicodedata.normalize("NFKC", text or "").translate(_QUOTES).lower()
    kept = (c for c in plain if unicodedata.category(c)[0] == "L" or unicodedata.category(c) == "Nd")
    return hashlib.sha256("".join(kept).encode()).hexdigest()


def recognise(text: str | None) -> int | None:
    """The id of a message, ours or published; None means that it is none of the 16."""
    return _ids_by_hash().get(message_hash(text))


def get(message_id: int) -> SystemMessage:
    """The message of an id.

    Raises:
      ValueError: there is no such id.
    """
    if message_id not in all_messages():
        raise ValueError(f"no system message {message_id!r}; ids go from 1 to {len(all_messages())}")
    return all_messages()[message_id]


def text_of(query: Query) -> str:
    """The system message of a query: one of a user's set, of the 16, or the empty one."""
    own: str | None = query.extra.get(TEXT)
    return get(query.system_message_id or 1).text if own is None else own


def under(query: Query, message_id: int) -> Query:
    """The query under another of the 16 messages; 0: under its own."""
    if not message_id:
        return query
    extra = {name: value for name, value in query.extra.items() if name != TEXT}
    return dataclasses.replace(query, system_message_id=message_id, extra=extra)


@functools.cache
def all_messages() -> Mapping[int, SystemMessage]:
    """All 16 by id, in order."""
    table = importlib.resources.files(__package__).joinpath(DATA_FILE).read_text(encoding="utf-8")
    messages = {}
    for row in csv.DictReader(table.splitlines()):
        id = int(row["id"])
        messages[id] = SystemMessage(
            id=id,
            text=row["text"],
            purpose=row["purpose"],
            multiple_choice_only=row["multiple_choice_only"] == "yes",
            style=Style(row["style"]),
            shares={collection: float(row[collection]) for collection in COLLECTIONS},
            published=tuple(row["sha256"].split(";")),
        )
    return messages


@functools.cache
def _ids_by_hash() -> Mapping[str, int]:
    messages = all_messages().values()
    return {digest: m.id for m in messages for digest in (message_hash(m.text), *m.published)}


class MessageSet(NamedTuple):
    """System messages and the shares in which queries get them.

    Attributes:
      messages: by id.
      multiple_choice_shares: collection to the share of its queries that are multiple choice, where any of
        its messages is for those only (0.5 where absent); give the measured one for exact shares.
    """

    messages: Mapping[int, SystemMessage]
    multiple_choice_shares: Mapping[str, float] = MULTIPLE_CHOICE_SHARES

    def weights(self, collection: str, *, multiple_choice: bool) -> dict[int, float]:
        """Probability of each message for a query of this collection and kind; sums to 1.

        Raises:
          ValueError: no message is for such queries.
        """
        every = {id: m.shares.get(collection, m.shares.get(ANY, 0.0)) for id, m in self.messages.items()}
        total = sum(every.values())
        shares = {id: share / total for id, share in every.items() if share > 0}
        only = {id: share for id, share in shares.items() if self.messages[id].multiple_choice_only}
        general = {id: share for id, share in shares.items() if id not in only}
        weights: dict[int, float] = {}
        if multiple_choice and only:  # their shares are of all queries, and those with options are fewer
            part = max(self.multiple_choice_shares.get(collection, 0.5), 1e-9)
            wanted = {id: share / part for id, share in only.items()}
            most = max(1.0, sum(wanted.values())) if general else sum(wanted.values())
            weights = {id: share / most for id, share in wanted.items()}
        elif not general:
            kind = "multiple choice" if multiple_choice else "queries without options"
            raise ValueError(f"no system message is for {kind} of the collection {collection!r}; add one")
        rest = 1 - sum(weights.values())
        return weights | {id: rest * share / sum(general.values()) for id, share in general.items()}

    def assign(self, queries: Iterable[Query], seed: int) -> Iterator[Query]:
        """The queries with their `system_message_id`, and with the text of a user's own message.

        Raises:
          ValueError: no message is for a query.
        """
        weights: dict[tuple[str, bool], dict[int, float]] = {}
        for query in queries:
            kind = query.collection, query.multiple_choice
            if kind not in weights:
                weights[kind] = self.weights(query.collection, multiple_choice=query.multiple_choice)
            message = self.messages[draw(weights[kind], query.id, seed)]
            extra = query.extra if message.published else {**query.extra, TEXT: message.text}
            yield dataclasses.replace(query, system_message_id=message.id, extra=extra)


def draw(weights: Mapping[int, float], query_id: str, seed: int) -> int:
    """The message of a query, by hash of seed and id; weights need not sum to 1.

    Raises:
      ValueError: no weight is above zero.
    """
    possible = {id: weights[id] for id in sorted(weights) if weights[id] > 0}
    if not possible:
        raise ValueError(f"query {query_id}: no system message has a share above 0; give one")
    digest = hashlib.sha256(f"message\x00{seed}\x00{query_id}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(possible.values())
    for message_id, weight in possible.items():
        point -= weight
        if point < 0:
            return message_id
    return max(possible)


def measured_shares(queries: Iterable[Query]) -> dict[str, float]:
    """Collection to the share of its queries that are multiple choice: what a `MessageSet` can be given."""
    counts, chosen = collections.Counter[str](), collections.Counter[str]()
    for query in queries:
        counts[query.collection] += 1
        chosen[query.collection] += query.multiple_choice
    return {collection: chosen[collection] / total for collection, total in counts.items()}


def read_set(path: str | Path) -> MessageSet:
    """A user's own messages, from a JSON list of objects.

    Each has `id` (a number) and `text`; and, if wanted, `shares` (collection to share, "*" for all others;
    by default all messages are equally likely), `multiple_choice_only`, `purpose` and `style`.

    Raises:
      ValueError: the file is no such list; the message names file, entry and field.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of messages, got {entries!r:.60}")
    messages: dict[int, SystemMessage] = {}
    for number, entry in enumerate(entries):
        try:
            message = _users_message(entry)
            if message.id in messages:
                raise ValueError(f"a second message with id {message.id}")
        except ValueError as error:
            raise ValueError(f"{path}, message {number}: {error}") from error
        messages[message.id] = message
    return MessageSet(messages)


def _users_message(entry: Any) -> SystemMessage:
    # Defaults, whose types the values must have; `id` and `text` must be given.
    defaults = {"shares": {ANY: 1.0}, "multiple_choice_only": False, "purpose": "", "style": str(Style.STEPS)}
    kinds = {"id": int, "text": str} | {name: type(default) for name, default in defaults.items()}
    if not isinstance(entry, dict) or not entry.keys() <= kinds.keys():
        raise ValueError(f"expected fields among {', '.join(kinds)}, got {entry!r:.60}")
    values = {name: entry.get(name, defaults.get(name)) for name in kinds}
    for name, value in values.items():
        if type(value) is not kinds[name]:
            raise ValueError(f"{name} must be {kinds[name].__name__}, not {value!r:.60}")
        if half := half_pair(str(value)):
            raise ValueError(f"{name} has half a surrogate pair ({half}), which is no character")
    if not all(isinstance(share, int | float) and share >= 0 for share in values["shares"].values()):
        raise ValueError(f"shares must map collections to numbers from 0, not {values['shares']}")
    if values["style"] not in tuple(Style):
        raise ValueError(f"style must be {', '.join(Style)}, not {values['style']!r}")
    return SystemMessage(**values | {"style": Style(values["style"])}, published=())
