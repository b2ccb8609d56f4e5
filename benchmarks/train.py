"""The training step beside transformers and torch: the same model, optimizer and rows, float32, in turns.

`orca_jax` is the step as `train` compiles it by default (`compiler_options: auto`); one row is without.

python -m benchmarks.train            # median of 5 rounds
python -m benchmarks.train --alone    # without transformers and torch
python -m benchmarks.train --preset=smollm2-135m --lora=8 --seconds=0.1    # adapters, beside peft
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import racing
from benchmarks.racing import Contestant, packed_rows, padded, student
from orca_jax import compiler_options
from orca_jax.config import LoraConfig
from orca_jax.data.rows import Row, stack
from orca_jax.student.presets import PRESETS, LlamaConfig

ROW = 512
# Rows of a step, and the student.
SHAPES = {"1.6M": (8, student(2048, 128, 512, 4, 4)), "30M": (4, student(8192, 512, 1408, 7, 8))}


def ours(name: str, config: LlamaConfig, batches: list[Row], options: dict[str, str]) -> Contestant:
    filled = float(np.mean([np.count_nonzero(batch.segment_ids) for batch in batches]))
    supervised = float(np.mean([batch.loss_weights.sum() for batch in batches]))
    return Contestant(name, racing.training_step(config, batches, options=options), filled, supervised)


def theirs(name: str, config: LlamaConfig, batches: list[dict[str, np.ndarray]]) -> Contestant:
    tokens = float(np.mean([batch["attention_mask"].sum() for batch in batches]))
    supervised = float(np.mean([(batch["labels"][:, 1:] != -100).sum() for batch in batches]))
    return Contestant(name, racing.transformers_step(config, batches, "sdpa"), tokens, supervised)


def padded_batch(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples as transformers' collators batch them: padded to the longest, labels -100 off the answer."""
    labels = [np.where(example["weights"] > 0, example["tokens"], -100) for example in examples]
    return {
        "input_ids": padded([example["tokens"] for example in examples]),
        "attention_mask": padded([np.ones_like(example["tokens"]) for example in examples]),
        "labels": padded(labels, -100),
    }


def dense(size: int, config: LlamaConfig, alone: bool) -> list[Contestant]:
    """Rows of one segment each, every position supervised."""
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (size, ROW + 1), dtype=np.int32)
    ones, positions = np.ones((size, ROW), np.int32), np.tile(np.arange(ROW, dtype=np.int32), (size, 1))
    rows = Row(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)
    automatic = compiler_options.resolved("auto")
    found = [
        ours("orca_jax, no XLA options", config, [rows], {}),
        ours("orca_jax", config, [rows], automatic),
    ]
    if not alone:
        ids = rows.tokens.astype(np.int64)  # transformers shifts the labels itself
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
        found.append(theirs("transformers", config, [batch]))
    return found


def uneven(size: int, config: LlamaConfig, alone: bool) -> list[Contestant]:
    """The same uneven examples, packed by us, padded by them; as many examples in a step of either."""
    examples = racing.uneven_examples(24 * size, config.vocab_size, ROW, median=150, spread=0.7)
    rows = packed_rows(examples, ROW)
    packed = [stack(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]
    found = [ours("orca_jax packed", config, packed, compiler_options.resolved("auto"))]
    if not alone:
        many = round(size * len(examples) / len(rows))
        starts = range(0, len(examples) - many + 1, many)
        batches = [padded_batch(examples[i : i + many]) for i in starts]
        found.append(theirs("transformers padded", config, batches))
    return found


def main(
    alone: bool = False,
    rounds: int = 5,
    seconds: float = 4.0,
    preset: str = "",
    lora: int = 0,
    scanned: bool = False,
) -> None:
    changes: dict[str, Any] = dict(lora=LoraConfig(rank=lora), remat="none", scan_layers=scanned)
    shapes = {preset: (4, dataclasses.replace(PRESETS[preset], **changes))} if preset else SHAPES
    for name, (size, config) in shapes.items():
        for kind, make in (("dense", dense), ("uneven", uneven)):
            contestants = make(size, config, alone)
            times = racing.race(contestants, rounds, seconds)
            racing.report(f"{name}, {size} x {ROW}, {kind}", contestants, times)


if __name__ == "__main__":
    racing.command(main)
