"""Rows: packed examples as the arrays that a training step takes. One function builds a row.

An example of n tokens fills n - 1 positions: it is read from its first token to its last but one, and
predicts from its second token to its last. So the end of sequence is a target and never an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One packed row, or a batch of them with leading axes.

    Attributes:
      tokens: int32 [row_length], inputs.
      targets: int32 [row_length], the next token of the same example.
      loss_weights: float32 [row_length], weight of predicting `targets`; 0 on padding.
      segment_ids: int32 [row_length], 1, 2, ... by example; 0 is padding.
      positions: int32 [row_length], counted from 0 in each example.
    """

    tokens: Any
    targets: Any
    loss_weights: Any
    segment_ids: Any
    positions: Any


def build_row(examples: Sequence[dict[str, Any]], row_length: int, pad_id: int) -> Row:
    """Lays examples (`tokens` int32 [n], `weights` float32 [n]) end to end; the rest is padding.

    An example longer than the space that is left is cut at its end, which packing only allows for one
    that is longer than a whole row.
    """
    row = Row(
        tokens=np.full(row_length, pad_id, np.int32),
        targets=np.full(row_length, pad_id, np.int32),
        loss_weights=np.zeros(row_length, np.float32),
        segment_ids=np.zeros(row_length, np.int32),
        positions=np.zeros(row_length, np.int32),
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


def as_leaking(row: Row) -> Row:
    """The row as one segment with running positions: examples see those before them. For ablations."""
    filled = row.segment_ids > 0
    positions = np.where(filled, np.arange(len(filled)), 0).astype(np.int32)
    return row._replace(segment_ids=filled.astype(np.int32), positions=positions)


def stack(rows: Sequence[Row]) -> Row:
    """Rows as one batch with a leading axis."""
    return Row(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))
