"""Two processes on one machine: compared, named where they differ, and stopping at the same step."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import jax
import pytest

from orca_jax.training import hosts
from orca_jax.training.checkpoints import load_params
from orca_jax.training.hosts import HostsError
from tests.training import synthetic

WORKER = """
import json, signal, sys
from orca_jax.training import hosts

hosts.join(f"localhost:{sys.argv[1]},2,{sys.argv[2]}")
process = int(sys.argv[2])
said = []


def compare(topic, values, seconds=60):
    try:
        hosts.compare(topic, values, seconds)
        said.append("equal")
    except hosts.HostsError as error:
        said.append(str(error))


compare("equal", {"config": "a"})
compare("unequal", {"config": "a", "data": "b" if process else "c", "step": "d"})
if process == 0:
    compare("alone", {"config": "a"}, seconds=1)

from tests.training import synthetic
from orca_jax.student import sharding

preemption = hosts.PreemptionSync(sharding.make_mesh(sharding.MeshConfig(data=2)))
received = ([None, None], [None, signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGINT, None])
for mine in (*received, [None, None]):  # the outcome of each is read at the next
    outcome = preemption.exchange(mine[process])
    said.append(outcome and outcome.name)
print("SAID" + json.dumps(said))
"""
TRAINER = """
import signal, sys, threading
from pathlib import Path
from orca_jax.training import hosts

directory, port, process = sys.argv[3], sys.argv[1], int(sys.argv[2])
hosts.join(f"localhost:{port},2,{process}")
from orca_jax.student import sharding
from tests.training import synthetic

student = synthetic.STUDENT
if len(sys.argv) > 4 and process == 1:
    import dataclasses
    student = dataclasses.replace(student, norm_epsilon=1e-4)
mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4))
trainer = synthetic.trainer(Path(directory), mesh=mesh, student=student, train={"checkpoint_every": 100})
position, sent = trainer.curriculum.position, []


def stopping(step):
    if process == 1 and step == 3 and not sent and threading.current_thread() is threading.main_thread():
        sent.append(step)
        signal.raise_signal(signal.SIGTERM)
    return position(step)


trainer.curriculum.position = stopping
trainer.run()
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def run_two(repo, code, *arguments):
    """Exit codes and words of two processes of two devices each."""
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "PYTHONPATH": str(repo), "XLA_FLAGS": flags}
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, port, str(process), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        words = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], words


@pytest.mark.slow
def test_two_processes_compare_and_vote(repo):
    codes, words = run_two(repo, WORKER)
    assert codes == [0, 0], words
    said = [json.loads(text.partition("SAID")[2].splitlines()[0]) for text in words]
    missing = said[0].pop(2)
    assert "no answer on 'alone' within 1 s from process 1 of 2" in missing
    assert said[0] == said[1]
    assert said[0][0] == "equal"
    assert said[0][1].startswith("the hosts are not about to run the same thing: data is b on process 1 (")
    assert said[0][1].endswith("), c elsewhere")
    assert said[0][2:] == [None, None, "SIGTERM", "SIGTERM", "SIGINT"]


@pytest.mark.proof
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(repo, tmp_path):
    codes, words = run_two(repo, TRAINER, str(tmp_path))
    assert codes == [75, 75], words
    assert load_params(tmp_path / "checkpoints")[0] == 5  # the signal of step 4 is read at step 5


@pytest.mark.proof
def test_processes_with_different_steps_do_not_start(repo, tmp_path):
    codes, words = run_two(repo, TRAINER, str(tmp_path), "different")
    assert 0 not in codes
    for text in words:
        assert "the training step is" in text
        assert "on process 1" in text


def test_the_odd_one_out_is_named():
    found = {name: {"config": "b" if name == "third" else "a"} for name in ("first", "second", "third")}
    assert hosts.differences(found) == ["config is b on third, a elsewhere"]
    assert hosts.differences({name: found[name] for name in ("first", "second")}) == []


def test_a_value_that_one_process_lacks_is_named():
    assert hosts.differences({"x": {"jax": "1"}, "y": {}}) == ["jax is None on y, 1 elsewhere"]


def test_alone_there_is_nothing_to_join_or_compare():
    hosts.join("")
    assert not jax.distributed.is_initialized()
    hosts.compare("x", {"config": "a"})
    preemption = hosts.PreemptionSync(synthetic.mesh())
    assert preemption.exchange(None) is None
    assert preemption.exchange(signal.SIGTERM) is signal.SIGTERM


@pytest.mark.parametrize("text", ["all", "localhost,2,0", "localhost:1,2", "a:1,b,c"])
def test_hosts_that_cannot_be_read(text):
    with pytest.raises(HostsError, match=f"hosts='{text}' is neither"):
        hosts.join(text)


def test_auto_without_a_cluster_says_what_to_give(monkeypatch):
    def nothing():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    with pytest.raises(HostsError, match=r"jax finds no cluster here .* give ADDRESS:PORT,PROCESSES,PROCESS"):
        hosts.join("auto")


@pytest.mark.parametrize(
    ("platforms", "devices", "why"),
    [
        ("cuda,cpu", [], "JAX_PLATFORMS asks for cuda, and jax finds only the CPU"),
        ("", ["nvidia0"], "this machine has .*nvidia0, and jax finds only the CPU"),
        ("", [], ""),
        ("cpu", ["nvidia0"], ""),
    ],
)
def test_a_fall_back_to_the_cpu_is_refused(platforms, devices, why, monkeypatch, tmp_path):
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(hosts, "ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*",))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with pytest.raises(HostsError, match=why) if why else contextlib.nullcontext():
            hosts.check_platform()
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("number", hosts.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_and_the_handler_comes_back(number):
    before = signal.getsignal(number)
    with hosts.DeferredSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received is number
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_program():
    with hosts.DeferredSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_work_that_can_be_done_again_is_interrupted():
    with hosts.DeferredSignals() as signals:
        with pytest.raises(hosts.Interrupted) as interrupted, signals.interrupting():
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.value.signal is signals.received is signal.SIGTERM


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="inside"), hosts.DeferredSignals():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_no_signal_is_deferred():
    found = []

    def work():
        with hosts.DeferredSignals() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
