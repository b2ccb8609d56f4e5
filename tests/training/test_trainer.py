"""A run that stops, however it stops, goes on to the same end, bit for bit."""

import dataclasses
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.config import StageConfig
from orca_jax.config_check import build
from orca_jax.data.loader import RowBuilder
from orca_jax.student import llama
from orca_jax.training import metrics, trainer
from orca_jax.training.checkpoints import load_params
from orca_jax.training.curriculum import Curriculum
from orca_jax.training.metrics import TIMED
from orca_jax.training.step import make_steps
from orca_jax.training.trainer import MOST_IN_A_ROW, TrainConfig
from tests.training import synthetic

TOTAL = sum(stage.steps for stage in synthetic.STAGES)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Runs of the same settings share their compiled steps."""

    @functools.cache
    def make(student, optimizer, mesh, **options):
        return make_steps(student, optimizer, mesh, **options)

    def shared(student, optimizer, mesh, *, compiler_options, **options):
        assert not compiler_options
        return make(student, optimizer, mesh, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_optimizer", functools.cache(trainer.make_optimizer))
        patch.setattr(trainer, "make_steps", shared)
        yield


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


class SpoiledRows(RowBuilder):
    """Rows of which the first of each step in `steps` has `weight` and, if finite, targets that are wrong."""

    def __init__(self, steps, weight=np.nan):
        self.__dict__ = synthetic.row_builder().__dict__
        self.weight = weight
        curriculum = Curriculum(synthetic.STAGES, self.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
        if max(steps) > curriculum.total_steps:
            stages = [StageConfig(name="s", datasets={"a": 1.0}, steps=30)]
            curriculum = Curriculum(stages, self.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
        self.spoiled = {curriculum.position(step - 1).rows[0] for step in steps}

    def row(self, *ref):
        row = super().row(*ref)
        if ref not in self.spoiled:
            return row
        wrong = (row.targets + 17) % synthetic.STUDENT.vocab_size
        return row._replace(loss_weights=row.loss_weights * self.weight, targets=wrong)


def stopping(directory, *, at, act, **changes):
    rows = changes.pop("rows", None) or synthetic.row_builder()
    curriculum = StoppingCurriculum(synthetic.STAGES, rows.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
    curriculum.at, curriculum.act = at, act
    return synthetic.trainer(directory, rows=rows, curriculum=curriculum, **changes)


def fail():
    raise OSError("the disk is gone")


def records(directory, kind="train"):
    """What a run measured, but for speeds."""
    rows = metrics.read(directory / metrics.FILE)
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows if row["kind"] == kind]


def assert_same_end(directory, unbroken):
    (step, mine), (last, theirs) = (load_params(d / "checkpoints") for d in (directory, unbroken))
    assert step == last == TOTAL
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def assert_same_records(directory, unbroken):
    """Each step once, whatever was made twice; the order of lines of different kinds does not matter."""
    for kind in ("train", "validation", "evaluation"):
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


def test_a_stage_that_distils_goes_on_to_the_same_end(tmp_path):
    """The second stage distils: its steps have the second term, and the run stops among them."""
    first, second = synthetic.STAGES
    stages = first, dataclasses.replace(second, distill_weight=0.5, distill_temperature=2.0)

    def make(directory, make=synthetic.trainer, **options):
        rows = synthetic.row_builder(top=4)
        kind = StoppingCurriculum if options else Curriculum
        curriculum = kind(stages, rows.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
        vars(curriculum).update(options)
        return make(directory, rows=rows, curriculum=curriculum, validation="validation")

    make(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "other", at=8, act=functools.partial(signal.raise_signal, signal.SIGINT)).run()
    make(tmp_path / "other").run()
    assert_same_end(tmp_path / "other", tmp_path / "whole")
    assert_same_records(tmp_path / "other", tmp_path / "whole")
    rows = records(tmp_path / "whole")
    assert ["distillation" in row for row in rows] == [False] * first.steps + [True] * second.steps
    assert all(row["distillation"] > 0 for row in rows[first.steps :])


def test_log_and_validation_intervals(tmp_path):
    last = synthetic.trainer(tmp_path, train={"log_every": 4, "validate_every": 3}).run()
    assert [row["step"] for row in records(tmp_path)] == [1, 4, 8, TOTAL]
    assert [row["step"] for row in records(tmp_path, "validation")] == [3, 6, 9, TOTAL]
    assert last["loss"] == records(tmp_path)[-1]["loss"]


def test_reset_optimizer_changes_the_second_stage_only(unbroken, tmp_path):
    stages = [dataclasses.replace(stage, reset_optimizer=False) for stage in synthetic.STAGES]
    synthetic.trainer(tmp_path, stages=stages).run()
    kept, reset = ([row["loss"] for row in records(d)] for d in (tmp_path, unbroken))
    assert kept[:7] == reset[:7]  # the seventh is measured before its update
    assert kept[7:] != reset[7:]


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
    assert "resuming at step 6: mesh.data: 1 there, 2 now" in caplog.text
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


def test_another_students_directory_is_refused_and_left_alone(stopped_at_six, tmp_path):
    """Its checkpoints are whole, and must not be set aside as damaged."""
    directory = shutil.copytree(stopped_at_six, tmp_path / "copy")
    student = dataclasses.replace(synthetic.STUDENT, hidden_size=16)
    with pytest.raises(ArtifactError, match="checkpoints of another run"):
        synthetic.trainer(directory, fingerprint="that run", student=student).run()
    assert load_params(directory / "checkpoints")[0] == 6


# --- Errors


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    stages = [StageConfig(name="hot", datasets={"a": 1.0}, steps=8, learning_rate=1e30)]
    settings = {"checkpoint_every": 1, "log_every": 100}
    with pytest.raises(FloatingPointError, match=r"nan.* at step [67]; lower the learning rate"):
        synthetic.trainer(tmp_path, stages=stages, train=settings, validation=None).run()
    _, params = load_params(tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# --- Steps that are skipped


def test_a_bad_step_is_skipped_and_counted_and_the_run_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="orca_jax"):
        synthetic.trainer(tmp_path, rows=SpoiledRows({3}), validation=None).run()
    rows = records(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 0] + [1] * (TOTAL - 2)
    assert "step 3 is skipped: the loss is nan" in caplog.text
    assert all(np.isfinite(row["loss"]) for row in rows[3:])


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    bad = set(range(2, 2 + MOST_IN_A_ROW))
    with pytest.raises(FloatingPointError, match=f"at step {1 + MOST_IN_A_ROW}; lower"):
        synthetic.trainer(tmp_path / "lost", rows=SpoiledRows(bad), validation=None).run()
    synthetic.trainer(tmp_path / "saved", rows=SpoiledRows(bad - {4}), validation=None).run()
    assert records(tmp_path / "saved")[-1]["skipped"] == MOST_IN_A_ROW - 1


def spiky(directory, stop=0):
    """A stage of 30 steps, of which the 25th contradicts what was learned."""
    stages = [StageConfig(name="s", datasets={"a": 1.0}, steps=30, learning_rate=1e-2, skip_spikes=1.5)]
    rows = SpoiledRows({25}, weight=50.0)
    settings = {"rows": rows, "stages": stages, "validation": None}
    if stop:
        curriculum = StoppingCurriculum(stages, rows.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
        curriculum.at, curriculum.act = stop, functools.partial(signal.raise_signal, signal.SIGINT)
        settings["curriculum"] = curriculum
    return synthetic.trainer(directory, train={"checkpoint_every": 100}, **settings)


def test_a_spike_is_skipped_whatever_interrupts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="orca_jax"):
        spiky(tmp_path / "whole").run()
    assert "step 25 is skipped: the loss is" in caplog.text
    assert "(over " in caplog.text
    assert records(tmp_path / "whole")[-1]["skipped"] == 1
    for stop in (24, 26):
        with pytest.raises(KeyboardInterrupt):
            spiky(tmp_path / f"{stop}", stop=stop).run()
        spiky(tmp_path / f"{stop}").run()
        mine, theirs = (load_params(tmp_path / name / "checkpoints")[1] for name in (f"{stop}", "whole"))
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        assert records(tmp_path / f"{stop}") == records(tmp_path / "whole")


# --- Stages that end at a plateau


FLAT = (
    StageConfig(name="flat", datasets={"a": 1.0}, steps=20, learning_rate=0.0, until_plateau=2),
    StageConfig(name="then", datasets={"b": 1.0}, steps=4, learning_rate=3e-3),
)


def accuracy(params):
    """A stand-in for answers, which changes with the parameters."""
    mean = float(np.abs(params["unembed"]).mean())
    return {"accuracy": mean, "stderr": 0.01, "n": 20}


def flat(directory, of="loss", **changes):
    """Its first stage learns nothing, so nothing is better than the first time, which is after step 2."""
    stages = [dataclasses.replace(stage, plateau_of=of) for stage in FLAT]
    if of == "accuracy":
        changes["evaluate"] = accuracy
    settings = {"loss": {"validate_every": 2}, "accuracy": {"evaluate_every": 2}}[of]
    return synthetic.trainer(directory, stages=stages, train=settings, **changes)


@pytest.fixture(scope="module", params=["loss", "accuracy"])
def flattened(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("flat") / request.param
    flat(directory, request.param).run()
    return directory


def test_a_stage_ends_at_its_plateau(flattened):
    assert [row["stage"] for row in records(flattened)] == ["flat"] * 6 + ["then"] * 4
    often, at_ends = ("validation", "evaluation")[:: 1 if flattened.name == "loss" else -1]
    assert [row["step"] for row in records(flattened, often)] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in records(flattened, at_ends)] == ([6, 10] if often == "evaluation" else [])
    assert load_params(flattened / "checkpoints")[0] == 10


# The others are the same moments of other steps.
MOMENTS = [7, *(pytest.param(at, marks=pytest.mark.proof) for at in (2, 4, 5, 6, 9))]


@pytest.mark.parametrize("at", MOMENTS)
def test_a_stage_ends_at_the_same_plateau_whatever_interrupts(flattened, tmp_path, at):
    rows = synthetic.row_builder()
    of = flattened.name
    stages = flat(tmp_path, of).curriculum.stages
    curriculum = StoppingCurriculum(stages, rows.plan_of, batch_rows=synthetic.BATCH_ROWS, seed=5)
    curriculum.at, curriculum.act = at, functools.partial(signal.raise_signal, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        flat(tmp_path, of, rows=rows, curriculum=curriculum).run()
    flat(tmp_path, of).run()
    mine, theirs = (load_params(d / "checkpoints") for d in (tmp_path, flattened))
    assert mine[0] == theirs[0] == 10
    jax.tree.map(np.testing.assert_array_equal, mine[1], theirs[1])
    assert_same_records(tmp_path, flattened)


def test_a_stage_that_still_learns_ends_where_planned(tmp_path):
    stages = [dataclasses.replace(synthetic.STAGES[0], until_plateau=2)]
    synthetic.trainer(tmp_path, stages=stages, train={"validate_every": 1}).run()
    assert [row["step"] for row in records(tmp_path)] == list(range(1, 7))


def test_evaluations_change_nothing_and_a_killed_run_has_each_once(unbroken, tmp_path):
    settings = {"train": {"evaluate_every": 4}, "evaluate": accuracy}
    with pytest.raises(OSError, match="disk"):
        stopping(tmp_path, at=6, act=fail, **settings).run()
    synthetic.trainer(tmp_path, **settings).run()
    assert_same_end(tmp_path, unbroken)
    assert records(tmp_path) == records(unbroken)
    assert [row["step"] for row in records(tmp_path, "evaluation")] == [4, 6, 8, TOTAL]


def test_the_best_accuracy_counts_and_not_the_last(tmp_path):
    given = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    stages = [dataclasses.replace(FLAT[0], until_plateau=2, plateau_of="accuracy")]
    settings = {"stages": stages, "train": {"evaluate_every": 1}}
    made = synthetic.trainer(
        tmp_path, **settings, evaluate=lambda _: {"accuracy": next(given), "stderr": 0.1, "n": 9}
    )
    made.run()
    assert [row["accuracy"] for row in records(tmp_path, "evaluation")] == [0.2, 0.5, 0.4, 0.5]
    assert made.curriculum.ended == {0: 4}


def test_a_plateau_of_accuracy_needs_evaluations(tmp_path):
    stages = [dataclasses.replace(FLAT[0], plateau_of="accuracy")]
    with pytest.raises(ValueError, match=r"ends at a plateau of accuracy: set train\.evaluate_every"):
        synthetic.trainer(tmp_path, stages=stages, train={"validate_every": 2})
    with pytest.raises(ValueError, match="given nothing to evaluate with"):
        synthetic.trainer(tmp_path, train={"evaluate_every": 2})


@pytest.mark.parametrize("changes", [{"validation": None}, {"train": {"validate_every": 0}}], ids=str)
def test_a_plateau_needs_validation(tmp_path, changes):
    settings = {"stages": FLAT, "train": {"validate_every": 2}, **changes}
    with pytest.raises(ValueError, match=r"stage 'flat' ends at a plateau .* set train\.validate_every"):
        synthetic.trainer(tmp_path, **settings)


# --- What a run measures, and what cannot be run


def test_what_a_record_measures(tmp_path):
    last = synthetic.trainer(tmp_path, peak_flops=1e12, profile=(3, 4), validation=None).run()
    assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert 0 < last["supervised_tokens_per_second"] < last["tokens_per_second"]
    assert last["step_seconds"] > 0
    assert 0 <= last["data_wait"] + last["save_wait"] <= 1
    expected = last["tokens_per_second"] * synthetic.STUDENT.training_flops(synthetic.ROW_LENGTH) / 1e12
    assert last["mfu"] == pytest.approx(expected)


def test_time_is_taken_where_steps_complete(tmp_path):
    rows = 16 * synthetic.BATCH_ROWS  # steps that take far longer than fetching their metrics
    synthetic.trainer(tmp_path, train={"batch_rows": rows, "log_every": 4, "validate_every": 3}).run()
    lines = [row for row in metrics.read(tmp_path / metrics.FILE) if row["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 4, 8, 11]
    seconds = [line["step_seconds"] for line in lines]
    assert min(seconds) > np.median(seconds) / 20
    for line in lines:
        assert line["tokens_per_second"] * line["step_seconds"] <= rows * synthetic.ROW_LENGTH


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_steps_that_cannot_be_profiled(tmp_path, steps):
    with pytest.raises(ValueError, match=f"steps {steps[0]} to {steps[1]}; steps count from 1"):
        synthetic.trainer(tmp_path, profile=steps)


def test_sigterm_leaves_with_the_code_that_says_again(tmp_path):
    with pytest.raises(SystemExit) as left:
        stopping(tmp_path, at=3, act=functools.partial(signal.raise_signal, signal.SIGTERM)).run()
    assert left.value.code == 75
    assert load_params(tmp_path / "checkpoints")[0] == 3


@pytest.mark.parametrize("where", ["validation", "evaluation"])
def test_a_signal_while_it_validates_or_evaluates_leaves_both_to_the_next_start(tmp_path, monkeypatch, where):
    """At step 4, where both are due: a stage whose end the first decided ends with the next start."""
    stages = [dataclasses.replace(FLAT[0], until_plateau=1)]
    settings = {"stages": stages, "train": {"validate_every": 2, "evaluate_every": 2}}
    told, real = [], trainer.validation_losses

    def tell(kind):
        told.append(kind)
        if told.count(where) == 2 and kind == where:
            signal.raise_signal(signal.SIGTERM)

    def validated(*given, after_batch, **named):
        tell("validation")
        return real(*given, after_batch=after_batch, **named)

    def evaluated(params):
        tell("evaluation")
        return accuracy(params)

    synthetic.trainer(tmp_path / "unbroken", **settings, evaluate=accuracy).run()
    monkeypatch.setattr(trainer, "validation_losses", validated)
    with pytest.raises(SystemExit) as left:
        synthetic.trainer(tmp_path / "stopped", **settings, evaluate=evaluated).run()
    assert left.value.code == 75
    assert load_params(tmp_path / "stopped/checkpoints")[0] == 4
    assert [row["step"] for row in records(tmp_path / "stopped", "validation")] == [2]
    again = synthetic.trainer(tmp_path / "stopped", **settings, evaluate=evaluated)
    again.run()
    assert again.curriculum.ended == {0: 4}
    for kind in ("train", "validation", "evaluation"):
        assert records(tmp_path / "stopped", kind) == records(tmp_path / "unbroken", kind)


COMPILING = """
import logging, os, signal, sys, threading
from pathlib import Path
import jax
from tests.training import synthetic

def sorted_often(x):
    for _ in range(400):
        x = jax.numpy.sort(x * 1.5)
    return x

def compiled_slowly(*given):  # in C++, for many seconds
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    program.compile()
    print("compiled")

logging.basicConfig()
jax.config.update("jax_enable_compilation_cache", False)
program = jax.jit(sorted_often).lower(jax.numpy.ones(100))
trainer = synthetic.trainer(Path(sys.argv[1]))
trainer.steps = trainer.steps._replace(update=compiled_slowly)
trainer.run()
"""


@pytest.mark.slow
def test_sigterm_while_xla_compiles_ends_the_process_at_once(repo, tmp_path):
    command = [sys.executable, "-c", COMPILING, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repo), "XLA_FLAGS": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (75, ""), ended.stderr
    assert "SIGTERM: no step was begun; run the same command again" in ended.stderr


def test_rows_that_do_not_divide_over_the_mesh(tmp_path):
    with pytest.raises(ValueError, match="= 4 rows do not divide over data x fsdp = 8"):
        synthetic.trainer(tmp_path, mesh=synthetic.mesh(2, 4, 1), train={"accumulation": 2})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compute_dtype": "float8"}, "'train.compute_dtype' must be 'float32' or 'bfloat16', got 'float8'"),
        ({"batch_rows": 0}, "'train.batch_rows' must be at least 1, got 0"),
        ({"batch_rows": 6, "accumulation": 4}, "train.accumulation=4 must divide batch_rows=6"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, settings, "train")


def test_a_new_student_is_drawn_where_it_lies(tmp_path):
    trainer = synthetic.trainer(tmp_path, mesh=synthetic.mesh(1, 8, 1))
    drawn, plain = trainer.draw_params(), llama.init(synthetic.STUDENT, 0)
    trainer.seed = 1
    assert np.any(trainer.draw_params()["unembed"] != plain["unembed"])
    jax.tree.map(lambda leaf, want: np.testing.assert_allclose(leaf, want, atol=1e-6), drawn, plain)
    for leaf, abstract in zip(*map(jax.tree.leaves, (drawn, trainer.steps.abstract.params)), strict=True):
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(drawn))
