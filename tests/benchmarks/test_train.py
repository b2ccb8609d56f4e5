"""The benchmark's examples are the same on both sides."""

import dataclasses

import numpy as np
import pytest

from benchmarks import racing
from benchmarks import train as benchmark
from orca_jax.config import LoraConfig


def test_packed_and_padded_hold_the_same_tokens():
    examples = racing.uneven_examples(40, 100, 512, median=150, spread=0.7)
    packed = racing.packed_rows(examples, 512)
    padded = benchmark.padded_batch(examples)
    inputs = sum(np.count_nonzero(row.segment_ids) for row in packed)
    assert inputs == sum(len(example["tokens"]) - 1 for example in examples)
    assert padded["attention_mask"].sum() == inputs + len(examples)
    supervised = sum(row.loss_weights.sum() for row in packed)
    assert supervised == (padded["labels"][:, 1:] != -100).sum()


def test_padding_is_masked_and_unsupervised():
    examples = racing.uneven_examples(8, 100, 512, median=150, spread=0.7)
    batch = benchmark.padded_batch(examples)
    assert batch["input_ids"].shape[1] == max(len(example["tokens"]) for example in examples)
    assert np.all(batch["labels"][batch["attention_mask"] == 0] == -100)


@pytest.mark.proof
def test_our_step_runs_alone(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SHAPES", {"tiny": (2, racing.student(64, 16, 32, 1, 4))})
    benchmark.main(alone=True, rounds=1, seconds=0)
    assert "orca_jax packed" in capsys.readouterr().out


@pytest.mark.parity
def test_transformers_learns_from_padded_rows():
    examples = racing.uneven_examples(8, 64, 64, median=20, spread=0.7)
    config = racing.student(64, 16, 32, 1, 4)
    contestant = benchmark.theirs("transformers", config, [benchmark.padded_batch(examples)])
    losses = [contestant.step() for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.parity
def test_peft_trains_adapters_alone():
    pytest.importorskip("peft")
    config = dataclasses.replace(racing.student(64, 16, 32, 1, 4), lora=LoraConfig(rank=2))
    examples = racing.uneven_examples(8, 64, 64, median=20, spread=0.7)
    contestant = benchmark.theirs("peft", config, [benchmark.padded_batch(examples)])
    losses = [contestant.step() for _ in range(30)]
    assert 0 < losses[0] - losses[-1] < 0.2  # an embedding that is trained brings more
