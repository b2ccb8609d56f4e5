"""Reads a compiled program's text (HLO): what it sends, the cycles that its compiler expects, its kernels.

Loops count as often as they run.
"""

from __future__ import annotations

import collections
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from orca_jax.planning.estimate import Collective, MeshShape, ring_bytes

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
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?\})\}")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
# Products of splash's kernels, by a word of their names; one for all gradients redoes the scores once only.
ATTENTION_KERNELS = {"fwd": 2, "dkv": 4, "dq": 3}
FUSED_BACKWARD = {"fwd": 2, "dkv": 5}
# What starts nothing on a GPU.
NO_LAUNCH = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip

Computation = Mapping[str, str]  # what each name of a computation is; `ROOT` names its result


class Work(NamedTuple):
    """What a chip does in a program, by its text.

    Attributes:
      cycles: that the compiler expects of its operations, collectives and Pallas kernels apart; 0 on GPUs.
      attention: FLOPs of attention's Pallas kernels, of which the compiler expects nothing.
      launches: of kernels, library calls and copies; for GPUs.
      kernels: how often each custom call runs, by its target.
    """

    cycles: int = 0
    attention: float = 0.0
    launches: int = 0
    kernels: Mapping[str, int] = {}


def work(text: str) -> Work:
    """The work of a program; for a TPU's cycles, of libtpu's text after code generation.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    cycles, attention, launches = 0, 0.0, 0
    kernels: collections.Counter[str] = collections.Counter()
    products = ATTENTION_KERNELS if "_dq_" in text else FUSED_BACKWARD
    for name, line, times in _executed(computations, entry, 1, fused=False):
        expected, target, opcode = _CYCLES.search(line), _TARGET.search(line), _OPCODE.search(line)
        cycles += times * int(expected[1]) if expected else 0
        if target and target[1] == "tpu_custom_call":
            attention += times * attention_flops(name, line, products)
        if target:
            kernels[target[1]] += times
        if opcode and opcode[1] not in NO_LAUNCH and not opcode[1].endswith("-done"):
            launches += times
    return Work(cycles, attention, launches, kernels)


def attention_flops(name: str, line: str, products: Mapping[str, int]) -> float:
    """FLOPs of a call of a Pallas attention kernel, by its name and the shape [.., t, h] of its queries.

    Half of the square is counted: the other half is masked. 0, with a warning, for other kernels.
    """
    count = next((count for word, count in products.items() if f"_{word}_" in name), 0)
    operands = _OPERANDS.search(line)
    given = _ARRAY.findall(operands[1] if operands else "")
    arrays = [dims for kind, dims in given if "f" in kind and dims.count(",") > 1]  # masks are integers
    if not count or not arrays:
        log.warning("the kernel %s is not one whose time is known; it is not counted", name)
        return 0.0
    query = [int(size) for size in arrays[0].split(",")]
    return float(count * math.prod(query) * query[-2])


def collectives(text: str, shape: MeshShape) -> tuple[Collective, ...]:
    """The collectives of a program compiled for a mesh, summed by kind and axes, the largest first.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    found: dict[object, tuple[str, int]] = {}
    for number, (_, line, times) in enumerate(_executed(computations, entry, 1)):
        if not _OPERATION.match(line):
            continue
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


def _executed(
    computations: Mapping[str, Computation], name: str, times: int, fused: bool = True
) -> Iterator[tuple[str, str, int]]:
    """Name and line of every operation that runs, with how often; `fused`: those in fusions too."""
    for key, line in computations.get(name, {}).items():
        if key == "ROOT":
            continue  # it has a name too
        yield key, line, times
        if loop := _LOOP.search(line):
            count = trips(line, computations[loop[1]], computations[loop[2]])
            yield from _executed(computations, loop[2], times * count, fused)
        else:
            listed = [other.strip(" %") for found in _BRANCHES.findall(line) for other in found.split(",")]
            called = _CALLS.findall(line) if fused or re.search(r" (call|conditional)\(", line) else []
            for other in called + listed:
                yield from _executed(computations, other, times, fused)


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
    # Started operations carry contexts, and all but sums their operands before their results.
    arrays = [found for found in _ARRAY.findall(result) if not (start and found == ("u32", ""))]
    if start and kind != "all-reduce":
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
