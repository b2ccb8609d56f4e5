"""What a compiled program sends between chips, read from its text (HLO); loops count as often as they run."""

from __future__ import annotations

import collections
import logging
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from orca_jax.planning.roofline import Collective, ring_bytes
from orca_jax.planning.workload import MeshShape

log = logging.getLogger(__name__)

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

Computation = Mapping[str, str]  # what each name of a computation is; `ROOT` names its result


def collectives(text: str, shape: MeshShape) -> tuple[Collective, ...]:
    """The collectives of a program compiled for a mesh, summed by kind and axes, the largest first.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    totals: dict[tuple[str, tuple[str, ...]], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for line, times in _once(_executed(computations, entry, 1)):
        kind, members = _OPERATION.findall(line)[0][1], group(line)
        size, axes = len(members), varying(members, shape)
        if axes:
            totals[kind, axes][0] += times
            totals[kind, axes][1] += times * ring_bytes(kind, size, _payload(line, size))
    found = [Collective(kind, axes, int(n), int(sent)) for (kind, axes), (n, sent) in totals.items()]
    return tuple(sorted(found, key=lambda one: -one.sent))


def _once(executed: Iterator[tuple[str, int]]) -> list[tuple[str, int]]:
    """Each transfer once: started, carried on and ended beside other work, it stands in several fusions.

    They share its channel; a transfer without a channel is on its own.
    """
    found: dict[object, tuple[str, int]] = {}
    for number, (line, times) in enumerate(executed):
        channel = _CHANNEL.search(line)
        found.setdefault(channel[1] if channel else number, (line, times))
    return list(found.values())


def _parse(text: str) -> tuple[Mapping[str, Computation], str]:
    computations: dict[str, dict[str, str]] = {}
    entry, here = "", dict[str, str]()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            here = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif named := _NAMED.match(line):
            here[named[2]] = named[3]
            if named[1]:
                here["ROOT"] = named[3]
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
    """How often a loop runs: as its line says, or as a counter needs from 0 to a limit; else 1, and warns."""
    if known := _TRIPS.search(line):
        return int(known[1])
    compared = re.search(r" compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", condition.get("ROOT", ""))
    limit = _constant(condition, compared[2]) if compared else None
    index = re.search(r"index=(\d+)", condition.get(compared[1], "")) if compared else None
    if limit is None or not index:
        log.warning("how often a loop runs is not in the compiled program's text; it is counted once")
        return 1
    return math.ceil(limit / _step(body, int(index[1])))


def _step(body: Computation, index: int) -> int:
    """By how much a loop's body advances its counter."""
    results = re.search(r" tuple\((.*?)\)(?:,|$)", body.get("ROOT", ""))
    names = re.findall(r"%([\w.\-]+)", results[1]) if results else []
    added = re.search(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)", body.get(names[index], "")) if names else None
    steps = [_constant(body, name) for name in added.groups()] if added else []
    return next((step for step in steps if step), 1)


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
    return sum(_array_bytes(*array) for array in arrays) * (size if kind == "reduce-scatter" else 1)


def _array_bytes(kind: str, dims: str) -> float:
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return math.prod(int(n) for n in dims.split(",") if n) * bits / 8


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
