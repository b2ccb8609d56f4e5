"""Plans of a training step on given chips: estimated, compiled, ranked, and what would make one fit.

`make_plan` estimates and compiles one way to run a config's step, and names a faster one; `searched` ranks
meshes, batches and remat policies first; `summary` and `report` say what a plan costs, as JSON values and in
words.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

import jax

from orca_jax import hub
from orca_jax.compiler_options import FASTEST
from orca_jax.config import ExperimentConfig, OptimizerKind, Remat, StageConfig
from orca_jax.planning import estimate
from orca_jax.planning.chips import GIB, LAUNCHED, MEMORY, NO_PRICE, Topology, larger, memory_fraction
from orca_jax.planning.compile import ENVIRONMENT, Compiled, PlanError, can_compile, compile_step
from orca_jax.planning.estimate import MeshShape, Workload
from orca_jax.planning.program import Work
from orca_jax.student import presets
from orca_jax.student.huggingface_folder import read_config
from orca_jax.training import students
from orca_jax.training.step import TrainState

PAPER_EXAMPLES = {"chatgpt": 5_090_000, "gpt4": 1_000_000}  # Table 3
PAPER_PACKING, PAPER_ROW = 2.7, 2048  # examples in a row of so many positions, section 3.2
COMPILED_BEST = 5
TENSOR_SIZES = (1, 2, 4, 8)
BATCH_FACTORS = (1, 2, 4)
# The option with which libtpu computes weight gradients whole, where it is set to more MiB than they have.
WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
GAIN = 1.02  # in speed, for which a larger batch or other settings are worth naming


class Candidate(NamedTuple):
    """A way to run a step, as estimated."""

    workload: Workload
    shape: MeshShape
    bytes: estimate.Bytes
    time: estimate.Seconds

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
    """Whether an estimate leaves a margin of free memory."""
    return size <= estimate.USABLE * topology.chip.hbm_bytes


def assess(workload: Workload, shape: MeshShape, topology: Topology, state: TrainState) -> Candidate:
    """Bytes and time of a step, by estimate.

    Raises:
      ValueError: the rows do not divide over the mesh.
    """
    size = estimate.step_bytes(workload, shape, state)
    traffic = estimate.collectives(workload, shape)
    seconds = estimate.step_seconds(workload, shape, topology, traffic, size.parameters + size.optimizer)
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
    found: list[Candidate] = []
    for shape, policy in itertools.product(meshes(workload, topology), get_args(Remat)):
        student = dataclasses.replace(workload.student, remat=policy)
        best = 0.0  # tokens a second of this mesh and policy, the smaller batch first
        for factor in batch_factors:
            rows = workload.batch_rows * factor
            work = dataclasses.replace(workload, student=student, batch_rows=rows)
            candidate = first_that_fits(work, shape, topology, state)
            if candidate and candidate.tokens_per_second > GAIN * best:
                best = candidate.tokens_per_second
                found.append(candidate)
    return sorted(found, key=lambda candidate: -candidate.tokens_per_second)


def first_that_fits(
    workload: Workload, shape: MeshShape, topology: Topology, state: TrainState
) -> Candidate | None:
    """With as few accumulation parts as fit; None where not even one row a chip does."""
    rows, rest = divmod(workload.batch_rows, shape.rows)
    for count in range(1, rows + 1):
        if not rest and rows % count == 0:
            part = dataclasses.replace(workload, accumulation=count)
            candidate = assess(part, shape, topology, state)
            if fits(candidate.bytes.total, topology):
                return candidate
    return None


def remedies(workload: Workload, topology: Topology) -> list[str]:
    """Ways to make a step fit, by estimate: on these chips, and on more of them."""
    state = estimate.abstract_state(workload.student, workload.optimizer)
    return list(filter(None, (here(workload, topology), there(workload, topology, state))))


def here(workload: Workload, topology: Topology) -> str:
    """The same batch on the same chips: the fastest mesh, policy and accumulation that fit.

    With the workload's optimizer, or else with the first one that makes it fit.
    """
    for kind in dict.fromkeys((workload.optimizer.kind, *get_args(OptimizerKind))):
        work = dataclasses.replace(workload, optimizer=dataclasses.replace(workload.optimizer, kind=kind))
        state = estimate.abstract_state(work.student, work.optimizer)
        if ranked := rank(work, topology, state, batch_factors=(1,)):
            change = "" if kind == workload.optimizer.kind else f" optimizer.kind={kind}"
            return f"on these chips: {_shown(ranked[0])}{change}"
    return ""


def there(workload: Workload, topology: Topology, state: TrainState) -> str:
    """The smallest larger slice on which the student fits, in as many accumulation parts as it takes."""
    for other in larger(topology):
        for shape in meshes(workload, other):
            if candidate := first_that_fits(workload, shape, other, state):
                return f"on {other.name}: {_shown(candidate)}"
    return ""


def _shown(candidate: Candidate) -> str:
    return f"{candidate.name} ({candidate.bytes.total / GIB:.1f} GiB a chip by estimate)"


# Plans of an experiment


class Amounts(NamedTuple):
    """Inputs of the hours and the price of a run, besides its speed."""

    examples: Mapping[str, int]
    packing: float
    usd_per_chip_hour: float | None


class Plan(NamedTuple):
    """A step on a slice: as estimated, and where it was compiled by what the compiler says.

    Attributes:
      roofline: seconds by roofline, with the compiled program's transfers.
      time: seconds by the compiler's cycles, or else the same as `roofline`.
      faster: what to set for a faster step of the same rows on these chips; "" if this is the fastest.
    """

    name: str
    topology: Topology
    candidate: Candidate
    compiled: Compiled | None
    bytes_per_chip: int
    fits: bool
    collectives: tuple[estimate.Collective, ...]
    roofline: estimate.Seconds
    time: estimate.Seconds
    remedies: list[str]
    faster: str

    @property
    def workload(self) -> Workload:
        return self.candidate.workload

    @property
    def rank(self) -> tuple[bool, float]:
        """Plans that fit come first, then those that take less time a token."""
        return not self.fits, self.time.step / self.workload.tokens


def workload_of(config: ExperimentConfig, batch_rows: int = 0) -> Workload:
    """The step of an experiment; `batch_rows` in place of the config's where not 0."""
    init, source = config.student.init, None
    if hub.reference(init):  # its weights are not needed here
        source = read_config(hub.tokenizer(init))
    elif init:
        source = students.open_source(init).config
    ids = max(config.student.vocab_size, source.vocab_size if source else 0)
    return Workload(
        student=presets.shape(config.student, ids, source),
        optimizer=config.optimizer,
        batch_rows=batch_rows or config.train.batch_rows,
        accumulation=config.train.accumulation,
        row_length=config.data.row_length,
        compute_dtype=config.train.compute_dtype,
        reduce_dtype=config.train.reduce_dtype,
        limited=any(stage.skip_spikes for stage in config.curriculum),
        soft_targets=config.data.top_logprobs if any(s.distill_weight for s in config.curriculum) else 0,
        windowed=WINDOWED not in f"{config.compiler_options} {os.environ.get('LIBTPU_INIT_ARGS')}",
    )


def make_plan(
    config: ExperimentConfig, topology: Topology, workload: Workload, shape: MeshShape, analytic: bool
) -> Plan:
    """Estimates a step, compiles it unless `analytic`, and says what fits or is faster.

    GPUs' steps are compiled where their compiler is installed, and estimated otherwise.

    Raises:
      ValueError: the rows do not divide over the mesh; PlanError: the step cannot be compiled here.
    """
    state = estimate.abstract_state(workload.student, workload.optimizer)
    candidate, compiled = assess(workload, shape, topology, state), None
    size, seconds, traffic = candidate.bytes.total, candidate.time, estimate.collectives(workload, shape)
    enough, roofline = fits(size, topology), candidate.time
    if not analytic and (topology.chip.kind == "tpu" or can_compile(topology)):
        kept = candidate.bytes.parameters + candidate.bytes.optimizer
        given = config.compiler_options
        options = FASTEST.get("tpu", {}) if isinstance(given, str) else given
        compiled = compile_step(workload, shape, topology, state_bytes=kept, options=options)
        size, enough, traffic = compiled.total, compiled.fits, compiled.collectives or traffic
        seconds = roofline = estimate.step_seconds(workload, shape, topology, traffic, kept)
        if compiled.work.cycles:
            work = compiled.work
            seconds = estimate.compiled_seconds(shape, topology, traffic, work.cycles, work.attention)
    ways = [] if enough else remedies(workload, topology)
    if not enough and size < topology.chip.hbm_gib * GIB * LAUNCHED:
        ways.insert(0, f"with {MEMORY}={LAUNCHED} in the environment")
    better = faster(candidate, topology, state) if enough else ""
    return Plan(
        config.name, topology, candidate, compiled, size, enough, traffic, roofline, seconds, ways, better
    )


def faster(than: Candidate, topology: Topology, state: TrainState) -> str:
    """The fastest mesh and policy for the same rows, by estimate; "" where they gain less than `GAIN`."""
    ranked = rank(than.workload, topology, state, batch_factors=(1,))
    if not ranked or ranked[0].time.step * GAIN > than.time.step:
        return ""
    return f"{ranked[0].name}: {than.time.step / ranked[0].time.step:.2f} times as fast by estimate"


def searched(
    config: ExperimentConfig, topology: Topology, workload: Workload, analytic: bool
) -> Iterator[Plan]:
    """The best candidates by estimate, each planned by `make_plan`; what is compiled may rank otherwise.

    Raises:
      PlanError: not one of them fits by estimate.
    """
    state = estimate.abstract_state(workload.student, workload.optimizer)
    ranked = rank(workload, topology, state)
    if not ranked:
        found = there(workload, topology, state)
        raise PlanError(f"no mesh, batch or remat policy fits {topology.name} by estimate; {found}")
    for candidate in ranked[:COMPILED_BEST]:
        try:
            yield make_plan(config, topology, candidate.workload, candidate.shape, analytic)
        except PlanError as error:
            print(f"{candidate.name}: {error}", file=sys.stderr)


def stage_steps(stage: StageConfig, workload: Workload, amounts: Amounts) -> float | None:
    """Optimizer steps of a stage; None where the examples of a data set are not known."""
    if stage.steps:
        return float(stage.steps)
    if not all(name in amounts.examples for name in stage.names):
        return None
    per_row = amounts.packing * workload.row_length / PAPER_ROW
    examples = sum(amounts.examples[name] for name in stage.names)
    return stage.epochs * examples / per_row / workload.batch_rows


def stage_hours(config: ExperimentConfig, plan: Plan, amounts: Amounts) -> dict[str, float | None]:
    """Hours of every stage of the curriculum."""
    steps = {stage.name: stage_steps(stage, plan.workload, amounts) for stage in config.curriculum}
    return {name: n if n is None else n * plan.time.step / 3600 for name, n in steps.items()}


def summary(config: ExperimentConfig, plan: Plan, amounts: Amounts) -> dict[str, Any]:
    """A plan as JSON values, in bytes and seconds; of one chip where the name says so."""
    work, hours, sizes = plan.workload, stage_hours(config, plan, amounts), plan.candidate.bytes
    known = [h for h in hours.values() if h is not None]
    chip_hours = sum(known) * plan.topology.chips if len(known) == len(hours) else None
    price, done = amounts.usd_per_chip_hour, plan.compiled.work if plan.compiled else Work()
    return {
        "config": plan.name,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "gpu": plan.topology.chip.kind == "gpu",
        "mesh": plan.candidate.shape._asdict(),
        "batch_rows": work.batch_rows,
        "accumulation": work.accumulation,
        "row_length": work.row_length,
        "remat": work.student.remat,
        "compiled": plan.compiled is not None,
        "compile_seconds": plan.compiled and round(plan.compiled.seconds, 1),
        "fits": plan.fits,
        "bytes_per_chip": plan.bytes_per_chip,
        "parameter_bytes": sizes.parameters,
        "optimizer_bytes": sizes.optimizer,
        "working_bytes": plan.bytes_per_chip - sizes.parameters - sizes.optimizer,
        "hbm_bytes": plan.topology.chip.hbm_bytes,
        "remedies": plan.remedies,
        "faster": plan.faster,
        "model_flops": estimate.model_flops(work).total,
        "step_seconds": plan.time.step,
        "tokens_per_second": work.tokens / plan.time.step,
        "mfu": estimate.mfu(work, plan.topology, plan.time.step),
        "roofline_seconds": plan.roofline.step,
        "roofline_mfu": estimate.mfu(work, plan.topology, plan.roofline.step),
        "roofline_parts": plan.roofline._asdict(),
        "bound": plan.time.bound,
        "cycles": done.cycles,
        "attention_seconds": plan.time.attention,
        "launches": done.launches,
        "kernels": dict(done.kernels),
        "collectives": [
            {"kind": one.kind, "axes": one.axes, "times": one.times, "bytes": one.sent}
            for one in plan.collectives
        ],
        "stage_hours": hours,
        "chip_hours": chip_hours,
        "cost_usd": None if chip_hours is None or price is None else chip_hours * price,
    }


def report(values: Mapping[str, Any], workload: Workload) -> str:
    """A plan's `summary` in words."""

    def gib(size: float) -> str:
        return f"{size / GIB:.2f} GiB"

    how = f"compiled in {values['compile_seconds']} s" if values["compiled"] else "estimated, not compiled"
    mesh = " ".join(f"{axis}={size}" for axis, size in values["mesh"].items())
    spare = values["hbm_bytes"] - values["bytes_per_chip"]
    share = f" ({memory_fraction():.0%} of the memory, {MEMORY})" if values["gpu"] else ""
    verdict = f"fits, {gib(spare)} free" if values["fits"] else f"does not fit: {gib(-spare)} too much"
    if not values["fits"] and spare >= 0:
        kept = 100 * (1 - estimate.USABLE)
        verdict = f"too tight for an estimate: {gib(spare)} free, {kept:.0f} % are kept"
    lines = [
        f"{values['config']} on {values['topology']} ({values['chips']} chips): {how}",
        f"mesh {mesh}, {values['batch_rows']} rows of {values['row_length']} in {values['accumulation']} "
        f"part(s), remat {values['remat']}",
        f"a chip needs {gib(values['bytes_per_chip'])} of {gib(values['hbm_bytes'])}{share}: {verdict}",
        f"  parameters {gib(values['parameter_bytes'])}, optimizer {gib(values['optimizer_bytes'])}, "
        f"gradients and activations {gib(values['working_bytes'])}",
        *[f"  would fit {way}" for way in values["remedies"]],
        f"model FLOPs a step {values['model_flops']:.4g} = {estimate.formula(workload)}",
        "collectives a step, sent by a chip:" + ("" if values["collectives"] else " none"),
        *[f"  {one['kind']} over {'+'.join(one['axes'])}: {one['times']} of {gib(one['bytes'])} together"
          for one in values["collectives"]],
        "step by roofline: "
        + ", ".join(f"{name} {s:.3g} s" for name, s in values["roofline_parts"].items()),
        f"  {values['roofline_seconds']:.3g} s, MFU {100 * values['roofline_mfu']:.1f} %",
        *_by_the_compiler(values),
        f"{values['tokens_per_second']:,.0f} tokens/s, bound by {values['bound']}",
        *([f"faster: {values['faster']}"] if values["faster"] else []),
        *[f"stage {name}: " + (f"unknown; give --examples={name}=COUNT" if h is None else f"{h:,.1f} h")
          for name, h in values["stage_hours"].items()],
    ]  # fmt: skip
    if values["chip_hours"] is not None:
        lines.append(f"{values['chip_hours']:,.0f} chip-hours")
    cost = values["cost_usd"]
    return "\n".join([*lines, NO_PRICE if cost is None else f"{cost:,.0f} US dollars"])


def _by_the_compiler(values: Mapping[str, Any]) -> list[str]:
    if values["cycles"]:
        return [
            f"step by the compiler: {values['cycles']:,} cycles, and attention kernels by roofline "
            f"{values['attention_seconds']:.3g} s",
            f"  {values['step_seconds']:.3g} s, MFU {100 * values['mfu']:.1f} %",
        ]
    kernels = ", ".join(f"{name} {count:,}" for name, count in values["kernels"].items()) or "none"
    launches = f"{values['launches']:,} kernel launches a step; custom calls: {kernels}"
    return [launches] if values["launches"] else []


def use_no_chips() -> None:
    """Keeps JAX on the CPU: steps are compiled for chips that are described, and those attached stay free."""
    os.environ.update({"JAX_PLATFORMS": "cpu"} | ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it would keep programs that run nowhere
