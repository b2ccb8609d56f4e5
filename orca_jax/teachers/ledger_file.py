"""A ledger's file: its tables, how it is opened or made, and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

APPLICATION_ID = 0x4F524341  # "ORCA", in the file's header
SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0

SCHEMA = """
CREATE TABLE sent (          -- on its way, or lost when its program was killed
  request INTEGER NOT NULL REFERENCES requests,
  ticket INTEGER NOT NULL,
  setting INTEGER NOT NULL REFERENCES settings,
  prompt_tokens INTEGER NOT NULL,               -- at most
  completion_tokens INTEGER NOT NULL,
  started INTEGER NOT NULL,                     -- milliseconds since 1970, UTC
  PRIMARY KEY (request, ticket)
) WITHOUT ROWID;
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


class LedgerError(RuntimeError):
    """The file cannot serve as a ledger; the message names it and says what to do."""


def open_ledger(path: Path) -> sqlite3.Connection:
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: the directory {path.parent} does not exist; make it or correct the path")
    if path.is_dir():
        raise LedgerError(f"{path} is a directory; a ledger is a file: name one in it")
    with explained(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
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
    with connection:
        if _is_blank(connection):
            for statement in _statements(SCHEMA):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _is_blank(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not _pragma(connection, "application_id")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


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
def explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), "")
        raise LedgerError(f"{path}: {error}" + (f"; {advice}" if advice else "")) from error
