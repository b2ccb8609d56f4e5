"""The ledger keeps what it was given, whoever else writes to it and whatever is killed."""

import concurrent.futures
import contextlib
import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.teachers import ledger as ledger_file
from orca_jax.teachers.endpoint import Request, request_id
from orca_jax.teachers.ledger import APPLICATION_ID, Attempt, Ledger, LedgerError
from tests.teachers.tried import answer, tried

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = st.text(max_size=30)
REPLIES = st.builds(
    Reply,
    st.sampled_from(Outcome),
    TEXT,
    st.builds(Usage, st.integers(0, 99), st.integers(0, 99)),
    st.dictionaries(TEXT, st.none() | st.integers(0, 9) | TEXT, max_size=2),
)


def request(text="Why?", **changes):
    return Request((Message("system", ""), Message("user", text)), **changes)


def attempt(text="Why?", answer="So.", outcome=Outcome.OK, **changes):
    return Attempt("teacher", request(text), Reply(outcome, answer, Usage(3, 4)), **changes)


def key(text="Why?"):
    return request_id("teacher", request(text))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


class TestRecords:
    def test_another_hosts_answers_are_adopted_where_there_is_none(self, ledger, tmp_path):
        path = tmp_path / "ledger-2-of-2.sqlite"
        with Ledger(path) as other:
            other.record([attempt("Why?", "Theirs."), attempt("How?", "Theirs."), attempt("Who?", "Theirs.")])
            other.record([attempt("When?", outcome=Outcome.ERROR)])
        ledger.record([attempt("Why?", "Ours."), attempt("How?", outcome=Outcome.ERROR)])
        for _ in range(2):
            ledger.adopt(path, map(key, ("Why?", "How?", "When?")))
        found = ledger.get_many(map(key, ("Why?", "How?", "Who?", "When?")))
        assert {id_: answer.reply.text for id_, answer in found.items()} == {
            key("Why?"): "Ours.", key("How?"): "Theirs."
        }  # fmt: skip
        assert len(ledger.answered()) == 2

    @settings(max_examples=15, deadline=None)
    @given(replies=st.lists(REPLIES, min_size=1, max_size=4), sampling=st.builds(Sampling, st.floats(0, 2)))
    def test_everything_comes_back(self, replies, sampling):
        asked = request("Was heißt\ud83d das?", sampling=sampling, sample=2)
        attempts = [Attempt("teacher", asked, reply, 1.25, 1e9 + n) for n, reply in enumerate(replies)]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "ledger"
            with Ledger(path) as ledger:
                reported = [ledger.record([attempt])[0] for attempt in attempts]
            with Ledger(path) as ledger:
                stored = answer(ledger, request_id("teacher", asked))
                assert tried(ledger, request_id("teacher", asked)) == attempts
        answers = [reply for reply in replies if reply.outcome is not Outcome.ERROR]
        assert (stored and stored.reply) == (answers[0] if answers else None)
        assert reported[-1].reply == (answers[0] if answers else replies[-1])

    def test_an_error_is_no_answer(self, ledger):
        failed = ledger.record([attempt(answer="", outcome=Outcome.ERROR)])
        assert failed[0].reply.outcome is Outcome.ERROR
        assert answer(ledger, key()) is None
        ledger.record([attempt()])
        assert answer(ledger, key()).reply.text == "So."
        assert [one.reply.outcome for one in tried(ledger, key())] == [Outcome.ERROR, Outcome.OK]

    @pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.ERROR}))
    def test_any_other_outcome_is(self, ledger, outcome):
        ledger.record([attempt(outcome=outcome)])
        assert answer(ledger, key()).reply.outcome is outcome

    def test_the_first_answer_stands(self, ledger):
        ledger.record([attempt(answer="first")])
        for late in (attempt(answer="second"), attempt(answer="", outcome=Outcome.ERROR)):
            assert ledger.record([late])[0].reply.text == "first"
        assert answer(ledger, key()).reply.text == "first"
        assert len(tried(ledger, key())) == 3

    def test_get_many(self, ledger):
        ledger.record([attempt(str(number), f"answer {number}") for number in range(0, 3000, 2)])
        answers = ledger.get_many(key(str(number)) for number in range(3000))
        expected = {key(str(number)): f"answer {number}" for number in range(0, 3000, 2)}
        assert {id: answer.reply.text for id, answer in answers.items()} == expected

    def test_created_is_when_it_came(self, ledger):
        ledger.record([attempt(finished=1_685_962_800.25)])
        assert answer(ledger, key()).created == "2023-06-05T11:00:00.250Z"

    def test_endpoints_and_samples_are_apart(self, ledger):
        ledger.record([attempt()])
        assert answer(ledger, request_id("another", request())) is None
        assert answer(ledger, request_id("teacher", request(sample=1))) is None

    def test_a_batch_is_all_or_nothing(self, ledger):
        def attempts():
            yield attempt("a")
            yield Attempt("teacher", request("b"), Reply(Outcome.OK, "b", Usage(None, 0)))

        with pytest.raises(LedgerError, match=r"ledger\.sqlite: NOT NULL constraint"):
            ledger.record(attempts())
        assert answer(ledger, key("a")) is None
        assert ledger.status() == {}
        ledger.record([attempt("a")])
        assert answer(ledger, key("a")).reply.text == "So."

    def test_many_samplings(self, ledger):
        asked = [request(sampling=Sampling(seed=seed)) for seed in range(1100)]
        ledger.record(
            [Attempt("teacher", one, Reply(Outcome.OK, str(one.sampling.seed))) for one in asked * 2]
        )
        (last,) = tried(ledger, request_id("teacher", asked[3]))[:1]
        assert (last.request, last.reply.text) == (asked[3], "3")


class TestStatus:
    def test_counts(self, ledger):
        ledger.record([attempt("a", seconds=0.5), attempt("b", outcome=Outcome.ERROR, seconds=1.5)])
        ledger.record([attempt("b"), attempt("b"), attempt("c", outcome=Outcome.ERROR)])
        ledger.record(
            [Attempt("judge", request(sampling=Sampling(seed=n)), Reply(Outcome.LENGTH, "")) for n in (1, 2)]
        )
        status = ledger.status()
        assert list(status) == ["judge", "teacher"]
        assert status["teacher"].answers == 2
        assert status["teacher"].attempts == {Outcome.OK: 3, Outcome.ERROR: 2}
        assert status["teacher"].usage == Usage(15, 20)
        assert status["judge"].attempts == {Outcome.LENGTH: 2}

    def test_recent(self, ledger):
        now = time.time()
        ledger.record([attempt("old", finished=now - 100), attempt("a", finished=now - 20)])
        ledger.record(
            [attempt("b", finished=now - 10), attempt("c", outcome=Outcome.ERROR, finished=now - 5)]
        )
        ledger.record([Attempt("other", request(), Reply(Outcome.OK, ""), finished=now - 90)])
        status = ledger.status()
        assert (status["teacher"].recent, status["teacher"].recent_usage) == (3, Usage(9, 12))
        assert status["teacher"].last == pytest.approx(now - 5, abs=0.01)
        assert (status["other"].recent, status["other"].last) == (0, pytest.approx(now - 90, abs=0.01))

    def test_the_last_failure(self, ledger):
        ledger.record([attempt("b", text, Outcome.ERROR) for text in ("first", "last")])
        ledger.note("teacher", [(request("b"), Usage(9, 9))])
        (stands,) = ledger.get_many([key("b"), key("never")]).values()
        assert (stands.reply.text, stands.created[-1], answer(ledger, key("b"))) == ("last", "Z", None)

    def test_the_file_is_smaller_than_twice_its_texts(self, ledger):
        texts = [f"{number}: " + f"step {number * 7919} gives {number * 31}; " * 12 for number in range(2000)]
        ledger.record([attempt(text, text[::-1]) for text in texts])
        ledger.close()
        assert os.path.getsize(ledger.path) < 2 * sum(2 * len(text) for text in texts)


class TestNotes:
    def test_count_until_they_are_recorded(self, ledger):
        bound = Usage(30, 40)
        notes = ledger.note("teacher", [(request(text), bound) for text in ("a", "b", "b")])
        status = ledger.status()["teacher"]
        assert (status.in_flight, status.in_flight_usage) == (3, Usage(90, 120))
        assert (status.answers, status.attempts) == (0, {})
        ledger.record([attempt("a", note=notes[0]), attempt("b", note=notes[1])])
        status = ledger.status()["teacher"]
        assert (status.in_flight, status.in_flight_usage, status.answers) == (1, bound, 2)
        ledger.record([attempt("b")])
        assert ledger.status()["teacher"].in_flight == 1  # another attempt than the one that is lost

    def test_of_a_batch(self, ledger):
        numbers = list(map(str, range(50)))
        for _ in range(2):
            ledger.note("teacher", [(request(number), Usage(1, 2)) for number in numbers], 7)
        status = ledger.status()["teacher"]
        assert (status.in_flight, status.in_flight_usage) == (50, Usage(50, 100))
        awaited = ledger.awaited(map(key, numbers), 7)
        assert [awaited[key(number)][1] for number in numbers] == list(map(request, numbers))
        ledger.record(attempt(number, note=awaited[key(number)][0]) for number in numbers[:30])
        assert ledger.status()["teacher"].in_flight == 20
        assert ledger.awaited(map(key, numbers), 7).keys() == set(map(key, numbers[30:]))
        assert ledger.awaited(map(key, numbers), 8) == {}

    def test_a_request_comes_back_whole(self, ledger):
        asked = request("Was heißt\ud83d das?", sampling=Sampling(0.7, stop=("x",), seed=3), sample=2)
        (note,) = ledger.note("teacher", [(asked, Usage())], batch=1)
        sent = request_id("teacher", asked)
        assert ledger.awaited([sent], 1) == {sent: (note, asked)}

    def test_answered(self, ledger):
        ledger.record([attempt(str(number)) for number in range(20)])
        ledger.record([attempt("failed", outcome=Outcome.ERROR)])
        ledger.note("teacher", [(request("sent"), Usage())])
        assert {one.tobytes() for one in ledger.answered()} == {key(str(number)) for number in range(20)}


class TestFiles:
    def test_one_of_version_2_is_brought_up_to_date(self, tmp_path):
        with tarfile.open(REPOSITORY / "tests/fixtures/finished_workdir.tar.xz") as archive:
            archive.extract("./ledger.sqlite", tmp_path, filter="data")
        path = tmp_path / "ledger.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            old = connection.execute(
                "SELECT key, text FROM lookup JOIN attempts ON attempts.id = answer ORDER BY key"
            ).fetchall()
            (lost, failed), setting = [key for key, _ in old[:2]], 1
            number = "(SELECT request FROM lookup WHERE key = ?)"
            connection.execute(f"INSERT INTO sent VALUES ({number}, 9, {setting}, 30, 40, 5)", [lost])
            connection.execute("UPDATE lookup SET answer = NULL WHERE key = ?", [failed])
            connection.execute(f"UPDATE attempts SET outcome = 'error' WHERE request = {number}", [failed])
            connection.commit()
        for _ in range(2):
            with Ledger(path) as ledger:
                found = ledger.get_many(key for key, _ in old)
                assert {one.tobytes() for one in ledger.answered()} == {key for key, _ in old} - {failed}
                assert found.keys() == {key for key, _ in old}
                texts = {key: zlib.decompress(text).decode() for key, text in old}
                assert all(answer.reply.text == texts[key] for key, answer in found.items())
                assert found[failed].reply.outcome is Outcome.ERROR
                status = ledger.status().values()
                assert sum(one.answers for one in status) == len(old) - 1
                assert [one.in_flight_usage for one in status if one.in_flight] == [Usage(30, 40)]
                assert ledger.awaited([lost], 9).keys() == {lost}

    def test_no_directory(self, tmp_path):
        with pytest.raises(LedgerError, match=r"l\.sqlite: the directory .*no does not exist; make it"):
            Ledger(tmp_path / "no" / "l.sqlite")

    def test_a_directory(self, tmp_path):
        with pytest.raises(LedgerError, match="is a directory; a ledger is a file"):
            Ledger(tmp_path)

    @pytest.mark.parametrize("content", [b"hello", b"SQLite format 3\x00" + bytes(50), b"{}\n" * 500])
    def test_no_database(self, tmp_path, content):
        path = tmp_path / "l.sqlite"
        path.write_bytes(content)
        with pytest.raises(LedgerError, match=f"{path}: .*use another path"):
            Ledger(path)
        assert path.read_bytes() == content

    def test_another_database(self, tmp_path):
        path = tmp_path / "l.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE precious (x)")
        before = path.read_bytes()
        with pytest.raises(LedgerError, match=f"{path} is an SQLite file but not a ledger"):
            Ledger(path)
        assert path.read_bytes() == before

    def test_another_version(self, tmp_path):
        path = tmp_path / "l.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 99")
        with pytest.raises(LedgerError, match=r"ledger of version 99, and this program knows version 3"):
            Ledger(path)

    def test_one_whose_making_was_interrupted_is_made_anew(self, tmp_path, monkeypatch):
        path = tmp_path / "l.sqlite"
        monkeypatch.setattr(ledger_file, "SCHEMA", (*ledger_file.SCHEMA, "CREATE TABLE attempts (id)"))
        with pytest.raises(LedgerError, match="already exists"):
            Ledger(path)
        monkeypatch.undo()
        with Ledger(path) as ledger:
            ledger.record([attempt()])
            assert answer(ledger, key()) is not None

    def test_an_empty_file_becomes_one(self, tmp_path):
        path = tmp_path / "l.sqlite"
        path.touch()
        with Ledger(path) as ledger:
            ledger.record([attempt()])
            assert answer(ledger, key()) is not None

    def test_after_closing(self, ledger):
        ledger.close()
        with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*closed"):
            answer(ledger, key())

    def test_a_full_disk(self, ledger):
        ledger.record([attempt("kept")])
        (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="disk is full: free some space"):
            ledger.record([attempt(str(number), os.urandom(3000).hex()) for number in range(20)])
        assert answer(ledger, key("kept")) is not None


WRITER = """
import sys
from orca_jax.teachers.ledger import Attempt, Ledger
from orca_jax.teachers.endpoint import Request
from orca_jax.records import Message, Outcome, Reply
path, name = sys.argv[1:]
with Ledger(path) as ledger:
    for number in range(60):
        request = Request((Message("user", str(number)),))
        ledger.record([Attempt("teacher", request, Reply(Outcome.OK, name + str(number)))])
"""


def test_several_processes_open_and_write_at_once(tmp_path):
    path = tmp_path / "l.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], cwd=REPOSITORY, stderr=subprocess.PIPE) for name in "abcd"]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    with Ledger(path) as ledger:
        status = ledger.status()["teacher"]
    assert (status.answers, status.attempts) == (60, {Outcome.OK: 240})


def test_a_new_ledger_may_be_opened_by_several_at_once(tmp_path):
    def open_and_close(path, barrier):
        barrier.wait()
        with Ledger(path) as ledger:
            return ledger.status()

    barrier = threading.Barrier(6)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for number in range(10):
            opened = [pool.submit(open_and_close, tmp_path / f"{number}.sqlite", barrier) for _ in range(6)]
            assert [one.result() for one in opened] == [{}] * 6
