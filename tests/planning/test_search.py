"""Ranking of meshes, batches and remat policies, and what would make a step fit."""

import dataclasses
import itertools

import pytest

from orca_jax.planning import chips, memory, search
from orca_jax.planning.workload import MeshShape
from tests.planning.workloads import large, small

SLICE = chips.topology("v5p:2x4x4")


@pytest.fixture(scope="module")
def work():
    return large("llama-13b", 128)


@pytest.fixture(scope="module")
def ranked(work):
    return search.rank(work, SLICE, memory.abstract_state(work.student, work.optimizer))


def test_the_fastest_comes_first_and_all_fit(ranked):
    speeds = [candidate.tokens_per_second for candidate in ranked]
    assert speeds == sorted(speeds, reverse=True)
    assert all(search.fits(candidate.bytes.total, SLICE) for candidate in ranked)
    assert all(candidate.shape.devices == SLICE.chips for candidate in ranked)


def test_meshes_and_policies_are_all_tried(ranked):
    assert len({candidate.shape for candidate in ranked}) > 4
    assert {candidate.workload.student.remat for candidate in ranked} >= {"products", "full"}


def test_a_larger_batch_is_named_only_where_it_gains(work, ranked):
    """Few rows leave the chips waiting for weights, and more are faster."""
    pod, few = chips.topology("v5e-256"), dataclasses.replace(work, batch_rows=256, row_length=256)
    waiting = search.rank(few, pod, memory.abstract_state(work.student, work.optimizer))
    assert waiting[0].workload.batch_rows > 256
    for found in (ranked, waiting):
        ways = {(one.shape, one.workload.student.remat) for one in found}
        for way in ways:
            same = [one for one in found if (one.shape, one.workload.student.remat) == way]
            same.sort(key=lambda one: one.workload.batch_rows)
            for smaller, larger in itertools.pairwise(same):
                assert larger.tokens_per_second > search.GAIN * smaller.tokens_per_second


def test_parts_are_as_few_as_fit(work, ranked):
    state = memory.abstract_state(work.student, work.optimizer)
    split = [candidate for candidate in ranked if candidate.workload.accumulation > 1]
    assert split
    for candidate in split[:5]:
        parts = search.parts(candidate.workload, candidate.shape)
        fewer = [part for part in parts if part.accumulation < candidate.workload.accumulation]
        sizes = [search.assess(part, candidate.shape, SLICE, state).bytes.total for part in fewer]
        assert not any(search.fits(size, SLICE) for size in sizes)


def test_meshes_divide_the_heads():
    shapes = list(search.meshes(small(num_kv_heads=2), chips.topology("v5p:2x2x2")))
    assert MeshShape(1, 4, 2) in shapes
    assert all(shape.devices == 8 and shape.tensor <= 2 and shape.data <= shape.fsdp for shape in shapes)


def test_what_would_make_a_step_fit():
    """7B without remat on 16 GB chips: otherwise here. 70B: with no optimizer, but on a larger slice."""
    seven = large("llama2-7b", 64)
    seven = dataclasses.replace(seven, student=dataclasses.replace(seven.student, remat="none"))
    here, there = search.remedies(seven, chips.topology("v5e-64"))
    assert here.startswith("on these chips: ")
    assert "remat=none" not in here or "accumulation=1" not in here
    assert there.startswith("on v5e:8x16: ")
    (only,) = search.remedies(large("llama2-70b", 64), chips.topology("v5e-16"))
    assert only.startswith("on v5e:")


def test_a_smaller_optimizer_is_proposed_where_only_that_fits():
    work = large("llama-13b", 16)
    found = search.here(work, chips.topology("v5e-16"))
    state = memory.abstract_state(work.student, work.optimizer)
    assert not search.rank(work, chips.topology("v5e-16"), state, batch_factors=(1,))
    assert "optimizer.kind=" in found
