"""Compiles the training step that train runs for a slice of TPUs, and reads what it needs and sends.

No TPU is needed: libtpu has the compiler. Transfers are read from the compiled program's text (HLO); loops
count as often as they run.
"""

from __future__ import annotations

import collections
import importlib.util
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from orca_jax.config import MeshConfig
from orca_jax.data.rows import Row
from orca_jax.planning.chips import Topology
from orca_jax.planning.estimate import Collective, MeshShape, Workload, ring_bytes
from orca_jax.student import sharding
from orca_jax.training.step import make_optimizer, make_steps

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask what chips it has
    "TPU_WORKER_HOSTNAMES": "localhost",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMED = re.compile(r"^ *(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLS = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OPERATION = re.compile(rf"^(.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


class PlanError(ValueError):
    """The step cannot be compiled for these chips; the message says what to do."""


class Compiled(NamedTuple):
    """Bytes of one chip by the compiler; `collectives` is empty for a program that does not fit."""

    fits: bool
    total: int
    collectives: tuple[Collective, ...]
    seconds: float


def devices(topology: Topology) -> list[jax.Device]:
    """Devices of a slice to compile for; nothing can run on them.

    Raises:
      PlanError: the chips are no TPUs, libtpu is missing, or it does not know the slice.
    """
    if topology.chip.kind != "tpu":
        raise PlanError(f"{topology.name}: only TPU programs compile without their chips; add --analytic")
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            "libtpu is missing: pip install -e '.[tpu]', or add --analytic for an estimate without it"
        )
    os.environ.update(ENVIRONMENT)
    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as Cloud gives them
    if topology.chip.torus == 2 and topology.chips < 8:
        options["chips_per_host_bounds"] = (*topology.shape, 1)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (RuntimeError, ValueError) as error:
        raise PlanError(f"libtpu does not know the slice {topology.name}: {error}") from error
    if len(described.devices) != topology.chips:
        raise PlanError(
            f"libtpu makes {len(described.devices)} devices of {topology.name}'s {topology.chips} chips"
        )
    return list(described.devices)


def compile_step(
    workload: Workload,
    shape: MeshShape,
    topology: Topology,
    *,
    state_bytes: int,
    options: Mapping[str, str] | None = None,
) -> Compiled:
    """Compiles one optimizer step; parameters are shapes throughout.

    Args:
      state_bytes: parameters and optimizer state of one chip.
      options: of the compiler, as the config gives them.

    Raises:
      PlanError: see `devices`; or the mesh cannot be laid on the slice.
    """
    workload.part_rows(shape)
    there = devices(topology)
    try:
        mesh = sharding.make_mesh(MeshConfig(**shape._asdict()), there)
    except NotImplementedError as error:
        raise PlanError(f"mesh {shape} cannot be laid on {topology.name}: {error}") from error
    place = sharding.batch_sharding(mesh)
    types = Row(jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    size = (workload.batch_rows, workload.row_length)
    batch = Row(*(jax.ShapeDtypeStruct(size, kind, sharding=place) for kind in types))
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    scalars = (rate, rate) if workload.limited else (rate,)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # JAX cannot always read back the program that libtpu made, so libtpu writes it down itself.
        written: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        steps = make_steps(
            workload.student,
            make_optimizer(workload.optimizer),
            mesh,
            dtype=jnp.dtype(workload.compute_dtype),
            accumulation=workload.accumulation,
            reduce_dtype=jnp.dtype(workload.reduce_dtype),
            compiler_options={**(options or {}), **written},
            limited=workload.limited,
        )
        update: Any = steps.update
        try:
            with jax.set_mesh(mesh):
                compiled = update.lower(steps.abstract, batch, *scalars).compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error), state_bytes, time.perf_counter() - began)
        texts = Path(folder).glob("*.after_optimizations.txt")
        largest = max(texts, key=lambda path: path.stat().st_size, default=None)
        if largest is None:
            raise PlanError(
                "libtpu wrote no text of the compiled step; another version of it may, or add --analytic"
            )
        found = collectives(largest.read_text("utf-8", errors="replace"), shape)
    total = bytes_of(compiled)
    return Compiled(total <= topology.chip.hbm_bytes, total, found, time.perf_counter() - began)


def bytes_of(compiled: Any) -> int:
    """Bytes of a chip that a compiled program needs: what it is given, makes and uses, and its code."""
    stats = compiled.memory_analysis()
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return int(kept + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)


def too_large(message: str, state_bytes: int, seconds: float) -> Compiled:
    """The size in the compiler's error for a program that exceeds the memory, with or without the state.

    Raises:
      PlanError: it is another error.
    """
    used, beside = _USED.search(message), _TEMPORARIES.search(message)
    found = used or beside
    if not found:
        raise PlanError(f"the step does not compile: {message.strip().splitlines()[0]}")
    size = int(float(found[1]) * UNITS[found[2]])
    return Compiled(False, size if used else size + state_bytes, (), seconds)


# What the compiled program sends

Computation = Mapping[str, str]  # what each name of a computation is; `ROOT` names its result


def collectives(text: str, shape: MeshShape) -> tuple[Collective, ...]:
    """The collectives of a program compiled for a mesh, summed by kind and axes, the largest first.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    found: dict[object, tuple[str, int]] = {}
    for number, (line, times) in enumerate(_executed(computations, entry, 1)):
        # A transfer that overlaps with other work is in several fusions, by one channel id: it counts once.
        channel = _CHANNEL.search(line)
        found.setdefault(channel[1] if channel else number, (line, times))
    totals: dict[tuple[str, tuple[str, ...]], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for line, times in found.values():
        kind, members = _OPERATION.findall(line)[0][1], group(line)
        if axes := varying(members, shape):
            totals[kind, axes][0] += times
            totals[kind, axes][1] += times * ring_bytes(kind, len(members), _payload(line, len(members)))
    summed = [Collective(kind, axes, int(n), int(sent)) for (kind, axes), (n, sent) in totals.items()]
    return tuple(sorted(summed, key=lambda one: -one.sent))


def _parse(text: str) -> tuple[Mapping[str, Computation], str]:
    """The computations by name, and the name of the entry."""
    computations: dict[str, dict[str, str]] = {}
    entry, here = "", dict[str, str]()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            here = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif named := _NAMED.match(line):
            here |= {named[2]: named[3]} | ({"ROOT": named[3]} if named[1] else {})
    if not entry:
        raise ValueError("the compiled program's text has no ENTRY computation")
    return computations, entry


def _executed(computations: Mapping[str, Computation], name: str, times: int) -> Iterator[tuple[str, int]]:
    """The line of every collective that a computation runs, with how often."""
    for key, line in computations.get(name, {}).items():
        if key == "ROOT":
            continue  # it has a name too
        if _OPERATION.match(line):
            yield line, times
        elif loop := _LOOP.search(line):
            count = trips(line, computations[loop[1]], computations[loop[2]])
            yield from _executed(computations, loop[2], times * count)
        else:
            listed = [other.strip(" %") for found in _BRANCHES.findall(line) for other in found.split(",")]
            for other in _CALLS.findall(line) + listed:
                yield from _executed(computations, other, times)


def trips(line: str, condition: Computation, body: Computation) -> int:
    """A loop's trip count: as stated, or of a counter from 0 to a constant; else 1, with a warning."""
    if known := _TRIPS.search(line):
        return int(known[1])
    compared = re.search(r" compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", condition.get("ROOT", ""))
    limit = _constant(condition, compared[2]) if compared else None
    index = re.search(r"index=(\d+)", condition.get(compared[1], "")) if compared else None
    if limit is None or not index:
        log.warning("how often a loop runs is not in the compiled program's text; it is counted once")
        return 1
    # By how much the body advances its counter.
    results = re.search(r" tuple\((.*?)\)(?:,|$)", body.get("ROOT", ""))
    names = re.findall(r"%([\w.\-]+)", results[1]) if results else []
    advance = body.get(names[int(index[1])], "") if names else ""
    added = re.search(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)", advance)
    steps = [_constant(body, name) for name in added.groups()] if added else []
    return math.ceil(limit / next(filter(None, steps), 1))


def _constant(computation: Computation, name: str) -> int | None:
    value = re.search(r" constant\((\d+)\)", computation.get(name, ""))
    return int(value[1]) if value else None


def _payload(line: str, size: int) -> float:
    """Bytes of the whole: of what was gathered or sent on, or is to be scattered or summed."""
    result, kind, start = _OPERATION.findall(line)[0]
    # Started operations carry contexts, and gathers and permutations their operands before their results.
    arrays = [found for found in _ARRAY.findall(result) if not (start and found == ("u32", ""))]
    if start and kind in ("all-gather", "collective-permute"):
        arrays = arrays[len(arrays) // 2 :]
    total = 0.0
    for element, dims in arrays:
        bits = 8 if element == "pred" else int(re.findall(r"\d+", element)[0])
        total += math.prod(int(n) for n in dims.split(",") if n) * bits / 8
    return total * (size if kind == "reduce-scatter" else 1)


def group(line: str) -> tuple[int, ...]:
    """The devices of the first group that an operation's line names; of a permutation, its first pair."""
    if listed := _LISTED.search(line) or _PAIRS.search(line):
        return tuple(int(n) for part in listed.groups() for n in part.split(","))
    if iota := _IOTA.search(line):
        sizes = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else list(range(len(sizes)))
        devices = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
        return tuple(devices.reshape(int(iota[1]), int(iota[2]))[0].tolist())
    if named := _NAMED_AXES.search(line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        devices = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        chosen = [slice(None) if f"'{name}'" in named[2] else 0 for name in axes]
        return tuple(devices[tuple(chosen)].ravel().tolist())
    return ()


def varying(members: tuple[int, ...], shape: MeshShape) -> tuple[str, ...]:
    """The axes of the mesh along which a group's devices differ."""
    if not members:
        return ()
    places = np.unravel_index(members, tuple(shape))
    return tuple(axis for axis, place in zip(shape._fields, places) if len(set(place.tolist())) > 1)
