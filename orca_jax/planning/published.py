"""Published training speeds that the estimate is held against, each with its source.

Where a shape is not a LLaMA's, the nearest LLaMA of as many parameters stands for it. MaxText's figures count
attention over whole squares, ours half of that: at these shapes up to 2 per cent of the figure.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from orca_jax.config import LlamaConfig, Remat
from orca_jax.planning import memory, roofline, search
from orca_jax.planning.chips import topology
from orca_jax.planning.workload import MeshShape, Workload
from orca_jax.student import presets
from orca_jax.training.optimizer import OptimizerConfig

MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext"


class Published(NamedTuple):
    """A run and its model FLOPs utilisation, as its authors give it."""

    name: str
    topology: str
    shape: MeshShape
    workload: Workload
    mfu: float
    source: str


def _student(
    hidden: int, intermediate: int, layers: int, heads: int, head_dim: int, remat: Remat
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        remat=remat,
    )


def _work(student: LlamaConfig, rows: int) -> Workload:
    return Workload(student=student, optimizer=OptimizerConfig(), batch_rows=rows)


RUNS = (
    Published(
        "16B, 6 rows of 2,048 a chip, full remat",
        "v5e-256",
        MeshShape(1, 256, 1),
        _work(_student(4096, 28_672, 32, 64, 128, "full"), 6 * 256),
        0.611,
        f"{MAXTEXT} (README; configs/v5e/16b.sh)",
    ),
    Published(
        "22B, 13 rows of 2,048 a chip, full remat",
        "v4-128",
        MeshShape(1, 64, 1),
        _work(_student(6144, 16_384, 48, 24, 256, "full"), 13 * 64),
        0.57,
        f"{MAXTEXT} (README; configs/v4/22b.sh)",
    ),
    Published(
        "32B, 7 rows of 2,048 a chip, products saved",
        "v5p-128",
        MeshShape(1, 16, 4),
        _work(_student(8192, 28_672, 32, 64, 128, "products"), 7 * 64),
        0.7147,
        f"{MAXTEXT} (README; configs/v5p/32b.sh)",
    ),
    Published(
        "7B, 6 rows of 2,048 a GPU, no remat (MPT-7B in torch)",
        "h100-8",
        MeshShape(1, 8, 1),
        _work(dataclasses.replace(presets.PRESETS["llama2-7b"], remat="none"), 6 * 8),
        0.4644,
        "https://github.com/mosaicml/llm-foundry (scripts/train/benchmarking/README.md)",
    ),
)


def estimated(run: Published) -> float:
    """The utilisation that the estimate gives for a published run."""
    there = topology(run.topology)
    state = memory.abstract_state(run.workload.student, run.workload.optimizer)
    return roofline.mfu(run.workload, there, search.assess(run.workload, run.shape, there, state).time.step)
