"""Candidates are ranked, what does not fit gets a remedy, and a plan says hours and price."""

import dataclasses
import importlib
import itertools
import json

import pytest

from orca_jax.config import MeshConfig, load
from orca_jax.configs import orca_13b, orca_70b
from orca_jax.planning import chips, compile, estimate, plan, program
from orca_jax.planning.estimate import MeshShape
from orca_jax.student.sharding import axis_sizes
from tests.planning.workloads import large, small

KEYS = {
    "topology", "chips", "fits", "bytes_per_chip", "hbm_bytes", "step_seconds", "tokens_per_second", "mfu",
    "stage_hours", "chip_hours", "cost_usd", "collectives", "model_flops",
}  # fmt: skip
SLICE = chips.topology("v5p:2x4x4")


@pytest.fixture(scope="module")
def work():
    return large("llama-13b", 128)


@pytest.fixture(scope="module")
def ranked(work):
    return plan.rank(work, SLICE, estimate.abstract_state(work.student, work.optimizer))


def test_the_fastest_comes_first_and_all_fit(ranked):
    speeds = [candidate.tokens_per_second for candidate in ranked]
    assert speeds == sorted(speeds, reverse=True)
    assert all(plan.fits(candidate.bytes.total, SLICE) for candidate in ranked)
    assert all(candidate.shape.devices == SLICE.chips for candidate in ranked)


def test_meshes_and_policies_are_all_tried(ranked):
    assert len({candidate.shape for candidate in ranked}) > 4
    assert {candidate.workload.student.remat for candidate in ranked} >= {"products", "full"}


def test_a_larger_batch_is_named_only_where_it_gains(work, ranked):
    """Few rows leave the chips waiting for weights, and more are faster."""
    pod, few = chips.topology("v5e-256"), dataclasses.replace(work, batch_rows=256, row_length=256)
    waiting = plan.rank(few, pod, estimate.abstract_state(work.student, work.optimizer))
    assert waiting[0].workload.batch_rows > 256
    for found in (ranked, waiting):
        ways = {(one.shape, one.workload.student.remat) for one in found}
        for way in ways:
            same = [one for one in found if (one.shape, one.workload.student.remat) == way]
            same.sort(key=lambda one: one.workload.batch_rows)
            for smaller, larger in itertools.pairwise(same):
                assert larger.tokens_per_second > plan.GAIN * smaller.tokens_per_second


def test_parts_are_as_few_as_fit(work, ranked):
    state = estimate.abstract_state(work.student, work.optimizer)
    split = [candidate for candidate in ranked if candidate.workload.accumulation > 1]
    assert split
    for candidate in split[:5]:
        rows = candidate.workload.batch_rows // candidate.shape.rows
        fewer = [
            dataclasses.replace(candidate.workload, accumulation=count)
            for count in range(1, candidate.workload.accumulation)
            if rows % count == 0
        ]
        sizes = [plan.assess(part, candidate.shape, SLICE, state).bytes.total for part in fewer]
        assert not any(plan.fits(size, SLICE) for size in sizes)


def test_meshes_divide_the_heads():
    shapes = list(plan.meshes(small(num_kv_heads=2), chips.topology("v5p:2x2x2")))
    assert MeshShape(1, 4, 2) in shapes
    assert all(shape.devices == 8 and shape.tensor <= 2 and shape.data <= shape.fsdp for shape in shapes)


def test_what_would_make_a_step_fit():
    """7B without remat on 16 GB chips: otherwise here. 70B: with no optimizer, but on a larger slice."""
    seven = large("llama2-7b", 64)
    seven = dataclasses.replace(seven, student=dataclasses.replace(seven.student, remat="none"))
    here, there = plan.remedies(seven, chips.topology("v5e-64"))
    assert here.startswith("on these chips: ")
    assert "remat=none" not in here or "accumulation=1" not in here
    assert there.startswith("on v5e:8x16: ")
    (only,) = plan.remedies(large("llama2-70b", 64), chips.topology("v5e-16"))
    assert only.startswith("on v5e:")


def test_a_smaller_optimizer_is_proposed_where_only_that_fits():
    work = large("llama-13b", 16)
    found = plan.here(work, chips.topology("v5e-16"))
    state = estimate.abstract_state(work.student, work.optimizer)
    assert not plan.rank(work, chips.topology("v5e-16"), state, batch_factors=(1,))
    assert "optimizer.kind=" in found


# Plans of an experiment

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


def test_one_line_of_json(orca, made):
    values = json.loads(json.dumps(plan.summary(orca, made, AMOUNTS)))
    assert values.keys() >= KEYS
    assert (values["topology"], values["chips"], values["fits"]) == ("v5p:2x4x4", 32, True)
    assert values["bytes_per_chip"] < values["hbm_bytes"] == 95 * 2**30
    assert values["tokens_per_second"] * values["step_seconds"] == pytest.approx(128 * 2048)
    assert {one["kind"]: one["bytes"] > 0 for one in values["collectives"]} == {
        "all-gather": True,
        "reduce-scatter": True,
        "all-reduce": True,  # over data
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


def test_what_does_not_fit_says_by_how_much_and_what_would(orca):
    found = analytic(orca, "v5e-16")
    assert not found.fits
    text = plan.report(plan.summary(orca, found, AMOUNTS), found.workload)
    over = (found.bytes_per_chip - found.topology.chip.hbm_bytes) / 2**30
    assert f"does not fit: {over:.2f} GiB too much" in text
    assert "would fit on these chips: " in text
    assert "would fit on v5e:" in text


def test_a_plan_names_the_fastest_setting_for_the_same_rows(orca):
    """Here one whose weight gradients are not cut into slices of 5120 / 32 columns."""
    made = analytic(dataclasses.replace(orca, mesh=MeshConfig()), "v5p:2x4x4")
    assert "fsdp=32" not in made.faster
    assert "batch_rows=128 " in made.faster
    assert f"faster: {made.faster}" in plan.report(plan.summary(orca, made, AMOUNTS), made.workload)
    state = estimate.abstract_state(made.workload.student, made.workload.optimizer)
    fastest = plan.rank(made.workload, SLICE, state, batch_factors=(1,))[0]
    assert made.faster.startswith(fastest.name)
    assert not plan.faster(fastest, SLICE, state)


def test_whole_weight_gradients_need_no_wide_slices():
    options = {plan.WINDOWED: "1000000"}
    whole = dataclasses.replace(load(orca_13b.get_config()), compiler_options=options)
    assert "fsdp=32" in analytic(whole, "v5p:2x4x4").faster


def test_the_compilers_cycles_are_the_time_of_a_compiled_step(orca, made, monkeypatch):
    """The roofline stays beside them. v5p runs 1.75e9 cycles a second; attention's kernels come on top."""
    work = program.Work(1_750_000_000, attention=459e12 * estimate.ATTENTION_EFFICIENCY / 4)
    compiled = compile.Compiled(True, 2**30, made.collectives, 1.0, work)
    monkeypatch.setattr(plan, "compile_step", lambda *a, **k: compiled)
    found = plan.make_plan(orca, SLICE, made.workload, made.candidate.shape, analytic=False)
    values = plan.summary(orca, found, AMOUNTS)
    assert values["step_seconds"] == pytest.approx(1.25)
    assert values["mfu"] == pytest.approx(values["model_flops"] / (32 * 459e12 * 1.25))
    assert values["roofline_seconds"] == made.time.step
    hours = plan.stage_hours(orca, made, AMOUNTS)["gpt4"]
    assert values["stage_hours"]["gpt4"] == pytest.approx(hours * 1.25 / made.time.step)
    assert "1,750,000,000 cycles" in plan.report(values, found.workload)


def test_a_gpu_program_is_planned_within_xlas_share_of_the_memory(orca, monkeypatch):
    """By default three quarters of it; what launch scripts set is named where it would be enough."""
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    there = chips.topology("h100-16")
    work = dataclasses.replace(plan.workload_of(orca), accumulation=4)
    compiled = compile.Compiled(False, 65 * 2**30, (), 1.0, program.Work(launches=12, kernels={"fmha": 2}))
    monkeypatch.setattr(plan, "compile_step", lambda *a, **k: compiled)
    monkeypatch.setattr(plan, "can_compile", lambda topology: True)
    found = plan.make_plan(orca, there, work, MeshShape(1, 16, 1), analytic=False)
    text = plan.report(plan.summary(orca, found, AMOUNTS), work)
    assert "of 59.70 GiB (75% of the memory, XLA_CLIENT_MEM_FRACTION)" in text
    assert found.remedies[0] == "with XLA_CLIENT_MEM_FRACTION=0.9 in the environment"
    assert "12 kernel launches a step; custom calls: fmha 2" in text
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert there.chip.hbm_bytes == int(79.6 * 0.9 * 2**30)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "90%")
    with pytest.raises(ValueError, match="XLA_CLIENT_MEM_FRACTION='90%'"):
        assert there.chip.hbm_bytes


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
