import collections
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orca_jax.config_teachers import FlanConfig
from orca_jax.queries import sampling
from orca_jax.records import Query

SIZES = {
    ("cot", "cot_a"): 50,
    ("cot", "cot_b"): 30,
    ("niv2", "task1"): 500,
    ("niv2", "task2"): 40,
    ("flan2021", "small"): 20,
    ("flan2021", "large"): 2000,
    ("flan2021", "larger"): 3000,
    ("t0", "p3_a"): 700,
    ("t0", "p3_b"): 900,
}


def quotas(**changes):
    return FlanConfig(sources={}, **changes)


QUOTAS = quotas(niv2_per_task=300, flan2021=1000, t0=400)


def query(collection, task, number, template_type="zs_opt"):
    return Query(f"{collection}.{task}.{number}", f"{task} {number}", collection, task, template_type)


@pytest.fixture(scope="module")
def queries():
    return [query(*owner, number) for owner, size in SIZES.items() for number in range(size)]


def drawn_ids(queries, wanted=QUOTAS, expert=0.2, seed=0):
    drawn = sampling.plan(sampling.index(queries), wanted, expert, seed)
    return {query.id: query.extra["expert"] for query in sampling.select(queries, drawn)}


def test_an_index_holds_its_keys_once():
    """64 tasks of 500 keys of 8 bytes; a second copy of all would be 256 kB more."""
    tracemalloc.start()
    try:
        indexed = sampling.index(query("t0", f"p3_{n % 64}", n) for n in range(32_000))
        assert tracemalloc.get_traced_memory()[1] < 1.6 * 8 * 32_000
    finally:
        tracemalloc.stop()
    assert sum(map(len, indexed.keys.values())) == 32_000


def plain_algorithm_1(sizes, count, rng):
    """Algorithm 1 word for word: one task, one query, at a time."""
    left = {task: list(range(size)) for task, size in enumerate(sizes) if size}
    given = [0] * len(sizes)
    for _ in range(min(count, sum(sizes))):
        task = rng.choice(sorted(left))
        left[task].pop(rng.randrange(len(left[task])))
        given[task] += 1
        if not left[task]:
            del left[task]
    return given


def test_each_sub_collection_is_drawn_by_its_own_rule(queries):
    drawn = sampling.plan(sampling.index(queries), QUOTAS, 0.2, 0)
    counts = drawn.counts
    assert (counts["cot", "cot_a"], counts["cot", "cot_b"]) == (50, 30)
    assert (counts["niv2", "task1"], counts["niv2", "task2"]) == (300, 40)
    assert counts["flan2021", "small"] == 20
    assert sum(n for (owner, _), n in counts.items() if owner == "flan2021") == 1000
    assert sum(n for (owner, _), n in counts.items() if owner == "t0") == 400
    assert abs(counts["flan2021", "large"] - counts["flan2021", "larger"]) < 120
    assert drawn.summary()["t0"] == {"queries": 400, "tasks": 2}


def test_what_is_planned_is_what_is_selected(queries):
    drawn = sampling.plan(sampling.index(queries), QUOTAS, 0.2, 0)
    selected = list(sampling.select(queries, drawn))
    found = collections.Counter((query.collection, query.task) for query in selected)
    assert found == collections.Counter(drawn.counts)
    experts = sum(query.extra["expert"] for query in selected)
    assert experts == round(0.2 * len(selected))


def test_the_draw_does_not_depend_on_the_order_of_files_and_rows(queries):
    shuffled = random.Random(1).sample(queries, len(queries))
    assert drawn_ids(shuffled) == drawn_ids(queries)


def test_other_seeds_draw_other_queries(queries):
    first, second = drawn_ids(queries, seed=1), drawn_ids(queries, seed=2)
    assert first.keys() != second.keys()
    assert drawn_ids(queries, seed=1) == first


def test_few_shot_queries_and_other_collections_are_left_out_and_counted(queries):
    odd = [query("flan2021", "large", 9_000, "fs_opt"), query("dialog", "wiki", 1)]
    indexed = sampling.index([*queries, *odd, queries[0]])
    assert indexed.left_out == {"template_type": 1, "collection": 1, "duplicate": 1}
    assert sum(map(len, indexed.keys.values())) == len(queries)
    everything = quotas(niv2_per_task=9999, flan2021=10**9, t0=10**9)
    drawn = sampling.plan(indexed, everything, 0.2, 0)
    assert {q.id for q in sampling.select([*queries, *odd, queries[0]], drawn)} == {q.id for q in queries}
    assert len(list(sampling.select([queries[0]] * 3, drawn))) == 1


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="no zero-shot queries"):
        sampling.plan(sampling.index([]), QUOTAS, 0.2, 0)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 400), st.integers(0, 5))
def test_algorithm_1_gives_what_is_wanted_and_no_task_more_than_it_has(sizes, count, seed):
    given_by_task = sampling.algorithm_1(sizes, count, seed)
    assert given_by_task.sum() == min(count, sum(sizes))
    assert all(given_by_task <= sizes)


def test_algorithm_1_has_the_papers_distribution():
    sizes, count, runs = [3, 10, 40, 40], 40, 3000
    ours = np.array([sampling.algorithm_1(sizes, count, seed) for seed in range(runs)])
    plain = np.array([plain_algorithm_1(sizes, count, random.Random(seed)) for seed in range(runs)])
    for task in range(2, 4):
        assert stats.ks_2samp(ours[:, task], plain[:, task]).pvalue > 0.001
    assert ours.mean(0) == pytest.approx(plain.mean(0), abs=0.15)


def test_draws_in_blocks_are_drawn_on_over_a_task_that_runs_out(monkeypatch):
    monkeypatch.setattr(sampling, "DRAWS", 7)
    counts = np.array([sampling.algorithm_1([5, 100, 100], 60, seed) for seed in range(500)])
    assert np.all(counts[:, 0] == 5)
    assert counts[:, 1].mean() == pytest.approx(27.5, abs=0.6)


def test_a_tasks_queries_are_equally_likely():
    queries = [query("t0", "p3", number) for number in range(40)]
    indexed, ten = sampling.index(queries), quotas(t0=10)
    taken = collections.Counter(
        q.id for seed in range(800) for q in sampling.select(queries, sampling.plan(indexed, ten, 0.2, seed))
    )
    assert sum(taken.values()) == 8000
    assert stats.chisquare([taken[q.id] for q in queries]).pvalue > 0.001


def test_the_experts_queries_are_a_uniform_draw_of_all_collections(queries):
    drawn = drawn_ids(queries, quotas(), expert=0.5)
    shares = [expert for id, expert in drawn.items() if id.startswith("flan2021")]
    assert len(shares) == 5020
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.03)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 3))
def test_one_key_is_mixed_as_many_are(keys, seed):
    many = sampling.mixed(np.array(keys, np.uint64), seed, "queries")
    assert [sampling.mixed(key, seed, "queries") for key in keys] == many.tolist()


@pytest.mark.parametrize(
    ("scale", "counts"),
    [
        (0.1, {"cot": 8, "niv2": 60, "flan2021": 100, "t0": 40}),
        (1e-9, {"niv2": 2}),  # one of each task
        (2.0, {"cot": 80, "niv2": 540, "flan2021": 2000, "t0": 800}),
    ],
)
def test_one_number_scales_the_quotas(queries, scale, counts):
    scaled = quotas(niv2_per_task=300, flan2021=1000, t0=400, scale=scale)
    drawn = sampling.plan(sampling.index(queries), scaled, 0.2, 0)
    assert {name: part["queries"] for name, part in drawn.summary().items()} == counts


@given(st.integers(0, 3))
def test_drawn_queries_are_gathered_in_an_order_of_their_own(tmp_path_factory, order):
    queries = [query(*owner, number) for owner, size in SIZES.items() for number in range(size // 10)]
    drawn = sampling.plan(sampling.index(queries), quotas(niv2_per_task=10, flan2021=100, t0=40), 0.2, 0)
    expected = {q.id: q for q in sampling.select(queries, drawn)}
    gathered = []
    for stream in (random.Random(order).sample(queries, len(queries)) + queries[:5], queries):
        folder = tmp_path_factory.mktemp("drawn") / "buckets"
        sampling.scatter(stream, drawn, folder, buckets=7)
        gathered.append(list(sampling.gathered(folder, 0)))
    assert gathered[0] == gathered[1]
    assert {q.id: q for q in gathered[0]} == expected
    assert [q.collection for q in gathered[0]] != sorted(q.collection for q in gathered[0])
