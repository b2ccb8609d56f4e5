"""Small workloads for the planner's tests."""

import dataclasses

from orca_jax.config import OptimizerConfig
from orca_jax.planning.estimate import Workload
from orca_jax.student import presets
from orca_jax.student.presets import LlamaConfig


def small(rows=8, row_length=64, kind="adamw", **student):
    shape = LlamaConfig(
        **{"vocab_size": 250, "hidden_size": 64, "intermediate_size": 128, "num_layers": 3, "head_dim": 16}
        | {"num_kv_heads": 2, "remat": "full", **student}
    )
    optimizer = OptimizerConfig(kind=kind)
    return Workload(student=shape, optimizer=optimizer, batch_rows=rows, row_length=row_length)


def large(preset, rows, **changes):
    student = dataclasses.replace(presets.PRESETS[preset], vocab_size=32_001)
    return Workload(**{"student": student, "optimizer": OptimizerConfig(), "batch_rows": rows} | changes)
