"""What an evaluation needs on chips; compiling for them is in tests/proofs/test_plan.py."""

import dataclasses

import jax
import pytest
from jax.sharding import AxisType

from orca_jax.config import EvaluationConfig
from orca_jax.experiments import plan as program
from orca_jax.planning import chips, evaluate
from orca_jax.planning.evaluate import Asked, Program
from orca_jax.student import presets, sharding
from tests.planning.workloads import small

OWN = EvaluationConfig(max_tokens=512, max_length=2048, temperature=0.7, tensor=4)
SLICE = chips.topology("v5p:2x2x1")
MOST_PROGRAMS = 12  # of a large student, for a whole evaluation


@pytest.mark.parametrize("preset", ["llama-13b", "llama2-70b"])
def test_the_papers_evaluation_needs_few_programs(preset):
    where = evaluate.setting(presets.PRESETS[preset], SLICE, OWN)
    found = evaluate.runs(where.student, evaluate.PAPER_ASKED, OWN, copies=4)
    assert len([one for one in found if one.kind in ("prefill", "decode")]) <= MOST_PROGRAMS


def test_every_question_is_prefilled_and_every_token_decoded():
    student, asked = small().student, {"one": Asked(50, 100, 20)}
    own = dataclasses.replace(OWN, batch_size=4, max_tokens=30)
    found = evaluate.runs(student, asked, own, copies=1)
    assert sum(times for one, times in found.items() if one.kind == "prefill") == 50
    steps = sum(times for one, times in found.items() if one.kind == "decode")
    assert 50 * 10 / 4 < steps < 50 * 30
    with_message = evaluate.runs(student, asked, own, copies=1, message=60)
    assert any(one.kind == "prefill" and one.sizes[2] for one in with_message)


def test_a_step_waits_for_weights_and_cache_and_a_long_prefill_for_products():
    where = evaluate.setting(presets.PRESETS["llama-13b"], chips.topology("h200-1"), EvaluationConfig())
    chip = where.topology.chip
    read = 12_851_624_960 * 2 + 64 * 1024 * 2 * 40 * 40 * 128 * 2  # matrices, and the cache
    step = evaluate.seconds(Program("decode", (64, 1024)), where)
    assert step == pytest.approx(read / (chip.hbm_gb_per_s * 1e9 * 0.8), rel=1e-3)
    products = 2 * 12_688_000_000 * 1024 / (chip.peak * chip.product_efficiency)
    assert evaluate.seconds(Program("prefill", (1, 1024, 0)), where) == pytest.approx(products, rel=0.05)


def test_a_decoding_step_updates_the_cache_that_it_is_given():
    where = evaluate.setting(small().student, SLICE, dataclasses.replace(OWN, tensor=1))
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    stats = evaluate.lower(Program("decode", (4, 128)), where, mesh).compile().memory_analysis()
    assert stats.alias_size_in_bytes == 4 * 128 * where.position


def test_what_cannot_be_laid_out_or_read_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.tensor=3 does not divide 4 chips"):
        evaluate.setting(small().student, SLICE, dataclasses.replace(OWN, tensor=3))
    with pytest.raises(ValueError, match="'bbh=5' is not NAME=QUESTIONS:PROMPT:REPLY"):
        program.asked_of(["bbh=5"])
    assert program.asked_of(["mine=5:6:7"]) == {"mine": Asked(5, 6, 7)}
