"""The crash-safe record of every request, shared between runs, experiments and processes.

One SQLite file in WAL mode. What was asked (`requests`) and what came back (`attempts`) are only
appended, with their texts compressed; `lookup` is a compact tree from request id to the attempt
that answers it, so a resume reads no texts; triggers keep the counts, so `status` reads no rows.
An attempt that ended in `Outcome.ERROR` is no answer: the request will be asked again. The first
answer stands, whatever another process adds later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orca_jax.asking.endpoint import Request, request_id
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage, from_json, to_json

APPLICATION_ID = 0x4F524341  # "ORCA", in the file's header
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
KEYS_A_QUERY = 500  # SQLite's oldest limit on variables is 999
CACHED_SETTINGS = 1024

SCHEMA = """
CREATE TABLE settings (      -- who was asked, and how
  id INTEGER PRIMARY KEY,
  endpoint TEXT NOT NULL,
  sampling TEXT NOT NULL,                       -- JSON
  requests INTEGER NOT NULL DEFAULT 0,
  answers INTEGER NOT NULL DEFAULT 0,
  UNIQUE (endpoint, sampling)
);
CREATE TABLE requests (      -- what was asked
  id INTEGER PRIMARY KEY,
  setting INTEGER NOT NULL REFERENCES settings,
  sample INTEGER NOT NULL,
  messages BLOB NOT NULL                        -- compressed JSON, [[role, content], ...]
);
CREATE TABLE attempts (      -- what came back
  id INTEGER PRIMARY KEY,
  request INTEGER NOT NULL REFERENCES requests,
  outcome TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  latency INTEGER NOT NULL,                     -- milliseconds
  finished INTEGER NOT NULL,                    -- milliseconds since 1970, UTC
  text BLOB NOT NULL,                           -- compressed
  raw BLOB                                      -- compressed JSON
);
CREATE INDEX attempts_of_request ON attempts (request);
CREATE TABLE lookup (
  key BLOB PRIMARY KEY,                         -- request_id
  request INTEGER NOT NULL REFERENCES requests,
  answer INTEGER REFERENCES attempts            -- null until there is one
) WITHOUT ROWID;
CREATE TABLE counts (
  setting INTEGER NOT NULL REFERENCES settings,
  outcome TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  latency INTEGER NOT NULL,
  PRIMARY KEY (setting, outcome)
) WITHOUT ROWID;
CREATE TRIGGER count_request AFTER INSERT ON requests BEGIN
  UPDATE settings SET requests = requests + 1 WHERE id = NEW.setting;
END;
CREATE TRIGGER count_answer AFTER UPDATE OF answer ON lookup BEGIN
  UPDATE settings SET answers = answers + 1
  WHERE id = (SELECT setting FROM requests WHERE id = NEW.request);
END;
CREATE TRIGGER count_attempt AFTER INSERT ON attempts BEGIN
  INSERT INTO counts VALUES (
    (SELECT setting FROM requests WHERE id = NEW.request),
    NEW.outcome, 1, NEW.prompt_tokens, NEW.completion_tokens, NEW.latency
  ) ON CONFLICT DO UPDATE SET
    attempts = attempts + 1,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    latency = latency + excluded.latency;
END;
"""

_REPLY_COLUMNS = "outcome, text, prompt_tokens, completion_tokens, raw, finished"


class LedgerError(RuntimeError):
    """The file cannot serve as a ledger; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """One request put once to an endpoint. `seconds` is its latency, `finished` is Unix time."""

    identity: str
    request: Request
    reply: Reply
    seconds: float = 0.0
    finished: float = dataclasses.field(default_factory=time.time)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What stands in the ledger for a request. `created` is ISO 8601 in UTC."""

    reply: Reply
    created: str


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What one endpoint was asked. Usage and latency are sums over all attempts, failed ones too."""

    requests: int
    answers: int
    attempts: dict[Outcome, int]
    usage: Usage
    seconds: float


class Ledger:
    """The ledger at `path`, made if it is not there. A context manager; may pass between threads.

    Raises:
      LedgerError: the directory does not exist, or the file is not a ledger of this version.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._settings: dict[tuple[str, Sampling], int] = {}
        self._connection = _open(self.path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

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
        """What was asked so far, by endpoint identity."""
        totals = self._rows(
            "SELECT endpoint, sum(requests), sum(answers) FROM settings GROUP BY endpoint ORDER BY endpoint"
        )
        counts = self._rows(
            "SELECT endpoint, outcome, sum(attempts), sum(prompt_tokens), sum(completion_tokens), "
            "sum(latency) FROM counts JOIN settings ON settings.id = setting GROUP BY endpoint, outcome"
        )
        return {
            identity: _status(requests, answers, [row[1:] for row in counts if row[0] == identity])
            for identity, requests, answers in totals
        }

    def _record(self, attempt: Attempt) -> Answer:
        key = request_id(attempt.identity, attempt.request)
        known = self._connection.execute("SELECT request, answer FROM lookup WHERE key = ?", [key]).fetchone()
        request, answer = known or (self._add_request(key, attempt), None)
        added = self._add_attempt(request, attempt)
        if answer is not None:
            return self.get_many([key])[key]
        if attempt.reply.outcome is not Outcome.ERROR:
            self._connection.execute("UPDATE lookup SET answer = ? WHERE key = ?", [added, key])
        return Answer(attempt.reply, _iso(_milliseconds(attempt.finished)))

    def _add_request(self, key: bytes, attempt: Attempt) -> int:
        request = attempt.request
        messages = _compress(json.dumps([(message.role, message.content) for message in request.messages]))
        added = self._insert(
            "INSERT INTO requests (setting, sample, messages) VALUES (?, ?, ?)",
            [self._setting(attempt.identity, request.sampling), request.sample, messages],
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
        found = self._rows("SELECT id FROM settings WHERE endpoint = ? AND sampling = ?", values)[0][0]
        if len(self._settings) >= CACHED_SETTINGS:
            self._settings.clear()
        self._settings[identity, sampling] = found
        return found

    def _insert(self, statement: str, values: list[Any]) -> int:
        return self._connection.execute(statement, values).lastrowid or 0

    def _rows(self, query: str, values: list[Any] | None = None) -> list[Any]:
        with _explained(self.path):
            return self._connection.execute(query, values or []).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._settings.clear()  # ids given in this transaction are void
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _open(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: the directory {path.parent} does not exist; make it or correct the path")
    if path.is_dir():
        raise LedgerError(f"{path} is a directory; a ledger is a file: name one in it")
    with _explained(path):
        connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables in a blank file, and refuses a file that something else made."""
    if _is_blank(connection):
        _make_tables(connection)
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if application != APPLICATION_ID:
        raise LedgerError(f"{path} is an SQLite file but not a ledger; use another path")
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} is a ledger of version {version}, and this program knows version {SCHEMA_VERSION}; "
            "use the release that made it, or another path"
        )
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # an answer survives a power cut too


def _use_wal(connection: sqlite3.Connection) -> None:
    """Changes a new ledger to WAL; SQLite itself does not wait where two processes change it at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Makes all or nothing; where several processes open a new ledger, the first one makes it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _is_blank(connection):
            for statement in _statements(SCHEMA):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        connection.execute("COMMIT")


def _is_blank(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not _pragma(connection, "application_id")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_ADVICE = {
    "SQLITE_NOTADB": "it is no ledger: use another path",
    "SQLITE_BUSY": f"another process held it for {BUSY_SECONDS:.0f} s: stop that one, or run again later",
    "SQLITE_FULL": "the disk is full: free some space and run again; what was answered before is safe",
    "SQLITE_CANTOPEN": "check the path and its permissions",
    "SQLITE_READONLY": "a ledger is written to: make the file and its directory writable",
}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), "")
        raise LedgerError(f"{path}: {error}" + (f"; {advice}" if advice else "")) from error


def _request(sampling: str, sample: int, messages: bytes) -> Request:
    conversation = tuple(Message(*message) for message in json.loads(_decompress(messages)))
    return Request(conversation, from_json(Sampling, json.loads(sampling)), sample)


def _reply(outcome: str, text: bytes, prompt_tokens: int, completion_tokens: int, raw: bytes | None) -> Reply:
    usage = Usage(prompt_tokens, completion_tokens)
    return Reply(Outcome(outcome), _decompress(text), usage, json.loads(_decompress(raw)) if raw else {})


def _status(requests: int, answers: int, counts: list[Any]) -> Status:
    return Status(
        requests=requests,
        answers=answers,
        attempts={Outcome(outcome): attempts for outcome, attempts, *_ in counts},
        usage=Usage(sum(row[2] for row in counts), sum(row[3] for row in counts)),
        seconds=sum(row[4] for row in counts) / 1000,
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
