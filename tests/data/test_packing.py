"""The packing plan: every example once, rows full, and the same plan wherever it is computed."""

import json
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data.packing import make_plan

ROW = 32
LENGTHS = st.lists(st.integers(0, ROW + 8), max_size=200).map(np.array)
PACKINGS = st.fixed_dictionaries(
    {
        "row_length": st.just(ROW),
        "max_segments": st.integers(1, 5),
        "seed": st.integers(0, 9),
        "epoch": st.integers(0, 9),
        "window": st.sampled_from([1, 7, 1000]),
    }
)


def rows(plan):
    return [plan.row(index) for index in range(plan.rows)]


def realistic_lengths(count):
    """Log-normal, as OpenOrca's conversations are: a median of 350 tokens and a long tail."""
    drawn = np.random.default_rng(1).lognormal(np.log(350), 0.75, count)
    return np.clip(drawn, 20, 2048).astype(np.int64)


@given(lengths=LENGTHS, packing=PACKINGS)
def test_every_kept_example_is_in_one_row_exactly_once(lengths, packing):
    plan = make_plan(lengths, **packing)
    fits = [i for i, length in enumerate(lengths) if 0 < length <= ROW]
    assert sorted(plan.examples) == fits
    assert sorted([*plan.examples, *plan.left_out]) == list(range(len(lengths)))


@given(lengths=LENGTHS, packing=PACKINGS)
def test_no_row_is_overfull_empty_or_of_too_many_segments(lengths, packing):
    for row in rows(make_plan(lengths, **packing)):
        assert 1 <= len(row) <= packing["max_segments"]
        assert lengths[row].sum() <= ROW


@given(lengths=LENGTHS, packing=PACKINGS)
def test_a_plan_counts_what_it_holds(lengths, packing):
    plan = make_plan(lengths, **packing)
    assert plan.filled == sum(lengths[row].sum() for row in rows(plan))
    assert plan.fill == plan.filled / max(1, plan.rows * ROW)
    assert plan.packing_factor == len(plan.examples) / max(1, plan.rows)


@given(lengths=LENGTHS, packing=PACKINGS)
def test_equal_inputs_give_equal_plans(lengths, packing):
    one, two = (make_plan(lengths.copy(), **packing) for _ in range(2))
    np.testing.assert_array_equal(one.examples, two.examples)
    np.testing.assert_array_equal(one.offsets, two.offsets)


@given(lengths=LENGTHS, max_segments=st.integers(1, 5))
def test_within_a_window_no_two_rows_could_have_been_one(lengths, max_segments):
    """Best fit opens a row only when nothing open has space, so at most one row is half empty."""
    plan = make_plan(lengths, row_length=ROW, max_segments=max_segments, seed=0, epoch=0)
    half_empty = [row for row in rows(plan) if lengths[row].sum() * 2 <= ROW and len(row) * 2 <= max_segments]
    assert len(half_empty) <= 1


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_other_epochs_and_seeds_share_rows_out_differently(other):
    lengths = np.arange(1, 200) % ROW + 1
    same = {"row_length": ROW, "max_segments": 4, "seed": 0, "epoch": 0}
    one, two = make_plan(lengths, **same), make_plan(lengths, **(same | other))
    together = [{frozenset(row.tolist()) for row in rows(plan)} for plan in (one, two)]
    assert len(together[0] & together[1]) < 0.5 * one.rows


def test_rows_are_shuffled_after_packing():
    """Best fit goes from long to short; a row's place must tell nothing of its longest example."""
    lengths = realistic_lengths(5000)
    plan = make_plan(lengths, row_length=2048, max_segments=64, seed=0, epoch=0)
    longest = [lengths[row].max() for row in rows(plan)]
    assert plan.rows > 800
    assert abs(np.corrcoef(np.arange(plan.rows), longest)[0, 1]) < 0.1


def test_a_row_past_the_end_holds_nothing():
    plan = make_plan(np.array([5, 6]), row_length=ROW, max_segments=4, seed=0, epoch=0)
    assert (plan.rows, len(plan.row(0)), len(plan.row(1)), len(plan.row(99))) == (1, 2, 0, 0)


def test_nothing_to_pack_gives_no_rows():
    plan = make_plan(np.array([0, ROW + 1]), row_length=ROW, max_segments=4, seed=0, epoch=0)
    assert (plan.rows, plan.fill, plan.packing_factor, plan.left_out.tolist()) == (0, 0.0, 0.0, [0, 1])


@pytest.mark.parametrize("wrong", [{"row_length": 0}, {"max_segments": 0}])
def test_impossible_sizes_are_named(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}=0"):
        make_plan(np.array([1]), **({"row_length": 4, "max_segments": 4, "seed": 0, "epoch": 0} | wrong))


def test_60_000_examples_fill_their_rows_in_two_seconds():
    lengths = realistic_lengths(60_000)
    start = time.perf_counter()
    plan = make_plan(lengths, row_length=2048, max_segments=64, seed=0, epoch=0)
    seconds = time.perf_counter() - start
    assert plan.fill >= 0.995
    assert len(plan.examples) == 60_000
    assert seconds < 2


MILLIONS = """
    import json, resource, time
    import numpy as np
    from orca_jax.data.packing import make_plan

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    lengths = np.random.default_rng(1).lognormal(np.log(350), 0.75, 5_000_000)
    lengths = np.clip(lengths, 20, 2048).astype(np.int64)
    before, start = peak(), time.perf_counter()
    plan = make_plan(lengths, row_length=2048, max_segments=64, seed=0, epoch=0)
    seconds = time.perf_counter() - start
    assert np.array_equal(np.sort(plan.examples), np.arange(5_000_000))
    assert np.add.reduceat(lengths[plan.examples], plan.offsets[:-1]).max() <= 2048
    print(json.dumps({"seconds": seconds, "gib": peak() - before, "fill": plan.fill}))
"""


@pytest.mark.proof
def test_five_million_examples_in_15_seconds_and_2_gib(repo):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MILLIONS)],
        cwd=repo,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["seconds"] <= 15
    assert found["gib"] <= 2
    assert found["fill"] >= 0.995
