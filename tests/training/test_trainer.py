"""A run that stops, however it stops, goes on to the same end, bit for bit."""

import dataclasses
import functools
import logging
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.training import metrics
from orca_jax.training.checkpoints import CheckpointError, load_params
from orca_jax.training.curriculum import Curriculum, StageConfig
from orca_jax.training.trainer import TrainConfig, changed_environment
from tests.training import synthetic

TOTAL = sum(stage.steps for stage in synthetic.STAGES)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The directory of a run that nothing stopped."""
    directory = tmp_path_factory.mktemp("unbroken")
    synthetic.trainer(directory).run()
    return directory


@pytest.fixture(scope="module")
def stopped_at_six(tmp_path_factory):
    """The directory of a run that Ctrl-C stopped; copy it to go on."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        stopping(directory, at=6, act=functools.partial(signal.raise_signal, signal.SIGINT)).run()
    return directory


class StoppingCurriculum(Curriculum):
    """Acts when the loop asks for the rows of step `at`, which is when it is about to make it."""

    at: int
    asked: bool = False

    def position(self, step):
        if step == self.at - 1 and not self.asked and in_main_thread():
            self.asked = True
            self.act()
        return super().position(step)


def in_main_thread():
    return threading.current_thread() is threading.main_thread()


def stopping(directory, *, at, act, **changes):
    rows = synthetic.row_builder()
    curriculum = StoppingCurriculum(synthetic.STAGES, rows.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
    curriculum.at, curriculum.act = at, act
    return synthetic.trainer(directory, rows=rows, curriculum=curriculum, **changes)


def fail():
    raise OSError("the disk is gone")


def records(directory, kind="train"):
    """What a run measured, but for speeds."""
    rows = metrics.read(directory / metrics.FILE)
    timed = ("tokens_per_second", "data_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows if row["kind"] == kind]


def assert_same_end(directory, unbroken):
    (step, mine), (last, theirs) = (load_params(d / "checkpoints") for d in (directory, unbroken))
    assert step == last == TOTAL
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def assert_same_records(directory, unbroken):
    """Each step once, whatever was made twice; the order of lines of different kinds does not matter."""
    for kind in ("train", "validation"):
        mine = records(directory, kind)
        assert [row["step"] for row in mine] == [row["step"] for row in records(unbroken, kind)]
        assert mine == records(unbroken, kind)


# --- Whole runs


def test_metrics_have_each_step_once(unbroken):
    assert [row["step"] for row in records(unbroken)] == list(range(1, TOTAL + 1))


def test_metrics_say_where_a_step_stands(unbroken):
    rows = records(unbroken)
    assert [row["stage"] for row in rows] == ["first"] * 6 + ["second"] * 5
    assert rows[0]["learning_rate"] == pytest.approx(3e-3 / 2)
    assert rows[0]["loss"] == pytest.approx(np.log(synthetic.STUDENT.vocab_size), abs=1)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0 < row["fill"] <= 1 and row["gradient_norm"] > 0 for row in rows)


def test_validation_at_the_end_of_each_stage_by_group(unbroken):
    rows = records(unbroken, "validation")
    assert [row["step"] for row in rows] == [6, TOTAL]
    groups = {name for name in rows[0] if name.startswith("loss/")}
    assert groups == {
        "loss/collection=counting",
        "loss/teacher=apprentice",
        "loss/teacher=expert",
        "loss/system_message_id=0",
        "loss/system_message_id=1",
    }
    assert rows[0]["examples"] == 20
    assert rows[1]["loss"] < rows[0]["loss"] < records(unbroken)[0]["loss"]


def test_last_metrics_are_returned_and_a_finished_run_does_nothing(unbroken, tmp_path):
    directory = shutil.copytree(unbroken, tmp_path / "copy")
    before = (directory / metrics.FILE).read_text()
    synthetic.trainer(directory).run()
    assert (directory / metrics.FILE).read_text() == before
    assert_same_end(directory, unbroken)


def test_log_and_validation_intervals(tmp_path):
    last = synthetic.trainer(tmp_path, train={"log_every": 4, "validate_every": 3}).run()
    assert [row["step"] for row in records(tmp_path)] == [1, 4, 8, TOTAL]
    assert [row["step"] for row in records(tmp_path, "validation")] == [3, 6, 9, TOTAL]
    assert last["loss"] == records(tmp_path)[-1]["loss"]


def test_bfloat16_computes_near_float32(unbroken, tmp_path):
    synthetic.trainer(tmp_path, train={"compute_dtype": "bfloat16"}, validation=None).run()
    losses, expected = ([row["loss"] for row in records(d)] for d in (tmp_path, unbroken))
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert losses != expected
    assert records(tmp_path, "validation") == []
    assert {leaf.dtype for leaf in jax.tree.leaves(load_params(tmp_path / "checkpoints")[1])} == {
        np.dtype("float32")
    }


def test_reset_optimizer_changes_the_second_stage_only(unbroken, tmp_path):
    stages = [dataclasses.replace(stage, reset_optimizer=False) for stage in synthetic.STAGES]
    synthetic.trainer(tmp_path, stages=stages).run()
    kept, reset = ([row["loss"] for row in records(d)] for d in (tmp_path, unbroken))
    assert kept[:7] == reset[:7]  # the seventh is measured before its update
    assert kept[7:] != reset[7:]


def test_another_seed_gives_another_student(unbroken, tmp_path):
    synthetic.trainer(tmp_path, seed=1, validation=None).run()
    assert records(tmp_path)[0]["loss"] != records(unbroken)[0]["loss"]


# --- Stopped runs


def test_ctrl_c_saves_the_steps_done(stopped_at_six):
    assert load_params(stopped_at_six / "checkpoints")[0] == 6


def test_resumed_after_ctrl_c_is_the_unbroken_run(stopped_at_six, unbroken, tmp_path):
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    synthetic.trainer(directory).run()
    assert_same_end(directory, unbroken)
    assert_same_records(directory, unbroken)


@pytest.mark.parametrize("at", [3, 10])
def test_resumed_after_an_error_is_the_unbroken_run(unbroken, tmp_path, at):
    with pytest.raises(OSError, match="the disk is gone"):
        stopping(tmp_path, at=at, act=fail).run()
    synthetic.trainer(tmp_path).run()
    assert_same_end(tmp_path, unbroken)
    assert_same_records(tmp_path, unbroken)


def test_resumed_on_another_mesh_goes_on_with_the_losses(stopped_at_six, unbroken, tmp_path, caplog):
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    with caplog.at_level(logging.WARNING, logger="orca_jax"):
        synthetic.trainer(directory, mesh=synthetic.mesh(2, 2, 2)).run()
    assert "mesh was" in caplog.text
    mine, theirs = ({row["step"]: row["loss"] for row in records(d)} for d in (directory, unbroken))
    for step in range(7, TOTAL + 1):
        assert mine[step] == pytest.approx(theirs[step], abs=1e-5)


def test_a_damaged_checkpoint_costs_only_its_steps(unbroken, tmp_path):
    directory = shutil.copytree(unbroken, tmp_path / "copy")
    for path in (directory / "checkpoints" / str(TOTAL)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    synthetic.trainer(directory).run()
    assert_same_end(directory, unbroken)
    assert_same_records(directory, unbroken)


def test_another_runs_directory_is_refused_and_left_alone(stopped_at_six, tmp_path):
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    with pytest.raises(ArtifactError, match="checkpoints of another run"):
        synthetic.trainer(directory, fingerprint="that run").run()
    assert load_params(directory / "checkpoints")[0] == 6


def test_another_students_directory_is_refused_and_left_alone(stopped_at_six, tmp_path):
    """Its checkpoints are whole, and must not be set aside as damaged."""
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    student = dataclasses.replace(synthetic.STUDENT, hidden_size=16)
    with pytest.raises(ArtifactError, match="checkpoints of another run"):
        synthetic.trainer(directory, fingerprint="that run", student=student).run()
    assert load_params(directory / "checkpoints")[0] == 6


def test_no_whole_checkpoint_ends_the_run(stopped_at_six, tmp_path):
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    for path in (directory / "checkpoints").rglob("d/*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        synthetic.trainer(directory).run()


# --- Errors


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, log_every):
    stages = [StageConfig(name="hot", datasets={"a": 1.0}, steps=8, learning_rate=1e30)]
    settings = {"checkpoint_every": 1, "log_every": log_every}
    with pytest.raises(FloatingPointError, match=r"nan.* at step [23]; lower the learning rate"):
        synthetic.trainer(tmp_path, stages=stages, train=settings, validation=None).run()
    _, params = load_params(tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_rows_that_do_not_divide_over_the_mesh(tmp_path):
    with pytest.raises(ValueError, match="= 4 rows do not divide over data x fsdp = 8"):
        synthetic.trainer(tmp_path, mesh=synthetic.mesh(2, 4, 1), train={"accumulation": 2})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compute_dtype": "float8"}, "train.compute_dtype='float8'; known: float32, bfloat16"),
        ({"batch_rows": 0}, "train.batch_rows must be at least 1, got 0"),
        ({"keep": 0}, "train.keep must be at least 1"),
        ({"log_every": 0}, "train.log_every must be at least 1"),
        ({"checkpoint_every": 0}, "train.checkpoint_every must be at least 1"),
        ({"batch_rows": 6, "accumulation": 4}, "train.accumulation=4 must divide batch_rows=6"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_changed_environment_names_what_changed():
    now = {"versions": {"jax": "2", "numpy": "1"}, "mesh": {"fsdp": 8}, "devices": "cpu"}
    assert changed_environment(now, now) == []
    before = {"versions": {"jax": "1", "numpy": "1"}, "mesh": {"fsdp": 1}, "devices": "TPU v4"}
    assert changed_environment(before, now) == [
        "devices was 'TPU v4', is 'cpu'",
        "jax was '1', is '2'",
        "mesh was {'fsdp': 1}, is {'fsdp': 8}",
    ]
