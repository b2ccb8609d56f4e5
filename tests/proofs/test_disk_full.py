"""The road on a full disk that grows a little after each failure comes to the same end."""

import hashlib
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from orca_jax.training.checkpoints import load_params

# Mounting needs a name space of one's own, which not every machine allows.
ISOLATED = ("unshare", "--map-root-user", "--mount")
ALLOWED = shutil.which("unshare") and not subprocess.run([*ISOLATED, "true"], capture_output=True).returncode
pytestmark = [pytest.mark.proof, pytest.mark.skipif(not ALLOWED, reason="no mount name space here")]
FIRST, MORE, MOST = 40, 230, 6000  # KiB
GROW = """
import shutil, subprocess, sys
from pathlib import Path
from orca_jax.configs import mini
from orca_jax import cli
from orca_jax.experiments import run as road
from orca_jax.config import load

disk, out, size, more, most = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
mount = ["mount", "-t", "tmpfs", "-o"]
subprocess.run([*mount, f"size={size}k", "tmpfs", disk], check=True)
cli.set_up_logging()
config = load(mini.get_config("runlocal"))
while size < most:
    try:
        cli.checked(lambda: road.run(config, disk / "w"))
        break
    except SystemExit as ended:
        print("FAILED", ended.code, flush=True)
    size += more
    subprocess.run([*mount, f"remount,size={size}k", "tmpfs", disk], check=True)
shutil.copytree(disk / "w", out)
"""


def tokens(workdir):
    files = [*(workdir / "tokens").rglob("*array_record*"), *(workdir / "tokenizer").glob("*.model")]
    return {str(f.relative_to(workdir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_road_on_a_full_disk(repo, tmp_path):
    (tmp_path / "disk").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(repo), "XLA_FLAGS": ""}
    command = [*ISOLATED, sys.executable, "-c", GROW, tmp_path / "disk", tmp_path / "out"]
    ended = subprocess.run(
        [*map(str, [*command, FIRST, MORE, MOST])], cwd=repo, env=environment, capture_output=True, text=True
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-3000:]
    assert "Traceback" not in said
    failures = said.count("FAILED 1")
    assert failures > 5
    assert said.lower().count("the disk is full: free some space") >= failures

    workdir = tmp_path / "unbroken"
    command = [sys.executable, "-m", "experiments.run", f"--workdir={workdir}"]
    command.append(f"--config={repo}/configs/mini.py:runlocal")
    subprocess.run(command, cwd=repo, env=environment, check=True)
    assert tokens(tmp_path / "out") == tokens(workdir)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(tmp_path / "out/training/checkpoints")[1],
        load_params(workdir / "training/checkpoints")[1],
    )
    assert (tmp_path / "out/table.md").read_text() == (workdir / "table.md").read_text()
