"""Which mesh, batch and remat policy: all of them estimated and ranked; and what would make a step fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, get_args

from orca_jax.config import OptimizerKind, Remat
from orca_jax.planning import memory, roofline
from orca_jax.planning.chips import GIB, Topology, larger
from orca_jax.planning.workload import MeshShape, Workload
from orca_jax.training.step import TrainState

TENSOR_SIZES = (1, 2, 4, 8)
BATCH_FACTORS = (1, 2, 4)
GAIN = 1.02  # in speed, for which a larger batch is worth naming


class Candidate(NamedTuple):
    """A way to run a step, as estimated."""

    workload: Workload
    shape: MeshShape
    bytes: memory.Bytes
    time: roofline.Estimate

    @property
    def tokens_per_second(self) -> float:
        return self.workload.tokens / self.time.step

    @property
    def name(self) -> str:
        """What to set in the config."""
        work = self.workload
        batch = f"batch_rows={work.batch_rows} accumulation={work.accumulation}"
        return f"{self.shape} {batch} remat={work.student.remat}"


def fits(size: int, topology: Topology) -> bool:
    """Whether an estimate leaves enough of the memory free to be trusted."""
    return size <= memory.USABLE * topology.chip.hbm_bytes


def assess(workload: Workload, shape: MeshShape, topology: Topology, state: TrainState) -> Candidate:
    """Bytes and time of a step, by estimate.

    Raises:
      ValueError: the rows do not divide over the mesh.
    """
    size = memory.estimate(workload, shape, state)
    traffic = roofline.collectives(workload, shape)
    seconds = roofline.estimate(workload, shape, topology, traffic, size.parameters + size.optimizer)
    return Candidate(workload, shape, size, seconds)


def meshes(workload: Workload, topology: Topology) -> Iterator[MeshShape]:
    """Meshes that the slice takes and that divide the heads; `data` is never larger than `fsdp`."""
    student, chips = workload.student, topology.chips
    for tensor in TENSOR_SIZES:
        if chips % tensor or student.num_heads % tensor or student.num_kv_heads % tensor:
            continue
        data = 1
        while (chips // tensor) % data == 0 and data * data <= chips // tensor:
            shape = MeshShape(data, chips // tensor // data, tensor)
            if topology.takes(shape):
                yield shape
            data *= 2


def rank(
    workload: Workload, topology: Topology, state: TrainState, batch_factors: tuple[int, ...] = BATCH_FACTORS
) -> list[Candidate]:
    """Candidates that fit by estimate, the fastest first, in as few accumulation parts as each can."""
    found = []
    for shape in meshes(workload, topology):
        for policy in get_args(Remat):
            student = dataclasses.replace(workload.student, remat=policy)
            works = [
                dataclasses.replace(workload, student=student, batch_rows=workload.batch_rows * factor)
                for factor in batch_factors
            ]
            batches = [first_that_fits(work, shape, topology, state) for work in works]
            found += _worth_it([candidate for candidate in batches if candidate])
    return sorted(found, key=lambda candidate: -candidate.tokens_per_second)


def _worth_it(batches: list[Candidate]) -> list[Candidate]:
    """Of one mesh and policy's batches, the smaller first, those that gain over the one before."""
    kept: list[Candidate] = []
    for candidate in batches:
        if not kept or candidate.tokens_per_second > GAIN * kept[-1].tokens_per_second:
            kept.append(candidate)
    return kept


def parts(workload: Workload, shape: MeshShape) -> Iterator[Workload]:
    """The workload in one accumulation part and more, down to one row a chip."""
    rows = workload.batch_rows // shape.rows
    for count in range(1, rows + 1):
        if workload.batch_rows % shape.rows == 0 and rows % count == 0:
            yield dataclasses.replace(workload, accumulation=count)


def first_that_fits(
    workload: Workload, shape: MeshShape, topology: Topology, state: TrainState
) -> Candidate | None:
    """With as few accumulation parts as fit; None where not even one row a chip does."""
    for part in parts(workload, shape):
        candidate = assess(part, shape, topology, state)
        if fits(candidate.bytes.total, topology):
            return candidate
    return None


def remedies(workload: Workload, topology: Topology) -> list[str]:
    """What would make a step fit, by estimate: on these chips, and on more of them. Empty: nothing found."""
    state = memory.abstract_state(workload.student, workload.optimizer)
    ways = (here(workload, topology), there(workload, topology, state))
    return [way for way in ways if way]


def here(workload: Workload, topology: Topology) -> str:
    """The same batch on the same chips: the fastest mesh, policy and accumulation that fit.

    With the workload's optimizer, or else with the first one that makes it fit.
    """
    for kind in dict.fromkeys((workload.optimizer.kind, *get_args(OptimizerKind))):
        work = dataclasses.replace(workload, optimizer=dataclasses.replace(workload.optimizer, kind=kind))
        state = memory.abstract_state(work.student, work.optimizer)
        ranked = rank(work, topology, state, batch_factors=(1,))
        if ranked:
            change = "" if kind == workload.optimizer.kind else f" optimizer.kind={kind}"
            return f"on these chips: {_shown(ranked[0])}{change}"
    return ""


def there(workload: Workload, topology: Topology, state: TrainState) -> str:
    """The smallest larger slice on which the student fits, in as many accumulation parts as it takes."""
    for other in larger(topology):
        for shape in meshes(workload, other):
            candidate = first_that_fits(workload, shape, other, state)
            if candidate:
                return f"on {other.name}: {_shown(candidate)}"
    return ""


def _shown(candidate: Candidate) -> str:
    return f"{candidate.name} ({candidate.bytes.total / GIB:.1f} GiB a chip by estimate)"
