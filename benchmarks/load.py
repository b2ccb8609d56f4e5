"""Memory and seconds of loading a student for evaluation, generation or serving on one device (Linux).

python -m benchmarks.load runs/orca --dtype=bfloat16

On a CPU the arrays are in the host's memory too: what is beside them is the peak of the process, less the
parameters and less what the process took before.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax

from benchmarks.racing import command, markdown
from orca_jax.config import MeshConfig
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students


def resident(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(model: str, dtype: str = "auto") -> None:
    source, kind = students.open_source(model), compute_dtype(dtype)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    before, began = resident("VmRSS"), time.monotonic()
    wanted = dataclasses.replace(source.config, scan_layers=False)
    params = jax.block_until_ready(source.load(wanted, mesh, kind))
    seconds = time.monotonic() - began
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    beside = resident("VmHWM") - before - size
    header = ["student", "type", "parameters, GiB", "beside them, GiB", "seconds"]
    row = [Path(model).name, kind.name, f"{size / 2**30:.2f}", f"{beside / 2**30:.2f}", f"{seconds:.0f}"]
    print(markdown(header, [row]))


if __name__ == "__main__":
    command(main)
