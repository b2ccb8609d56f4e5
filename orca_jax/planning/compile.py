"""Compiles the training step that train runs for a slice of TPUs. None is needed: libtpu has the compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from orca_jax.data.rows import Row
from orca_jax.planning import hlo
from orca_jax.planning.chips import Topology
from orca_jax.planning.roofline import Collective
from orca_jax.planning.workload import MeshShape, Workload
from orca_jax.student import sharding
from orca_jax.training.optimizer import make_optimizer
from orca_jax.training.step import make_steps

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask what chips it has
    "TPU_WORKER_HOSTNAMES": "localhost",
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")


class PlanError(ValueError):
    """The step cannot be compiled for these chips here; the message says what to do."""


class Compiled(NamedTuple):
    """What the compiler says of one chip, in bytes; of a program that does not fit, no collectives."""

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
        mesh = sharding.make_mesh(sharding.MeshConfig(**shape._asdict()), there)
    except NotImplementedError as error:
        raise PlanError(f"mesh {shape} cannot be laid on {topology.name}: {error}") from error
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # JAX cannot always read back the program that libtpu made, so libtpu writes it down itself.
        written = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = _lowered(workload, mesh, {**(options or {}), **written}).compile()
        except jax.errors.JaxRuntimeError as error:
            return _too_large(str(error), state_bytes, time.perf_counter() - began)
        found = hlo.collectives(_text(Path(folder)), shape)
    return _measured(compiled, found, topology, time.perf_counter() - began)


def _text(folder: Path) -> str:
    """The compiled step among the texts that the compiler wrote.

    Raises:
      PlanError: there is none.
    """
    texts = sorted(folder.glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size)
    if not texts:
        raise PlanError(
            "libtpu wrote no text of the compiled step; another version of it may, or add --analytic"
        )
    return texts[-1].read_text("utf-8", errors="replace")


def _lowered(workload: Workload, mesh: jax.sharding.Mesh, options: Mapping[str, Any]) -> Any:
    steps = make_steps(
        workload.student,
        make_optimizer(workload.optimizer),
        mesh,
        dtype=jnp.dtype(workload.compute_dtype),
        accumulation=workload.accumulation,
        compiler_options=options,
        limited=workload.limited,
    )
    size = (workload.batch_rows, workload.row_length)
    place = sharding.batch_sharding(mesh)
    types = Row(jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    batch = Row(*(jax.ShapeDtypeStruct(size, kind, sharding=place) for kind in types))
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    scalars = (rate, rate) if workload.limited else (rate,)
    update: Any = steps.update
    with jax.set_mesh(mesh):
        return update.lower(steps.abstract, batch, *scalars)


def _measured(compiled: Any, found: tuple[Collective, ...], topology: Topology, seconds: float) -> Compiled:
    stats = compiled.memory_analysis()
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = kept + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    return Compiled(total <= topology.chip.hbm_bytes, total, found, seconds)


def _too_large(message: str, state_bytes: int, seconds: float) -> Compiled:
    """What the compiler says when a program exceeds the memory: of all it uses, or beside the state.

    Raises:
      PlanError: it says something else.
    """
    used, beside = _USED.search(message), _TEMPORARIES.search(message)
    found = used or beside
    if not found:
        raise PlanError(f"the step does not compile: {message.strip().splitlines()[0]}")
    size = int(float(found[1]) * UNITS[found[2]])
    return Compiled(False, size if used else size + state_bytes, (), seconds)
