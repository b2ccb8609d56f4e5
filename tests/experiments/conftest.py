"""One finished run of the smallest experiment, which the tests of the programs read or copy."""

import fcntl
import os
import shutil

import pytest

from orca_jax.config import load
from orca_jax.configs import mini as mini_file
from orca_jax.experiments import run as road

# Rows for the tests' eight devices; every step is saved and logged.
OVERRIDES = {"train.batch_rows": 8, "train.checkpoint_every": 1, "train.log_every": 1}


@pytest.fixture(scope="session")
def overrides():
    """What `mini` changes, as the command line says it."""
    return [f"--config.{key}={value}" for key, value in OVERRIDES.items()]


@pytest.fixture(scope="session")
def mini():
    """`mini(key=value)`: the config mini.py:runlocal that saves and logs every step, with changes."""

    def make(**changes):
        config = mini_file.get_config("runlocal")
        config.update_from_flattened_dict({**OVERRIDES, **changes})
        return load(config)

    return make


@pytest.fixture(scope="session")
def finished(mini, tmp_path_factory):
    """The workdir of a finished run, made once for all workers of pytest-xdist; copy it to change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "workdir").exists():
            road.run(mini(), folder / "making")
            (folder / "making").rename(folder / "workdir")
    return folder / "workdir"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished workdir, less the parts named: `copied("training", "evaluation")`."""

    def copy(*without):
        workdir = shutil.copytree(finished, tmp_path / "workdir")
        for name in without:
            target = workdir / name
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        return workdir

    return copy
