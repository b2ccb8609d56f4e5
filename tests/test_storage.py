"""Files of a bucket and their local copies, on fsspec's memory file system."""

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax import artifacts, storage
from orca_jax.storage import RemoteError, Workdir, workdir

RUN = "memory://bucket/run"


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """A machine's folder for copies; and an empty bucket."""
    monkeypatch.setenv(storage.SCRATCH, str(tmp_path / "scratch"))
    storage.local.cache_clear()
    fsspec.filesystem("memory").store.clear()
    yield tmp_path / "scratch"
    storage.local.cache_clear()


def put(address, content="x"):
    with fsspec.open(address, "w") as file:
        file.write(content)


def there(address=RUN):
    """The files below an address, by name, with their contents."""
    files, root = fsspec.filesystem("memory"), address.removeprefix("memory:/")
    return {
        name.removeprefix(f"{root}/"): files.cat(name).decode(errors="replace") for name in files.find(root)
    }


def here(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lose_the_machine(scratch):
    shutil.rmtree(scratch)


def make(folder, content="x", name="data"):
    """An artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    artifacts.Artifact(folder, {"content": content}, {}).finish({})


def checkpoint(run, step, content="x"):
    folder = run / "training/checkpoints" / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state/array").write_text(content)
    (folder / storage.COMMITTED).write_text("committed")


# --- Data


def test_a_local_path_is_itself():
    assert storage.local("a/b*.tsv") == "a/b*.tsv"
    assert storage.source("a/b") == "a/b"


def test_a_file_a_folder_and_a_pattern(scratch):
    for name in ("a.jsonl", "cot/x.tsv", "cot/y.tsv", "cot/deep/z.tsv", "other/x.tsv"):
        put(f"memory://bucket/data/{name}", name)
    file = storage.local("memory://bucket/data/a.jsonl")
    assert Path(file).read_text() == "a.jsonl"
    assert file == str(scratch / "data/memory/bucket/data/a.jsonl")
    assert storage.source(file) == "memory://bucket/data/a.jsonl"
    pattern = storage.local("memory://bucket/data/cot/*.tsv")
    assert pattern.endswith("data/cot/*.tsv")
    assert set(here(scratch / "data/memory/bucket/data")) == {"a.jsonl", "cot/x.tsv", "cot/y.tsv"}
    folder = storage.local("memory://bucket/data/cot/")
    assert set(here(scratch / "data/memory/bucket/data/cot")) == {"x.tsv", "y.tsv", "deep/z.tsv"}
    assert storage.source(folder) == "memory://bucket/data/cot"


def test_data_are_fetched_again_when_they_have_changed_and_only_then(scratch):
    put("memory://bucket/data/a", "old")
    put("memory://bucket/data/b", "same")
    folder = scratch / "data/memory/bucket/data"
    storage.local("memory://bucket/data")
    stamp = (folder / "b").stat().st_mtime_ns
    put("memory://bucket/data/a", "new")
    put("memory://bucket/data/c", "more")
    storage.local("memory://bucket/data")
    assert here(folder)["a"] == "old"  # one version for as long as a program runs
    storage.local.cache_clear()
    storage.local("memory://bucket/data")
    assert here(folder) == {"a": "new", "b": "same", "c": "more"}
    assert (folder / "b").stat().st_mtime_ns == stamp
    fsspec.filesystem("memory").rm("/bucket/data/c")
    storage.local.cache_clear()
    storage.local("memory://bucket/data")
    assert here(folder) == {"a": "new", "b": "same"}


def test_data_that_are_not_there():
    with pytest.raises(FileNotFoundError, match="No such file or directory: 'memory://bucket/none'"):
        storage.local("memory://bucket/none")


@pytest.mark.parametrize(("address", "extra"), [("gs://bucket/x", "gcs"), ("s3://bucket/x", "s3")])
def test_a_missing_library_names_the_extra(address, extra, monkeypatch):
    def missing(protocol):
        raise ImportError(f"no library for {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(RemoteError, match=rf"needs an extra: pip install -e '.\[{extra}\]'"):
        storage.local(address)


def test_an_unknown_protocol_is_named():
    with pytest.raises(RemoteError, match="gz://bucket: ValueError: Protocol not known: gz"):
        storage.local("gz://bucket/x")


def test_a_name_that_would_leave_its_folder_is_refused(monkeypatch):
    fsspec.filesystem("memory").store["/bucket/data/../../x"] = None
    about = {"name": "/bucket/data/../../x", "type": "file", "size": 1}
    copy = storage.Copy("memory://bucket", storage.scratch() / "c")
    with pytest.raises(RemoteError, match="would leave its folder"):
        copy.remote_files({about["name"]: about})


# --- Workdirs


def test_a_local_workdir_is_itself(tmp_path):
    with workdir(tmp_path / "w") as folder:
        assert folder == tmp_path / "w"
    with workdir("w") as folder:
        assert str(folder) == "w"


def test_what_is_made_is_there_and_comes_to_another_machine(scratch):
    with workdir(RUN) as run:
        make(run / "tokens/expert")
        make(run / "traces/expert")
        checkpoint(run, 100)
        (run / "experiment.json").write_text("{}")
        made = here(run)
    assert there() == made
    lose_the_machine(scratch)
    with workdir(RUN) as run:
        assert here(run) == made


def test_what_is_unfinished_goes_on_elsewhere_if_it_can(scratch):
    """Half-made shards, steps and temporary files stay; replies, metrics and the ids of requests travel."""
    with workdir(RUN) as run:
        for name in (
            "tokens/expert/shard",
            "queries/draw-0/part",
            "training/checkpoints/7.orbax-checkpoint-tmp/state/array",
            "training/checkpoints/8/state/array",
            "training/checkpoints/damaged-9/state/array",
            "training/.metrics.jsonl.123.tmp",
            "evaluation/puzzles/replies.jsonl",
            "training/metrics.jsonl",
            "traces/expert/1.keys",
        ):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("x")
    assert set(there()) == {
        "evaluation/puzzles/replies.jsonl",
        "training/metrics.jsonl",
        "traces/expert/1.keys",
    }


def test_nothing_is_moved_twice(scratch, monkeypatch):
    with workdir(RUN) as run:
        make(run / "tokens/expert")
    copy = Workdir(RUN)
    monkeypatch.setattr(type(copy.files), "put_file", None)
    monkeypatch.setattr(type(copy.files), "get_file", None)
    with workdir(RUN) as run:
        assert (run / "tokens/expert/data").exists()


def test_parts(scratch):
    with workdir(RUN) as run:
        make(run / "tokens/expert")
        make(run / "traces/expert")
    lose_the_machine(scratch)
    with workdir(RUN, parts=("tokens", "logs")) as run:
        assert set(here(run)) == {"tokens/expert/data", "tokens/expert/manifest.json"}
        make(run / "evaluation/puzzles")
        (run / "logs").mkdir()
        (run / "logs/host0.log").write_text("log")
    assert "logs/host0.log" in there()
    assert "traces/expert/data" in there()
    assert "evaluation/puzzles/data" not in there()


class CutError(OSError):
    """The network is gone."""


@contextlib.contextmanager
def only(count, name, monkeypatch):
    """Lets so many files pass."""
    files, passed = type(fsspec.filesystem("memory")), []
    whole = getattr(files, name)

    def cut(self, *arguments, **options):
        if len(passed) >= count:
            raise CutError("cut")
        passed.append(arguments)
        return whole(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, name, cut)
        yield


def cut_short(count, monkeypatch, content="x"):
    """Makes an artifact of three files, of which so many, with the manifest, go to the bucket."""

    def work():
        with workdir(RUN) as run:
            for name in ("a", "b", "c"):
                make(run / "tokens/expert", content, name)

    with only(count, "put_file", monkeypatch), pytest.raises(RemoteError, match="CutError"):
        work()


@pytest.mark.parametrize("count", range(4))
def test_an_artifact_that_did_not_go_whole_is_not_taken_for_whole(count, scratch, monkeypatch):
    cut_short(count, monkeypatch)
    assert len(there()) == count
    with workdir(RUN) as run:  # the machine that made it has it, and takes the rest there
        assert artifacts.Artifact(run / "tokens/expert", {"content": "x"}, {}).finished()
    lose_the_machine(scratch)
    with workdir(RUN) as run:
        assert len(here(run)) == 4


@pytest.mark.parametrize("count", range(4))
def test_of_half_an_artifact_nothing_comes_to_another_machine(count, scratch, monkeypatch):
    cut_short(count, monkeypatch)
    lose_the_machine(scratch)
    with workdir(RUN) as run:
        assert here(run) == {}


@pytest.mark.parametrize("count", range(4))
def test_of_an_artifact_half_replaced_nothing_is_taken(count, scratch, monkeypatch):
    cut_short(count, monkeypatch, "old")
    with workdir(RUN):
        assert len(there()) == count
    assert len(there()) == 4
    cut_short(count, monkeypatch, "new")
    lose_the_machine(scratch)
    with workdir(RUN) as run:
        assert here(run) == {}


@pytest.mark.parametrize("count", range(4))
def test_an_artifact_that_did_not_come_whole_comes_again(count, scratch, monkeypatch):
    with workdir(RUN) as run:
        for name in ("a", "b", "c"):
            make(run / "tokens/expert", name=name)
        made = here(run)
    lose_the_machine(scratch)
    with only(count, "get_file", monkeypatch), pytest.raises(RemoteError), workdir(RUN):
        raise AssertionError("nothing is begun")
    assert not list(scratch.rglob("manifest.json"))
    with workdir(RUN) as run:
        assert here(run) == made


def test_of_two_artifacts_the_one_in_the_bucket_counts(scratch, tmp_path, monkeypatch, caplog):
    with workdir(RUN) as run:
        make(run / "tokens/expert", "first")
        (run / "tokens/expert/stale").write_text("x")
    monkeypatch.setenv(storage.SCRATCH, str(tmp_path / "other"))
    with workdir(RUN) as run:
        shutil.rmtree(run / "tokens/expert")
        make(run / "tokens/expert", "second")
    monkeypatch.setenv(storage.SCRATCH, str(scratch))
    with workdir(RUN) as run:
        assert (run / "tokens/expert/data").read_text() == "second"
        assert artifacts.Artifact(run / "tokens/expert", {"content": "second"}, {}).finished()
        assert not (run / "tokens/expert/stale").exists()
    assert "tokens/expert/data is removed: memory://bucket/run/tokens/expert/data is another" in caplog.text
    assert "tokens/expert/stale" not in there()


def test_what_is_written_on_goes_again_and_here_counts_while_the_bucket_stands_still(scratch):
    for line in ("one", "two"):
        with workdir(RUN) as run:
            (run / "training").mkdir(exist_ok=True)
            with open(run / "training/metrics.jsonl", "a") as file:
                file.write(line)
    (run / "training/metrics.jsonl").write_text("onetwothree")  # and killed before it went
    with workdir(RUN) as run:
        assert (run / "training/metrics.jsonl").read_text() == "onetwothree"
    assert there()["training/metrics.jsonl"] == "onetwothree"


def test_checkpoints_are_pruned_alike(scratch):
    with workdir(RUN) as run:
        checkpoint(run, 100)
        checkpoint(run, 200)
    with workdir(RUN) as run:
        shutil.rmtree(run / "training/checkpoints/100")
        checkpoint(run, 300)
    assert {name.split("/")[2] for name in there()} == {"200", "300"}


def test_a_checkpoint_that_was_set_aside_stays_in_the_bucket(scratch):
    with workdir(RUN) as run:
        checkpoint(run, 100)
        checkpoint(run, 200)
    with workdir(RUN) as run:
        os.rename(run / "training/checkpoints/200", run / "training/checkpoints/damaged-200")
    assert {name.split("/")[2] for name in there()} == {"100", "200"}
    with workdir(RUN) as run:
        shutil.rmtree(run / "training/checkpoints/200", ignore_errors=True)
        checkpoint(run, 200, "made again")
    assert there()["training/checkpoints/200/state/array"] == "made again"


def test_an_artifact_that_is_unfinished_again_is_so_in_the_bucket(scratch):
    """As `collect retry` does it."""
    with workdir(RUN) as run:
        make(run / "traces/expert")
    with workdir(RUN) as run:
        (run / "traces/expert/manifest.json").unlink()
    assert set(there()) == {"traces/expert/data"}


def rows(ledger):
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT * FROM answers").fetchall()


def test_a_ledger_goes_whole_while_it_is_written_to(scratch):
    with workdir(RUN) as run:
        open_ = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
        open_.execute("PRAGMA journal_mode = WAL")
        open_.execute("CREATE TABLE answers (text)")
        open_.execute("INSERT INTO answers VALUES ('first')")
    assert set(there()) == {"ledger.sqlite"}
    with workdir(RUN) as run:  # another program; the log of SQLite alone has changed
        open_.execute("INSERT INTO answers VALUES ('second')")
    saved = (run / "ledger.sqlite").parent
    lose = scratch.with_name("lost")
    os.rename(scratch, lose)
    with workdir(RUN) as run:
        assert rows(run / "ledger.sqlite") == [("first",), ("second",)]
        other = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
        other.execute("INSERT INTO answers VALUES ('elsewhere')")
        other.close()
    # Back on the first machine: what its log holds must not be put into the ledger that comes.
    open_.execute("INSERT INTO answers VALUES ('lost')")
    shutil.rmtree(scratch)
    os.rename(lose, scratch)
    with workdir(RUN) as run:
        assert run == saved
        assert rows(run / "ledger.sqlite") == [("first",), ("second",), ("elsewhere",)]
    open_.close()


def test_killed_while_it_was_pushed_a_ledger_here_counts(scratch, monkeypatch):
    """Else answers that were paid for since would be lost to an older copy of the ledger itself."""
    with workdir(RUN) as run:
        (run / "notes.txt").write_text("first")
    (run / "notes.txt").write_text("second")
    copy = Workdir(RUN)
    monkeypatch.setattr(
        copy, "remote_files", lambda: os.abort
    )  # not callable as a mapping: dies after the upload
    with pytest.raises(RemoteError):
        copy.push()
    assert there()["notes.txt"] == "second"
    (run / "notes.txt").write_text("third")
    with workdir(RUN) as run:
        assert (run / "notes.txt").read_text() == "third"
    assert there()["notes.txt"] == "third"


def test_what_is_new_goes_while_the_program_works(monkeypatch):
    monkeypatch.setattr(storage, "INTERVAL", 0.01)
    with workdir(RUN) as run:
        (run / "log.txt").write_text("working")
        for _ in range(1000):
            if there().get("log.txt") == "working":
                break
            storage.time.sleep(0.01)
        assert there()["log.txt"] == "working"


def test_an_error_of_the_work_is_not_hidden_by_one_of_the_bucket(monkeypatch, caplog):
    def work():
        with workdir(RUN) as run:
            (run / "log.txt").write_text("x")
            raise SystemExit(75)

    with only(0, "put_file", monkeypatch), pytest.raises(SystemExit, match="75"):
        work()
    assert "not all is in the bucket" in caplog.text


def test_several_hosts_need_a_bucket_that_orbax_can_write_to():
    with pytest.raises(RemoteError, match="gs:// alone; name a folder on a disk"), workdir(RUN, hosts=True):
        raise AssertionError("nothing is begun")


def test_several_hosts_write_checkpoints_straight_into_the_bucket(monkeypatch, tmp_path):
    put(f"{RUN}/training/checkpoints/100/{storage.COMMITTED}")
    copy = Workdir(RUN, direct=True)
    monkeypatch.setattr(storage, "_open", [copy])
    where = copy.folder / "training/checkpoints"
    assert storage.checkpoints_at(where) == f"{RUN}/training/checkpoints"
    assert storage.checkpoints_at(tmp_path / "training/checkpoints").startswith(str(tmp_path))
    copy.fetch()
    assert not where.exists()
    storage.push_logs_alone()
    make(copy.folder / "tokens/expert")
    copy.push()
    assert "tokens/expert/data" not in there()


NAMES = st.sampled_from(["tokens/a/data", "tokens/a/manifest.json", "training/metrics.jsonl", "table.md"])


@settings(max_examples=30)
@given(changes=st.lists(st.tuples(NAMES, st.none() | st.text("ab", max_size=3), st.booleans()), max_size=6))
def test_after_any_changes_another_machine_sees_what_is_finished_here(changes, tmp_path_factory):
    fsspec.filesystem("memory").store.clear()
    machine = tmp_path_factory.mktemp("machine")
    os.environ[storage.SCRATCH] = str(machine)
    copy = Workdir(RUN)
    for name, content, pushed in changes:
        path = copy.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(json.dumps([content, os.urandom(4).hex()]))
        if pushed:
            copy.push()
    copy.folder.mkdir(parents=True, exist_ok=True)
    copy.push()
    expected = here(copy.folder)
    if "tokens/a/manifest.json" not in expected:
        expected.pop("tokens/a/data", None)
    os.environ[storage.SCRATCH] = str(tmp_path_factory.mktemp("other"))
    with workdir(RUN) as run:
        assert here(run) == expected
