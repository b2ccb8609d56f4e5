"""A run goes on over other numbers of devices and processes with the losses of an unbroken one."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from orca_jax.training import metrics
from tests.training import synthetic

pytestmark = pytest.mark.proof
TOTAL = sum(stage.steps for stage in synthetic.STAGES)
WORKER = """
import os, signal, sys, threading
from pathlib import Path
import jax

directory, stop, axes, port, process, processes = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))

from orca_jax.student import sharding
from orca_jax.student.sharding import MeshConfig
from tests.training import synthetic

mesh = sharding.make_mesh(MeshConfig(**dict(zip(sharding.AXES, map(int, axes.split(","))))))
assert mesh.size == len(jax.devices())
trainer = synthetic.trainer(Path(directory), mesh=mesh, train={"checkpoint_every": 2})
position = trainer.curriculum.position


def stopping(step):
    if step == int(stop) - 1 and threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGINT)
    return position(step)


trainer.curriculum.position = stopping
try:
    trainer.run()
except KeyboardInterrupt:
    print("stopped")
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(repo, directory, *, devices, axes, processes=1, stop=0):
    """Trains in so many processes of so many devices each, until step `stop` is made, or to the end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(repo),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    port, shape = str(free_port()), ",".join(map(str, axes))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), str(stop), shape, port, str(i), str(processes)],
            cwd=directory.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        words = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, said in zip(started, words):
        assert process.returncode == 0, said
        assert ("stopped" in said) == bool(stop), said


def losses(directory):
    rows = metrics.read(directory / metrics.FILE)
    return {(row["kind"], row["step"]): row["loss"] for row in rows}


def assert_losses(directory, unbroken):
    mine, expected = losses(directory), losses(unbroken)
    assert [step for kind, step in expected if kind == "train"] == list(range(1, TOTAL + 1))
    for key in mine.keys() & expected.keys():
        np.testing.assert_allclose(mine[key], expected[key], rtol=0, atol=1e-5, err_msg=str(key))
    assert sorted(mine) == sorted(expected)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("elastic") / "unbroken"
    synthetic.trainer(directory).run()
    return directory


def test_eight_then_one_then_four_devices(repo, unbroken, tmp_path):
    directory = tmp_path / "run"
    run(repo, directory, devices=8, axes=(2, 2, 2), stop=4)
    run(repo, directory, devices=1, axes=(1, 1, 1), stop=8)
    run(repo, directory, devices=4, axes=(1, 4, 1))
    assert_losses(directory, unbroken)


@pytest.mark.parametrize("axes", [(1, 4, 1), (2, 1, 2), (4, 1, 1)], ids=str)
def test_two_processes_of_two_devices(repo, unbroken, tmp_path, axes):
    run(repo, tmp_path / "run", devices=2, axes=axes, processes=2)
    assert_losses(tmp_path / "run", unbroken)


def test_one_process_then_two(repo, unbroken, tmp_path):
    run(repo, tmp_path / "run", devices=8, axes=(2, 4, 1), stop=6)
    run(repo, tmp_path / "run", devices=2, axes=(1, 4, 1), processes=2)
    assert_losses(tmp_path / "run", unbroken)


def test_two_processes_then_one(repo, unbroken, tmp_path):
    run(repo, tmp_path / "run", devices=2, axes=(1, 4, 1), processes=2, stop=6)
    run(repo, tmp_path / "run", devices=8, axes=(1, 8, 1))
    assert_losses(tmp_path / "run", unbroken)
