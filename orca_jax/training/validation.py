"""Validation: the losses of a data set's examples, all together and by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from orca_jax.data import loader
from orca_jax.data.rows import Row, stack

GROUPED = ("collection", "teacher", "system_message_id")  # of the columns


def validation_losses(
    params: Any,
    token_losses: Callable[[Any, Row], Any],
    dataset: str,
    rows: loader.RowBuilder,
    *,
    batch_rows: int,
    placement: NamedSharding,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean nats per supervised token: `loss`, and `loss/GROUP=NAME` by group; and `examples`, a count.

    The examples of the data set are in the rows of its first packing plan.
    """
    plan, columns = rows.plan_of(dataset, 0), rows.stores[dataset].columns
    sums, weights = np.zeros((2, len(rows.lengths[dataset])))  # of every example
    for start in range(0, plan.rows, batch_rows):
        built = [rows.row(dataset, 0, start + i) for i in range(batch_rows)]
        batch = loader.Batch(0, tuple(range(batch_rows)), stack(built))
        losses = token_losses(params, loader.on_devices(batch, batch_rows, placement))
        after_batch()
        for i, (row, row_losses) in enumerate(zip(built, np.asarray(losses, np.float64))):
            add_by_segment(sums, plan.row(start + i), row.segment_ids, row_losses)
            add_by_segment(weights, plan.row(start + i), row.segment_ids, row.loss_weights)

    def mean(examples: np.ndarray) -> float:
        return float(sums[examples].sum() / max(weights[examples].sum(), 1e-30))

    values = {"loss": mean(plan.examples), "examples": float(len(plan.examples))}
    for group in GROUPED:
        of_group = columns[group][plan.examples]
        for name in np.unique(of_group):
            values[f"loss/{group}={name}"] = mean(plan.examples[of_group == name])
    return values


def add_by_segment(
    sums: np.ndarray, examples: np.ndarray, segment_ids: np.ndarray, values: np.ndarray
) -> None:
    """Adds a row's values [row_length] to the sums [n] of the examples in its segments."""
    if len(examples):
        sums[examples] += np.bincount(segment_ids, weights=values, minlength=len(examples) + 1)[1:]
