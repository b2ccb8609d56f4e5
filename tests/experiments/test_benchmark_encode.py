"""The benchmark of encoding counts the same tokens on both sides."""

import re

from orca_jax.data import prepared
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import benchmark, benchmark_encode


def test_both_encode_the_same_traces(finished, capsys):
    model = finished / "tokenizer" / tokenizers.MODEL_FILE
    benchmark.main(["encode", f"--traces={finished}/traces/expert", f"--tokenizer={model}", "--rounds=1"])
    printed = capsys.readouterr().out
    speeds = [int(speed.replace(",", "")) for speed in re.findall(r"\| +([\d,]+) \|", printed)]
    assert len(speeds) == 2
    assert all(speed > 1000 for speed in speeds)
    share = float(re.search(r"share: ([\d.]+)", printed)[1])
    assert abs(share - speeds[1] / speeds[0]) < 0.02


def test_tokens_counted_are_those_of_the_store(finished, tmp_path):
    from orca_jax.data import tokens

    config_tokens = tokens.TokenStore(finished / "tokens/expert")
    traces = prepared.read(finished, "expert")
    kept = {config_tokens[i]["id"] for i in range(len(config_tokens))}
    encoder = tokens.Encoder(tokenizers.load(finished / "tokenizer"), "orca")
    counted = benchmark_encode._shard(tmp_path, [trace for trace in traces if trace.id in kept], encoder)
    assert counted == int(config_tokens.lengths.sum()) + len(config_tokens)
