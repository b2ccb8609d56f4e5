"""Trains a student on tokens: runs the curriculum, or goes on with it.

python -m experiments.train --config=configs/mini.py --workdir=runs/mini
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__,
    *cli.EXPERIMENT,
    *cli.TRAIN,
    parts=("tokenizer", "tokens", "training", "logs"),
    made=("{workdir}/training",),
    then="evaluate {same}",
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import re
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from orca_jax import storage
from orca_jax.config import ExperimentConfig
from orca_jax.planning import chips
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import hosts
from orca_jax.training.run import train
from orca_jax.training.trainer import Evaluate, MakeRound


def profiled(steps: str) -> tuple[int, int] | None:
    """`FIRST:LAST` as two numbers; empty: none.

    Raises:
      ValueError: it is neither.
    """
    if not steps:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", steps)
    if not found:
        raise ValueError(f"--profile_steps={steps!r} must be FIRST:LAST, for example 20:22")
    return int(found[1]), int(found[2])


def peak_flops(tflops: float, device_kind: str, compute_dtype: str) -> float:
    """FLOP/s of one device: as given, or of planning's table, which is for bfloat16; 0: not known."""
    chip = chips.of_device(device_kind) if compute_dtype == "bfloat16" else None
    return tflops * 1e12 or (chip.peak if chip else 0.0)


def run(
    config: ExperimentConfig,
    workdir: Path,
    options: cli.Options | None = None,
    *,
    on_begin: Callable[[], None] | None = None,
) -> None:
    """Trains, or goes on; `on_begin` is called once it is known that no other settings have trained here.

    Args:
      options: those of cli.TRAIN; None: their defaults.
    """
    options = options or PROGRAM.options()
    profile = profiled(options.profile_steps)
    hosts.join(options.hosts)
    hosts.check_platform()
    if options.hosts:
        cli.keep_log(workdir / "logs" / f"host{jax.process_index()}.log")
        if jax.process_index():
            storage.push_logs_alone()
    peak = peak_flops(options.peak_tflops, jax.devices()[0].device_kind, config.train.compute_dtype)

    def evaluation(made: ExperimentConfig, student: LlamaConfig, mesh: Mesh) -> Evaluate:
        from orca_jax.evaluation.during_training import StudentEvaluation  # imports take half a second

        return StudentEvaluation(made, student, mesh, workdir)

    def rounds(made: ExperimentConfig, student: LlamaConfig, mesh: Mesh, fingerprint: str) -> MakeRound:
        from orca_jax.serving.on_policy import Rounds

        return Rounds(made, student, mesh, workdir, fingerprint)

    extra = dict(evaluation=evaluation, rounds=rounds)
    train(config, workdir, peak_flops=peak, profile=profile, on_begin=on_begin, **extra)


def main() -> None:
    PROGRAM.main(lambda options: run(options.config, options.workdir, options))


if __name__ == "__main__":
    main()
