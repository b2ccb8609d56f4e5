"""Traces by their places in files are the traces."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data.traces import PlacedTraces
from orca_jax.files import read_placed, write_jsonl
from orca_jax.records import Message, Outcome, Sampling, Trace


def trace(number):
    messages = (Message("user", f"é {number}?"), Message("assistant", "yes" * number))
    return Trace(f"t{number}", f"q{number}", 0, messages, "", "", None, "me", Sampling(), Outcome.OK)


TRACES = [trace(number) for number in range(12)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of traces, with the places of their lines."""
    folder = tmp_path_factory.mktemp("traces")
    parts = {}
    for name, some in (("a", TRACES[:5]), ("b", TRACES[5:])):
        write_jsonl(folder / f"{name}.jsonl", some)
        placed = read_placed(folder / f"{name}.jsonl", Trace)
        parts[folder / f"{name}.jsonl"] = [offset for offset, _ in placed]
    return parts


@given(start=st.integers(0, 12), stop=st.integers(0, 12), step=st.integers(1, 4))
def test_a_slice_is_the_slice_of_the_list(files, start, stop, step):
    placed = PlacedTraces.of(files)
    part = placed[start:stop:step]
    assert list(part) == TRACES[start:stop:step]
    assert len(part) == len(TRACES[start:stop:step])


def test_places_may_be_chosen_and_sent_to_another_process(files):
    chosen = PlacedTraces.of({path: offsets[1::2] for path, offsets in files.items()})
    assert list(pickle.loads(pickle.dumps(chosen))) == [*TRACES[1:5:2], *TRACES[6::2]]


def test_no_traces():
    assert list(PlacedTraces.of({})) == []
    assert list(PlacedTraces.of({"nowhere.jsonl": []})[0:0]) == []
