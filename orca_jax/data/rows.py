"""Rows: packed examples as the arrays that a training step takes. One function builds a row.

An example of n tokens fills n - 1 positions: it is read from its first token to its last but one, and
predicts from its second token to its last. So the end of sequence is a target and never an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class SoftTargets(NamedTuple):
    """The teacher's distribution in the place of each target, over k ids and one bucket of all others.

    Attributes:
      ids: int32 [row_length, k]; -1 where fewer are known.
      weights: float32 [row_length, k + 1], probabilities at the temperature times the weight of their
        cross-entropy, those of all other ids last; 0 where the teacher's distribution is not known.
      inverse_temperature: float32 [row_length].
    """

    ids: Any
    weights: Any
    inverse_temperature: Any


class Row(NamedTuple):
    """One packed row, or a batch of them with leading axes.

    Attributes:
      tokens: int32 [row_length], inputs.
      targets: int32 [row_length], the next token of the same example.
      loss_weights: float32 [row_length], weight of predicting `targets`; 0 on padding.
      segment_ids: int32 [row_length], 1, 2, ... by example; 0 is padding.
      positions: int32 [row_length], counted from 0 in each example.
      soft_targets: None for steps without a teacher's distributions.
    """

    tokens: Any
    targets: Any
    loss_weights: Any
    segment_ids: Any
    positions: Any
    soft_targets: SoftTargets | None = None


class Distillation(NamedTuple):
    """Weight and temperature of the cross-entropy to the teachers' distributions."""

    weight: float
    temperature: float


def build_row(
    examples: Sequence[dict[str, Any]],
    row_length: int,
    pad_id: int,
    distillation: Distillation | None = None,
    top: int = 0,
) -> Row:
    """Lays examples (`tokens` int32 [n], `weights` float32 [n]) end to end; the rest is padding.

    An example longer than the space that is left is cut at its end, which packing only allows for one
    that is longer than a whole row.

    Args:
      distillation: adds soft targets, of the examples that have `teacher_ids` and `teacher_log_probs`.
      top: ids of a soft target.
    """
    row = Row(
        tokens=np.full(row_length, pad_id, np.int32),
        targets=np.full(row_length, pad_id, np.int32),
        loss_weights=np.zeros(row_length, np.float32),
        segment_ids=np.zeros(row_length, np.int32),
        positions=np.zeros(row_length, np.int32),
        soft_targets=distillation and soft_targets(examples, row_length, distillation, top),
    )
    start = 0
    for segment, example in enumerate(examples, 1):
        length = min(len(example["tokens"]) - 1, row_length - start)
        here = slice(start, start + length)
        row.tokens[here] = example["tokens"][:length]
        row.targets[here] = example["tokens"][1 : length + 1]
        row.loss_weights[here] = example["weights"][1 : length + 1]
        row.segment_ids[here] = segment
        row.positions[here] = np.arange(length)
        start += length
    return row


def soft_targets(
    examples: Sequence[dict[str, Any]], row_length: int, distillation: Distillation, top: int
) -> SoftTargets:
    """Of a row of these examples; those without `teacher_ids` have none."""
    weight, temperature = distillation
    found = SoftTargets(
        ids=np.full((row_length, top), -1, np.int32),
        weights=np.zeros((row_length, top + 1), np.float32),
        inverse_temperature=np.full(row_length, 1 / temperature, np.float32),
    )
    start = 0
    for example in examples:
        length = min(len(example["tokens"]) - 1, row_length - start)
        if len(example.get("teacher_ids", ())):  # a line for each supervised token
            targets = np.flatnonzero(example["weights"])
            inside = (targets > 0) & (targets <= length)
            at, log_probs = start - 1 + targets[inside], example["teacher_log_probs"][inside]
            ids = example["teacher_ids"][inside].astype(np.int32)  # a uint16 would hold no -1
            found.ids[at] = np.where(np.isfinite(log_probs[:, :-1]), ids, -1)
            found.weights[at] = weight * tempered(log_probs, temperature)
        start += length
    return found


def tempered(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [m, k], those given to the power 1 / temperature, normalised; 0 where all are 0."""
    known = np.isfinite(log_probs).any(axis=-1, keepdims=True)
    scaled = np.where(known, log_probs, 0).astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return known * powers / powers.sum(axis=-1, keepdims=True)


def as_leaking(row: Row) -> Row:
    """The row as one segment with running positions: examples see those before them. For ablations."""
    filled = row.segment_ids > 0
    positions = np.where(filled, np.arange(len(filled)), 0).astype(np.int32)
    return row._replace(segment_ids=filled.astype(np.int32), positions=positions)


def stack(rows: Sequence[Row]) -> Row:
    """Rows as one batch with a leading axis."""
    *arrays, soft = map(list, zip(*rows, strict=True))
    fields: list[Any] = [np.stack(array) for array in arrays]
    if soft[0] is not None:
        fields.append(SoftTargets(*map(np.stack, zip(*soft, strict=True))))
    return Row(*fields)
