"""The crash-safe record of every request, shared between runs, experiments and processes.

One SQLite file in WAL mode with one table: a row for each attempt. A row is committed as `in_flight`, with
the most that the attempt can use, before the request goes out, and overwritten with what came back. An
attempt that ended in `Outcome.ERROR` is no answer: the request is sent again. The first answer stands,
whatever another process adds later; `claim` keeps two from paying for the same. With `synchronous=NORMAL` a
commit survives the death of its process; a power cut may take the last ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import itertools
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax.records import Message, Outcome, Reply, Sampling, Usage, from_json, to_json
from orca_jax.teachers.endpoint import Request, request_id

APPLICATION_ID = 0x4F524341  # "ORCA", in the file's header
SCHEMA_VERSION = 3
BUSY_SECONDS = 60.0
KEYS_A_QUERY = 500  # SQLite's oldest limit on variables is 999
RECENT = 60.0  # seconds
IN_FLIGHT = "in_flight"  # the outcome of an attempt that has none yet

SCHEMA = (
    """CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  endpoint TEXT NOT NULL,             -- its identity
  key BLOB NOT NULL,                  -- request_id
  outcome TEXT NOT NULL,              -- of records.Outcome, or in_flight
  answer INTEGER NOT NULL,            -- 1 for the attempt that answers the request, else 0
  prompt_tokens INTEGER NOT NULL,     -- at most, while it is in flight
  completion_tokens INTEGER NOT NULL,
  latency INTEGER NOT NULL,           -- milliseconds
  finished INTEGER NOT NULL,          -- milliseconds since 1970, UTC
  batch INTEGER,                      -- the batch file that it went out with
  sampling TEXT NOT NULL,             -- JSON
  sample INTEGER NOT NULL,
  messages BLOB NOT NULL,             -- compressed JSON, [[role, content], ...]
  text BLOB NOT NULL,                 -- compressed
  raw BLOB                            -- compressed JSON
)""",
    "CREATE INDEX attempts_by_key ON attempts (key, answer)",
    """CREATE INDEX attempts_by_outcome ON attempts
  (endpoint, outcome, answer, prompt_tokens, completion_tokens, finished)""",
)
# Version 2 had tables of settings, requests, attempts, what is sent, and which attempt answers which request.
FROM_VERSION_2 = (
    "DROP TRIGGER count_request",
    "DROP TRIGGER count_answer",
    "DROP TRIGGER count_attempt",
    "ALTER TABLE attempts RENAME TO old_attempts",
    *SCHEMA,
    """INSERT INTO attempts SELECT a.id, endpoint, key, outcome, a.id IS answer, prompt_tokens,
  completion_tokens, latency, finished, NULL, sampling, sample, messages, text, raw
  FROM lookup JOIN requests r ON r.id = lookup.request JOIN settings s ON s.id = r.setting
  JOIN old_attempts a ON a.request = r.id""",
    f"""INSERT INTO attempts SELECT NULL, endpoint, key, '{IN_FLIGHT}', 0, prompt_tokens,
  completion_tokens, 0, started, ticket, sampling, sample, messages, x'', NULL
  FROM sent JOIN lookup USING (request) JOIN requests r ON r.id = request
  JOIN settings s ON s.id = r.setting""",
    *(f"DROP TABLE {name}" for name in ("lookup", "sent", "counts", "old_attempts", "requests", "settings")),
)
_ADVICE = {
    "SQLITE_NOTADB": "it is no ledger: use another path",
    "SQLITE_BUSY": f"another process held it for {BUSY_SECONDS:.0f} s: stop that one, or run again later",
    "SQLITE_FULL": "the disk is full: free some space and run again; what was answered before is safe",
    "SQLITE_CANTOPEN": "check the path and its permissions",
    "SQLITE_READONLY": "a ledger is written to: make the file and its directory writable",
}


NOTHING = Usage()


class LedgerError(RuntimeError):
    """The file cannot serve as a ledger; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """One request put once to an endpoint. `seconds` is its latency, `finished` is Unix time.

    `note` is what `Ledger.note` returned for it, if it was noted before it went out.
    """

    identity: str
    request: Request
    reply: Reply
    seconds: float = 0.0
    finished: float = dataclasses.field(default_factory=time.time)
    note: int | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What stands in the ledger for a request. `created` is ISO 8601 in UTC."""

    reply: Reply
    created: str


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What one endpoint was asked. Usage is the sum over all attempts, failed ones too.

    `in_flight` requests are on their way, or were when their program was killed; they used at most
    `in_flight_usage`, which is not part of `usage`. `recent` attempts ended in the last minute, the last one
    at `last`, in Unix time.
    """

    answers: int = 0
    attempts: Mapping[Outcome, int] = dataclasses.field(default_factory=dict)
    usage: Usage = NOTHING
    in_flight: int = 0
    in_flight_usage: Usage = NOTHING
    recent: int = 0
    recent_usage: Usage = NOTHING
    last: float = 0.0


class Ledger(contextlib.AbstractContextManager["Ledger"]):
    """The ledger at `path`, made if it is not there. A context manager; may pass between threads.

    Raises:
      LedgerError: the directory does not exist, or the file is not a ledger that this program knows.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._claimed: set[str] = set()
        if not self.path.parent.is_dir():
            raise LedgerError(
                f"{path}: the directory {self.path.parent} does not exist; make it or correct the path"
            )
        if self.path.is_dir():
            raise LedgerError(f"{path} is a directory; a ledger is a file: name one in it")
        with self._explained():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def claim(self, identity: str) -> Iterator[None]:
        """Permission to put requests to this endpoint, which one `Ledger` at a time has for each file.

        Reading needs none. The lock, on a file beside the ledger, ends with its process, however that ends.
        Within a claim another one of the same `Ledger` is without effect.

        Raises:
          LedgerError: another process, or another `Ledger` of this one, has it.
        """
        if identity in self._claimed:
            yield
            return
        mark = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        with open(f"{self.path.resolve()}-{mark}.lock", "a+", encoding="utf-8") as lock:
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

    def note(
        self, identity: str, requests: Iterable[tuple[Request, Usage]], batch: int | None = None
    ) -> list[int]:
        """Commits that requests go out now, each of which can use at most so much; returns their notes.

        Those that are noted with this batch already are left out.
        """
        with self._transaction():
            return [
                self._write(Attempt(identity, request, Reply(Outcome.OK, "", bound)), IN_FLIGHT, batch=batch)
                for request, bound in requests
                if batch is None or not self.awaited([request_id(identity, request)], batch)
            ]

    def forget(self, identity: str, batch: int) -> None:
        """Takes back the notes of a batch that did not go out."""
        query = "DELETE FROM attempts WHERE endpoint = ? AND outcome = ? AND batch = ?"
        self._rows(query, identity, IN_FLIGHT, batch)

    def record(self, attempts: Iterable[Attempt]) -> list[Answer]:
        """Commits attempts, all or none, in place of their notes.

        Returns:
          What now stands for each attempt's request: the earliest answer, or, while there is
          none, the attempt's own failure.
        """
        with self._transaction():
            return [self._record(attempt) for attempt in attempts]

    def adopt(self, other: Path, keys: Iterable[bytes]) -> None:
        """Copies another ledger's answers to those of these requests that have none here."""
        Ledger(other).close()  # it is a ledger, and up to date
        columns = ", ".join(row[1] for row in self._rows("PRAGMA table_info(attempts)") if row[1] != "id")
        self._rows("ATTACH ? AS other", str(other))
        try:
            with self._transaction():
                self._connection.executemany(
                    f"INSERT INTO main.attempts ({columns}) SELECT {columns} FROM other.attempts WHERE "
                    "key = ?1 AND answer = 1 AND NOT EXISTS "
                    "(SELECT 1 FROM main.attempts WHERE key = ?1 AND answer = 1)",
                    [(key,) for key in keys],
                )
        finally:
            self._rows("DETACH other")

    def awaited(self, keys: Iterable[bytes], batch: int) -> dict[bytes, tuple[int, Request]]:
        """The notes of those of the requests that went out with this batch and are not recorded yet."""
        query = (
            "SELECT id, sampling, sample, messages FROM attempts WHERE key = ? AND outcome = ? AND batch = ?"
        )
        rows = ((key, row) for key in keys for row in self._rows(query, key, IN_FLIGHT, batch))
        return {key: (note, _request(*request)) for key, (note, *request) in rows}

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Answer]:
        """What stands for each of these requests, by its id: the answer, else what the last attempt was."""
        keys, found = iter(keys), dict[bytes, Answer]()
        while some := list(itertools.islice(keys, KEYS_A_QUERY)):
            query = (
                "SELECT key, outcome, text, prompt_tokens, completion_tokens, raw, finished FROM attempts "
                f"WHERE key IN ({','.join('?' * len(some))}) AND outcome != ? ORDER BY answer, id"
            )
            rows = self._rows(query, *some, IN_FLIGHT)
            found.update((key, Answer(_reply(*reply), _iso(finished))) for key, *reply, finished in rows)
        return found

    def answered(self) -> np.ndarray:
        """The ids of all answered requests, of every endpoint, in their order; `id_array` says its form."""
        with self._explained():
            query = "SELECT key FROM attempts INDEXED BY attempts_by_key WHERE answer = 1"
            return id_array(itertools.chain.from_iterable(self._connection.execute(query + " ORDER BY key")))

    def status(self) -> dict[str, Status]:
        """What was sent so far, by endpoint identity."""
        since = _milliseconds(time.time() - RECENT)
        rows = self._rows(
            "SELECT endpoint, outcome, count(*), sum(answer), sum(prompt_tokens), sum(completion_tokens), "
            "max(finished), sum(finished > ?1), sum((finished > ?1) * prompt_tokens), "
            "sum((finished > ?1) * completion_tokens) FROM attempts GROUP BY endpoint, outcome",
            since,
        )
        found: dict[str, Status] = {}
        for endpoint, outcome, count, answers, prompt, completion, last, *recent in rows:
            known, usage = found.setdefault(endpoint, Status()), Usage(prompt, completion)
            if outcome == IN_FLIGHT:
                found[endpoint] = dataclasses.replace(known, in_flight=count, in_flight_usage=usage)
            else:
                found[endpoint] = dataclasses.replace(
                    known,
                    answers=known.answers + answers,
                    attempts={**known.attempts, Outcome(outcome): count},
                    usage=known.usage + usage,
                    recent=known.recent + recent[0],
                    recent_usage=known.recent_usage + Usage(*recent[1:]),
                    last=max(known.last, last / 1000),
                )
        return found

    def _record(self, attempt: Attempt) -> Answer:
        key, failed = request_id(attempt.identity, attempt.request), attempt.reply.outcome is Outcome.ERROR
        known = self._rows("SELECT 1 FROM attempts WHERE key = ? AND answer = 1", key)
        self._write(attempt, str(attempt.reply.outcome), answers=not known and not failed)
        created = _iso(_milliseconds(attempt.finished))
        return self.get_many([key])[key] if known else Answer(attempt.reply, created)

    def _write(
        self, attempt: Attempt, outcome: str, *, answers: bool = False, batch: int | None = None
    ) -> int:
        """Writes the row of an attempt, in place of its note; returns the row's id."""
        request, reply = attempt.request, attempt.reply
        values = {
            "id": attempt.note,
            "endpoint": attempt.identity,
            "key": request_id(attempt.identity, request),
            "outcome": outcome,
            "answer": answers,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "latency": _milliseconds(attempt.seconds),
            "finished": _milliseconds(attempt.finished),
            "batch": batch,
            "sampling": json.dumps(to_json(request.sampling)),
            "sample": request.sample,
            "messages": _compress(json.dumps([(one.role, one.content) for one in request.messages])),
            "text": _compress(reply.text),
            "raw": _compress(json.dumps(reply.raw, default=str)) if reply.raw else None,
        }
        into = (
            f"INSERT OR REPLACE INTO attempts ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
        )
        return self._connection.execute(into, list(values.values())).lastrowid or 0

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._explained():
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), "")
            raise LedgerError(f"{self.path}: {error}" + (f"; {advice}" if advice else "")) from error

    def _prepare(self) -> None:
        """Makes the table in a blank file, brings an older ledger up to date, and refuses any other file."""
        if self._version() in (0, 2):
            with self._transaction():  # the first of several processes does it
                version = self._version()
                for statement in {0: SCHEMA, 2: FROM_VERSION_2}.get(version, ()):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        deadline = time.monotonic() + BUSY_SECONDS
        while True:  # SQLite itself does not wait where two processes change to WAL at once
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def _version(self) -> int:
        """The schema's version; 0 for a blank file."""
        ((tables,),) = self._rows("SELECT count(*) FROM sqlite_master")
        ((application,),) = self._rows("PRAGMA application_id")
        ((version,),) = self._rows("PRAGMA user_version")
        if not tables and not application:
            return 0
        if application != APPLICATION_ID:
            raise LedgerError(f"{self.path} is an SQLite file but not a ledger; use another path")
        if version not in (2, SCHEMA_VERSION):
            raise LedgerError(
                f"{self.path} is a ledger of version {version}, and this program knows version "
                f"{SCHEMA_VERSION}; use the release that made it, or another path"
            )
        return int(version)


def id_array(ids: Iterable[bytes]) -> np.ndarray:
    """Ids of requests as an array of [n, 2] big-endian uint64."""
    return np.fromiter(ids, "S16").view(">u8").reshape(-1, 2)


def _request(sampling: str, sample: int, messages: bytes) -> Request:
    conversation = tuple(Message(*message) for message in json.loads(_decompress(messages)))
    return Request(conversation, from_json(Sampling, json.loads(sampling)), sample)


def _reply(outcome: str, text: bytes, prompt_tokens: int, completion_tokens: int, raw: bytes | None) -> Reply:
    usage = Usage(prompt_tokens, completion_tokens)
    return Reply(Outcome(outcome), _decompress(text), usage, json.loads(_decompress(raw)) if raw else {})


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
