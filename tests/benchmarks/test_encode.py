"""The benchmark of encoding counts the same tokens on both sides."""

import re

import pytest

from benchmarks import encode, racing
from orca_jax import files
from orca_jax.data import tokens
from orca_jax.data.traces import PlacedTraces
from orca_jax.records import Message, Outcome, Sampling, Trace


def make_trace(number):
    messages = (Message("user", f"What is {number} + 1?"), Message("assistant", f"It is {number + 1}."))
    return Trace(
        f"cot.{number}", f"cot.{number}", 0, messages, "cot", "sums", None, "gpt-4", Sampling(), Outcome.OK
    )


@pytest.fixture
def traces(tmp_path):
    files.write_jsonl(tmp_path / "traces.jsonl", map(make_trace, range(20)))
    return tmp_path / "traces.jsonl"


def test_both_encode_the_same_traces(traces, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tokens, "SHARD_SIZE", 40)
    tokenizer.save(tmp_path / "tokenizer")
    [model] = (tmp_path / "tokenizer").glob("*.model")
    racing.command(encode.main, [str(traces), str(model), "--rounds=1"])
    printed = capsys.readouterr().out
    assert "| 40 traces " in printed
    speeds = [int(speed) for speed in re.findall(r"\| +(\d+) \(", printed)]
    assert len(speeds) == 2
    assert all(speed > 1000 for speed in speeds)
    share = float(re.search(r"\| +([\d.]+) \([\d.]+-[\d.]+\) \|\n", printed)[1])
    assert abs(share - speeds[0] / speeds[1]) < 0.02


def test_tokens_counted_are_those_of_the_shard(traces, tokenizer, tmp_path):
    placed = PlacedTraces.of({traces: [offset for offset, _ in files.read_placed(traces, Trace)]})
    encoder = tokens.Encoder(tokenizer, "chatml")
    counted = encode.write_shard(tmp_path, placed, encoder)
    assert counted == sum(len(encoded.tokens) for encoded in encoder(list(placed)))
