"""Chips, and slices of them by name: the facts of `chips.csv`, one source a row.

Units: tera = 10^12 and GB = 10^9 bytes as in data sheets, GiB = 2^30 bytes. Bandwidths are a chip's, one way.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

GIB = 2**30
NO_PRICE = "no price: fill in orca_jax/planning/prices.csv, or a copy given with --prices"
# Slices that are not as near to a cube as their number of chips allows.
ODD_SHAPES = {(3, 4): (2, 2, 1), (3, 6144): (16, 16, 24)}
SLICES = {2: (1, 4, 8, 16, 32, 64, 128, 256), 3: (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 6144)}
# What JAX calls TPUs; GPUs have the chip's name in theirs.
DEVICE_KINDS = {"v5e": "tpu v5 ?(lite|e)", "v5p": "tpu v5$", "v6e": "tpu v6 ?(lite|e)"}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e"}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of `chips.csv`.

    Attributes:
      cores: TensorCores a chip; names such as v5p-128 count them.
      torus: dimensions of the interconnect's torus; 0 where chips hang on switches.
      peak_tflops: dense bfloat16.
      hbm_gib: for programs.
      link_gb_per_s: to other chips of the slice or node, over all links together.
      node_chips: chips that a node's links join; 0 where that is the whole slice.
      network_gb_per_s: a chip's share of the network between nodes.
      product_efficiency: assumed share of the peak that large matrix products reach.
      clock_ghz: of TPUs' cores; 0 on GPUs, whose compiler estimates no cycles.
    """

    name: str
    kind: str
    cores: int
    torus: int
    peak_tflops: float
    hbm_gib: float
    hbm_gb_per_s: float
    link_gb_per_s: float
    node_chips: int
    network_gb_per_s: float
    product_efficiency: float
    clock_ghz: float
    source: str

    @property
    def peak(self) -> float:
        """FLOP/s."""
        return self.peak_tflops * 1e12

    @property
    def hbm_bytes(self) -> int:
        """Bytes that a program may use; on GPUs XLA's share of the memory."""
        return int(self.hbm_gib * GIB * (memory_fraction() if self.kind == "gpu" else 1))


MEMORY, LAUNCHED = "XLA_CLIENT_MEM_FRACTION", 0.9  # what launch/gpu_flags.sh sets


def memory_fraction() -> float:
    """The share of a GPU's memory that XLA takes: what the environment says, or its default.

    https://docs.jax.dev/en/latest/gpu_memory_allocation.html

    Raises:
      ValueError: the variable is no number between 0 and 1.
    """
    for name in (MEMORY, "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        if value := os.environ.get(name, ""):
            if not re.fullmatch(r"0?\.\d+|1(\.0*)?", value):
                raise ValueError(f"{name}={value!r} is no share of the memory; write a number such as 0.9")
            return float(value)
    return 0.75


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a chip, and how many there are along each dimension of the torus (or, on GPUs, in all)."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def wrapped(self) -> bool:
        """Whether rings close: a 3D slice of whole cubes of 4 x 4 x 4, a 2D slice 16 long both ways."""
        length = {0: 1, 2: 16, 3: 4}[self.chip.torus]
        return all(size % length == 0 for size in self.shape)

    def takes(self, mesh: Sequence[int]) -> bool:
        """Whether JAX lays a mesh on it: each axis must be a product of whole dimensions of the torus.

        Of v5e alone (jax.make_mesh) dimensions may be split; switches join all GPUs alike.
        """
        return not self.chip.torus or self.chip.name == "v5e" or _covers(sorted(mesh)[::-1], self.shape)


def _covers(axes: Sequence[int], dimensions: Sequence[int]) -> bool:
    """Whether disjoint sets of dimensions have the axes' sizes as their products."""
    if not axes or axes[0] == 1:
        return True
    places = range(len(dimensions))
    return any(
        _covers(axes[1:], [dimensions[i] for i in places if i not in picked])
        for number in places
        for picked in itertools.combinations(places, number + 1)
        if math.prod(dimensions[i] for i in picked) == axes[0]
    )


@functools.cache
def chips() -> Mapping[str, Chip]:
    """The chips by name."""
    text = importlib.resources.files("orca_jax.planning").joinpath("chips.csv").read_text("utf-8")
    types = {"str": str, "int": int, "float": float}
    fields = {field.name: types[str(field.type)] for field in dataclasses.fields(Chip)}
    rows = csv.DictReader(text.splitlines())
    return {row["name"]: Chip(**{name: read(row[name]) for name, read in fields.items()}) for row in rows}


def slice_shape(torus: int, count: int) -> tuple[int, ...]:
    """The shape of a slice of so many chips: as near to a square or cube as powers of two allow.

    https://cloud.google.com/tpu/docs/v5e, v5p and v6e list them.

    Raises:
      ValueError: no such slice is offered.
    """
    if torus == 0:
        return (count,)
    if count not in SLICES[torus]:
        raise ValueError(f"no slice of {count} chips; known: {', '.join(map(str, SLICES[torus]))}")
    if (torus, count) in ODD_SHAPES:
        return ODD_SHAPES[torus, count]
    low, more = divmod(count.bit_length() - 1, torus)
    return tuple(2 ** (low + (i >= torus - more)) for i in range(torus))


def topology(name: str) -> Topology:
    """The slice of a name: `v5p:2x4x4`, a cloud name (`v5p-128`, `v5litepod-256`), or GPUs (`h100-8`).

    Cloud names of v4 and v5p count TensorCores, two a chip; those of v5e and v6e count chips
    (https://cloud.google.com/tpu/docs/v5p: 4x4x4 is 128 cores, 64 chips).

    Raises:
      ValueError: the chip is unknown, or there is no such slice of it.
    """
    match = re.fullmatch(r"([a-z]+\d*[a-z]*)(?::(\d+(?:x\d+)*)|-(\d+))", name.strip().lower())
    try:
        if match is None or (chip := chips().get(ALIASES.get(match[1], match[1]))) is None:
            raise ValueError(
                "write CHIP:SHAPE (v5p:2x4x4) or CHIP-NUMBER (v5p-128, v5e-256, h100-8) with a chip of "
                f"{', '.join(chips())}"
            )
        if match[2]:
            shape, dimensions = tuple(map(int, match[2].split("x"))), max(1, chip.torus)
            if len(shape) != dimensions or min(shape) < 1:
                raise ValueError(f"{chip.name} slices have {dimensions} dimensions, none of them 0")
            return Topology(chip, shape)
        count, rest = divmod(int(match[3]), chip.cores)
        if count < 1 or rest:
            raise ValueError(f"{chip.name} names count TensorCores, {chip.cores} a chip")
        return Topology(chip, slice_shape(chip.torus, count))
    except ValueError as error:
        raise ValueError(f"--topology={name!r}: {error}") from None


def of_device(kind: str) -> Chip | None:
    """The chip of a JAX device, by its `device_kind`; None where it is not in the table."""
    known = [chip for name, chip in chips().items() if name in kind.lower()]
    known += [chips()[name] for name, pattern in DEVICE_KINDS.items() if re.search(pattern, kind.lower())]
    return known[0] if known else None


def larger(than: Topology) -> tuple[Topology, ...]:
    """Slices of the same chip with more chips, the smallest first; for GPUs, powers of two up to 1,024."""
    chip = than.chip
    counts = SLICES.get(chip.torus, tuple(2**i for i in range(11)))
    return tuple(Topology(chip, slice_shape(chip.torus, n)) for n in counts if n > than.chips)


def price(chip: Chip, path: Path | None = None) -> float | None:
    """US dollars an hour of one chip, from a price file; None where it gives none.

    Raises:
      ValueError: the file lacks a column, or a price is no number; names the file.
    """
    file = path or importlib.resources.files("orca_jax.planning").joinpath("prices.csv")
    try:
        rows = csv.DictReader(file.read_text("utf-8").splitlines())
        prices = {row["chip"]: row["usd_per_chip_hour"] for row in rows}
        return float(prices[chip.name]) if prices.get(chip.name) else None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: needs columns chip,usd_per_chip_hour and prices in numbers ({error!r})"
        ) from error
