"""Validation: the mean loss of held-out examples, in total and by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from orca_jax.data import loader
from orca_jax.data.rows import Row, stack

GROUPED = ("collection", "teacher", "system_message_id")
TokenLosses = Callable[[Any, Row], Any]


class Validation:
    """Computes the losses of a data set's examples, in the rows of its first packing plan."""

    def __init__(self, dataset: str, rows: loader.RowBuilder, *, batch_rows: int, placement: NamedSharding):
        self.dataset = dataset
        self.rows = rows
        self.batch_rows = batch_rows
        self.placement = placement

    def __call__(self, params: Any, token_losses: TokenLosses) -> dict[str, float]:
        """Mean nats per supervised token: `loss`, and `loss/GROUP=NAME` by group; and `examples`, a count."""
        sums, weights = self._sums(params, token_losses)
        examples = self.rows.plan_of(self.dataset, 0).examples
        columns = self.rows.stores[self.dataset].columns
        values = {"loss": _mean(sums[examples], weights[examples]), "examples": float(len(examples))}
        for group in GROUPED:
            for name in np.unique(columns[group][examples]):
                mine = examples[columns[group][examples] == name]
                values[f"loss/{group}={name}"] = _mean(sums[mine], weights[mine])
        return values

    def _sums(self, params: Any, token_losses: TokenLosses) -> tuple[np.ndarray, np.ndarray]:
        """Summed loss and weight of every example, float64 [n] each."""
        count = len(self.rows.lengths[self.dataset])
        sums, weights = np.zeros(count), np.zeros(count)
        plan, size = self.rows.plan_of(self.dataset, 0), self.batch_rows
        for start in range(0, plan.rows, size):
            rows = [self.rows.row(self.dataset, 0, start + i) for i in range(size)]
            batch = loader.on_devices(loader.Batch(0, tuple(range(size)), stack(rows)), size, self.placement)
            losses = np.asarray(token_losses(params, batch), np.float64)
            for i, row in enumerate(rows):
                add_by_segment(sums, plan.row(start + i), row.segment_ids, losses[i])
                add_by_segment(weights, plan.row(start + i), row.segment_ids, row.loss_weights)
        return sums, weights


def _mean(sums: np.ndarray, weights: np.ndarray) -> float:
    return float(sums.sum() / max(weights.sum(), 1e-30))


def add_by_segment(
    sums: np.ndarray, examples: np.ndarray, segment_ids: np.ndarray, values: np.ndarray
) -> None:
    """Adds a row's values [row_length] to the sums [n] of the examples in its segments."""
    if len(examples):
        sums[examples] += np.bincount(segment_ids, weights=values, minlength=len(examples) + 1)[1:]
