"""Writes docs/scale.md: several students on several slices, and the estimate beside published runs.

python -m benchmarks.scale --out=docs/scale.md --rows=scale.jsonl

takes minutes a slice and no chip. TPUs need libtpu, GPUs the plug-in of the extra `gpu-plan`. Where one
environment has not both, run it in each with the same --rows: what is compiled is kept there.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.racing import command, markdown
from orca_jax.config import ExperimentConfig, OptimizerConfig, Remat, load
from orca_jax.planning import chips, estimate, plan
from orca_jax.planning.chips import GIB
from orca_jax.planning.compile import can_compile
from orca_jax.planning.estimate import MeshShape, Workload
from orca_jax.student.presets import LlamaConfig

SLICES = {
    "orca_7b": ("v5e-64", "h100-8", "h200-8"),
    "orca_llama3_8b": ("v5p-16", "h100-8"),
    "orca_13b": ("v5p:2x4x4", "h100-16", "a100-32"),
    "orca_70b": ("v5p-128", "h100-64"),
}
AMOUNTS = plan.Amounts(plan.PAPER_EXAMPLES, plan.PAPER_PACKING, None)
PAPER_CHIPS, PAPER_BATCH, PAPER_HOURS = "a100-20", 160, (160.0, 40.0)  # its batch is not stated; 8 rows a GPU
HEADER = (
    "config", "slice (chips)", "data x fsdp x tensor", "rows x length / parts", "remat", "GiB a chip", "how",
    "s a step", "by roofline", "tokens/s", "MFU %", "launches", "hours, both stages", "chip-hours",
)  # fmt: skip


def config_of(name: str) -> ExperimentConfig:
    return load(importlib.import_module(f"orca_jax.configs.{name}").get_config())


def planned(name: str, slice_name: str, rows: Path) -> dict[str, Any]:
    """The summary of the fastest way by estimate to run the config's batch that fits once compiled."""
    kept = [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.exists() else []
    for one in kept:
        if (one["file"], one["slice"]) == (name, slice_name):
            return dict(one)
    config, topology = config_of(name), chips.topology(slice_name)
    workload = plan.workload_of(config)
    state = estimate.abstract_state(workload.student, workload.optimizer)
    analytic = not can_compile(topology)
    ranked = plan.rank(workload, topology, state, batch_factors=(1,))
    plans = (plan.make_plan(config, topology, one.workload, one.shape, analytic) for one in ranked)
    made = next(made for made in plans if made.fits)
    found = plan.summary(config, made, AMOUNTS) | {"file": name, "slice": slice_name}
    if not analytic:
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return found


def row(name: str, slice_name: str, rows: Path) -> tuple[str, ...]:
    found = planned(name, slice_name, rows)
    return (
        name,
        f"{found['topology']} ({found['chips']})",
        " x ".join(map(str, found["mesh"].values())),
        f"{found['batch_rows']} x {found['row_length']:,} / {found['accumulation']}",
        found["remat"],
        f"{found['bytes_per_chip'] / GIB:.1f} of {found['hbm_bytes'] / GIB:.0f}",
        "cycles" if found["cycles"] else "compiled" if found["compiled"] else "estimated",
        f"{found['step_seconds']:.2f}",
        f"{found['roofline_seconds']:.2f}",
        f"{found['tokens_per_second']:,.0f}",
        f"{100 * found['mfu']:.0f}",
        f"{found['launches']:,}" if found["gpu"] and found["compiled"] else "",
        " + ".join(f"{hours:,.0f}" for hours in found["stage_hours"].values()),
        f"{found['chip_hours']:,.0f}",
    )


SIZES = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")


class Published(NamedTuple):
    """A run and its model FLOPs utilisation, as its authors give it."""

    name: str
    topology: str
    mesh: tuple[int, int, int]
    sizes: tuple[int, ...]  # as SIZES
    remat: Remat
    chip_rows: int
    speed: float  # MFU, or, above 1, tokens a second and chip
    source: str
    row_length: int = 2048

    @property
    def workload(self) -> Workload:
        sizes: Any = dict(zip(SIZES, self.sizes, strict=True))
        vocabulary = 128_256 if "Llama 3" in self.name else 32_000
        student = LlamaConfig(vocab_size=vocabulary, **sizes, remat=self.remat)
        rows = self.chip_rows * chips.topology(self.topology).chips
        return Workload(
            student=student,
            optimizer=OptimizerConfig(),
            batch_rows=rows,
            row_length=self.row_length,
            windowed=False,  # a program that its authors tuned
        )

    @property
    def mfu(self) -> float:
        """As here, with half of attention's squares counted, where the speed is published in tokens."""
        if self.speed < 1:
            return self.speed
        flops = self.workload.student.training_flops(self.row_length)
        return self.speed * flops / chips.topology(self.topology).chip.peak


# Where a shape is not a LLaMA's, the nearest LLaMA of as many parameters stands for it. MaxText's MFU of
# the first three counts attention over whole squares, ours half of that: up to 2 per cent of the figure.
# Of the four Llama runs it publishes tokens a second. Those on v6e move what is saved to the host, which
# the estimate does not know: they stand as full remat, and a policy that saves all products but two of
# the gate as `products`.
MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext (README; configs/"
TIERS = "https://github.com/AI-Hypercomputer/maxtext (docs/reference/models/tiering.md)"
MOSAIC = "https://github.com/mosaicml/llm-foundry (scripts/train/benchmarking/README.md)"
RUNS = (
    Published("16B, 6 rows of 2,048 a chip, full remat", "v5e-256", (1, 256, 1),
              (4096, 28_672, 32, 64, 64, 128), "full", 6, 0.611, f"{MAXTEXT}v5e/16b.sh)"),
    Published("22B, 13 rows of 2,048 a chip, full remat", "v4-128", (1, 64, 1),
              (6144, 16_384, 48, 24, 24, 256), "full", 13, 0.57, f"{MAXTEXT}v4/22b.sh)"),
    Published("32B, 7 rows of 2,048 a chip, products saved", "v5p-128", (1, 16, 4),
              (8192, 28_672, 32, 64, 64, 128), "products", 7, 0.7147, f"{MAXTEXT}v5p/32b.sh)"),
    Published("Llama 2 70B, 4 rows of 4,096 a chip, products saved", "v5p-1024", (1, 512, 1),
              (8192, 28_672, 80, 64, 8, 128), "products", 4, 692, TIERS, 4096),
    Published("Llama 2 70B, 3 rows of 4,096 a chip, q, k, v on the host", "v6e-256", (1, 256, 1),
              (8192, 28_672, 80, 64, 8, 128), "full", 3, 900, TIERS, 4096),
    Published("Llama 3.1 8B, 4 rows of 8,192 a chip, q, k, v on the host", "v6e-256", (1, 256, 1),
              (4096, 14_336, 32, 32, 8, 128), "full", 4, 7207, TIERS, 8192),
    Published("Llama 3.1 70B, 5 rows of 8,192 a chip, q, k, v on the host", "v6e-256", (1, 256, 1),
              (8192, 28_672, 80, 64, 8, 128), "full", 5, 960, TIERS, 8192),
    Published("7B, 6 rows of 2,048 a GPU, no remat (MPT-7B in torch)", "h100-8", (1, 8, 1),
              (4096, 11_008, 32, 32, 32, 128), "none", 6, 0.4644, MOSAIC),
)  # fmt: skip


def estimated(run: Published) -> float:
    """The utilisation that the estimate gives for a published run."""
    topology, work = chips.topology(run.topology), run.workload
    state = estimate.abstract_state(work.student, work.optimizer)
    seconds = plan.assess(work, MeshShape(*run.mesh), topology, state).time.step
    return estimate.mfu(work, topology, seconds)


def published_table() -> str:
    rows = []
    for run in RUNS:
        theirs, ours = 100 * run.mfu, 100 * estimated(run)
        figures = (f"{theirs:.1f}", f"{ours:.1f}", f"{ours - theirs:+z.1f}")
        rows.append((run.name, run.topology, *figures, run.source))
    return markdown(("run", "slice", "published MFU %", "estimated", "error, points", "source"), rows)


def page(kept: Path) -> str:
    rows = [row(name, slice_name, kept) for name, slices in SLICES.items() for slice_name in slices]
    config, topology = config_of("orca_13b"), chips.topology(PAPER_CHIPS)
    work = dataclasses.replace(plan.workload_of(config, PAPER_BATCH), accumulation=1)
    made = plan.make_plan(config, topology, work, MeshShape(1, topology.chips, 1), analytic=True)
    hours = plan.stage_hours(config, made, AMOUNTS).values()
    ours, theirs = (" + ".join(f"{h:.0f}" for h in each) for each in (hours, PAPER_HOURS))
    widths, slices = (
        ", ".join(f"{value:{form}}" for value in values[1:])
        for values, form in zip(zip(*estimate.GRADIENT_EFFICIENCY), ("d", ".0%"))
    )
    examples = " and ".join(f"{count:,}" for count in plan.PAPER_EXAMPLES.values())
    return f"""# What training costs at scale

This page is written by `python -m benchmarks.scale --out=docs/scale.md`. No chip was used: steps are
compiled for a description of the slice, with the compilers that libtpu and JAX's CUDA plug-in hold.
`experiments.plan` plans one config on one slice, and names a faster mesh and remat policy where it knows
one.

Each row is the fastest mesh, accumulation and remat policy for the config's batch, by estimate, that fits.
Hours are those of the paper's two stages, {examples} examples, with
{plan.PAPER_PACKING} examples in {plan.PAPER_ROW:,} positions and the epochs of the config.

* `cycles`: bytes and seconds are the compiler's. libtpu says how many cycles it expects of every operation;
  they are summed over loops. Attention kernels, for which it expects nothing, are added by roofline, and
  transfers hide behind the rest. `by roofline` is the estimate without the cycles.
* `compiled`: bytes and kernel launches are the compiler's, and seconds the roofline's, which knows neither
  a kernel nor a launch. GPUs' memory is the {chips.LAUNCHED:.0%} that launch scripts give XLA
  (`XLA_CLIENT_MEM_FRACTION`); without it XLA takes 75%.
* `estimated`: no compiler was there; a margin of {1 - estimate.USABLE:.0%} is kept free.

{markdown(HEADER, rows)}

## How far the estimate is off

{published_table()}

MFU of the runs that are published in tokens a second is computed as here, so it is lower than theirs, which
counted whole squares of attention. Published programs are tuned. Of ours the estimate assumes besides that
weight gradients run in slices of hidden_size / fsdp columns on TPUs, at {slices}
of the peak for {widths} columns (by the cycles of libtpu 0.0.52 for v5p).

Both kinds of MFU count model FLOPs: {estimate.FORMULA}.
No constant is set by case. The same ones hold everywhere: attention kernels reach
{estimate.ATTENTION_EFFICIENCY:.0%} of the peak, memory {estimate.HBM_EFFICIENCY:.0%} and links
{estimate.LINK_EFFICIENCY:.0%} of their bandwidths, and matrix products the share that
`orca_jax/planning/chips.csv` gives for the chip. `orca_jax/planning/estimate.py` documents what
overlaps.

The paper took {theirs} hours for its stages on 20 A100s; the estimate, for {PAPER_BATCH} rows a step, is
{ours}.
"""


def main(out: str = "docs/scale.md", rows: str = "scale.jsonl") -> None:
    plan.use_no_chips()
    os.environ.setdefault(chips.MEMORY, str(chips.LAUNCHED))
    Path(out).write_text(page(Path(rows)), encoding="utf-8")


if __name__ == "__main__":
    command(main)
