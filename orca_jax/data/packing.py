"""The packing plan: which examples share a row, computed from their lengths alone.

Best-fit decreasing over windows of shuffled examples. Examples of one length are placed together, so
the work grows with the number of distinct lengths and not with the number of examples. Equal inputs
give equal plans, whatever the number of hosts.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

WINDOW = 1 << 20


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Rows of one epoch. Row `r` holds examples `examples[offsets[r]:offsets[r + 1]]`, in that order.

    Attributes:
      examples: int64 [kept], indices into the token store.
      offsets: int64 [rows + 1].
      row_length: positions in a row.
      filled: positions that hold an example's token.
      left_out: int64, examples that have nothing to train on or fit no row.
    """

    examples: np.ndarray
    offsets: np.ndarray
    row_length: int
    filled: int
    left_out: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of positions that hold a token."""
        return self.filled / max(1, self.rows * self.row_length)

    @property
    def packing_factor(self) -> float:
        """Examples a row: the paper's 2.7 (section 3.2)."""
        return len(self.examples) / max(1, self.rows)

    def row(self, index: int) -> np.ndarray:
        """Example ids of a row, int64; empty past the last row, so that a batch can be filled up."""
        if index >= self.rows:
            return self.examples[:0]
        return self.examples[self.offsets[index] : self.offsets[index + 1]]


def make_plan(
    lengths: np.ndarray, *, row_length: int, max_segments: int, seed: int, epoch: int, window: int = WINDOW
) -> PackingPlan:
    """Packs examples of `lengths` [n] into rows of `row_length` positions.

    Examples of length 0 (nothing supervised) or longer than a row are left out. At most `max_segments`
    examples share a row; rows are shuffled after packing.
    """
    if row_length < 1 or max_segments < 1:
        raise ValueError(f"row_length={row_length} and max_segments={max_segments} must be at least 1")
    lengths = np.asarray(lengths)
    random = np.random.default_rng([seed, epoch])
    fits = (lengths > 0) & (lengths <= row_length)
    order = random.permutation(np.flatnonzero(fits))
    row_of, rows = np.zeros(len(order), np.int64), 0
    for start in range(0, len(order), window):
        part = slice(start, start + window)
        within, count = _best_fit(lengths[order[part]], row_length, max_segments)
        row_of[part], rows = within + rows, rows + count
    row_of = random.permutation(rows)[row_of]
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=offsets[1:])
    return PackingPlan(
        examples=order[by_row],
        offsets=offsets,
        row_length=row_length,
        filled=int(lengths[order].sum()),
        left_out=np.flatnonzero(~fits),
    )


class _Bins:
    """Open rows grouped by the space that is left in them."""

    def __init__(self, row_length: int, max_segments: int, capacity: int):
        self.row_length = row_length
        self.max_segments = max_segments
        self.segments = np.zeros(capacity, np.int32)
        self.count = 0
        self.open: list[list[np.ndarray]] = [[] for _ in range(row_length + 1)]
        self.has = np.zeros(row_length + 1, bool)

    def put(self, space: int, rows: np.ndarray) -> None:
        if space and len(rows):
            self.open[space].append(rows)
            self.has[space] = True

    def take(self, space: int, wanted: int) -> np.ndarray:
        """Up to `wanted` rows that have exactly `space` left."""
        rows = self.open[space].pop()
        if len(rows) > wanted:
            self.open[space].append(rows[wanted:])
            rows = rows[:wanted]
        self.has[space] = bool(self.open[space])
        return rows

    def tightest(self, length: int) -> int:
        """The least space that is at least `length`, or -1."""
        offset = int(self.has[length:].argmax())
        return length + offset if self.has[length + offset] else -1

    def add(self, rows: int) -> None:
        self.put(self.row_length, np.arange(self.count, self.count + rows))
        self.count += rows

    def place(self, space: int, length: int, wanted: int) -> np.ndarray:
        """Puts one example of `length` into up to `wanted` rows with `space` left; returns the rows."""
        rows = self.take(space, wanted)
        self.segments[rows] += 1
        self.put(space - length, rows[self.segments[rows] < self.max_segments])
        return rows


def _best_fit(lengths: np.ndarray, row_length: int, max_segments: int) -> tuple[np.ndarray, int]:
    """The row of each example, int64 [n], and how many rows there are."""
    bins = _Bins(row_length, max_segments, len(lengths))
    by_length = np.argsort(-lengths, kind="stable")
    row_of = np.zeros(len(lengths), np.int64)
    done = 0
    for length, count in zip(*(part[::-1] for part in np.unique(lengths, return_counts=True))):
        end = done + count
        while done < end:
            space = bins.tightest(int(length))
            if space < 0:
                per_row = min(row_length // int(length), max_segments)
                bins.add(math.ceil((end - done) / per_row))
                continue
            rows = bins.place(space, int(length), end - done)
            row_of[by_length[done : done + len(rows)]] = rows
            done += len(rows)
    return row_of, bins.count
