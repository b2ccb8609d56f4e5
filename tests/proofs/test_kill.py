"""Killed by kill -9 at twenty random moments, prepare and train come to the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from orca_jax.config import load
from orca_jax.configs import mini
from orca_jax.experiments import collect
from orca_jax.training import metrics
from orca_jax.training.checkpoints import load_params

pytestmark = pytest.mark.proof
MOMENTS = 20
STEPS = 12
# Many small shards, so that kills fall between and into them.
PREPARE = """
from orca_jax.data import tokens
tokens.SHARD_SIZE = 4
from orca_jax.experiments import prepare
prepare.PROGRAM.start()
prepare.main()
"""
TRAIN = """
from orca_jax.experiments import train
train.PROGRAM.start()
train.main()
"""
OVERRIDES = {
    "train.checkpoint_every": 1,
    "train.log_every": 1,
    "curriculum[0].steps": STEPS // 2,
    "curriculum[1].steps": STEPS // 2,
}


class Program:
    """A program in a process of its own on one device, on mini.py:runlocal."""

    def __init__(self, repo, code, armed):
        self.command = [sys.executable, "-c", code, f"--config={repo}/configs/mini.py:runlocal"]
        self.command += [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
        self.environment = {**os.environ, "PYTHONPATH": str(repo), "XLA_FLAGS": ""}
        self.armed = armed  # what is there once the work has begun

    def start(self, workdir):
        return subprocess.Popen(
            [*self.command, f"--workdir={workdir}"],
            cwd=workdir,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir):
        """Runs to the end; returns the seconds that the work itself took."""
        process = self.start(workdir)
        self.await_work(process, workdir)
        began = time.monotonic()
        words = process.communicate()[0]
        assert process.returncode == 0, words
        return time.monotonic() - began

    def await_work(self, process, workdir):
        while not (workdir / self.armed).exists() and process.poll() is None:
            time.sleep(0.002)

    def kill_after(self, workdir, seconds):
        """Kills the program `seconds` into its work; whether it was still at it."""
        process = self.start(workdir)
        self.await_work(process, workdir)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kill") / "collected"
    collect.run(load(mini.get_config("runlocal")), workdir)
    return workdir


@pytest.fixture(scope="module")
def prepare(repo):
    return Program(repo, PREPARE, "tokenizer")


@pytest.fixture(scope="module")
def train(repo):
    return Program(repo, TRAIN, "training/.started.json")


@pytest.fixture(scope="module")
def prepared(collected, prepare):
    """A workdir whose tokens are finished, and how long that took."""
    workdir = shutil.copytree(collected, collected.parent / "prepared")
    return workdir, prepare.finish(workdir)


@pytest.fixture(scope="module")
def trained(prepared, train):
    """A workdir whose student is finished, and how long that took."""
    workdir = shutil.copytree(prepared[0], prepared[0].parent / "trained")
    return workdir, train.finish(workdir)


def token_files(workdir):
    files = [*(workdir / "tokens").rglob("*"), *(workdir / "tokenizer").rglob("*")]
    kept = [f for f in files if f.is_file() and f.suffix not in (".json", ".tmp")]
    return {str(f.relative_to(workdir)): f.read_bytes() for f in kept}


def moments(seed, seconds):
    return np.random.default_rng(seed).uniform(0, seconds, MOMENTS).tolist()


def test_prepare(collected, prepared, prepare, tmp_path):
    expected = token_files(prepared[0])
    assert sum("array_record" in name for name in expected) > 60
    killed = 0
    for i, moment in enumerate(moments(1, prepared[1])):
        workdir = shutil.copytree(collected, tmp_path / str(i))
        killed += prepare.kill_after(workdir, moment)
        prepare.finish(workdir)
        assert token_files(workdir) == expected, f"killed after {moment:.3f} s"
        shutil.rmtree(workdir)
    assert killed > MOMENTS / 2


def test_train(prepared, trained, train, tmp_path):
    _, expected = load_params(trained[0] / "training/checkpoints")
    killed = 0
    for i, moment in enumerate(moments(2, trained[1])):
        workdir = shutil.copytree(prepared[0], tmp_path / str(i))
        killed += train.kill_after(workdir, moment)
        train.finish(workdir)
        step, params = load_params(workdir / "training/checkpoints")
        assert step == STEPS
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        rows = metrics.read(workdir / "training" / metrics.FILE)
        made = [row["step"] for row in rows if row["kind"] == "train"]
        assert made == list(range(1, STEPS + 1)), f"killed after {moment:.3f} s"
        shutil.rmtree(workdir)
    assert killed > MOMENTS / 2
