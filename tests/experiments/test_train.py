"""The training program: what a run depends on, and what its manifest says."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from orca_jax.artifacts import ArtifactError, read_manifest
from orca_jax.experiments import train
from orca_jax.training import metrics
from orca_jax.training.checkpoints import load_params


def test_manifest_says_what_was_trained_on(finished):
    counts = read_manifest(finished / "training")["counts"]
    assert counts["steps"] == 6
    assert set(counts["data"]) == {"apprentice", "expert", "validation"}
    for described in counts["data"].values():
        assert described["examples_per_row"] > 1
        assert 0.5 < described["fill"] <= 1
        assert 0 < described["supervised_share"] < 1
        assert described["left_out"] == described["nothing_supervised"] == 0
    assert counts["last"]["stage"] == "expert"


def test_metrics_of_the_run(finished):
    rows = metrics.read(finished / "training" / metrics.FILE)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["stage"] for row in rows if row["kind"] == "train"] == ["apprentice"] * 3 + ["expert"] * 3
    validation = [row for row in rows if row["kind"] == "validation"]
    assert [row["step"] for row in validation] == [3, 6]
    assert {"loss/teacher=apprentice", "loss/teacher=expert", "loss/system_message_id=7"} <= set(
        validation[0]
    )


def test_trained_again_the_parameters_are_bit_for_bit_the_same(copied, finished, mini):
    workdir = copied("training")
    train.run(mini(), workdir)
    mine, theirs = (load_params(w / "training/checkpoints") for w in (workdir, finished))
    assert mine[0] == theirs[0] == 6
    jax.tree.map(np.testing.assert_array_equal, mine[1], theirs[1])
    first, second = (read_manifest(w / "training")["fingerprint"] for w in (workdir, finished))
    assert first == second


def test_stopped_after_its_last_checkpoint_the_manifest_is_still_whole(copied, finished, mini):
    workdir = copied("training/manifest.json")
    train.run(mini(), workdir)
    mine, theirs = (read_manifest(w / "training")["counts"] for w in (workdir, finished))
    assert mine["last"]["loss"] == theirs["last"]["loss"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1, "seed: 0 there, 1 now"),
        ("student.tie_embeddings", True, "student.tie_embeddings: False there, True now"),
        ("train.batch_rows", 16, "train.batch_rows: 8 there, 16 now"),
        ("data.overlong", "drop", "data.overlong: 'truncate' there, 'drop' now"),
        ("optimizer.betas", (0.9, 0.99), r"optimizer.betas\[1\]: 0.95 there, 0.99 now"),
    ],
)
def test_a_run_of_other_settings_is_refused_and_the_change_named(finished, mini, key, value, message):
    with pytest.raises(ArtifactError, match=message):
        train.run(changed(mini, key, value), finished)


def changed(mini, key, value):
    """mini's config with a key that its file need not spell out."""
    part, _, name = key.rpartition(".")
    config = mini()
    if not part:
        return dataclasses.replace(config, **{name: value})
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{name: value})})


@pytest.mark.parametrize(
    ("key", "value"), [("train.log_every", 3), ("train.keep", 1), ("evaluation.max_tokens", 9)]
)
def test_what_changes_no_parameter_is_no_other_run(finished, mini, key, value):
    before = (finished / "training/manifest.json").stat().st_mtime_ns
    train.run(changed(mini, key, value), finished)
    assert (finished / "training/manifest.json").stat().st_mtime_ns == before


def evaluating(mini, every, **of_first):
    """mini's config with evaluations, whose first stage has other settings."""
    config = mini(
        **{"train.evaluate_every": every, "train.evaluate_per_family": 2, "evaluation.max_tokens": 4}
    )
    first, second = config.curriculum
    return dataclasses.replace(config, curriculum=(dataclasses.replace(first, **of_first), second))


def evaluations(workdir):
    return [row for row in metrics.read(workdir / "training" / metrics.FILE) if row["kind"] == "evaluation"]


@pytest.mark.proof
def test_a_stage_that_stops_rising_ends_and_a_killed_run_ends_there_too(copied, mini):
    workdir = copied("training")
    config = evaluating(mini, 1, until_plateau=1, plateau_of="accuracy")  # three steps teach it nothing
    train.run(config, workdir)
    step, params = load_params(workdir / "training/checkpoints")
    manifest, rows = read_manifest(workdir / "training"), evaluations(workdir)
    assert step == manifest["counts"]["steps"] == 5
    assert manifest["counts"]["ended"] == [{"stage": "apprentice", "steps": 2, "plateau_of": "accuracy"}]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert {"accuracy", "stderr", "chance", "unparsed", "accuracy/family=navigate"} <= set(rows[0])
    assert rows[0]["n"] == 8
    with pytest.raises(ArtifactError, match=r"evaluation.max_tokens: 4 there, 9 now"):
        train.run(changed(lambda: config, "evaluation.max_tokens", 9), workdir)
    (workdir / "training/manifest.json").unlink()
    shutil.rmtree(workdir / "training/checkpoints/5")
    train.run(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, load_params(workdir / "training/checkpoints")[1], params)
    assert evaluations(workdir) == rows
    assert read_manifest(workdir / "training")["counts"]["ended"] == manifest["counts"]["ended"]


def test_without_tokens_it_says_what_is_missing(tmp_path, mini):
    with pytest.raises(ArtifactError, match=r"tokens/apprentice has no manifest\.json"):
        train.run(mini(), tmp_path)
