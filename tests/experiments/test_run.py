"""The whole road: run twice it does nothing, killed and run again it comes to the same end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.config import load
from orca_jax.configs import openorca
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.experiments import collect, prepare, train
from orca_jax.experiments import run as road
from orca_jax.queries import puzzles
from orca_jax.reporting import report
from orca_jax.reporting.report_sources import Run, config_of
from orca_jax.training import metrics
from orca_jax.training import run as training
from orca_jax.training.checkpoints import load_params

ROAD = (
    "queries",
    *(f"traces/{name}" for name in ("apprentice", "expert")),
    "tokenizer",
    *(f"tokens/{name}" for name in ("apprentice", "expert", "validation")),
    "training",
    *(f"evaluation/puzzles-message-{message}" for message in (1, 7)),
)


def stamps(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def stages(steps):
    return [
        dict(name=name, datasets={name: 1.0}, steps=steps, learning_rate=1e-3, warmup_steps=1)
        for name in ("apprentice", "expert")
    ]


def store_bytes(workdir):
    """All that the stores are, by file; a kill may leave a temporary file behind."""
    files = [f for f in (workdir / "tokens").rglob("*") if f.is_file() and f.suffix not in (".json", ".tmp")]
    return {str(f.relative_to(workdir)): f.read_bytes() for f in files}


def assert_same(workdir, finished):
    """Tokens, student and table of two runs are the same bit for bit, and each step was recorded once."""
    assert store_bytes(workdir) == store_bytes(finished)
    (step, mine), (last, theirs) = (load_params(w / "training/checkpoints") for w in (workdir, finished))
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert (workdir / "table.md").read_text() == (finished / "table.md").read_text()
    rows = metrics.read(workdir / "training" / metrics.FILE)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, last + 1))


def test_every_artifact_has_a_manifest_of_its_inputs(finished):
    manifests = {name: artifacts.read_manifest(finished / name) for name in ROAD}
    assert manifests["traces/expert"]["inputs"] == {"queries": manifests["queries"]["fingerprint"]}
    assert manifests["training"]["inputs"]["expert"] == manifests["tokens/expert"]["fingerprint"]
    assert manifests[ROAD[-1]]["inputs"] == {"training": manifests["training"]["fingerprint"]}
    for manifest in manifests.values():
        assert manifest["versions"]["jax"] == jax.__version__


def test_run_again_it_does_nothing_and_gives_the_same_table(finished, mini):
    before = stamps(finished)
    table = road.run(mini(), finished)
    after = stamps(finished)
    assert table == (finished / "table.md").read_text()
    written = {path for path in after if after[path] != before.get(path)}
    assert finished / "table.md" in written
    assert {path.parent for path in written} == {finished}  # what is shown, and no artifact


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"puzzles.per_family": 41}, "puzzles.per_family: 40 there, 41 now"),
        ({"data.supervise": "last"}, "supervise: 'all' there, 'last' now"),
        ({"data.row_length": 256}, "data.row_length: 512 there, 256 now"),
        ({"evaluation.max_tokens": 15}, "evaluation.max_tokens: 16 there, 15 now"),
    ],
)
def test_a_refused_run_leaves_what_is_shown_of_the_finished_one(copied, mini, change, named):
    workdir = copied()
    before = stamps(workdir)
    with pytest.raises(artifacts.ArtifactError, match=re.escape(named)):
        road.run(mini(**change), workdir)
    assert stamps(workdir) == before


def test_a_run_that_changes_no_number_is_kept_as_it_ran(copied, mini):
    workdir = copied("evaluation/puzzles-message-7")
    change = {"train.log_every": 3, "evaluation.messages": (7,)}
    road.run(mini(**change), workdir)
    assert load(json.loads((workdir / road.CONFIG).read_text())) == mini(**change)


def test_the_config_is_kept_as_training_begins_and_not_before(copied, mini, monkeypatch):
    workdir = copied("training", "evaluation", road.CONFIG)

    def begun(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(training, "describe", begun)
    with pytest.raises(InterruptedError):
        road.run(mini(), workdir)
    kept = (workdir / road.CONFIG).read_text()
    assert load(json.loads(kept)) == mini()
    with pytest.raises(InterruptedError):  # nothing was trained, so other settings may be
        road.run(mini(**{"curriculum": stages(5)}), workdir)
    assert load(json.loads((workdir / road.CONFIG).read_text())).curriculum[0].steps == 5


def test_a_report_is_of_what_ran_whatever_config_was_kept(copied, mini):
    workdir = copied()
    road.keep_config(mini(**{"optimizer.clip_norm": 0.25, "evaluation.max_tokens": 99}), workdir)
    shown = {key: value for key, value, _ in report.settings(config_of(Run("mini", workdir)))}
    assert (shown["optimizer.clip_norm"], shown["evaluation.max_tokens"]) == ("1.0", "16")


@pytest.mark.parametrize("name", ["runs[1]", "what?", "all*", "back\\slash"])
def test_a_workdir_where_no_checkpoint_could_be_read_is_refused_before_anything_is_made(tmp_path, mini, name):
    with pytest.raises(ValueError, match="name another workdir"):
        road.run(mini(), tmp_path / name / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.proof
def test_a_workdir_of_any_other_name_works(copied, mini):
    workdir = copied("training", "evaluation")
    workdir = workdir.rename(workdir.with_name("~ a]b%20{c,d}\nä😀'\"#"))
    assert road.run(mini(), workdir)
    assert load_params(workdir / "training/checkpoints")[0] == 6


def test_one_program_after_the_other_is_the_road(finished, mini):
    assert [program.__name__ for program in road.PROGRAMS] == [
        f"orca_jax.experiments.{name}" for name in ("collect", "prepare", "train", "evaluate", "tables")
    ]


# --- Killed

# What is on disk when the program is killed.
MOMENTS = {
    "between two token stores": "tokens/apprentice/manifest.json",
    "in training": "training/checkpoints/2/commit_success.txt",
}


def start(repo, workdir, overrides):
    """`experiments.run` in a process of its own, which works beside `workdir`."""
    command = [sys.executable, "-m", "experiments.run", f"--config={repo}/configs/mini.py:runlocal"]
    workdir.parent.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides],
        cwd=workdir.parent,
        env={**os.environ, "PYTHONPATH": str(repo)},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process, path):
    """Kills the program, by kill -9, as soon as `path` is there."""
    until = time.monotonic() + 180
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    words = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, words


@pytest.mark.proof
@pytest.mark.parametrize("moment", ["in training", "between two token stores"])
def test_killed_and_run_again_it_comes_to_the_same_end(repo, finished, mini, overrides, tmp_path, moment):
    kill_when(start(repo, tmp_path / "w", overrides), tmp_path / "w" / MOMENTS[moment])
    assert not (tmp_path / "w/training/manifest.json").exists()
    table = road.run(mini(), tmp_path / "w")
    assert table == (finished / "table.md").read_text()
    assert_same(tmp_path / "w", finished)


# --- Trace files, a trained tokenizer, two stages, BBH


def conversations(teacher, count):
    """Rows in OpenOrca's schema, long enough to train 512 ids on."""
    made = puzzles.make_puzzles("object_counting", difficulties=(1, 2), count=count, seed=7, split="train")
    for i, puzzle in enumerate(made):
        response = (
            "\n".join([*puzzle.steps, f"So the answer is {puzzle.target}."])
            if teacher == "gpt4"
            else puzzle.target
        )
        yield {"id": f"flan.{i}", "system_prompt": "", "question": puzzle.question, "response": response}


@pytest.fixture
def openorca_config(tmp_path):
    """configs/openorca.py:variant=two_teachers,runlocal on synthetic files and one BBH task."""
    config = openorca.get_config("variant=two_teachers,runlocal")
    for teacher in config.teachers:
        path = tmp_path / f"{teacher['name']}.jsonl"
        teacher["path"], rows = str(path), conversations(teacher["name"], 120)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = puzzles.make_puzzles("navigate", difficulties=(1,), count=250, seed=3, split="test")
    examples = [{"input": puzzle.question, "target": puzzle.target} for puzzle in asked]
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh/navigate.json").write_text(json.dumps({"examples": examples}))
    config.benchmarks.bbh = str(tmp_path / "bbh")
    config.train.batch_rows = 8  # over the tests' eight devices
    config.train.log_every = 1
    config.evaluation.update(max_tokens=4, batch_size=125)
    config.evaluation.modes.bbh = ("orca_cot",)
    return load(config)


@pytest.mark.proof
def test_trace_files_train_a_student_in_two_stages(openorca_config, tmp_path):
    table = road.run(openorca_config, tmp_path / "w")
    rows = metrics.read(tmp_path / "w/training" / metrics.FILE)
    assert [row["stage"] for row in rows if row["kind"] == "train"] == ["chatgpt"] * 2 + ["gpt4"] * 2
    held = [row for row in rows if row["kind"] == "validation"][-1]
    assert {"loss/teacher=chatgpt", "loss/teacher=gpt4"} <= set(held)
    supervised = {
        name: described["supervised_share"]
        for name, described in artifacts.read_manifest(tmp_path / "w/training")["counts"]["data"].items()
    }
    assert supervised["gpt4"] > 2 * supervised["chatgpt"]
    assert "navigate" in table
    assert "procedural" not in table
    items = (tmp_path / "w/evaluation/bbh-orca_cot/items.jsonl").read_text().splitlines()
    assert len(items) == len(bbh.questions(tmp_path / "bbh", mode="orca_cot")) == 250


@pytest.mark.proof
@pytest.mark.realdata
def test_two_teachers_answers_to_the_same_questions(shared_data, tmp_path):
    """The answers of gpt-3.5 and gpt-4 in one file, split by teacher, train two stages."""
    text = (shared_data / "two_teacher/prime_600.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    models = dict(zip(("chatgpt", "gpt4"), ("gpt-3.5-turbo-0301", "gpt-4-0314")))
    config = openorca.get_config("variant=two_teachers,runlocal")
    config.update_from_flattened_dict(
        {
            "data.tokenizer": str(shared_data / "tokenizer/mistral_v1_32000.model"),
            "student.vocab_size": 32_001,
            "train.batch_rows": 8,
            "train.log_every": 1,
        }
    )
    for teacher in config.teachers:
        model, path = models[teacher["name"]], tmp_path / f"{teacher['name']}.jsonl"
        said = [{"system_prompt": "", "question": row["instruction"], "response": row[model]} for row in rows]
        path.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(said)))
        teacher["path"] = str(path)
    loaded = load(config)
    for program in (collect, prepare, train):
        program.run(loaded, tmp_path / "w")
    rows = metrics.read(tmp_path / "w/training" / metrics.FILE)
    assert [row["stage"] for row in rows if row["kind"] == "train"] == ["chatgpt"] * 2 + ["gpt4"] * 2
    counts = artifacts.read_manifest(tmp_path / "w/training")["counts"]["data"]
    for name in models:
        held = artifacts.read_manifest(tmp_path / "w/tokens" / name)["counts"]
        assert 520 < held["examples"] + sum(held["dropped"].values()) < 600
        assert 0 < counts[name]["supervised_share"] < 1
