"""The crash-safe record of every request, shared between runs, experiments and processes.

One SQLite file in WAL mode. What was sent (`requests`) and what came back (`attempts`) are only
appended, with their texts compressed; `lookup` is a compact tree from request id to the attempt
that answers it, so a resume reads no texts; triggers keep the counts, so `status` reads no rows.
An attempt that ended in `Outcome.ERROR` is no answer: the request is sent again. The first
answer stands, whatever another process adds later; `claim` keeps two from paying for the same. What is
paid for is noted in `sent` before it goes out, and the note goes when its attempt is recorded, so what a
kill lost is counted all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import random
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax.records import Message, Outcome, Reply, Sampling, Usage, from_json, to_json
from orca_jax.teachers.endpoint import Request, request_id
from orca_jax.teachers.ledger_file import LedgerError as LedgerError
from orca_jax.teachers.ledger_file import explained, open_ledger

KEYS_A_QUERY = 500  # SQLite's oldest limit on variables is 999
CACHED_SETTINGS = 1024
TICKET_BITS = 48
LATEST = 20_000
_REPLY_COLUMNS = "outcome, text, prompt_tokens, completion_tokens, raw, finished"


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """One request put once to an endpoint. `seconds` is its latency, `finished` is Unix time.

    `ticket` is what `Ledger.send` returned for it, if it was noted before it went out.
    """

    identity: str
    request: Request
    reply: Reply
    seconds: float = 0.0
    finished: float = dataclasses.field(default_factory=time.time)
    ticket: int | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What stands in the ledger for a request. `created` is ISO 8601 in UTC."""

    reply: Reply
    created: str


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What one endpoint was asked. Usage and latency are sums over all attempts, failed ones too.

    `in_flight` requests are on their way, or were when their program was killed; they used at most
    `in_flight_usage`, which is not part of `usage`.
    """

    requests: int = 0
    answers: int = 0
    attempts: Mapping[Outcome, int] = dataclasses.field(default_factory=dict)
    usage: Usage = dataclasses.field(default_factory=Usage)
    seconds: float = 0.0
    in_flight: int = 0
    in_flight_usage: Usage = dataclasses.field(default_factory=Usage)


@dataclasses.dataclass(frozen=True, slots=True)
class Recent:
    """What one endpoint was sent of late. `last` is when its last attempt ended, in Unix time."""

    attempts: int
    usage: Usage
    last: float


class Ledger:
    """The ledger at `path`, made if it is not there. A context manager; may pass between threads.

    Raises:
      LedgerError: the directory does not exist, or the file is not a ledger of this version.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._settings: dict[tuple[str, Sampling], int] = {}
        self._claimed: set[str] = set()
        self._connection = open_ledger(self.path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def claim(self, identity: str) -> Iterator[None]:
        """Leave to put requests to this endpoint, which one `Ledger` at a time has for each file.

        Reading needs none. The lock, on a file beside the ledger, ends with its process, however that ends.
        Within a claim another one of the same `Ledger` is without effect.

        Raises:
          LedgerError: another process, or another `Ledger` of this one, has it.
        """
        if identity in self._claimed:
            yield
            return
        file = self.path.resolve()
        mark = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        with open(f"{file}-{mark}.lock", "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise LedgerError(
                    f"{self.path}: {lock.read() or 'another process'} is collecting from {identity} with "
                    "this ledger, and two at once would pay twice; run again when it has ended (its answers "
                    "are used), or name another file in api.ledger"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            self._claimed.add(identity)
            try:
                yield
            finally:
                self._claimed.discard(identity)

    def get(self, key: bytes) -> Answer | None:
        """The stored answer to the request with this id."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """The stored answers among these requests, by request id."""
        keys = list(keys)
        answers: dict[bytes, Answer] = {}
        for start in range(0, len(keys), KEYS_A_QUERY):
            some = keys[start : start + KEYS_A_QUERY]
            rows = self._rows(
                f"SELECT key, {_REPLY_COLUMNS} FROM lookup JOIN attempts ON attempts.id = answer "
                f"WHERE key IN ({','.join('?' * len(some))})",
                some,
            )
            answers.update(
                (key, Answer(_reply(*columns), _iso(finished))) for key, *columns, finished in rows
            )
        return answers

    def record(self, attempts: Iterable[Attempt]) -> list[Answer]:
        """Commits attempts, all or none; when it returns they are on disk.

        Returns:
          What now stands for each attempt's request: the earliest answer, or, while there is
          none, the attempt's own failure.
        """
        attempts = list(attempts)
        if not attempts:
            return []
        with self._transaction():
            return [self._record(attempt) for attempt in attempts]

    def add(self, identity: str, requests: Iterable[Request]) -> None:
        """Makes requests known, all or none, before anything is sent."""
        with self._transaction():
            for request in requests:
                self._known_or_added(request_id(identity, request), identity, request)

    def send(self, identity: str, sent: Iterable[tuple[Request, Usage]]) -> list[int]:
        """Notes that requests go out now, each of which can use at most so much; returns their tickets.

        All or none. Survives the death of this process, but not a power cut: a note is not worth waiting
        for a disk.
        """
        tickets = []
        with self._transaction(synchronous="NORMAL"):
            for request, bound in sent:
                key = request_id(identity, request)
                tickets.append(random.getrandbits(TICKET_BITS))
                self._known_or_added(key, identity, request)
                self._note(key, bound, tickets[-1])
        return tickets

    def send_known(self, sent: Iterable[tuple[bytes, Usage]], ticket: int) -> None:
        """Like `send` for known requests by their ids, all under one ticket; again is no change."""
        with self._transaction():
            for key, bound in sent:
                self._note(key, bound, ticket)

    def awaited(self, keys: Iterable[bytes], ticket: int) -> set[bytes]:
        """Those of the requests that are noted under this ticket and not recorded yet."""
        query = "SELECT 1 FROM lookup JOIN sent ON sent.request = lookup.request WHERE key = ? AND ticket = ?"
        return {key for key in keys if self._rows(query, [key, ticket])}

    def failure(self, key: bytes) -> Answer | None:
        """What the last attempt for a request came to, if there was one."""
        rows = self._rows(
            f"SELECT {_REPLY_COLUMNS} FROM lookup JOIN attempts ON attempts.request = lookup.request "
            "WHERE key = ? ORDER BY attempts.id DESC LIMIT 1",
            [key],
        )
        return Answer(_reply(*rows[0][:-1]), _iso(rows[0][-1])) if rows else None

    def request(self, key: bytes) -> Request | None:
        """The request with this id, if it was ever recorded or sent."""
        rows = self._rows(
            "SELECT sampling, sample, messages FROM lookup JOIN requests ON requests.id = lookup.request "
            "JOIN settings ON settings.id = setting WHERE key = ?",
            [key],
        )
        return _request(*rows[0]) if rows else None

    def answered(self) -> bytes:
        """The ids of all answered requests, of every endpoint, in order and joined (`ID_BYTES` each)."""
        with explained(self.path):
            rows = self._connection.execute("SELECT key FROM lookup WHERE answer IS NOT NULL")
            return b"".join(key for (key,) in rows)

    def attempts(self, key: bytes) -> list[Attempt]:
        """All that was tried for one request, in the order it was recorded."""
        rows = self._rows(
            f"SELECT endpoint, latency, sampling, sample, messages, {_REPLY_COLUMNS} FROM lookup "
            "JOIN requests ON requests.id = lookup.request JOIN settings ON settings.id = setting "
            "JOIN attempts ON attempts.request = requests.id WHERE key = ? ORDER BY attempts.id",
            [key],
        )
        return [
            Attempt(identity, _request(*rest[:3]), _reply(*rest[3:]), latency / 1000, finished / 1000)
            for identity, latency, *rest, finished in rows
        ]

    def status(self) -> dict[str, Status]:
        """What was sent so far, by endpoint identity."""
        totals = self._rows(
            "SELECT endpoint, sum(requests), sum(answers) FROM settings GROUP BY endpoint ORDER BY endpoint"
        )
        counts = self._rows(
            "SELECT endpoint, outcome, sum(attempts), sum(prompt_tokens), sum(completion_tokens), "
            "sum(latency) FROM counts JOIN settings ON settings.id = setting GROUP BY endpoint, outcome"
        )
        sent = self._rows(
            "SELECT endpoint, count(*), sum(prompt_tokens), sum(completion_tokens) FROM sent "
            "JOIN settings ON settings.id = setting GROUP BY endpoint"
        )
        in_flight = {identity: (number, Usage(*tokens)) for identity, number, *tokens in sent}
        return {
            identity: _status(
                requests,
                answers,
                [row[1:] for row in counts if row[0] == identity],
                *in_flight.get(identity, (0, Usage())),
            )
            for identity, requests, answers in totals
        }

    def recent(self, seconds: float = 60.0) -> dict[str, Recent]:
        """What ended in the last so many seconds, by endpoint identity; at most `LATEST` attempts."""
        rows = self._rows(
            "SELECT endpoint, count(*), sum(prompt_tokens), sum(completion_tokens), max(finished) FROM ("
            "SELECT request, prompt_tokens, completion_tokens, finished FROM attempts "
            "ORDER BY id DESC LIMIT ?"
            ") JOIN requests ON requests.id = request JOIN settings ON settings.id = setting "
            "WHERE finished > ? GROUP BY endpoint",
            [LATEST, _milliseconds(time.time() - seconds)],
        )
        return {
            identity: Recent(number, Usage(prompt, completion), last / 1000)
            for identity, number, prompt, completion, last in rows
        }

    def last(self, identity: str) -> float:
        """When the last attempt of this endpoint ended, in Unix time; 0 if there was none."""
        rows = self._rows(
            "SELECT finished FROM attempts JOIN requests ON requests.id = request "
            "JOIN settings ON settings.id = setting WHERE endpoint = ? ORDER BY attempts.id DESC LIMIT 1",
            [identity],
        )
        return rows[0][0] / 1000 if rows else 0.0

    def unanswered(self, identity: str) -> Iterator[tuple[Request, Reply | None]]:
        """Every request to this endpoint without an answer, with what its last attempt came to, if any."""
        rows = self._rows(
            "SELECT key FROM lookup JOIN requests ON requests.id = request JOIN settings "
            "ON settings.id = setting WHERE answer IS NULL AND endpoint = ? ORDER BY request",
            [identity],
        )
        for (key,) in rows:
            request, last = self.request(key), self.failure(key)
            assert request is not None  # it was just found
            yield request, last.reply if last else None

    def _record(self, attempt: Attempt) -> Answer:
        key = request_id(attempt.identity, attempt.request)
        request, answer = self._known_or_added(key, attempt.identity, attempt.request)
        added = self._add_attempt(request, attempt)
        if attempt.ticket is not None:
            values = [request, attempt.ticket]
            self._connection.execute("DELETE FROM sent WHERE request = ? AND ticket = ?", values)
        if answer is not None:
            return self.get_many([key])[key]
        if attempt.reply.outcome is not Outcome.ERROR:
            self._connection.execute("UPDATE lookup SET answer = ? WHERE key = ?", [added, key])
        return Answer(attempt.reply, _iso(_milliseconds(attempt.finished)))

    def _note(self, key: bytes, bound: Usage, ticket: int) -> None:
        self._insert(
            "INSERT OR IGNORE INTO sent SELECT requests.id, ?, setting, ?, ?, ? "
            "FROM lookup JOIN requests ON requests.id = lookup.request WHERE key = ?",
            [ticket, bound.prompt_tokens, bound.completion_tokens, _milliseconds(time.time()), key],
        )

    def _known_or_added(self, key: bytes, identity: str, request: Request) -> tuple[int, int | None]:
        """The row of a request, and of its answer if there is one."""
        known = self._connection.execute("SELECT request, answer FROM lookup WHERE key = ?", [key]).fetchone()
        return known or (self._add_request(key, identity, request), None)

    def _add_request(self, key: bytes, identity: str, request: Request) -> int:
        messages = _compress(json.dumps([(message.role, message.content) for message in request.messages]))
        added = self._insert(
            "INSERT INTO requests (setting, sample, messages) VALUES (?, ?, ?)",
            [self._setting(identity, request.sampling), request.sample, messages],
        )
        self._insert("INSERT INTO lookup (key, request) VALUES (?, ?)", [key, added])
        return added

    def _add_attempt(self, request: int, attempt: Attempt) -> int:
        reply = attempt.reply
        return self._insert(
            f"INSERT INTO attempts (request, latency, {_REPLY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                request,
                _milliseconds(attempt.seconds),
                str(reply.outcome),
                _compress(reply.text),
                reply.usage.prompt_tokens,
                reply.usage.completion_tokens,
                _compress(json.dumps(reply.raw, default=str)) if reply.raw else None,
                _milliseconds(attempt.finished),
            ],
        )

    def _setting(self, identity: str, sampling: Sampling) -> int:
        cached = self._settings.get((identity, sampling))
        if cached is not None:
            return cached
        values = [identity, json.dumps(to_json(sampling))]
        self._insert("INSERT OR IGNORE INTO settings (endpoint, sampling) VALUES (?, ?)", values)
        found = int(self._rows("SELECT id FROM settings WHERE endpoint = ? AND sampling = ?", values)[0][0])
        if len(self._settings) >= CACHED_SETTINGS:
            self._settings.clear()
        self._settings[identity, sampling] = found
        return found

    def _insert(self, statement: str, values: list[Any]) -> int:
        return self._connection.execute(statement, values).lastrowid or 0

    def _rows(self, query: str, values: list[Any] | None = None) -> list[Any]:
        with explained(self.path):
            return self._connection.execute(query, values or []).fetchall()

    @contextlib.contextmanager
    def _transaction(self, synchronous: str = "FULL") -> Iterator[None]:
        """All or nothing; with FULL it is on the disk at the end, with NORMAL in the system's memory."""
        with explained(self.path):
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._settings.clear()  # ids given in this transaction are void
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _request(sampling: str, sample: int, messages: bytes) -> Request:
    conversation = tuple(Message(*message) for message in json.loads(_decompress(messages)))
    return Request(conversation, from_json(Sampling, json.loads(sampling)), sample)


def _reply(outcome: str, text: bytes, prompt_tokens: int, completion_tokens: int, raw: bytes | None) -> Reply:
    usage = Usage(prompt_tokens, completion_tokens)
    return Reply(Outcome(outcome), _decompress(text), usage, json.loads(_decompress(raw)) if raw else {})


def _status(requests: int, answers: int, counts: list[Any], in_flight: int, in_flight_usage: Usage) -> Status:
    return Status(
        requests=requests,
        answers=answers,
        attempts={Outcome(outcome): attempts for outcome, attempts, *_ in counts},
        usage=Usage(sum(row[2] for row in counts), sum(row[3] for row in counts)),
        seconds=sum(row[4] for row in counts) / 1000,
        in_flight=in_flight,
        in_flight_usage=in_flight_usage,
    )


def _compress(text: str) -> bytes:
    # zlib's default state is 256 KB, and clearing it takes longer than to compress a reply.
    small = zlib.compressobj(wbits=13, memLevel=6)
    # A reply cut off inside a character pair holds half of it, which strict UTF-8 refuses.
    return small.compress(text.encode("utf-8", "surrogatepass")) + small.flush()


def _decompress(blob: bytes) -> str:
    return zlib.decompress(blob).decode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _iso(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
