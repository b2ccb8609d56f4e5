"""What an experiment costs on given chips, none of which is needed: memory, time, collectives, hours, price.

python -m experiments.plan --config=configs/orca_13b.py --topology=v5p:2x4x4         # compiles the real step
python -m experiments.plan --config=configs/orca_13b.py --topology=h100-16 --analytic
python -m experiments.plan --config=configs/orca_70b.py --topology=v5p-128 --search  # meshes, batches, remat

Compiling needs the package libtpu (extra `tpu`); GPUs, and any chip with --analytic, get the estimate alone.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("plan")  # before the imports below, which take seconds

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from orca_jax.config import ExperimentConfig, StageConfig
from orca_jax.experiments import options
from orca_jax.planning import chips, memory, roofline, search
from orca_jax.planning.chips import GIB, Topology
from orca_jax.planning.compile import Compiled, PlanError, compile_step
from orca_jax.planning.workload import MeshShape, Workload, formula, model_flops
from orca_jax.student import presets, sharding
from orca_jax.training import students

PAPER_EXAMPLES = {"chatgpt": 5_090_000, "gpt4": 1_000_000}  # Table 3
PAPER_PACKING = options.PACKING
PAPER_ROW = 2048
COMPILED_BEST = 5

options.define("plan")


class Amounts(NamedTuple):
    """What the hours and the price of a run depend on, besides its speed."""

    examples: Mapping[str, int]
    packing: float
    usd_per_chip_hour: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on a slice: as estimated, and as compiled where it was."""

    name: str
    topology: Topology
    candidate: search.Candidate
    compiled: Compiled | None
    remedies: tuple[str, ...] = ()

    @property
    def workload(self) -> Workload:
        return self.candidate.workload

    @property
    def state_bytes(self) -> int:
        """Of one chip."""
        return self.candidate.bytes.parameters + self.candidate.bytes.optimizer

    @property
    def bytes_per_chip(self) -> int:
        return self.compiled.total if self.compiled else self.candidate.bytes.total

    @property
    def fits(self) -> bool:
        return self.compiled.fits if self.compiled else search.fits(self.bytes_per_chip, self.topology)

    @property
    def collectives(self) -> tuple[roofline.Collective, ...]:
        """Of the compiled program; by the sharding rules where there is none."""
        if self.compiled and self.compiled.collectives:
            return self.compiled.collectives
        return roofline.collectives(self.workload, self.candidate.shape)

    @property
    def time(self) -> roofline.Estimate:
        shape = self.candidate.shape
        return roofline.estimate(self.workload, shape, self.topology, self.collectives, self.state_bytes)

    @property
    def mfu(self) -> float:
        return roofline.mfu(self.workload, self.topology, self.time.step)


def workload_of(config: ExperimentConfig, batch: int = 0) -> Workload:
    """The step of an experiment; `batch` rows in place of the config's where not 0."""
    source = students.open_source(config.student.init).config if config.student.init else None
    ids = max(config.student.vocab_size, source.vocab_size if source else 0)
    return Workload(
        student=presets.shape(config.student, ids, source),
        optimizer=config.optimizer,
        batch_rows=batch or config.train.batch_rows,
        accumulation=config.train.accumulation,
        row_length=config.data.row_length,
        compute_dtype=config.train.compute_dtype,
        limited=any(stage.skip_spikes for stage in config.curriculum),
    )


def make_plan(
    config: ExperimentConfig, topology: Topology, workload: Workload, shape: MeshShape, analytic: bool
) -> Plan:
    """Estimates a step, compiles it (TPUs', unless `analytic`), and looks for a remedy where it does not fit.

    Raises:
      ValueError: the rows do not divide over the mesh; PlanError: the step cannot be compiled here.
    """
    state = memory.abstract_state(workload.student, workload.optimizer)
    candidate = search.assess(workload, shape, topology, state)
    plan = Plan(config.name, topology, candidate, None)
    if not analytic and topology.chip.kind == "tpu":
        options, state_bytes = config.compiler_options, plan.state_bytes
        compiled = compile_step(workload, shape, topology, state_bytes=state_bytes, options=options)
        plan = dataclasses.replace(plan, compiled=compiled)
    if plan.fits:
        return plan
    return dataclasses.replace(plan, remedies=tuple(search.remedies(workload, topology)))


def searched(
    config: ExperimentConfig, topology: Topology, workload: Workload, analytic: bool
) -> Iterator[Plan]:
    """The best candidates by estimate, each compiled unless `analytic`; what is compiled may rank otherwise.

    Raises:
      PlanError: not one of them fits by estimate.
    """
    state = memory.abstract_state(workload.student, workload.optimizer)
    ranked = search.rank(workload, topology, state)
    if not ranked:
        found = search.there(workload, topology, state)
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
    """A plan as JSON values; bytes and seconds, and chips' values are of one chip where the name says so."""
    work, hours = plan.workload, stage_hours(config, plan, amounts)
    known = None if None in hours.values() else sum(h for h in hours.values() if h is not None)
    chip_hours = None if known is None else known * plan.topology.chips
    price = amounts.usd_per_chip_hour
    sizes = plan.candidate.bytes
    return {
        "config": plan.name,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
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
        "remedies": list(plan.remedies),
        "model_flops": model_flops(work).total,
        "step_seconds": plan.time.step,
        "step_parts": plan.time._asdict(),
        "bound": plan.time.bound,
        "tokens_per_second": work.tokens / plan.time.step,
        "mfu": plan.mfu,
        "collectives": [
            {"kind": one.kind, "axes": one.axes, "times": one.times, "bytes": one.sent}
            for one in plan.collectives
        ],
        "stage_hours": hours,
        "chip_hours": chip_hours,
        "cost_usd": None if chip_hours is None or price is None else chip_hours * price,
    }


def report(values: Mapping[str, Any], workload: Workload) -> str:
    """A plan for a person."""
    how = f"compiled in {values['compile_seconds']} s" if values["compiled"] else "estimated, not compiled"
    mesh = " ".join(f"{axis}={size}" for axis, size in values["mesh"].items())
    lines = [
        f"{values['config']} on {values['topology']} ({values['chips']} chips): {how}",
        f"mesh {mesh}, {values['batch_rows']} rows of {values['row_length']} in {values['accumulation']} "
        f"part(s), remat {values['remat']}",
        *_memory_lines(values),
        f"model FLOPs a step {values['model_flops']:.4g} = {formula(workload)}",
        "collectives a step, sent by a chip:" + ("" if values["collectives"] else " none"),
        *[f"  {one['kind']} over {'+'.join(one['axes'])}: {one['times']} of {_gib(one['bytes'])} together"
          for one in values["collectives"]],
        "step by roofline: " + ", ".join(f"{name} {s:.3g} s" for name, s in values["step_parts"].items()),
        f"  {values['step_seconds']:.3g} s, bound by {values['bound']}; "
        f"{values['tokens_per_second']:,.0f} tokens/s, MFU at most {100 * values['mfu']:.1f} %",
        *_hour_lines(values),
    ]  # fmt: skip
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _memory_lines(values: Mapping[str, Any]) -> list[str]:
    spare = values["hbm_bytes"] - values["bytes_per_chip"]
    verdict = f"fits, {_gib(spare)} free" if values["fits"] else f"does not fit: {_gib(-spare)} too much"
    if not values["fits"] and spare >= 0:
        verdict = f"too tight for an estimate: {_gib(spare)} free, {100 * (1 - memory.USABLE):.0f} % are kept"
    lines = [
        f"a chip needs {_gib(values['bytes_per_chip'])} of {_gib(values['hbm_bytes'])}: {verdict}",
        f"  parameters {_gib(values['parameter_bytes'])}, optimizer {_gib(values['optimizer_bytes'])}, "
        f"gradients and activations {_gib(values['working_bytes'])}",
    ]
    return lines + [f"  would fit {way}" for way in values["remedies"]]


def _hour_lines(values: Mapping[str, Any]) -> list[str]:
    lines = [
        f"stage {name}: "
        + (f"{hours:,.1f} h" if hours is not None else f"unknown; give --examples={name}=COUNT")
        for name, hours in values["stage_hours"].items()
    ]
    if values["chip_hours"] is not None:
        lines.append(f"{values['chip_hours']:,.0f} chip-hours")
    if values["cost_usd"] is not None:
        return lines + [f"{values['cost_usd']:,.0f} US dollars"]
    return lines + ["no price: fill in orca_jax/planning/prices.csv, or a copy given with --prices"]


def examples_of(pairs: Sequence[str]) -> dict[str, int]:
    """`NAME=COUNT` over the paper's counts.

    Raises:
      ValueError: a pair is not of that form.
    """
    found = dict(PAPER_EXAMPLES)
    for pair in pairs:
        name, _, count = pair.partition("=")
        if not name or not count.isdigit():
            raise ValueError(f"--examples: {pair!r} is not NAME=COUNT")
        found[name] = int(count)
    return found


def run(config: ExperimentConfig) -> None:
    """Prints the plan, or the plans, that the flags ask for."""
    given = flags.FLAGS
    topology = chips.topology(given.topology)
    price = chips.price(topology.chip, Path(given.prices) if given.prices else None)
    amounts = Amounts(examples_of(given.examples), given.packing, price)
    workload = workload_of(config, given.batch)
    if given.search:
        plans = searched(config, topology, workload, given.analytic)
    else:
        shape = MeshShape(*sharding.axis_sizes(config.mesh, topology.chips))
        plans = iter([make_plan(config, topology, workload, shape, given.analytic)])
    for plan in plans:
        values = summary(config, plan, amounts)
        print(json.dumps(values) if given.json else report(values, plan.workload) + "\n", flush=True)


def main() -> None:
    use_no_chips()
    launch.set_up_logging()
    logging.getLogger().setLevel(logging.WARNING)  # what is chosen on this host says nothing of those chips
    launch.checked(lambda: run(launch.experiment()))


def use_no_chips() -> None:
    """The step is compiled for chips that are described; whatever is attached here is not started."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it would keep programs that run nowhere


if __name__ == "__main__":
    main()
