"""What an experiment costs on given chips, none of which is needed: memory, time, collectives, hours, price.

python -m experiments.plan --config=configs/orca_13b.py --topology=v5p:2x4x4
python -m experiments.plan --config=configs/orca_13b.py --topology=h100-16 --analytic
python -m experiments.plan --config=configs/orca_70b.py --topology=v5p-128 --search
python -m experiments.plan evaluate --config=configs/orca_13b.py --topology=h200-1 --analytic

Compiling needs the package libtpu (extra `tpu`), or for GPUs the plug-in of the extra `gpu-plan`, without
which they are estimated alone, as any chip is with --analytic. Of a GPU's memory, the share
XLA_CLIENT_MEM_FRACTION may be used.
"""

from __future__ import annotations

from orca_jax import cli

COMMON = (
    cli.CONFIG,
    cli.Option("topology", "", "A slice: v5p:2x4x4, v5p-64, v5e-256, h100-8.", required=True),
    cli.Option("analytic", False, "Estimate only; compile nothing."),
    cli.Option("json", False, "One JSON line a plan."),
    cli.Option("prices", "", "A file like orca_jax/planning/prices.csv, with prices filled in."),
)
TRAIN = (
    cli.Option("batch_rows", 0, "Rows a step, in place of train.batch_rows.", lower_bound=0),
    cli.Option("search", False, "Compile the best alternatives, and print the fastest first."),
    cli.Option("packing", 2.7, "Examples in 2,048 positions; the default is the paper's.", lower_bound=0.01),
    cli.Option("examples", [], "NAME=COUNT: examples of data sets; default: the paper's two."),
)
EVALUATE = (
    cli.Option("asked", [], "NAME=QUESTIONS:PROMPT:REPLY, lengths in median tokens; default: the paper's."),
    cli.Option("message_tokens", 0, "Of a system message before every question.", lower_bound=0),
)
PROGRAM = cli.Program(
    __doc__,
    commands={
        "train": cli.Command("A step of training.", *COMMON, *TRAIN),
        "evaluate": cli.Command("An evaluation on the paper's benchmarks.", *COMMON, *EVALUATE),
    },
    default="train",
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from orca_jax.planning import chips, evaluate, plan
from orca_jax.planning.estimate import MeshShape
from orca_jax.student import sharding


def examples_of(pairs: Sequence[str]) -> dict[str, int]:
    """`NAME=COUNT` over the paper's counts.

    Raises:
      ValueError: a pair is not of that form.
    """
    found = dict(plan.PAPER_EXAMPLES)
    for pair in pairs:
        name, _, count = pair.partition("=")
        if not name or not count.isdigit():
            raise ValueError(f"--examples: {pair!r} is not NAME=COUNT")
        found[name] = int(count)
    return found


def asked_of(given: Sequence[str]) -> dict[str, evaluate.Asked]:
    """`NAME=QUESTIONS:PROMPT:REPLY` in place of the paper's benchmarks, where any is given.

    Raises:
      ValueError: one is not of that form.
    """
    found = {}
    for one in given:
        if not (match := re.fullmatch(r"([^=]+)=([1-9]\d*):([1-9]\d*):([1-9]\d*)", one)):
            raise ValueError(f"--asked: {one!r} is not NAME=QUESTIONS:PROMPT:REPLY, all at least 1")
        found[match[1]] = evaluate.Asked(*map(int, match.groups()[1:]))
    return found or dict(evaluate.PAPER_ASKED)


def given(options: cli.Options) -> tuple[chips.Topology, float | None]:
    """The slice, and a chip's price."""
    logging.getLogger().setLevel(logging.WARNING)  # the log of choices for this host is of no use
    topology = chips.topology(options.topology)
    return topology, chips.price(topology.chip, Path(options.prices) if options.prices else None)


def run_evaluate(options: cli.Options) -> None:
    """Prints the plan of an evaluation."""
    config, (topology, price) = options.config, given(options)
    where = evaluate.setting(plan.workload_of(config).student, topology, config.evaluation)
    asked, how = asked_of(options.asked), dict(message=options.message_tokens, analytic=options.analytic)
    values = evaluate.plan(where, asked, config.evaluation, **how)
    print(json.dumps(values) if options.json else evaluate.report(config.name, values, price))


def run(options: cli.Options) -> None:
    """Prints a plan, or with --search the best ones."""
    config, (topology, price) = options.config, given(options)
    amounts = plan.Amounts(examples_of(options.examples), options.packing, price)
    workload = plan.workload_of(config, options.batch_rows)
    if options.search:
        plans = sorted(plan.searched(config, topology, workload, options.analytic), key=lambda one: one.rank)
    else:
        shape = MeshShape(*sharding.axis_sizes(config.mesh, topology.chips))
        plans = [plan.make_plan(config, topology, workload, shape, options.analytic)]
    for one in plans:
        values = plan.summary(config, one, amounts)
        print(json.dumps(values) if options.json else plan.report(values, one.workload) + "\n", flush=True)


def main() -> None:
    plan.use_no_chips()
    PROGRAM.main(train=run, evaluate=run_evaluate)


if __name__ == "__main__":
    main()
