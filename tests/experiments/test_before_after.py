"""configs/smollm2.py on a student of two layers: evaluated, tuned with LoRA, evaluated again, exported."""

import importlib.util
import re
import shutil

import numpy as np
import pytest

from orca_jax.config import MeshConfig, load
from orca_jax.configs import smollm2
from orca_jax.experiments import convert, evaluate
from orca_jax.experiments import run as road
from orca_jax.reporting import arms, run_tables
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students

FORM = "gguf" if importlib.util.find_spec("gguf") else "huggingface"
NAME = f"puzzles-message-{smollm2.STEP_BY_STEP}"


@pytest.fixture(scope="module")
def released(finished, tmp_path_factory):
    """A student with its tokenizer and template, as a GGUF file where the extra is there."""
    out = tmp_path_factory.mktemp("released") / "model"
    convert.export_student(finished, out, form=FORM)
    return out


@pytest.fixture(scope="module")
def config(released):
    config = smollm2.get_config(f"init={released},runlocal")
    config.train.batch_rows = 8  # for the tests' eight devices
    return load(config)


@pytest.fixture(scope="module")
def tuned(config, released, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "workdir"
    evaluate.run(config, workdir, evaluate.Options(model=str(released)))
    road.run(config, workdir)
    return workdir


def sides(workdir):
    (before,) = (workdir / "evaluation").glob(f"model-*/{NAME}")
    return before, workdir / "evaluation" / NAME


def test_the_table_has_the_student_before_and_after(tuned):
    text = (tuned / "table.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if line.startswith("| Family"))
    expected = ["Family", "n", "Chance"]
    for when in ("before", "after"):
        expected += [f"{when}, step by step", f"unparsed, {when}, step by step"]
    assert [column.strip() for column in header.strip("|").split("|")] == expected
    assert arms.compare_folders(*sides(tuned), ("before", "after")).strip() in text
    assert re.search(r"n = 9, one seed, McNemar p = ", text)


def test_only_adapters_were_trained_and_they_are_in_what_is_exported(tuned, released, tmp_path):
    convert.export_student(tuned, tmp_path / "out", form=FORM)
    before, after = (students.open_source(path) for path in (released, tmp_path / "out"))
    assert before.config == after.config
    trees = [one.load(one.config, make_mesh(MeshConfig())) for one in (before, after)]
    embeddings = [np.asarray(tree["embed"]["embedding"]) for tree in trees]
    np.testing.assert_array_equal(*embeddings)
    kernels = [np.asarray(tree["layers"]["attention"]["query"]["kernel"]) for tree in trees]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 1


def test_run_again_it_does_nothing(tuned, config, released):
    made = {path: path.stat().st_mtime_ns for path in tuned.glob("evaluation/**/*")}
    evaluate.run(config, tuned, evaluate.Options(model=str(released)))
    assert road.run(config, tuned) == (tuned / "table.md").read_text(encoding="utf-8")
    assert {path: path.stat().st_mtime_ns for path in tuned.glob("evaluation/**/*")} == made


def test_another_model_is_not_the_student_before(tuned, config, finished):
    text = run_tables.render(config, tuned)
    evaluate.run(config, tuned, evaluate.Options(model=str(finished)))
    assert run_tables.render(config, tuned) == text


def test_without_the_first_evaluation_the_table_is_the_students_own(tuned, config, tmp_path):
    workdir = shutil.copytree(tuned, tmp_path / "workdir")
    shutil.rmtree(sides(workdir)[0].parent)
    assert "before" not in run_tables.render(config, workdir)
