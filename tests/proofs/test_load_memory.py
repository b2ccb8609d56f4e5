"""Parameters are read for decoding with little memory beside them, whatever form they have on disk."""

import dataclasses
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")

from orca_jax.artifacts import Artifact, plain
from orca_jax.config import MeshConfig, OptimizerConfig
from orca_jax.student import huggingface, llama, presets
from orca_jax.student.sharding import make_mesh
from orca_jax.training.checkpoints import Checkpoints
from orca_jax.training.step import make_optimizer, make_steps
from tests.student import gguf_files
from tests.student.students import make_params

pytestmark = pytest.mark.proof
# 219M parameters, with layers of TinyLlama's size.
STUDENT = dataclasses.replace(
    presets.PRESETS["llama-7b"],
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=2,
    num_kv_heads=4,
    head_dim=64,
)

PER_LAYER = dataclasses.replace(STUDENT, scan_layers=False)


def write_checkpoint(workdir):
    """A finished training, moments included, in float32: three times the parameters."""
    artifact = Artifact(workdir / "training", {"program": "train", "student": plain(STUDENT)}, {})
    artifact.begin()
    steps = make_steps(
        STUDENT, make_optimizer(OptimizerConfig()), make_mesh(MeshConfig()), dtype=jnp.float32, accumulation=1
    )
    drawn = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.resize(drawn, leaf.shape).astype(leaf.dtype), leaf.sharding),
        steps.abstract,
    )
    checkpoints = Checkpoints(workdir / "training/checkpoints", keep=1, note={"fingerprint": "x"})
    checkpoints.save(1, state)
    checkpoints.close()
    artifact.finish({})


def write_folder(folder):
    huggingface.export(make_params(PER_LAYER), PER_LAYER, folder, dtype="bfloat16")


def write_gguf(folder):
    folder.mkdir()
    gguf_files.write_student(folder / "model.gguf", PER_LAYER)


@pytest.mark.parametrize("write", [write_checkpoint, write_folder, write_gguf])
def test_beside_parameters_is_the_largest_array_and_half_a_gibibyte(write, tmp_path):
    write(tmp_path / "student")
    sizes = [
        math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(lambda: llama.init(STUDENT, 0)))
    ]
    for dtype in ("bfloat16", "float32"):
        command = [sys.executable, "-m", "benchmarks.load", str(tmp_path / "student"), f"--dtype={dtype}"]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        _, kind, parameters, beside, _ = ended.stdout.strip().splitlines()[-1].strip("| ").split(" | ")
        assert kind == dtype
        assert float(parameters) == pytest.approx(sum(sizes) * jnp.dtype(dtype).itemsize / 2**30, rel=0.02)
        assert float(beside) <= max(sizes) * 4 / 2**30 + 0.5, ended.stdout
