"""Writes docs/scale.md: several students on several slices, and the estimate beside published runs.

python -m experiments.plan_page docs/scale.md    # about a minute a TPU slice, no chip needed; needs libtpu
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("plan_page")  # before the imports below, which take seconds

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

from orca_jax.config import ExperimentConfig, load
from orca_jax.experiments import options, plan
from orca_jax.planning import chips, memory, published, roofline, search
from orca_jax.planning.chips import GIB
from orca_jax.planning.workload import FORMULA, MeshShape
from orca_jax.reporting.tables import markdown

SLICES = {
    "orca_7b": ("v5e-64", "h100-8", "h200-8"),
    "orca_llama3_8b": ("v5p-16", "h100-8"),
    "orca_13b": ("v5p:2x4x4", "v4-128", "h100-16", "a100-32"),
    "orca_70b": ("v5p-128", "v6e-64", "h100-64"),
}
PAPER_CHIPS, PAPER_BATCH, PAPER_HOURS = "a100-20", 160, (160.0, 40.0)  # its batch is not stated; 8 rows a GPU
COMMAND = "python -m experiments.plan_page docs/scale.md"


def config_of(name: str) -> ExperimentConfig:
    return load(importlib.import_module(f"orca_jax.configs.{name}").get_config())


def best(config: ExperimentConfig, slice_name: str) -> dict[str, Any]:
    """The fastest way by estimate to run the config's batch that fits a slice, TPUs' once compiled."""
    topology, workload = chips.topology(slice_name), plan.workload_of(config)
    state = memory.abstract_state(workload.student, workload.optimizer)
    ranked = search.rank(workload, topology, state, batch_factors=(1,))
    plans = (plan.make_plan(config, topology, one.workload, one.shape, analytic=False) for one in ranked)
    made = next((made for made in plans if made.fits), None)
    if made is None:
        raise ValueError(f"{config.name} does not fit {topology.name}; take that slice off the page")
    return plan.summary(config, made, plan.Amounts(plan.PAPER_EXAMPLES, plan.PAPER_PACKING, None))


def plan_rows(name: str) -> Iterator[tuple[str, ...]]:
    config = config_of(name)
    for slice_name in SLICES[name]:
        values = best(config, slice_name)
        stages = [f"{hours:,.0f}" for hours in values["stage_hours"].values() if hours is not None]
        yield (
            name,
            f"{values['topology']} ({values['chips']})",
            " x ".join(str(size) for size in values["mesh"].values()),
            f"{values['batch_rows']} x {values['row_length']:,} / {values['accumulation']}",
            values["remat"],
            f"{values['bytes_per_chip'] / GIB:.1f} of {values['hbm_bytes'] / GIB:.0f}",
            "yes" if values["fits"] else "no",
            f"compiled, {values['compile_seconds']:.0f} s" if values["compiled"] else "estimated",
            f"{values['step_seconds']:.2f}",
            f"{values['tokens_per_second']:,.0f}",
            f"{100 * values['mfu']:.0f}",
            " + ".join(stages),
            f"{values['chip_hours']:,.0f}",
        )


HEADER = (
    "config", "slice (chips)", "data x fsdp x tensor", "rows x length / parts", "remat", "GiB a chip", "fits",
    "how", "s a step", "tokens/s", "MFU %", "hours, both stages", "chip-hours",
)  # fmt: skip


def published_rows() -> Iterator[tuple[str, ...]]:
    for run in published.RUNS:
        ours = published.estimated(run)
        error = 100 * (ours - run.mfu)
        yield (
            run.name,
            run.topology,
            f"{100 * run.mfu:.1f}",
            f"{100 * ours:.1f}",
            f"{error:+z.1f}",
            run.source,
        )


def published_table() -> str:
    header = ("run", "slice", "published MFU %", "estimated", "error, points", "source")
    return markdown(header, list(published_rows()))


def paper_hours() -> tuple[float, ...]:
    """Both stages on the paper's GPUs, by estimate."""
    config, topology = config_of("orca_13b"), chips.topology(PAPER_CHIPS)
    work = dataclasses.replace(plan.workload_of(config, PAPER_BATCH), accumulation=1)
    made = plan.make_plan(config, topology, work, MeshShape(1, topology.chips, 1), analytic=True)
    amounts = plan.Amounts(plan.PAPER_EXAMPLES, plan.PAPER_PACKING, None)
    return tuple(hours or 0.0 for hours in plan.stage_hours(config, made, amounts).values())


def page() -> str:
    """The whole page."""
    rows = [row for name in SLICES for row in plan_rows(name)]
    examples = " and ".join(f"{count:,}" for count in plan.PAPER_EXAMPLES.values())
    ours, theirs = (" + ".join(f"{h:.0f}" for h in hours) for hours in (paper_hours(), PAPER_HOURS))
    return f"""# What training costs at scale

This page is written by `{COMMAND}`. No chip was used: TPU steps are compiled
for a description of the slice, with the compiler that the package libtpu holds, and their bytes are the
compiler's; GPU rows are estimates throughout. Times are estimates by roofline everywhere. Plan your own with

    python -m experiments.plan --config=configs/orca_13b.py --topology=v5p:2x4x4

which takes the config as it stands (TPUs need the extra `tpu`, or `--analytic`: estimates alone).
(`--search` ranks meshes, batches and remat policies and compiles the best {plan.COMPILED_BEST}; `--json`
prints one line.)

Each row is the fastest mesh, accumulation and remat policy for the config's batch, by estimate, that fits.
Hours are those of the paper's two stages, {examples} examples, with
{plan.PAPER_PACKING} examples in {plan.PAPER_ROW:,} positions and the epochs of the config.

{markdown(HEADER, rows)}

## How far the estimate is off

{published_table()}

Both kinds of MFU count model FLOPs: {FORMULA}.
No constant is set by case. The same ones hold everywhere: attention kernels reach
{roofline.ATTENTION_EFFICIENCY:.0%} of the peak, memory {roofline.HBM_EFFICIENCY:.0%} and links
{roofline.LINK_EFFICIENCY:.0%} of their bandwidths, and matrix products the share that
`orca_jax/planning/chips.csv` gives for the chip. `orca_jax/planning/roofline.py` says what is taken to
overlap.

The paper took {theirs} hours for its stages on 20 A100s; the estimate, for {PAPER_BATCH} rows a step, is
{ours}.
"""


def main() -> None:
    path = options.parser("plan_page").parse_args().path
    plan.use_no_chips()
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
