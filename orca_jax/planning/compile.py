"""Compiles the training step that train runs for chips that are not there, and reads what it needs and does.

libtpu has the compiler for TPUs, the CUDA plug-in of JAX the one for GPUs (extras `tpu` and `gpu-plan`).
"""

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

from orca_jax.config import MeshConfig
from orca_jax.data.rows import Row, SoftTargets
from orca_jax.planning.chips import Topology
from orca_jax.planning.estimate import Collective, MeshShape, Workload
from orca_jax.planning.program import Work, collectives, work
from orca_jax.student import sharding
from orca_jax.training.step import make_optimizer, make_steps

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask what chips it has
    "TPU_WORKER_HOSTNAMES": "localhost",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # of a driver and libraries that are not needed to compile
}
# As XLA describes GPUs to its compiler (xla/backends/gpu/target_config/specs of github.com/openxla/xla).
GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
 memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory}
 shared_memory_per_block_optin: {optin} cuda_compute_capability {{ major: {capability} minor: 0 }}
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 15 }} runtime_version {{ major: 13 }}
device_description_str: "NVIDIA {name}" """
_HOPPER = {"shared": 233472, "optin": 232448, "cores": 132, "fpus": 128, "clock": 1.98, "capability": 9}
_AMPERE = {"shared": 167936, "optin": 166912, "cores": 108, "fpus": 64, "clock": 1.41, "capability": 8}
GPUS: dict[str, dict[str, Any]] = {
    "a100": _AMPERE | {"bandwidth": 2039040000000, "l2": 41943040, "memory": 85100068864},
    "h100": _HOPPER | {"bandwidth": 3352320000000, "l2": 52428800, "memory": 84942979072},
    "h200": _HOPPER | {"bandwidth": 4800000000000, "l2": 52428800, "memory": 151397597184},
}
COMPILERS = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "gpu-plan")}  # module, extra
CUDNN = 91500  # 9.15, the version that the description gives
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")


class PlanError(ValueError):
    """The step cannot be compiled for these chips; the message says what to do."""


class Compiled(NamedTuple):
    """Bytes and work of one chip; a program that does not fit has no collectives, and no work."""

    fits: bool
    total: int
    collectives: tuple[Collective, ...]
    seconds: float
    work: Work = Work()


def can_compile(topology: Topology) -> bool:
    """Whether the compiler for these chips is installed."""
    return importlib.util.find_spec(COMPILERS[topology.chip.kind][0]) is not None


def devices(topology: Topology) -> list[jax.Device]:
    """Devices of a slice to compile for; nothing can run on them.

    Raises:
      PlanError: the compiler is missing, or it does not know the slice.
    """
    if not can_compile(topology):
        package, extra = COMPILERS[topology.chip.kind]
        raise PlanError(
            f"{package.replace('_', '-')} is missing: pip install -e '.[{extra}]', or add --analytic for an "
            "estimate without it"
        )
    os.environ.update(ENVIRONMENT)
    if topology.chip.kind == "gpu":
        return _gpus(topology)
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


def _gpus(topology: Topology) -> list[jax.Device]:
    """Described GPUs; from now on JAX's questions about the GPU at hand are answered for them."""
    from jax._src.cudnn import fused_attention_stablehlo as asked

    chip, facts = topology.chip, GPUS[topology.chip.name]
    answers = {
        "check_cudnn_version": lambda: CUDNN,
        "check_compute_capability": lambda least: float(least) <= facts["capability"],
        "is_cuda_compute_capability_equal": lambda exactly: float(exactly) == facts["capability"],
    }
    for name, answer in answers.items():
        if not hasattr(asked, name):
            raise PlanError(f"jax {jax.__version__} has no {name}; install jax 0.11.2, or add --analytic")
        setattr(asked, name, answer)
    nodes, rest = divmod(topology.chips, chip.node_chips)
    grid = f"1x1x{topology.chips}" if nodes < 2 or rest else f"1x{nodes}x{chip.node_chips}"
    described = topologies.get_topology_desc(
        platform="cuda", target_config=GPU.format(name=chip.name.upper(), **facts), topology=grid
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

    def array(kind: Any, *more: int) -> Any:
        size = (workload.batch_rows, workload.row_length, *more)
        return jax.ShapeDtypeStruct(size, kind, sharding=place)

    batch = Row(*map(array, (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)))
    if top := workload.soft_targets:
        soft = SoftTargets(array(jnp.int32, top), array(jnp.float32, top + 1), array(jnp.float32))
        batch = batch._replace(soft_targets=soft)
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
            compiler_options={**(options or {}), **(written if topology.chip.kind == "tpu" else {})},
            limited=workload.limited,
        )
        update: Any = steps.update
        try:
            with jax.set_mesh(mesh):
                compiled = update.lower(steps.abstract, batch, *scalars).compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error), state_bytes, time.perf_counter() - began)
        if topology.chip.kind == "tpu":
            text, generated = (_written(folder, stage) for stage in ("after_optimizations", "after_codegen"))
        else:
            text = generated = compiled.as_text()
    total, done = bytes_of(compiled), work(generated)
    if topology.chip.kind == "tpu" and not done.cycles:
        raise PlanError("libtpu gave no cycles of the compiled step; another version may, or add --analytic")
    took = time.perf_counter() - began
    return Compiled(total <= topology.chip.hbm_bytes, total, collectives(text, shape), took, done)


def _written(folder: str, stage: str) -> str:
    """The text that libtpu wrote of the largest program; raises PlanError if it wrote none."""
    paths = Path(folder).glob(f"*.{stage}.txt")
    largest = max(paths, key=lambda path: path.stat().st_size, default=None)
    if largest is None:
        raise PlanError(f"libtpu wrote no text {stage} of the step; another version may, or add --analytic")
    return largest.read_text("utf-8", errors="replace")


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
