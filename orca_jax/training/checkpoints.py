"""Checkpoints with Orbax, each with a checksum an array that is verified at restore.

Orbax detects a missing or truncated file, but loads a flipped byte without an error. The checksums are
computed on the devices from words and their positions, so they do not depend on how an array is sharded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
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
    """A uint32 that changes with any single word of the array, the same for every sharding.

    The sum, modulo 2**32, of every word mixed with its position. For a given position the mixing is one to
    one, so a change of one word always changes the sum.
    """
    bits = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        position = position * jnp.uint32(1_000_003) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (position * jnp.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


_checksums = jax.jit(functools.partial(jax.tree.map, checksum))


def checksums(tree: Any) -> dict[str, int]:
    """The checksums of a tree's arrays by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(_checksums(tree))
    return {path_name(path): int(value) for path, value in flat}


class Restored(NamedTuple):
    step: int
    state: Any
    note: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run: saved asynchronously, of which the newest `keep` stay.

    `note` is JSON saved with every step (fingerprint of the run, versions).
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int, note: Mapping[str, Any]):
        path = storage.checkpoints_at(Path(directory).absolute())
        storage.check_path(path)
        self.directory = epath.Path(path)
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
        """Starts saving `state` after `step` steps; raises errors of the previous save.

        `note` is JSON saved with this step only, added to the note of all steps.
        """
        self.wait()
        metadata = {"note": {**self.note, **(note or {})}, "checksums": checksums(state)}
        response = self._orbax.save_async(step, state, custom_metadata=metadata, force=True)
        self._pending = step, response

    def wait(self) -> None:
        """Waits for the current save, raises its error if there is one, and checks that it can be read.

        Raises:
          CheckpointError: the checkpoint that was written cannot be read.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        response.result()
        if jax.process_index() != 0:
            return
        try:  # reads the step, its note and the shapes of its arrays, as a restore would
            found = step in self.steps() and self._metadata(step) and self._orbax.metadata(step).metadata
            why = "" if found else "it is not found there"
        except Exception as error:  # as in `restore`
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
        """The run's fingerprint in the newest note that can be read; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(Exception):  # `restore` reports a damaged one
                return str(self._metadata(step)["note"]["fingerprint"])
        return None

    def restore(self, abstract: Any = None) -> Restored | None:
        """Restores the newest whole checkpoint; None if there is no checkpoint.

        One that is incomplete, has other shapes or fails its checksums is reported in the log, and the one
        before is tried.

        Args:
          abstract: shapes and shardings of the state. A damaged checkpoint is then renamed to
            `damaged-STEP`. Without, the state is read into host memory and nothing is renamed: the run may
            be another's.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
          Exception: an error of the machine, such as too little memory; nothing is renamed then.
        """
        faults = []
        for step in reversed(self.steps()):
            try:
                return self._load(step, abstract)
            except Exception as error:  # a damaged file may fail anywhere inside Orbax or TensorStore
                if _is_of_machine(error):
                    raise
                first_line = str(error).partition("\n")[0]
                faults.append(f"step {step}: {type(error).__name__}: {first_line:.200}")
                log.warning("checkpoint of %s; trying the one before", faults[-1])
                if abstract is not None:
                    if jax.process_index() == 0:
                        damaged = self.directory / f"damaged-{step}"
                        damaged.rmtree(missing_ok=True)
                        (self.directory / str(step)).rename(damaged)
                    self._orbax.close()
                    self._orbax = self._open()
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
        if abstract is not None:
            state = self._orbax.load(step, abstract)
            found = checksums(state)
        else:
            host = jax.local_devices(backend="cpu")[0]
            # The devices that the arrays were on need not exist here, and the current mesh is not theirs.
            with jax.set_mesh(Mesh(np.array([host]), ("host",))):
                saved = jax.tree.map(
                    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(host)),
                    self._orbax.metadata(step).metadata,
                )
                state = self._orbax.load(step, saved)
                found = checksums(state)
        expected = metadata["checksums"]
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if wrong:
            raise CheckpointError(f"checksum differs for {', '.join(wrong[:3])} ({len(wrong)} arrays)")
        return Restored(step, state, metadata.get("note", {}))

    def close(self) -> None:
        self.wait()
        self._orbax.close()


def _is_of_machine(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, is the machine's (memory, permissions) and not the checkpoint's."""
    if error is None:
        return False
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    denied = isinstance(error, OSError) and error.errno in MACHINE_ERRORS
    return isinstance(error, MemoryError) or full or denied or _is_of_machine(error.__cause__)


def load_params(directory: str | os.PathLike[str]) -> tuple[int, Any]:
    """The step and the parameters, as numpy arrays, of a run's newest whole checkpoint.

    Raises:
      CheckpointError: there is none.
    """
    checkpoints = Checkpoints(directory, keep=1_000_000, note={})
    try:
        restored = checkpoints.restore()
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}; train first")
    state = restored.state
    params = state["params"] if isinstance(state, Mapping) else state[0]
    return restored.step, jax.tree.map(np.asarray, params)
