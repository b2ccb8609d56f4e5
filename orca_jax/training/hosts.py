"""Several hosts: joining them, comparing what they are about to run, and stopping together on a signal."""

from __future__ import annotations

import collections
import contextlib
import glob
import itertools
import json
import logging
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from orca_jax.cli import EXIT_INTERRUPTED
from orca_jax.student import sharding

log = logging.getLogger(__name__)
SECONDS = 300.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = os.EX_TEMPFAIL  # 75: nothing is wrong; run the same command again
# Device files of TPUs and GPUs (Linux's drivers).
ACCELERATORS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")
_NUMBER = itertools.count()  # of exchanges, which all processes make in the same order


class HostsError(ValueError):
    """Hosts that do not fit together, or one that is missing; the message names it."""


def join(hosts: str) -> None:
    """Joins the processes of a run. Must be called before any other use of JAX's devices.

    Args:
      hosts: empty for a single process; `auto` for the clusters that JAX detects (TPU pods, Slurm, GKE, Open
        MPI); or `ADDRESS:PORT,PROCESSES,PROCESS`: where process 0 listens, how many there are, which this is.

    Raises:
      HostsError: `hosts` is none of these, `auto` finds no cluster, or process 0 does not listen.
    """
    if not hosts or jax.distributed.is_initialized():
        return
    explicit = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", hosts)
    if explicit:
        address, processes, process = explicit.groups()
        if process != "0":
            _wait_for(address)
        jax.distributed.initialize(address, int(processes), int(process))
    elif hosts == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise HostsError(
                f"hosts='auto', but jax finds no cluster here ({error}); give ADDRESS:PORT,PROCESSES,PROCESS"
            ) from error
    else:
        raise HostsError(f"hosts={hosts!r} is neither empty, 'auto' nor ADDRESS:PORT,PROCESSES,PROCESS")
    log.info("process %d of %d, on %s", jax.process_index(), jax.process_count(), platform.node())


def check_platform() -> None:
    """Raises HostsError if this process is to use a TPU or GPU, and jax has fallen back to the CPU.

    jax does so with a warning, or without one: where another process holds the TPU, the driver or the plug-in
    fails, and with `JAX_PLATFORMS=cuda,cpu` where no GPU is seen.
    """
    settings: Any = jax.config  # whose attributes a type checker does not know
    wanted = str(settings.jax_platforms or "").partition(",")[0]
    if jax.default_backend() != "cpu" or wanted == "cpu":
        return
    seen = [path for pattern in ACCELERATORS for path in sorted(glob.glob(pattern))]
    if wanted or seen:
        why = f"JAX_PLATFORMS asks for {wanted}" if wanted else f"this machine has {seen[0]}"
        raise HostsError(
            f"{why}, and jax finds only the CPU. End the process that holds the devices, install the extra "
            "for them (tpu or cuda) and their driver, or set JAX_PLATFORMS=cpu to train on the CPU"
        )


def _wait_for(address: str) -> None:
    """Returns once process 0 listens at `address`; without it JAX would abort this process."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostsError(
                    f"process 0 does not listen at {address} ({error}); look at its log, and whether this "
                    "host reaches that address and port"
                ) from error
            time.sleep(min(1.0, SECONDS))


def gather(topic: str, value: Any, seconds: float = SECONDS) -> list[tuple[str, Any]]:
    """The JSON values that all processes call this with, in their order, each with its process and host.

    Args:
      topic: names the exchange in errors.

    Raises:
      HostsError: a process did not call this within `seconds`; names it.
    """
    if jax.process_count() == 1:
        return [(f"process 0 ({platform.node()})", value)]
    from jax._src import distributed  # JAX has no public name for its service's client

    client: Any = distributed.global_state.client
    key = f"orca_jax/gather/{next(_NUMBER)}/{topic}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps([platform.node(), value]))
    deadline = time.monotonic() + seconds
    found, missing = list[tuple[str, Any]](), list[str]()
    for process in range(jax.process_count()):
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            host, theirs = json.loads(client.blocking_key_value_get(f"{key}/{process}", left))
            found.append((f"process {process} ({host})", theirs))
        except jax.errors.JaxRuntimeError:
            missing.append(str(process))
    if missing:
        raise HostsError(
            f"no answer on {topic!r} within {seconds:.0f} s from process {', '.join(missing)} of "
            f"{jax.process_count()}; look at its log. There are: {', '.join(name for name, _ in found)}"
        )
    return found


def compare(topic: str, values: Mapping[str, str], seconds: float = SECONDS) -> None:
    """Returns once all processes have called this with equal `values`, which are names and fingerprints.

    Raises:
      HostsError: as `gather`, or a process's values differ; names it and its host.
    """
    if faults := differences(dict(gather(topic, dict(values), seconds))):
        raise HostsError(f"the hosts are not about to run the same thing: {'; '.join(faults)}")


def differences(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Describes, for each name, the processes whose value is not the most common one."""
    faults = []
    for name in sorted({name for values in found.values() for name in values}):
        texts = {process: str(values.get(name)) for process, values in found.items()}
        common = collections.Counter(texts.values()).most_common(1)[0][0]  # if equally common, the first's
        faults += [
            f"{name} is {text:.40} on {process}, {common:.40} elsewhere"
            for process, text in texts.items()
            if text != common
        ]
    return faults


class Interrupted(KeyboardInterrupt):
    """Work that can be done again is given up, since `signal` was received.

    A KeyboardInterrupt, as event loops pass no other exception on at once.
    """

    def __init__(self, received: signal.Signals):
        super().__init__(received.name)
        self.signal = received


class DeferredSignals(contextlib.AbstractContextManager["DeferredSignals"]):
    """Inside, the first Ctrl-C or SIGTERM is only noted in `received`, so that no step is left half done.

    A second one ends the program at once. The previous handlers are restored afterwards. Outside the main
    thread this does nothing.

    Attributes:
      at_once: the first one ends the program too, even while XLA compiles; while nothing would be lost.
    """

    received: signal.Signals | None = None
    at_once = False
    _interrupts = False

    def __enter__(self) -> DeferredSignals:
        main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS if main}
        if main:
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader: int) -> None:
        """Sees signals when they come; Python's handlers wait until the main thread is back from XLA."""
        while number := os.read(reader, 1):
            if self.at_once and number[0] in SIGNALS:
                self._leave(signal.Signals(number[0]))
        os.close(reader)

    def _leave(self, received: signal.Signals) -> None:
        log.warning("%s: no step was begun; run the same command again to go on", received.name)
        logging.shutdown()
        os._exit(AGAIN if received == signal.SIGTERM else EXIT_INTERRUPTED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.at_once:  # where another loop, like Orbax's, took what `_watch` reads
            self._leave(signal.Signals(number))
        if self.received is not None:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.received = signal.Signals(number)
        if self._interrupts:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises `Interrupted`, for work that changes nothing until it is done.

        Several hosts await each other's results, so none may leave alone: there it is only noted.
        """
        self._interrupts = jax.process_count() == 1
        try:
            yield
        finally:
            self._interrupts = False

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writer)


class PreemptionSync:
    """Tells all hosts of a signal that any of them has received, at the same step.

    A single process acts on its signal at once. Several processes take the largest of their signals on the
    devices at every step, and read it one step later, when that step's metrics are read too, so that no host
    waits for another.
    """

    def __init__(self, mesh: Mesh):
        self._placement = NamedSharding(mesh, PartitionSpec(sharding.AXES))
        self._shape = (mesh.size,)
        self._largest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._pending: jax.Array | None = None

    def exchange(self, received: signal.Signals | None) -> signal.Signals | None:
        """Called once a step with this host's signal; returns the signal that all hosts act on now."""
        if jax.process_count() == 1:
            return received
        part = np.full(self._shape, int(received or 0), np.int32)
        signals = jax.make_array_from_callback(self._shape, self._placement, lambda index: part[index])
        before, self._pending = self._pending, self._largest(signals)
        value = 0 if before is None else int(before)
        return signal.Signals(value) if value else None
