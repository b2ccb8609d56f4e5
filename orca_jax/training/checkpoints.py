"""Checkpoints with Orbax, each with a checksum an array that is verified at restore.

Orbax finds a missing or truncated file, but loads a flipped byte silently. The checksums are computed
on the devices, from the bits and their places, so they do not depend on how an array is sharded.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from orca_jax import storage
from orca_jax.student.sharding import path_name

log = logging.getLogger(__name__)
MACHINE_ERRORS = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM)
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class CheckpointError(RuntimeError):
    """No checkpoint can be restored; the message says which were tried and why they failed."""


def checksum(array: jax.Array) -> jax.Array:
    """A uint32 that any change of one word alters, the same for every sharding.

    The sum, modulo 2**32, of every word mixed with its place. For a given place the mixing is one to one,
    so one changed word always changes the sum.
    """
    bits = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        place = place * jnp.uint32(1_000_003) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (place * jnp.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


@jax.jit
def _checksums(tree: Any) -> Any:
    return jax.tree.map(checksum, tree)


def checksums(tree: Any) -> dict[str, int]:
    """Checksums of a tree's arrays by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(_checksums(tree))
    return {path_name(path): int(value) for path, value in flat}


class Restored(NamedTuple):
    step: int
    state: Any
    note: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, the newest `keep` preserved.

    `note` is JSON saved with a step (fingerprint of the run, versions).
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int, note: Mapping[str, Any]):
        place = storage.checkpoints_at(Path(directory).absolute())
        storage.check_path(place)
        self.directory = epath.Path(place)
        self.note = dict(note)
        self._keep = keep
        self._orbax = self._open()
        self._pending: Any = None

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, note: Mapping[str, Any] | None = None) -> None:
        """Starts saving `state` after `step` steps; errors of the save before surface here.

        `note` is JSON of this step, beside what is noted with all of them.
        """
        self.wait()
        metadata = {"note": {**self.note, **(note or {})}, "checksums": checksums(state)}
        response = self._orbax.save_async(step, state, custom_metadata=metadata, force=True)
        self._pending = step, response

    def look(self) -> None:
        """As `wait` if the save under way is done, else nothing: what cannot be read shows at once."""
        pending = self._pending
        try:
            self.wait(timeout=0)
        except TimeoutError:
            self._pending = pending

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the save under way, raises its error, if it had one, and sees that it can be read.

        Raises:
          CheckpointError: what was written cannot be found and read.
          TimeoutError: it is not done in so many seconds.
        """
        if self._pending is not None:
            (step, response), self._pending = self._pending, None
            response.result(timeout)
            if jax.process_index() == 0:
                self._see(step)

    def _see(self, step: int) -> None:
        """Reads what is read first at a restore: the step, its note, the shapes of its arrays."""
        try:
            found = step in self.steps() and self._metadata(step) and self._orbax.metadata(step).metadata
            why = "it is not found there" if not found else ""
        except Exception as error:  # as in `_newest_whole`
            if _is_of_machine(error):
                raise
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
        if why:
            raise CheckpointError(
                f"the checkpoint of step {step} was written to {self.directory} and cannot be read: "
                f"{why:.200}. See that the disk keeps what is written, or use a workdir on another one"
            )

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def fingerprint(self) -> str | None:
        """Of the run that made the newest checkpoint whose note can be read; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(Exception):  # a damaged one is `restore`'s to report
                return str(self._metadata(step)["note"]["fingerprint"])
        return None

    def restore(self, abstract: Any) -> Restored | None:
        """The newest whole checkpoint in the layout of `abstract`; None if there is none at all.

        A checkpoint that is incomplete, of other shapes or fails its checksums is set aside under
        `damaged-STEP`, the log says why, and the one before is tried.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
          Exception: what is no checkpoint's fault, such as too little memory; nothing is set aside then.
        """
        return self._newest_whole(abstract)

    def read(self) -> Restored | None:
        """The newest whole checkpoint in this host's memory; of another's run, so nothing is set aside."""
        return self._newest_whole(None)

    def _newest_whole(self, abstract: Any) -> Restored | None:
        faults = []
        for step in reversed(self.steps()):
            try:
                return self._load(step, abstract)
            except Exception as error:  # a damaged file may fail anywhere inside Orbax or TensorStore
                if _is_of_machine(error):
                    raise
                said = str(error).partition("\n")[0]
                faults.append(f"step {step}: {type(error).__name__}: {said:.200}")
                log.warning("checkpoint of %s; trying the one before", faults[-1])
                if abstract is not None:
                    self._set_aside(step)
        if faults:
            raise CheckpointError(
                f"no whole checkpoint in {self.directory}: {'; '.join(faults)}. Put a copy of one there, or "
                "remove that directory to train from the beginning"
            )
        return None

    def _metadata(self, step: int) -> Mapping[str, Any]:
        metadata = self._orbax.metadata(step).custom_metadata
        if not isinstance(metadata, Mapping) or "checksums" not in metadata:
            raise CheckpointError("its checksums are missing")
        return metadata

    def _load(self, step: int, abstract: Any) -> Restored:
        metadata = self._metadata(step)
        if abstract is None:
            host = jax.local_devices(backend="cpu")[0]
            # Whatever mesh is in force, these arrays are not on it.
            with jax.set_mesh(Mesh(np.array([host]), ("host",))):
                state = self._orbax.load(step, self._as_saved(step, host))
                found = checksums(state)
        else:
            state = self._orbax.load(step, abstract)
            found = checksums(state)
        expected = metadata["checksums"]
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if wrong:
            raise CheckpointError(f"checksum differs for {', '.join(wrong[:3])} ({len(wrong)} arrays)")
        return Restored(step, state, metadata.get("note", {}))

    def _as_saved(self, step: int, host: jax.Device) -> Any:
        """Shapes of a checkpoint's arrays, on the host: the devices they were on need not be here."""
        where = SingleDeviceSharding(host)
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
            self._orbax.metadata(step).metadata,
        )

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            damaged = self.directory / f"damaged-{step}"
            damaged.rmtree(missing_ok=True)
            (self.directory / str(step)).rename(damaged)
        self._orbax.close()
        self._orbax = self._open()

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def _is_of_machine(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of the machine that reads, and not of what it reads."""
    if error is None:
        return False
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    denied = isinstance(error, OSError) and error.errno in MACHINE_ERRORS
    return isinstance(error, MemoryError) or full or denied or _is_of_machine(error.__cause__)


def load_params(directory: str | os.PathLike[str]) -> tuple[int, Any]:
    """Parameters of a run's newest whole checkpoint as numpy arrays, and its step.

    Raises:
      CheckpointError: there is none.
    """
    checkpoints = Checkpoints(directory, keep=1_000_000, note={})
    try:
        restored = checkpoints.read()
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}; train first")
    state = restored.state
    params = state["params"] if isinstance(state, Mapping) else state[0]
    return restored.step, jax.tree.map(np.asarray, params)
