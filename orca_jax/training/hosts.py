"""Many hosts: joining them, comparing what they are about to run, and leaving together."""

from __future__ import annotations

import collections
import itertools
import json
import logging
import platform
import re
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from orca_jax.student import sharding

log = logging.getLogger(__name__)
SECONDS = 300.0
_NUMBER = itertools.count()  # of comparisons: all processes make them in one order


class HostsError(ValueError):
    """Hosts that do not fit together, or one that is missing; the message names it."""


def join(hosts: str) -> None:
    """Joins the processes of a run. Must come before anything else asks jax for its devices.

    Args:
      hosts: empty: this process is alone. `auto`: TPU pods, Slurm, GKE and Open MPI are found out by jax. Or
        `ADDRESS:PORT,PROCESSES,PROCESS`: where process 0 listens, how many there are, which this is.

    Raises:
      HostsError: `hosts` is none of these, `auto` finds no cluster, or process 0 is not there.
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
        _detected()
    else:
        raise HostsError(f"hosts={hosts!r} is neither empty, 'auto' nor ADDRESS:PORT,PROCESSES,PROCESS")
    log.info("process %d of %d, on %s", jax.process_index(), jax.process_count(), platform.node())


def _wait_for(address: str) -> None:
    """Returns once process 0 listens at `address`; jax itself would abort the process without it."""
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


def _detected() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise HostsError(
            f"hosts='auto', but jax finds no cluster here ({error}); give ADDRESS:PORT,PROCESSES,PROCESS"
        ) from error


class _HostInfo(NamedTuple):
    """What a process says of itself."""

    host: str
    values: dict[str, str]


def compare(topic: str, values: Mapping[str, str], seconds: float = SECONDS) -> None:
    """Returns once all processes have called this with equal `values`, which are names and fingerprints.

    Args:
      topic: names the comparison in errors.

    Raises:
      HostsError: in `seconds` some process did not come, or its values differ; names it and its host.
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
    """Of the service that every process of a run is connected to. Jax has no public name for it."""
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        return None


def _exchanged(client: Any, topic: str, mine: _HostInfo, seconds: float) -> dict[int, _HostInfo]:
    """The infos of all processes, or HostsError naming those that were not there in time."""
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
    """As `_exchanged`, by a collective: without a time limit."""
    text = np.zeros(1 << 14, np.uint8)
    encoded = json.dumps(mine).encode()
    text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(text))
    return {i: _HostInfo(*json.loads(bytes(row).rstrip(b"\0"))) for i, row in enumerate(rows)}


def differences(infos: Mapping[int, _HostInfo]) -> list[str]:
    """Of each name, the processes whose value is not the most common one."""
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


class PreemptionSync:
    """The signal that any host has received, known to all of them at the same step.

    Alone, a process hears of its signal at once. Together, they add up their signals on the devices at each
    step, and hear of it when they look at that step's metrics, so none waits for another.
    """

    def __init__(self, mesh: Mesh):
        self.alone = jax.process_count() == 1
        self._placement = NamedSharding(mesh, PartitionSpec(sharding.AXES))
        self._shape = (mesh.size,)
        self._largest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    def cast(self, received: signal.Signals | None) -> jax.Array | int:
        """This host's vote at a step; `read` takes what it returns, at once or later."""
        vote = int(received or 0)
        if self.alone:
            return vote
        part = np.full(self._shape, vote, np.int32)
        votes = jax.make_array_from_callback(self._shape, self._placement, lambda index: part[index])
        return self._largest(votes)

    @staticmethod
    def read(votes: jax.Array | int) -> signal.Signals | None:
        value = int(votes)
        return signal.Signals(value) if value else None
