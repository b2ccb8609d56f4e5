"""Batches by step: each process builds the rows that its own devices hold, ahead of the loop, with Grain."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from orca_jax.data.packing import PackingPlan, make_plan
from orca_jax.data.rows import Distillation, Row, as_leaking, build_row, stack
from orca_jax.data.tokens import TokenStore


@dataclasses.dataclass(eq=False)
class RowBuilder:
    """Rows of several token stores by (data set, epoch, row), under one packing.

    Plans are kept for the few epochs in use; stores are read at random. In the data sets of `leaking` the
    examples of a row are not kept apart, see `rows.as_leaking`.
    """

    stores: Mapping[str, TokenStore]
    _: dataclasses.KW_ONLY
    row_length: int
    max_segments: int
    overlong: str
    pad_id: int
    seed: int
    leaking: Collection[str] = ()

    def __post_init__(self) -> None:
        self.lengths = {
            name: store.effective_lengths(self.row_length, self.overlong)
            for name, store in self.stores.items()
        }
        self.top = max(store.top for store in self.stores.values())
        self.plan_of = functools.lru_cache(maxsize=8)(self._plan)

    def add(self, name: str, store: TokenStore, like: str) -> None:
        """Adds a data set, whose rows are built as those of another are."""
        self.stores = {**self.stores, name: store}
        self.lengths[name] = store.effective_lengths(self.row_length, self.overlong)
        if like in self.leaking:
            self.leaking = [*self.leaking, name]

    def _plan(self, dataset: str, epoch: int) -> PackingPlan:
        """The packing plan of a data set's epoch."""
        return make_plan(
            self.lengths[dataset],
            row_length=self.row_length,
            max_segments=self.max_segments,
            seed=self.seed,
            epoch=epoch,
        )

    def row(self, dataset: str, epoch: int, row: int, distillation: Distillation | None = None) -> Row:
        """A row of a data set's epoch; empty past the plan's end."""
        store = self.stores[dataset]
        examples = [store[index] for index in self.plan_of(dataset, epoch).row(row)]
        built = build_row(examples, self.row_length, self.pad_id, distillation, self.top)
        return as_leaking(built) if dataset in self.leaking else built


class Batch(NamedTuple):
    """The rows of a step that this process holds, and where they stand in the global batch."""

    step: int
    indices: tuple[int, ...]
    rows: Row


def held_rows(rows: int, placement: NamedSharding) -> tuple[int, ...]:
    """Which rows of a global batch this process's devices hold."""
    slices: Any = placement.addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({index for (part,) in slices for index in range(rows)[part]}))


def batches(
    refs: Callable[[int], Sequence[Any]],
    *,
    start: int,
    stop: int,
    rows: int,
    builder: RowBuilder,
    placement: NamedSharding,
) -> Iterator[Batch]:
    """Batches of steps `start` to `stop`, in order, built ahead of their use.

    Args:
      refs: of a step, what `builder.row` takes for each row of the global batch.
      rows: rows in a global batch.
      placement: how a global batch is laid over the devices.
    """
    import grain

    held = held_rows(rows, placement)

    def batch(step: int) -> Batch:
        places = refs(step)
        return Batch(step, held, stack([builder.row(*places[index]) for index in held]))

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(options))


def on_devices(batch: Batch, rows: int, placement: NamedSharding) -> Row:
    """The global batch as arrays [rows, row_length] over all processes' devices."""
    place = {index: i for i, index in enumerate(batch.indices)}

    def array(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return local[[place[row] for row in range(rows)[index[0]]]]

        return jax.make_array_from_callback((rows, *local.shape[1:]), placement, part)

    return Row(*jax.tree.map(array, tuple(batch.rows)))
