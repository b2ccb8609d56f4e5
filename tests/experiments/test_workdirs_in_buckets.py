"""A workdir, and data, in a bucket: machines come and go, and the run ends as on one disk."""

import dataclasses

import fsspec
import jax
import numpy as np
import pytest

from orca_jax import artifacts, storage
from orca_jax.config_teachers import FlanConfig, TeacherConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import collect, prepare, train
from orca_jax.experiments import run as road
from orca_jax.queries.make import source_files
from orca_jax.teachers.collection import ledger_path
from orca_jax.teachers.ledger import LedgerError
from orca_jax.training import metrics, students
from orca_jax.training.checkpoints import Checkpoints, load_params

pytestmark = pytest.mark.slow
BUCKET = "memory://bucket"
RUN = f"{BUCKET}/run"


class LostError(BaseException):
    """The machine is gone, and nothing more comes from it."""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """`machine()` is a new machine, on which there are no copies yet; and the bucket is empty."""
    names = iter(range(100))

    def new():
        storage.local.cache_clear()
        monkeypatch.setenv(storage.SCRATCH, str(tmp_path / f"machine-{next(names)}"))

    fsspec.filesystem("memory").store.clear()
    new()
    yield new
    storage.local.cache_clear()


def assert_same(workdir, finished):
    """The tables, and the students bit for bit; each step was recorded once."""
    assert (workdir / "table.md").read_text() == (finished / "table.md").read_text()
    (step, mine), (last, theirs) = (load_params(w / "training/checkpoints") for w in (workdir, finished))
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    rows = metrics.read(workdir / "training" / metrics.FILE)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, last + 1))


@pytest.mark.proof
def test_every_program_on_another_machine(finished, mini, machine):
    for program in road.PROGRAMS:
        machine()
        with storage.workdir(RUN) as workdir:
            program.run(mini(), workdir)
    machine()
    with storage.workdir(RUN) as workdir:
        assert_same(workdir, finished)


@pytest.mark.proof
def test_a_machine_that_is_lost_while_it_trains(finished, mini, machine, monkeypatch, caplog):
    fsspec.filesystem("memory").put(f"{finished}/", RUN, recursive=True)
    for part in ("training", "evaluation", "table.md"):
        fsspec.filesystem("memory").rm(f"{RUN}/{part}", recursive=True)
    save = Checkpoints.save

    def lose(self, step, *arguments):
        if step == 5:
            raise LostError
        save(self, step, *arguments)
        self.wait()
        if step == 3:
            storage._open[0].push()  # as it is done every minute

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lose)
        patch.setattr(storage.Workdir, "_try_to_push", lambda self: None)
        with pytest.raises(LostError):
            road.run(mini(), RUN)
    machine()
    caplog.set_level("INFO")
    assert road.run(mini(), RUN) == (finished / "table.md").read_text()
    assert "resuming at step 3 of 6" in caplog.text
    with storage.workdir(RUN) as workdir:
        assert_same(workdir, finished)
        mine, theirs = ({path.name for path in w.glob("training/checkpoints/*")} for w in (workdir, finished))
        assert mine == theirs
    files = fsspec.filesystem("memory").find("/bucket/run/training/checkpoints")
    assert {name.split("/")[5] for name in files} == theirs


def test_run_again_it_does_nothing(finished, mini, machine):
    fsspec.filesystem("memory").put(f"{finished}/", RUN, recursive=True)
    before = fsspec.filesystem("memory").find("/bucket/run", detail=True)
    road.run(mini(), RUN)
    after = fsspec.filesystem("memory").find("/bucket/run", detail=True)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name.rpartition("/")[0] for name in changed} == {"/bucket/run"}  # what is shown, and no artifact


@pytest.mark.proof
def test_data_of_all_kinds(finished, mini, machine, tmp_path):
    """Manifests say the same on all machines, wherever their copies lie."""
    files = fsspec.filesystem("memory")
    files.put(f"{finished}/", f"{BUCKET}/finished", recursive=True)
    files.put(str(finished / "traces/expert/traces.jsonl"), f"{BUCKET}/expert.jsonl")
    files.pipe("/bucket/flan/cot/a.tsv", b"question\tanswer\treason\n")
    config = mini(**{"data.validation_fraction": 0.0})
    teacher = TeacherConfig(name="expert", kind="file", path=f"{BUCKET}/expert.jsonl")
    student = dataclasses.replace(config.student, init=f"{BUCKET}/finished", vocab_size=0)
    config = dataclasses.replace(
        config, teachers=(teacher,), student=student, curriculum=config.curriculum[1:]
    )
    for program in (collect, prepare, train):
        machine()
        with storage.workdir(RUN) as workdir:
            program.run(config, workdir)
    with storage.workdir(RUN) as workdir:
        assert artifacts.read_manifest(workdir / "tokenizer")["provenance"]["source"] == (
            f"{BUCKET}/finished/tokenizer"
        )
        found = artifacts.read_manifest(workdir / "training")["inputs"]["init"]
    assert found == students.open_source(finished).fingerprint
    assert tokenizers.load(f"{BUCKET}/finished/tokenizer").vocab_size == 512
    sources = source_files(FlanConfig(sources={"cot": f"{BUCKET}/flan/*/*.tsv"}))
    assert [path.name for path in sources["cot"]] == ["a.tsv"]
    with pytest.raises(LedgerError, match="leave it empty for one in the workdir"):
        ledger_path(tmp_path, f"{BUCKET}/ledger.sqlite")
