"""A tiny student and token stores in memory, for tests of the loader and of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from orca_jax.config import StageConfig
from orca_jax.data.alternatives import Alternatives
from orca_jax.data.loader import RowBuilder
from orca_jax.data.rows import Distillation, Row, stack
from orca_jax.data.tokens import TokenStore
from orca_jax.student import sharding
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import MeshConfig
from orca_jax.training.curriculum import Curriculum
from orca_jax.training.step import OptimizerConfig
from orca_jax.training.trainer import TrainConfig, Trainer

ROW_LENGTH = 48
BATCH_ROWS = 8
STUDENT = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_multiple=16,
)
STAGES = (
    StageConfig(name="first", datasets={"a": 1.0}, steps=6, learning_rate=3e-3, warmup_steps=2),
    StageConfig(name="second", datasets={"a": 1.0, "b": 2.0}, steps=5, reset_optimizer=True),
)


class MemoryStore(TokenStore):
    """Examples of counting tokens: the prompt is the first third, the rest is supervised.

    Every third example lacks the `top` alternatives.
    """

    def __init__(self, count: int, seed: int, top: int = 0):
        random, self.top = np.random.default_rng(seed), top
        sizes = random.integers(6, 40, count)
        self._examples = [self._example(random, f"{seed}-{i}", size) for i, size in enumerate(sizes)]
        teacher = np.random.default_rng(seed)
        for number, example in enumerate(self._examples if top else ()):
            supervised = int(example["weights"].sum())
            scores = teacher.normal(size=(supervised, STUDENT.vocab_size)) * 2
            ids = np.argsort(-scores)[:, :top]
            known = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
            found = Alternatives.unknown(supervised, top)
            found.set(slice(None), ids, np.take_along_axis(known, ids, -1))
            if number % 3:
                example |= {"teacher_ids": found.ids, "teacher_log_probs": found.log_probs}
        self.lengths = sizes.astype(np.int64) - 1
        self.columns = {
            "first_supervised": np.array([np.flatnonzero(e["weights"][1:])[0] for e in self._examples]),
            "supervised": np.array([int(e["weights"].sum()) for e in self._examples]),
            "collection": np.full(count, "counting"),
            "task": np.full(count, "count"),
            "teacher": np.where(np.arange(count) % 3, "expert", "apprentice"),
            "system_message_id": np.arange(count) % 2,
        }

    @staticmethod
    def _example(random: np.random.Generator, name: str, size: int) -> dict[str, Any]:
        tokens = (random.integers(STUDENT.vocab_size) + np.arange(size)) % STUDENT.vocab_size
        weights = (np.arange(size) >= size // 3).astype(np.float32)
        return {"id": name, "tokens": tokens.astype(np.int32), "weights": weights}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[int(index)]


def row_builder(top: int = 0, **counts: int) -> RowBuilder:
    """Rows of stores with so many examples each; by default data sets a and b, and validation."""
    counts = counts or {"a": 90, "b": 70, "validation": 20}
    stores = {name: MemoryStore(count, seed, top) for seed, (name, count) in enumerate(counts.items())}
    return RowBuilder(stores, row_length=ROW_LENGTH, max_segments=6, overlong="truncate", pad_id=60, seed=5)


def batch(index: int = 0, rows: int = BATCH_ROWS, distillation: Distillation | None = None) -> Row:
    """A batch [rows, ROW_LENGTH] of data set a, as numpy arrays."""
    builder = row_builder(top=4 if distillation else 0)
    return stack([builder.row("a", index, i, distillation) for i in range(rows)])


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """A mesh over as many of the host's devices as its axes need."""
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)


def trainer(directory: Path, **changes: Any) -> Trainer:
    """A run of 11 steps over two stages; `train` in `changes` overrides single settings."""
    rows = changes.pop("rows", None) or row_builder()
    train = TrainConfig(batch_rows=BATCH_ROWS, checkpoint_every=4, log_every=1)
    train = dataclasses.replace(train, **changes.pop("train", {}))
    stages = changes.pop("stages", STAGES)
    settings: dict[str, Any] = {
        "student": STUDENT,
        "optimizer": OptimizerConfig(),
        "train": train,
        "curriculum": Curriculum(stages, rows.plan_of, batch_rows=train.batch_rows, seed=5),
        "rows": rows,
        "mesh": mesh(),
        "seed": 0,
        "fingerprint": "this run",
        "validation": "validation",
    }
    return Trainer(directory=directory, **{**settings, **changes})
