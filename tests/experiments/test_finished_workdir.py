"""A workdir that an earlier state of the code finished is finished: no program makes any of it again.

`tests/fixtures/finished_workdir.tar.xz` is never made anew, for it shall stay what old code wrote. It is of
this, with the keys and values of `CHANGES`; pictures and TensorBoard's events are left out:

    python -m experiments.run --config=configs/mini.py:runlocal --workdir=WORKDIR --config.KEY=VALUE ...
"""

import json
import tarfile

import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.artifacts import ArtifactError
from orca_jax.config import MeshConfig, load
from orca_jax.configs import mini as mini_file
from orca_jax.data.tokens import TokenStore
from orca_jax.experiments import collect, evaluate, prepare, run, tables, train
from orca_jax.reporting import report
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students

CHANGES = {
    "puzzles.per_family": 15,
    "student.hidden_size": 8,
    "student.intermediate_size": 8,
    "student.num_layers": 1,
    "student.num_heads": 2,
    "student.num_kv_heads": 2,
    "student.head_dim": 4,
    "student.vocab_size": 384,
}


def config(**more):
    made = mini_file.get_config("runlocal")
    made.update_from_flattened_dict({**CHANGES, **more})
    return load(made)


@pytest.fixture
def old(tmp_path, repo):
    with tarfile.open(repo / "tests/fixtures/finished_workdir.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def files(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def work(workdir, **more):
    for program in (collect, prepare, train, evaluate):
        program.run(config(**more), workdir)


def test_every_program_takes_it_for_finished(old):
    before = files(old)
    work(old)
    assert files(old) == before
    run.keep_config(config(), old)
    assert "| Mean of 4       |  12 |   25.0 | 0.0 " in tables.run(config(), old)
    assert report.write(old).stat().st_size > 10_000


def test_the_same_config_makes_the_same_examples_again(old, tmp_path):
    new = tmp_path / "new"
    for program in (collect, prepare):
        program.run(config(), new)
    for teacher in ("apprentice", "expert"):
        traces = [
            [json.loads(line)["messages"] for line in (w / f"traces/{teacher}/traces.jsonl").open()]
            for w in (old, new)
        ]
        assert traces[0] == traces[1]
        stores = [TokenStore(workdir / "tokens" / teacher) for workdir in (old, new)]
        assert len(stores[0]) == len(stores[1])
        for one, other in ((stores[0][i], stores[1][i]) for i in range(len(stores[0]))):
            assert all(np.array_equal(one[key], other[key]) for key in ("tokens", "weights"))


def test_its_student_can_be_read(old):
    source = students.open_source(old)
    params = source.load(source.config, make_mesh(MeshConfig()))
    assert params["embed"]["embedding"].shape == (source.config.vocab_size, 8) == (384, 8)


@pytest.mark.parametrize(
    ("artifact", "key", "other"),
    [
        ("queries", "seed", None),
        ("traces/apprentice", "teacher.share", None),
        ("quality/expert", "filters", None),
        ("tokens/apprentice", "supervise", "last"),
        ("cards/expert", "row_length", None),
        ("training", "layout", None),
        ("training", "student.lora", None),
        ("training", "student.remat", "full"),
        ("training", "curriculum.1.skip_spikes", None),
        ("training", "optimizer.clip_norm", 0.5),
        ("training", "data.segments", "leaking"),
        ("training", "train.accumulation", 2),
        ("evaluation/puzzles-message-1", "evaluation.top_p", 0.9),
    ],
)
def test_a_setting_that_was_none_then_had_its_default(old, artifact, key, other):
    path, (*parents, name) = old / artifact / artifacts.MANIFEST, key.split(".")
    manifest = json.loads(path.read_text())
    part = manifest["made_by"]  # as `provenance` was called
    for parent in parents:
        part = part[int(parent) if parent.isdigit() else parent]
    del part[name]
    path.write_text(json.dumps(manifest))
    before = files(old)
    work(old)
    assert files(old) == before
    if other is not None:
        given = f"data.{key}" if key == "supervise" else key
        with pytest.raises(
            ArtifactError, match=rf"{key}: .* there, {other!r} now \(absent there: the default"
        ):
            work(old, **{given: other})
