"""What is to be run: a student, its optimizer and a batch, and the mesh; and the FLOPs of one step.

FLOPs follow PaLM's appendix B (arXiv 2204.02311), with attention counted as causal.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from orca_jax.config import LlamaConfig
from orca_jax.training.optimizer import OptimizerConfig

FORMULA = (
    "6 x N x tokens + 6 x layers x heads x head_dim x row_length x tokens; N: parameters of matrix products "
    "(all but the input embedding and norms); the second term is causal attention over whole rows"
)
LORA_FORMULA = (
    FORMULA.replace("6 x N", "4 x N", 1) + "; frozen weights need no gradients; adapters not counted"
)


class MeshShape(NamedTuple):
    """Sizes of the mesh's axes, none of them -1."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def rows(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return f"data={self.data} fsdp={self.fsdp} tensor={self.tensor}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything but the chips and the mesh that a training step depends on; names as in configs."""

    student: LlamaConfig
    optimizer: OptimizerConfig
    batch_rows: int
    accumulation: int = 1
    row_length: int = 2048
    compute_dtype: str = "bfloat16"
    limited: bool = False  # steps whose gradient spikes are skipped

    @property
    def tokens(self) -> int:
        """Positions of an optimizer step."""
        return self.batch_rows * self.row_length

    def part_rows(self, shape: MeshShape) -> int:
        """Rows that a chip works on at a time.

        Raises:
          ValueError: the rows do not divide over accumulation parts and the mesh.
        """
        rows, rest = divmod(self.batch_rows, self.accumulation * shape.rows)
        if rest or not rows:
            raise ValueError(
                f"train.batch_rows={self.batch_rows} does not divide over train.accumulation="
                f"{self.accumulation} parts and data x fsdp = {shape.rows} devices"
            )
        return rows


def layer_parameters(student: LlamaConfig) -> int:
    """Parameters of one layer."""
    embeddings = student.padded_vocab_size * student.hidden_size * (1 if student.tie_embeddings else 2)
    return (student.parameter_count - embeddings - student.hidden_size) // student.num_layers


class Flops(NamedTuple):
    """FLOPs of one optimizer step on all chips together."""

    products: float
    attention: float

    @property
    def total(self) -> float:
        return self.products + self.attention


def model_flops(workload: Workload) -> Flops:
    """What the mathematics needs, by `FORMULA`; nothing computed twice, and rows taken as one segment."""
    products = workload.tokens * workload.student.training_flops(0)
    return Flops(products, workload.tokens * workload.student.training_flops(workload.row_length) - products)


def formula(workload: Workload) -> str:
    """The formula in words, for full weights or adapters."""
    return LORA_FORMULA if workload.student.lora.rank else FORMULA
