"""`experiments.plan` by estimate; compiling is in tests/proofs/test_plan.py."""

import importlib
import json
import subprocess
import sys

import pytest

from orca_jax.config import load
from orca_jax.configs import orca_13b, orca_70b
from orca_jax.experiments import plan
from orca_jax.planning import chips
from orca_jax.planning.workload import MeshShape
from orca_jax.student.sharding import axis_sizes

KEYS = {
    "topology", "chips", "fits", "bytes_per_chip", "hbm_bytes", "step_seconds", "tokens_per_second", "mfu",
    "stage_hours", "chip_hours", "cost_usd", "collectives", "model_flops",
}  # fmt: skip
AMOUNTS = plan.Amounts(plan.PAPER_EXAMPLES, plan.PAPER_PACKING, None)


def analytic(config, name, **changes):
    there = chips.topology(name)
    work = plan.workload_of(config, **changes)
    return plan.make_plan(
        config, there, work, MeshShape(*axis_sizes(config.mesh, there.chips)), analytic=True
    )


@pytest.fixture(scope="module")
def orca():
    return load(orca_13b.get_config())


@pytest.fixture(scope="module")
def made(orca):
    return analytic(orca, "v5p:2x4x4")


def program(*arguments):
    command = [sys.executable, "-m", "experiments.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_one_line_of_json(orca, made):
    values = json.loads(json.dumps(plan.summary(orca, made, AMOUNTS)))
    assert values.keys() >= KEYS
    assert (values["topology"], values["chips"], values["fits"]) == ("v5p:2x4x4", 32, True)
    assert values["bytes_per_chip"] < values["hbm_bytes"] == 95 * 2**30
    assert values["tokens_per_second"] * values["step_seconds"] == pytest.approx(128 * 2048)
    assert {one["kind"]: one["bytes"] > 0 for one in values["collectives"]} == {
        "all-gather": True,
        "reduce-scatter": True,
    }
    parts = values["parameter_bytes"] + values["optimizer_bytes"] + values["working_bytes"]
    assert parts == values["bytes_per_chip"]


def test_hours_are_epochs_of_packed_examples(orca, made):
    hours = plan.stage_hours(orca, made, AMOUNTS)
    steps = 4 * 5_090_000 / 2.7 / 128
    assert hours["chatgpt"] == pytest.approx(steps * made.time.step / 3600)
    assert hours["chatgpt"] / hours["gpt4"] == pytest.approx(5.09)
    denser = plan.stage_hours(orca, made, AMOUNTS._replace(packing=5.4))
    assert denser["gpt4"] == pytest.approx(hours["gpt4"] / 2)


def test_rows_twice_as_long_hold_twice_the_examples():
    config = load(orca_70b.get_config())
    stage = config.curriculum[0]
    steps = plan.stage_steps(stage, plan.workload_of(config), AMOUNTS)
    assert steps == pytest.approx(4 * 5_090_000 / (2 * 2.7) / 64)


def test_unknown_examples_are_asked_for_and_the_price_is_the_users(orca, made):
    values = plan.summary(orca, made, AMOUNTS._replace(examples={"gpt4": 1000}))
    assert values["stage_hours"]["chatgpt"] is None
    assert values["chip_hours"] is None
    assert "--examples=chatgpt=COUNT" in plan.report(values, made.workload)
    paid = plan.summary(orca, made, AMOUNTS._replace(usd_per_chip_hour=2.0))
    assert paid["cost_usd"] == pytest.approx(2 * paid["chip_hours"])
    assert paid["chip_hours"] == pytest.approx(32 * sum(paid["stage_hours"].values()))
    assert plan.examples_of(["gpt4=7", "mine=9"]) == {"chatgpt": 5_090_000, "gpt4": 7, "mine": 9}
    with pytest.raises(ValueError, match="'gpt4' is not NAME=COUNT"):
        plan.examples_of(["gpt4"])


def test_what_does_not_fit_says_by_how_much_and_what_would(orca):
    found = analytic(orca, "v5e-16")
    assert not found.fits
    text = plan.report(plan.summary(orca, found, AMOUNTS), found.workload)
    over = (found.bytes_per_chip - found.topology.chip.hbm_bytes) / 2**30
    assert f"does not fit: {over:.2f} GiB too much" in text
    assert "would fit on these chips: " in text
    assert "would fit on v5e:" in text


def test_a_search_names_what_to_set(orca):
    there = chips.topology("h100-16")
    plans = list(plan.searched(orca, there, plan.workload_of(orca), analytic=True))
    assert len(plans) == plan.COMPILED_BEST
    assert all(found.fits for found in plans)
    speeds = [found.workload.tokens / found.time.step for found in plans]
    assert speeds == sorted(speeds, reverse=True)


@pytest.mark.parametrize("name", ["orca_13b", "orca_7b", "orca_llama3_8b", "orca_70b"])
def test_every_config_of_a_paper_sized_student_fits_a_slice(name):
    config = load(importlib.import_module(f"orca_jax.configs.{name}").get_config())
    assert analytic(config, "v5p-128").fits


def test_the_program_prints_one_line_of_json():
    done = program(
        "--config=configs/orca_13b.py", "--topology=h100-16", "--analytic", "--json", "--batch=64",
        "--config.train.accumulation=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    values = json.loads(line)
    assert (values["chips"], values["batch_rows"], values["accumulation"]) == (16, 64, 2)
    assert values["compiled"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9-8"], "a chip of v4"),
        (["--topology=h100-8", "--analytic", "--prices=none.csv"], "none.csv"),
    ],
)
def test_errors_are_one_line(arguments, words):
    done = program("--config=configs/orca_7b.py", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.rindex("error: ") :]
    assert words in message
    assert len(message.splitlines()) <= 2  # what was wrong, and what to do
