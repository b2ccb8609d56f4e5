"""Small students in one compiled program beside one alone: a step of 0.17M parameters on 1,024 positions.

python -m benchmarks.students            # pinned to one core, as each of `experiments.ablate --jobs` is
python -m benchmarks.students --cores=0  # on all cores

Seconds are processor time, so that other work on the machine counts little. `N together` is the step mapped
by `jax.vmap` over parameters, optimizer states and rows of N students.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import racing
from benchmarks.racing import Contestant
from orca_jax.config import OptimizerConfig
from orca_jax.data.rows import Row, stack
from orca_jax.student import llama
from orca_jax.training.step import TrainState, make_optimizer, update

VOCABULARY, ROW, ROWS = 48, 256, 4
STUDENT = racing.student(VOCABULARY, 64, 192, 3, 4)


def together(batches: list[Row]) -> Contestant:
    """As many students as batches, each on its own."""
    optimizer = make_optimizer(OptimizerConfig())
    step = functools.partial(
        update,
        config=STUDENT,
        optimizer=optimizer,
        dtype=jnp.dtype("float32"),
        accumulation=1,
        reduce_dtype=jnp.dtype("float32"),
    )

    def fresh(seed: int) -> TrainState:
        params = llama.init(STUDENT, seed)
        return TrainState(params, optimizer.init(params))

    many = len(batches)
    if many == 1:
        state, rows, function = fresh(0), batches[0], step
    else:
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(fresh, range(many)))
        rows = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        function = jax.vmap(step, in_axes=(0, 0, None))
    compiled = jax.jit(function, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, rows, jnp.float32(1e-3))
        return jax.block_until_ready(metrics)

    tokens = float(sum(np.count_nonzero(batch.segment_ids) for batch in batches))
    supervised = float(sum(batch.loss_weights.sum() for batch in batches))
    return Contestant("one alone" if many == 1 else f"{many} together", run, tokens, supervised)


def main(cores: int = 1, most: int = 16, rounds: int = 5, seconds: float = 2.0) -> None:
    if cores and hasattr(os, "sched_setaffinity"):  # before jax counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    packed = racing.packed_rows(racing.uneven_examples(2000, VOCABULARY, ROW, 80, 0.2), ROW)
    batches = [stack(packed[ROWS * i : ROWS * (i + 1)]) for i in range(most)]
    counts = [count for count in (4, 16, 64) if count <= most]
    contestants = [together(batches[:count]) for count in (*counts, 1)]
    where = f"{cores} core" if cores else "all cores"
    racing.report(where, contestants, racing.race(contestants, rounds, seconds, time.process_time))


if __name__ == "__main__":
    racing.command(main)
