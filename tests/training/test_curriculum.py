"""Where a step stands: every row once, exact shares, one integer to resume from."""

import collections
import concurrent.futures
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config import BLOCK, StageConfig
from orca_jax.config_check import build
from orca_jax.data.packing import PackingPlan
from orca_jax.training.curriculum import Curriculum, learning_rate


def plans(rows):
    """Plans that have so many rows: a number, or one an epoch in turn."""

    def plan(dataset, epoch):
        counts = np.atleast_1d(rows[dataset])
        count = int(counts[epoch % len(counts)])
        return PackingPlan(np.arange(count), np.arange(count + 1), 8, count, np.zeros(0, np.int64))

    return plan


def make(stages, rows, batch_rows=4, seed=0):
    return Curriculum(stages, plans(rows), batch_rows=batch_rows, seed=seed)


def all_rows(curriculum, steps=None):
    steps = range(curriculum.total_steps) if steps is None else steps
    return list(itertools.chain.from_iterable(curriculum.position(step).rows for step in steps))


# --- One data set


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    epochs=st.integers(1, 4),
    batch_rows=st.sampled_from([1, 3, 8]),
)
def test_every_row_of_an_epoch_exactly_once(rows, epochs, batch_rows):
    """Whatever the epoch's rows; what fills its last batch lies past the plan's end."""
    curriculum = make([StageConfig(name="s", datasets={"a": 1.0}, epochs=epochs)], {"a": rows}, batch_rows)
    seen = all_rows(curriculum)
    assert len(set(seen)) == len(seen) == curriculum.total_steps * batch_rows
    for epoch in range(epochs):
        count = rows[epoch % len(rows)]
        mine = [ref.row for ref in seen if ref.epoch == epoch]
        assert mine == list(range(math.ceil(count / batch_rows) * batch_rows))
        assert len([row for row in mine if row < count]) == count


def test_an_epoch_ends_with_a_whole_batch():
    curriculum = make([StageConfig(name="s", datasets={"a": 1.0}, epochs=2)], {"a": 6})
    assert curriculum.total_steps == 4
    assert [curriculum.position(step).epoch for step in range(4)] == [0, 0, 1, 1]
    assert [ref.row for ref in curriculum.position(1).rows] == [4, 5, 6, 7]


def test_steps_count_for_more_than_epochs():
    curriculum = make([StageConfig(name="s", datasets={"a": 1.0}, epochs=9, steps=3)], {"a": 6})
    assert curriculum.total_steps == 3


# --- Mixtures


def drawn(weights, seed, batch_rows, blocks=3):
    """How many rows of every data set each block of a mixture has, [blocks, data sets]."""
    datasets = {f"set {i}": float(weight) for i, weight in enumerate(weights)}
    stage = StageConfig(name="mix", datasets=datasets, steps=blocks * BLOCK // batch_rows)
    refs = all_rows(make([stage], dict.fromkeys(datasets, 50), batch_rows, seed))
    counts = [collections.Counter(ref.dataset for ref in refs[i * BLOCK :][:BLOCK]) for i in range(blocks)]
    return np.array([[count[name] for name in datasets] for count in counts])


@settings(max_examples=15)
@given(st.lists(st.integers(1, 85), min_size=1, max_size=2), st.integers(0, 9), st.sampled_from([8, 32]))
def test_shares_of_a_mixture_are_exact_in_every_block(shares, seed, batch_rows):
    weights = [*shares, BLOCK - sum(shares)]
    np.testing.assert_array_equal(drawn(weights, seed, batch_rows), [weights] * 3)


@settings(max_examples=15)
@given(st.lists(st.floats(0.2, 5.0), min_size=2, max_size=4), st.integers(0, 9))
def test_shares_that_blocks_cannot_hold_stay_within_a_row_of_all_rows_so_far(weights, seed):
    so_far = np.cumsum(drawn(weights, seed, 32), axis=0)
    expected = np.arange(1, 4)[:, None] * BLOCK * np.array(weights) / sum(weights)
    assert np.abs(so_far - expected).max() <= 1


def test_rows_of_a_mixtures_data_sets_come_in_their_order_and_once():
    stage = StageConfig(name="mix", datasets={"a": 1.0, "b": 3.0}, steps=200)
    refs = all_rows(make([stage], {"a": 44, "b": 60}))
    assert len(set(refs)) == len(refs)
    for name, rows in (("a", 44), ("b", 60)):
        mine = [(ref.epoch, ref.row) for ref in refs if ref.dataset == name]
        assert mine == [divmod(i, rows) for i in range(len(mine))]


def test_epochs_of_a_mixture_are_as_many_rows_as_its_data_sets_have():
    stage = StageConfig(name="mix", datasets={"a": 1.0, "b": 1.0}, epochs=2)
    assert make([stage], {"a": 8, "b": 12}).total_steps == 10


def test_seed_changes_whose_turn_it_is():
    stage = StageConfig(name="mix", datasets={"a": 1.0, "b": 1.0}, steps=20)
    first, same, other = (
        [ref.dataset for ref in all_rows(make([stage], {"a": 99, "b": 99}, seed=seed))] for seed in (0, 0, 1)
    )
    assert first == same != other
    assert len(set(first[:8])) == 2  # they take turns, and are not laid end to end


# --- Stages


TWO = (
    StageConfig(
        name="one", datasets={"a": 1.0}, epochs=2, learning_rate=1.0, warmup_steps=2, final_fraction=0.5
    ),
    StageConfig(name="two", datasets={"b": 1.0}, steps=4, learning_rate=0.1, final_fraction=0.0),
)


def test_stages_follow_one_another():
    curriculum = make(TWO, {"a": 8, "b": 100})
    assert curriculum.starts == [0, 4, 8]
    assert curriculum.total_steps == 8
    positions = [curriculum.position(step) for step in range(8)]
    assert [position.stage for position in positions] == [0] * 4 + [1] * 4
    assert [position.stage_step for position in positions] == [0, 1, 2, 3] * 2
    assert {ref.dataset for position in positions[4:] for ref in position.rows} == {"b"}


def test_a_data_set_of_two_stages_is_packed_anew():
    """The second stage asks for epochs that the first has not used."""
    asked = []

    def remembered(dataset, epoch):
        asked.append(epoch)
        return plans({"a": 8})(dataset, epoch)

    stages = [StageConfig(name=name, datasets={"a": 1.0}, epochs=2) for name in ("one", "two")]
    curriculum = Curriculum(stages, remembered, batch_rows=4, seed=0)
    assert len(set(asked)) == 4
    refs = all_rows(curriculum)
    assert {ref.epoch for ref in refs} == set(asked)
    assert len(set(refs)) == len(refs)
    assert [curriculum.position(step).epoch for step in range(8)] == [0, 0, 1, 1] * 2


@settings(max_examples=20)
@given(steps=st.lists(st.integers(0, 199), max_size=12))
def test_position_depends_on_the_step_alone(steps):
    """Asked in any order, any number of times, of a fresh curriculum or a used one."""
    stages = [
        StageConfig(name="one", datasets={"a": 2.0, "b": 1.0}, steps=120),
        StageConfig(name="two", datasets={"a": 2.0, "b": 1.0}, anneal_to={"c": 1.0}, steps=80),
    ]
    rows = {"a": [7, 9], "b": 31, "c": 5}
    used = make(stages, rows)
    for step in steps:
        assert used.position(step) == make(stages, rows).position(step)


# --- Shares that move


def annealed(first, last, steps, batch_rows=8, seed=0):
    """Whose turn each row of such a stage is, as indices into its data sets, and their names."""
    stage = StageConfig(name="over", datasets=first, anneal_to=last, steps=steps)
    refs = all_rows(make([stage], dict.fromkeys(stage.names, 37), batch_rows, seed))
    assert len(set(refs)) == len(refs)
    return np.array([stage.names.index(ref.dataset) for ref in refs]), stage.names


WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9).map(float), min_size=1, max_size=3)


@settings(max_examples=20)
@given(first=WEIGHTS, last=WEIGHTS, steps=st.integers(1, 150), batch_rows=st.sampled_from([1, 8, 32]))
def test_shares_move_in_a_straight_line(first, last, steps, batch_rows):
    """At every row, each data set has had as many as the line's integral says, but for a block's order."""
    turns, names = annealed(first, last, steps, batch_rows)
    total = steps * batch_rows
    assert len(turns) == total
    ends = np.arange(1, total + 1)
    for i, name in enumerate(names):
        start, end = (weights.get(name, 0.0) / sum(weights.values()) for weights in (first, last))
        expected = start * ends + (end - start) * ends**2 / (2 * total)
        block = max(1, min(BLOCK, total // 64))
        off = np.abs(np.cumsum(turns == i) - expected)
        assert off.max() <= len(names) + (block if len(names) > 1 else 1e-6)
        assert off[block - 1 :: block].max() <= len(names)


def test_an_annealed_stage_in_epochs_is_as_long_as_all_its_data_sets():
    stage = StageConfig(name="over", datasets={"a": 1.0}, anneal_to={"b": 1.0}, epochs=2)
    assert make([stage], {"a": 8, "b": 12}).total_steps == 10


def test_threads_that_ask_at_once_get_what_one_gets():
    """Plans are slow to make, so that threads meet in the making of one."""

    def slow(dataset, epoch):
        time.sleep(0.002)
        return plans({"a": [5, 9, 2], "b": [3, 8]})(dataset, epoch)

    stages = [
        StageConfig(name="mix", datasets={"a": 1.0, "b": 1.0}, steps=30),
        StageConfig(name="over", datasets={"a": 1.0}, anneal_to={"b": 1.0}, steps=30),
    ]
    asked = Curriculum(stages, slow, batch_rows=4, seed=0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(asked.position, range(60)))
    alone = Curriculum(stages, plans({"a": [5, 9, 2], "b": [3, 8]}), batch_rows=4, seed=0)
    assert found == [alone.position(step) for step in range(60)]


# --- Stages that end early


def test_a_stage_that_ended_early_moves_the_later_ones_and_nothing_else():
    whole = make(TWO, {"a": 8, "b": 100})
    cut = whole.ending({0: 3})
    assert (cut.starts, whole.starts) == ([0, 3, 7], [0, 4, 8])
    assert [cut.position(step) for step in range(3)] == [whole.position(step) for step in range(3)]
    assert [cut.position(step) for step in range(3, 7)] == [whole.position(step) for step in range(4, 8)]
    assert cut.ending({1: 2}).ended == {0: 3, 1: 2}
    assert cut.ending({1: 2}).total_steps == 5


# --- Learning rate


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", {2: 1.0, 12: 0.55, 17: 0.55 - 0.45 * math.sqrt(0.5)}),
        ("linear", {2: 1.0, 12: 0.55, 17: 0.325}),
        ("wsd", {2: 1.0, 12: 1.0, 19: 1.0, 20: 1.0, 21: 0.55}),
        ("constant", {2: 1.0, 12: 1.0, 21: 1.0}),
    ],
)
def test_a_schedule_after_a_warm_up_of_two_of_22_steps(schedule, rates):
    settings = dict(learning_rate=1.0, warmup_steps=2, final_fraction=0.1, schedule=schedule)
    stage = StageConfig(name="s", datasets={"a": 1.0}, steps=22, **settings)
    found = {step: learning_rate(stage, step, 22) for step in rates}
    assert found == pytest.approx(rates)
    assert learning_rate(stage, 0, 22) == 0.5
    assert make([stage], {"a": 4}).position(12).learning_rate == found[12]
    after = learning_rate(stage, 30, 22)  # a stage that is longer than planned: never below its end
    assert after == pytest.approx(1.0 if schedule == "constant" else 0.1)


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
def test_learning_rate_stays_between_its_ends(warmup, steps, final):
    stage = StageConfig(
        name="s", datasets={"a": 1.0}, learning_rate=3e-4, warmup_steps=warmup, final_fraction=final
    )
    rates = [learning_rate(stage, step, steps) for step in range(steps)]
    assert all(0 < rate <= 3e-4 * (1 + 1e-9) for rate in rates[:warmup])
    assert all(3e-4 * final - 1e-12 <= rate <= 3e-4 * (1 + 1e-9) for rate in rates[warmup:])


def test_every_stage_has_its_own_schedule():
    curriculum = make(TWO, {"a": 8, "b": 100})
    rates = [curriculum.position(step).learning_rate for step in range(8)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[4] == 0.1


# --- Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": {"a": 1.0}, "epochs": 0}, "'late': give epochs"),
        ({"datasets": {"a": 1.0, "tiny": 1e-4}}, "share of tiny is below"),
        ({"datasets": {"a": 0.0}}, "share of a is below"),
        ({"datasets": {"a": 2.0, "b": -1.0}}, "share of b is below"),
        ({"datasets": {"a": 1.0}, "anneal_to": {"b": 1.0, "tiny": 1e-4}}, "share of tiny is below"),
        ({"datasets": {"a": 1.0}, "skip_spikes": 1.0}, "'late': skip_spikes=1.0"),
    ],
)
def test_stage_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(name="late", **settings)


@pytest.mark.parametrize("key", ["steps", "epochs", "until_plateau", "warmup_steps"])
def test_a_stage_has_no_negative_counts(key):
    with pytest.raises(ValueError, match=f"'{key}' must be at least 0, got -1"):
        build(StageConfig, {"name": "late", "datasets": {"a": 1.0}, key: -1})


def test_a_stage_has_data():
    with pytest.raises(ValueError, match="'datasets' must be not empty"):
        build(StageConfig, {"name": "late", "datasets": {}})


def test_no_stages():
    with pytest.raises(ValueError, match="curriculum is empty"):
        make([], {})


def test_a_data_set_without_rows_is_named():
    with pytest.raises(ValueError, match="'a' has no rows"):
        make([StageConfig(name="s", datasets={"a": 1.0})], {"a": 0})


@pytest.mark.parametrize("step", [-1, 8])
def test_steps_outside(step):
    with pytest.raises(IndexError, match=f"step {step} is outside the curriculum's 8 steps"):
        make(TWO, {"a": 8, "b": 100}).position(step)


# --- On policy


def on_policy(**rules):
    rules = {"rounds": 3, "share": 0.25, **rules}
    return {"name": "s", "datasets": {"a": 1.0}, "steps": 96, "warmup_steps": 5, "on_policy": rules}


def test_rounds_are_stages_on_one_schedule_each_with_its_own_rows():
    first = StageConfig(name="first", datasets={"a": 1.0}, steps=8)
    stage = build(StageConfig, on_policy())
    curriculum = make([first, stage], {"a": 50, "round/0": 7, "round/1": 9, "round/2": 11}, batch_rows=8)
    assert curriculum.starts == [0, 8, 40, 72, 104]
    rates = [curriculum.position(8 + step).learning_rate for step in range(96)]
    assert rates == [learning_rate(stage, step, 96) for step in range(96)]
    for number, start in enumerate(curriculum.starts[1:-1]):
        rows = [row for step in range(start, start + 32) for row in curriculum.position(step).rows]
        counts = collections.Counter(row.dataset for row in rows)
        assert counts == {"a": 192, f"round/{number}": 64}
        assert all(curriculum.position(step).stage_step == step - start for step in (start, start + 31))
    orders = [curriculum.position(start).rows for start in curriculum.starts[:-1]]
    epochs = [{row.epoch for row in rows if row.dataset == "a"} for rows in orders]
    assert epochs == [{0}, {1000}, {2000}, {3000}], "the teacher's rows come in another order each time"


def test_rounds_of_several_stages_are_counted_on_and_may_be_all_of_a_stage():
    stages = [build(StageConfig, on_policy(rounds=2, share=1.0)) for _ in range(2)]
    names = [stage.datasets for stage in make(stages, {f"round/{n}": 5 for n in range(4)}).stages]
    assert names == [{f"round/{n}": 1.0} for n in range(4)]


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 95}, "steps=95 must be a multiple of on_policy.rounds=3"),
    ({"steps": 0}, "steps=0 must be a multiple"),
    ({"datasets": {"a": 1.0, "b": 1.0}}, "on_policy takes one data set, and not several data sets"),
    ({"until_plateau": 2}, "on_policy takes one data set, and not until_plateau"),
    ({"distill_weight": 0.5}, "and not distill_weight"),
    ({"on_policy": {"share": 0.001}}, "on_policy.share=0.001 must be 1, or 1/256 away"),
])  # fmt: skip
def test_a_stage_on_policy_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        build(StageConfig, {**on_policy(), **changes})
