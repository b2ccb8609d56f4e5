"""Workdirs in buckets over HTTP, on local stand-ins for S3 and for Google's storage.

Needs the extras `gcs` and `s3`, `moto[server]` and `gcp-storage-emulator`.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import fsspec
import jax
import numpy as np
import pytest

from orca_jax.training import metrics
from orca_jax.training.checkpoints import load_params

pytestmark = pytest.mark.proof
NEEDED = {
    "s3": ("s3fs", "moto", "flask"),
    "gs": ("gcsfs", "gcp_storage_emulator"),
}
SERVERS = {
    "s3": """
import sys, threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1])).start()
threading.Event().wait()
""",
    "gs": """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
""",
}
# Pushes follow one another, and steps are slow enough for them.
PROGRAM = """
import time
from orca_jax import storage
from orca_jax.training.checkpoints import Checkpoints
storage.INTERVAL, storage.SHARE, save = 0.2, 0, Checkpoints.save
Checkpoints.save = lambda *arguments: (time.sleep(1), save(*arguments))
from orca_jax.experiments import {program}
{program}.PROGRAM.start()
{program}.main()
"""
STEPS = 12
OVERRIDES = (
    "--config.train.checkpoint_every=1",
    "--config.train.log_every=1",
    f"--config.curriculum[0].steps={STEPS // 2}",
    f"--config.curriculum[1].steps={STEPS // 2}",
)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def settings(kind, port):
    """What tells the libraries where the stand-in is."""
    if kind == "s3":
        return {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
    address = f"http://127.0.0.1:{port}"
    return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}


class Bucket:
    """A bucket and its file system."""

    def __init__(self, kind, environment):
        self.kind, self.environment = kind, environment
        self.files = fsspec.filesystem(kind, skip_instance_cache=True)

    def find(self, folder):
        self.files.invalidate_cache()
        return self.files.find(f"bucket/{folder}")

    def steps(self, run):
        """The whole checkpoints of a run."""
        names = (name.split("/") for name in self.find(f"{run}/training/checkpoints"))
        return {int(name[-2]) for name in names if name[-1] == "commit_success.txt" and name[-2].isdigit()}


@pytest.fixture(params=NEEDED)
def bucket(request, monkeypatch):
    kind = request.param
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    port = free_port()
    environment = settings(kind, port)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVERS[kind], str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: connects(port), 60)
        found = Bucket(kind, environment)
        if kind == "s3":
            found.files.mkdir("bucket")
        yield found
    finally:
        server.kill()
        server.wait()


def connects(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(done, seconds=600):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Machine:
    """Where programs run in processes of their own; its scratch folder is lost with it."""

    def __init__(self, repo, folder, devices=1):
        self.repo, self.scratch, self.log = repo, folder, folder.with_name(f"{folder.name}.log")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(repo),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }

    def start(self, program, workdir, *arguments):
        command = [sys.executable, "-c", PROGRAM.format(program=program), f"--workdir={workdir}"]
        command += [f"--config={self.repo}/configs/mini.py:runlocal", f"--scratch={self.scratch}"]
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*command, *OVERRIDES, *arguments],
                cwd=self.repo,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def run(self, program, workdir, *arguments):
        status = self.start(program, workdir, *arguments).wait(timeout=900)
        assert status == 0, self.log.read_text()
        return self.log.read_text()

    @property
    def folder(self):
        """The copy of the workdir that it has."""
        (found,) = (path for path in (self.scratch / "workdirs").iterdir() if path.is_dir())
        return found


def losses(workdir):
    rows = [row for row in metrics.read(workdir / "training" / metrics.FILE) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def assert_same(workdir, expected):
    assert (workdir / "table.md").read_text() == (expected / "table.md").read_text()
    (step, mine), (last, theirs) = (load_params(w / "training/checkpoints") for w in (workdir, expected))
    assert step == last == STEPS
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert losses(workdir) == losses(expected)


@pytest.fixture(scope="module")
def expected(repo, tmp_path_factory):
    """The same run on one disk."""
    folder = tmp_path_factory.mktemp("expected")
    Machine(repo, folder / "scratch").run("run", folder / "workdir")
    return folder / "workdir"


def test_machines_are_killed_and_lost_and_the_run_comes_to_its_end(repo, tmp_path, bucket, expected):
    """Killed once while data are made, and twice while it trains."""
    workdir = f"{bucket.kind}://bucket/run"
    moments = (
        lambda: "bucket/run/tokens/apprentice/manifest.json" in bucket.find("run/tokens"),
        lambda: max(bucket.steps("run"), default=0) >= 2,
        lambda: max(bucket.steps("run"), default=0) >= 6,
    )
    for number, moment in enumerate(moments):
        machine = Machine(repo, tmp_path / str(number))
        process = machine.start("run", workdir)
        while process.poll() is None and not moment():
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, machine.log.read_text()
        shutil.rmtree(machine.scratch)
    machine = Machine(repo, tmp_path / "last")
    said = machine.run("run", workdir)
    assert "resuming at step" in said
    assert_same(machine.folder, expected)
    again = Machine(repo, tmp_path / "again")
    assert (expected / "table.md").read_text() in again.run("run", workdir)
    assert len(bucket.steps("run")) == 2


def test_two_hosts_without_a_shared_disk(repo, tmp_path, bucket, expected):
    """Both write their parts of checkpoints straight into the bucket; then one goes on alone."""
    workdir = f"{bucket.kind}://bucket/hosts"
    one = Machine(repo, tmp_path / "one")
    for program in ("collect", "prepare"):
        one.run(program, workdir)
    port = free_port()
    hosts = [Machine(repo, tmp_path / f"host{i}", devices=2) for i in range(2)]
    started = [
        host.start("train", workdir, f"--hosts=127.0.0.1:{port},2,{i}") for i, host in enumerate(hosts)
    ]
    statuses = [process.wait(timeout=900) for process in started]
    words = [host.log.read_text() for host in hosts]
    if bucket.kind == "s3":
        assert all("gs:// alone; name a folder on a disk" in said for said in words), words
        return
    assert statuses == [0, 0], words
    assert bucket.steps("hosts") == {STEPS - 1, STEPS}
    names = {name.removeprefix("bucket/hosts/") for name in bucket.find("hosts")}
    assert {"logs/host0.log", "logs/host1.log", "training/manifest.json"} <= names
    assert any("ocdbt.process_1" in name for name in names)
    for host in hosts:
        assert not (host.folder / "training/checkpoints").exists()
    other = Machine(repo, tmp_path / "other")
    for program in ("evaluate", "tables"):
        other.run(program, workdir)
    assert load_params(other.folder / "training/checkpoints")[0] == STEPS
    np.testing.assert_allclose(losses(other.folder), losses(expected), rtol=1e-4)
