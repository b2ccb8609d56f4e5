"""Traces by their places in files, with the examples before their questions: of whom, and none of its own."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data.traces import (
    NO_SHOT,
    Candidate,
    PlacedTraces,
    draw_shots,
    with_examples,
)
from orca_jax.files import read_placed, write_jsonl
from orca_jax.records import Message, Outcome, Sampling, Trace


def trace(number):
    messages = (
        Message("system", "Be kind."),
        Message("user", f"é {number}?"),
        Message("assistant", f"{number}!"),
    )
    return Trace(f"t{number}", f"q{number}", 0, messages, "", "", None, "me", Sampling(), Outcome.OK)


candidates = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.booleans()), max_size=20).map(
    lambda rows: [Candidate(at, f"q{query}", kind, serves) for at, (query, kind, serves) in enumerate(rows)]
)


@given(candidates, st.integers(1, 3), st.integers(0, 3))
def test_examples_are_of_other_queries_of_the_kind_that_may_serve(every, shots, seed):
    drawn = draw_shots(every, shots, seed)
    assert drawn.shape == (len(every), 1 + shots)
    assert drawn[:, 0].tolist() == [one.offset for one in every]
    for one, row in zip(every, drawn[:, 1:]):
        chosen = [every[at] for at in row if at != NO_SHOT]
        queries = [example.query_id for example in chosen]
        assert len(set(queries)) == len(queries)
        assert one.query_id not in queries
        assert all(example.serves and example.kind == one.kind for example in chosen)
        others = {o.query_id for o in every if o.serves and o.kind == one.kind} - {one.query_id}
        assert len(chosen) == min(shots, len(others))
        assert list(row[len(chosen) :]) == [NO_SHOT] * (shots - len(chosen))


def test_the_draw_depends_on_the_seed_and_differs_between_traces():
    every = [Candidate(at, f"q{at}", "", True) for at in range(200)]
    drawn, other = draw_shots(every, 2, 0)[:, 1:], draw_shots(every, 2, 1)[:, 1:]
    assert np.array_equal(drawn, draw_shots(every, 2, 0)[:, 1:])
    assert (drawn != other).any(1).mean() > 0.9
    assert len({tuple(row) for row in drawn.tolist()}) > 190


def test_the_prompt():
    found = with_examples(trace(0), [trace(1), trace(2)])
    assert [message.content for message in found.messages] == [
        "Be kind.",
        "Example:\né 1?\nAnswer: 1!\n\nExample:\né 2?\nAnswer: 2!\n\nYour turn:\né 0?",
        "0!",
    ]
    assert found.answer == "0!"
    assert found.id == "t0"
    assert with_examples(trace(0), []) == trace(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of six traces, with the places of their lines."""
    folder, parts = tmp_path_factory.mktemp("traces"), {}
    for name, numbers in (("a", range(6)), ("b", range(6, 12))):
        path = folder / f"{name}.jsonl"
        write_jsonl(path, map(trace, numbers))
        parts[path] = [offset for offset, _ in read_placed(path, Trace)]
    return parts


def with_shots(files):
    """The first file's with two examples each, the second's with none."""
    path, offsets = next(iter(files.items()))
    shots = np.array(
        [
            [offsets[at], offsets[(at + 1) % 6], NO_SHOT if at == 3 else offsets[(at + 2) % 6]]
            for at in range(6)
        ]
    )
    return PlacedTraces.of({**files, path: shots})


EXPECTED = [
    with_examples(trace(at), [trace((at + 1) % 6), trace((at + 2) % 6)][: 1 if at == 3 else 2])
    for at in range(6)
] + [trace(at) for at in range(6, 12)]


@given(start=st.integers(0, 12), stop=st.integers(0, 12), step=st.integers(1, 4))
def test_traces_are_read_with_their_examples(files, start, stop, step):
    part = with_shots(files)[start:stop:step]
    assert list(part) == EXPECTED[start:stop:step]
    assert len(part) == len(EXPECTED[start:stop:step])
    assert list(pickle.loads(pickle.dumps(part))) == list(part)


def test_no_traces():
    assert list(PlacedTraces.of({})) == []
    assert list(PlacedTraces.of({"nowhere.jsonl": np.empty((0, 3), np.int64)})) == []
