"""A TFDS data set of traces holds what the traces hold."""

import json

import pytest

from orca_jax.data import export
from orca_jax.records import Message, Outcome, Sampling, Trace, Usage

TRACES = [
    Trace(
        id=f"cot.{number}/expert/0",
        query_id=f"cot.{number}",
        sample=number % 2,
        messages=(Message("system", ""), Message("user", f"{number}?"), Message("assistant", "é\n"))[
            : 2 + number % 2
        ],
        collection="cot",
        task="sums",
        system_message_id=7 if number else None,
        teacher="expert",
        sampling=Sampling(temperature=0.7),
        outcome=Outcome.OK if number % 2 else Outcome.EMPTY,
        usage=Usage(3, 4),
        created="2023-06-05",
        target="2" if number else None,
        extra={"family": "x"},
    )
    for number in range(7)
]


@pytest.mark.parametrize("shard", [3, 7, 50])
def test_what_is_written_is_read(tmp_path, monkeypatch, shard):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(export, "SHARD_SIZE", shard)
    assert export.write_tfds(tmp_path / "set", iter(TRACES)) == 7
    source = tfds.builder_from_directory(str(tmp_path / "set")).as_data_source("train")
    assert len(source) == 7
    for trace, example in zip(TRACES, source):
        messages = example["messages"]
        said = [Message(r.decode(), c.decode()) for r, c in zip(messages["role"], messages["content"])]
        assert tuple(said) == trace.messages
        assert example["id"].decode() == trace.id
        assert example["system_message_id"] == (7 if trace.system_message_id else -1)
        assert example["target"].decode() == (trace.target or "")
        assert example["outcome"].decode() == trace.outcome
        extra = json.loads(example["extra"].decode())
        assert (extra["family"], extra["usage"]["prompt_tokens"], extra["sampling"]["temperature"]) == (
            "x",
            3,
            0.7,
        )


def test_no_traces_are_a_data_set_too(tmp_path):
    import tensorflow_datasets as tfds

    assert export.write_tfds(tmp_path, []) == 0
    assert tfds.builder_from_directory(str(tmp_path)).info.splits["train"].num_examples == 0


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty; name another folder"):
        export.write_tfds(tmp_path, TRACES)
