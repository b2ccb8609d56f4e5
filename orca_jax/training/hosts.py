"""Several hosts: joining them, comparing what they are about to run, and stopping together on a signal."""

from __future__ import annotations

import collections
import contextlib
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
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from orca_jax.student import sharding

log = logging.getLogger(__name__)
SECONDS = 300.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = os.EX_TEMPFAIL  # 75: nothing is wrong; run the same command again
_NUMBER = itertools.count()  # of comparisons, which all processes make in the same order


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


class _HostInfo(NamedTuple):
    """A process's host name, and its values to compare."""

    host: str
    values: dict[str, str]


def compare(topic: str, values: Mapping[str, str], seconds: float = SECONDS) -> None:
    """Returns once all processes have called this with equal `values`, which are names and fingerprints.

    Args:
      topic: names the comparison in errors.

    Raises:
      HostsError: a process did not call this within `seconds`, or its values differ; names it and its host.
    """
    if jax.process_count() == 1:
        return
    mine = _HostInfo(platform.node(), dict(values))
    client = _client()
    infos = _gathered(mine) if client is None else _exchanged(client, topic, mine, seconds)
    faults = differences(infos)
    if faults:
        raise HostsError(f"the hosts are not about to run the same thing: {'; '.join(faults)}")


def _client() -> Any:
    """The client of JAX's distributed service, for which JAX has no public name; None without it."""
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        return None


def _exchanged(client: Any, topic: str, mine: _HostInfo, seconds: float) -> dict[int, _HostInfo]:
    """The infos of all processes, or HostsError naming those that did not send theirs in time."""
    key = f"orca_jax/compare/{next(_NUMBER)}/{topic}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(mine))
    deadline = time.monotonic() + seconds
    infos, missing = {}, []
    for process in range(jax.process_count()):
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            infos[process] = _HostInfo(*json.loads(client.blocking_key_value_get(f"{key}/{process}", left)))
        except jax.errors.JaxRuntimeError:
            missing.append(process)
    if missing:
        present = ", ".join(sorted({info.host for info in infos.values()}))
        raise HostsError(
            f"no answer on {topic!r} within {seconds:.0f} s from process {', '.join(map(str, missing))} of "
            f"{jax.process_count()}; look at its log. There are: {present}"
        )
    return infos


def _gathered(mine: _HostInfo) -> dict[int, _HostInfo]:
    """Like `_exchanged` but through a collective, without a time limit."""
    text = np.zeros(1 << 14, np.uint8)
    encoded = json.dumps(mine).encode()
    text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(text))
    return {i: _HostInfo(*json.loads(bytes(row).rstrip(b"\0"))) for i, row in enumerate(rows)}


def differences(infos: Mapping[int, _HostInfo]) -> list[str]:
    """Describes, for each name, the processes whose value is not the most common one."""
    faults = []
    for name in sorted({name for info in infos.values() for name in info.values}):
        found = {process: str(info.values.get(name)) for process, info in infos.items()}
        # Of equally common values, that of the first process counts.
        common = collections.Counter(found[process] for process in sorted(found)).most_common(1)[0][0]
        for process in sorted(found):
            if found[process] != common:
                host = infos[process].host
                faults.append(
                    f"{name} is {found[process]:.40} on process {process} ({host}), {common:.40} elsewhere"
                )
    return faults


class DeferredSignals:
    """The first signal received, if any. A second one ends the program at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.received = signal.Signals(number)


@contextlib.contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Inside, Ctrl-C and SIGTERM are only noted, so that no step is left half done on the devices.

    The previous handlers are restored afterwards. Outside the main thread this does nothing.
    """
    signals = DeferredSignals()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signals) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_for(received: signal.Signals) -> NoReturn:
    """Ends the program: SIGTERM with the exit status that schedulers restart, Ctrl-C as itself."""
    if received == signal.SIGTERM:
        raise SystemExit(AGAIN)
    raise KeyboardInterrupt(received.name)


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
