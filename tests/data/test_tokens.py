"""The token store: what was encoded is read back in order, whoever wrote it and however often."""

import collections
import dataclasses
import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax import artifacts
from orca_jax.data import tokens
from orca_jax.data.tokens import Encoder, TokenStore, reason, write_store
from orca_jax.records import Message, Outcome, RecordError, Sampling, Trace

SHARD = 4


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_SIZE", SHARD)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer, "chatml")


def make_trace(number, outcome=Outcome.OK, answer="It is {number}."):
    messages = [Message("user", f"Which number is this? {'x' * (number % 5)}")]
    if answer is not None:
        messages.append(Message("assistant", answer.format(number=number)))
    return Trace(
        id=f"cot.{number}",
        query_id=f"cot.{number}",
        sample=0,
        messages=tuple(messages),
        collection="cot" if number % 2 else "flan",
        task=f"task_{number % 3}",
        system_message_id=number % 16 + 1 if number % 4 else None,
        teacher="gpt-4" if number < 6 else "a-teacher-with-a-longer-name",
        sampling=Sampling(),
        outcome=outcome,
    )


TRACES = [make_trace(number) for number in range(10)]


def finished(directory, traces, encoder, **options):
    """A store with its manifest, and what was counted."""
    counts = write_store(directory, traces, encoder, **options)
    artifacts.Artifact(directory, {}, {}).finish(counts)
    return TokenStore(directory), counts


def content(directory):
    """Each file's digest by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, encoder):
    """A folder with the store of TRACES, to read only."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SHARD_SIZE", SHARD)
        finished(directory, TRACES, encoder)
    return directory


def test_examples_are_read_back_in_order(whole, encoder):
    store = TokenStore(whole)
    assert len(store) == len(TRACES)
    for index, trace in enumerate(TRACES):
        example, encoded = store[index], encoder([trace])[0]
        assert example["id"] == trace.id
        np.testing.assert_array_equal(example["tokens"], encoded.tokens)
        np.testing.assert_array_equal(example["weights"], encoded.weights)
        np.testing.assert_array_equal(example["roles"], encoded.roles)
        assert [example[name].dtype for name in ("tokens", "weights", "roles")] == [
            np.int32,
            np.float32,
            np.uint8,
        ]


def test_columns_stand_beside_the_examples(whole, encoder):
    store = TokenStore(whole)
    assert store.lengths.tolist() == [len(encoded.tokens) - 1 for encoded in encoder(TRACES)]
    for name in ("collection", "task", "teacher"):
        assert store.columns[name].tolist() == [getattr(trace, name) for trace in TRACES]
    assert store.columns["system_message_id"].tolist() == [t.system_message_id or -1 for t in TRACES]


def test_supervised_columns_count_positions_of_a_row(whole):
    store = TokenStore(whole)
    for index in range(len(store)):
        targets = store[index]["weights"][1:]
        assert store.columns["supervised"][index] == targets.sum()
        assert store.columns["first_supervised"][index] == targets.argmax()


def test_tfds_reads_a_store(whole):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(whole))
    assert builder.info.splits["train"].num_examples == len(TRACES)
    assert builder.info.splits["train"].shard_lengths == [4, 4, 2]
    source = builder.as_data_source("train")
    assert [example["id"].decode() for example in source] == [trace.id for trace in TRACES]


def test_only_answers_that_are_ok_train():
    assert not reason(make_trace(1))
    assert reason(make_trace(1, answer=" \n")) == reason(make_trace(1, answer=None)) == "empty"
    others = [outcome for outcome in Outcome if outcome is not Outcome.OK]
    assert [reason(make_trace(1, outcome)) for outcome in others] == others


def test_what_does_not_train_is_counted_by_outcome(encoder, tmp_path):
    bad = [Outcome.REFUSED, Outcome.LENGTH, Outcome.REFUSED, Outcome.ERROR]
    dropped = [make_trace(100 + i, outcome) for i, outcome in enumerate(bad)] + [make_trace(200, answer="")]
    store, counts = finished(tmp_path, [*TRACES[:3], *dropped, *TRACES[3:]], encoder)
    assert counts["dropped"] == {"empty": 1, "error": 1, "length": 1, "refused": 2}
    assert counts["examples"] == len(TRACES)
    assert [store[i]["id"] for i in range(len(store))] == [trace.id for trace in TRACES]


def test_a_shard_may_have_nothing_to_train_on(encoder, tmp_path):
    traces = [*TRACES[:SHARD], *(make_trace(i, Outcome.ERROR) for i in range(SHARD)), *TRACES[SHARD:]]
    store, counts = finished(tmp_path, traces, encoder)
    assert counts["shards"] == 4
    assert [store[i]["id"] for i in range(len(store))] == [trace.id for trace in TRACES]


def test_a_store_may_have_nothing_to_train_on(encoder, tmp_path):
    store, counts = finished(tmp_path, [make_trace(0, Outcome.FILTERED)], encoder)
    assert (len(store), counts["examples"], counts["dropped"]) == (0, 0, {"filtered": 1})
    assert store.effective_lengths(8, "truncate").shape == (0,)


SECOND = ("traces-train.array_record-00001-of-00003", ".shard-00001.npz")


@pytest.mark.parametrize("lost", [SECOND, SECOND[1:], SECOND[:1]], ids=["both", "sidecar", "shard"])
def test_a_lost_shard_alone_is_written_again(whole, encoder, tmp_path, lost):
    finished(tmp_path, TRACES, encoder)
    for name in lost:
        (tmp_path / name).unlink()
    written, encoded = [], []

    def spy(traces):
        encoded.extend(trace.id for trace in traces)
        return encoder(traces)

    finished(tmp_path, TRACES, spy, on_shard=lambda done, shards: written.append((done, shards)))
    assert written == [(3, 3)]
    assert encoded == [trace.id for trace in TRACES[SHARD : 2 * SHARD]]
    assert content(tmp_path) == content(whole)


def test_an_interrupted_store_goes_on_where_it_was(whole, encoder, tmp_path):
    calls = collections.Counter()

    def killed(traces):
        calls.update(trace.id for trace in traces)
        if "cot.6" in {trace.id for trace in traces} and calls["cot.6"] == 1:
            raise KeyboardInterrupt
        return encoder(traces)

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, TRACES, killed)
    finished(tmp_path, TRACES, killed)
    expected = {trace.id: 2 if SHARD <= number < 2 * SHARD else 1 for number, trace in enumerate(TRACES)}
    assert calls == expected
    assert content(tmp_path) == content(whole)


def test_shards_are_reported_as_they_are_written(encoder, tmp_path):
    seen = []
    write_store(tmp_path, TRACES, encoder, on_shard=lambda *progress: seen.append(progress))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_trace_that_fits_no_layout_is_named(encoder, tmp_path):
    wrong = dataclasses.replace(TRACES[0], id="cot.bad", messages=TRACES[0].messages[1:])
    with pytest.raises(RecordError, match=r"1 rows are malformed(.|\n)*trace 'cot\.bad': turns must be"):
        write_store(tmp_path, [wrong, *TRACES], encoder)
    counts = write_store(tmp_path, [wrong, *TRACES], encoder, malformed=0.1)
    assert (counts["examples"], counts["dropped"]) == (len(TRACES), {"does not fit the layout": 1})


def test_an_unfinished_store_is_refused(encoder, tmp_path):
    write_store(tmp_path, TRACES, encoder)
    with pytest.raises(artifacts.ArtifactError, match=r"no manifest\.json"):
        TokenStore(tmp_path)


EXAMPLES = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), max_size=8)


@given(weights=EXAMPLES, row_length=st.integers(1, 12), overlong=st.sampled_from(["truncate", "drop"]))
def test_effective_lengths_are_those_of_the_examples_cut(weights, row_length, overlong):
    expected = [effective_length(example, row_length, overlong) for example in weights]
    assert store_of(weights).effective_lengths(row_length, overlong).tolist() == expected


def effective_length(weights, row_length, overlong):
    """Of one example, from its definition: positions predict all tokens but the first."""
    targets = weights[1:]
    if len(targets) > row_length:
        targets = targets[:row_length] if overlong == "truncate" else []
    return len(targets) if any(targets) else 0


def store_of(weights):
    """A store's columns without its files."""
    store = object.__new__(TokenStore)
    targets = [np.flatnonzero(example[1:]) for example in weights]
    store.lengths = np.array([len(example) - 1 for example in weights], np.int64)
    store.columns = {"first_supervised": np.array([t[0] if len(t) else -1 for t in targets], np.int64)}
    return store


def sleep_long(job):
    print("at work", flush=True)
    time.sleep(600)


PARENT = """
from orca_jax.data.tokens import in_processes
from tests.data.test_tokens import sleep_long

if __name__ == "__main__":
    list(in_processes(2, sleep_long, [(0, []), (1, [])]))
"""


def test_workers_leave_when_their_program_is_killed(tmp_path, repo):
    """Else they stay for ever, and whoever reads what the program prints waits as long."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        parent.communicate(timeout=60)
