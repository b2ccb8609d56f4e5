"""Checkpoints with Orbax, each with a checksum an array that is verified at restore.

Orbax detects a missing or truncated file, but loads a flipped byte without an error. The checksums are
computed on the devices from words and their positions, so they do not depend on how an array is sharded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from orca_jax import storage
from orca_jax.config import MeshConfig
from orca_jax.student.llama import Params
from orca_jax.student.sharding import make_mesh, path_name, shardings

log = logging.getLogger(__name__)
MACHINE_ERRORS = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM)
PART_BYTES = 256 << 20  # of a checkpoint's parameters that are read together, unless one part has more
SUBTREES = ocp.Context()
SUBTREES.pytree.loading.partial_load = True  # what is not asked for is not read; checksums go by name
Convert = Callable[[Params], Params]
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class CheckpointError(RuntimeError):
    """No checkpoint can be restored; the message says which were tried and why they failed."""


def checksum(array: jax.Array) -> jax.Array:
    """A uint32 that changes with any single word of the array, the same for every sharding.

    The sum, modulo 2**32, of every word mixed with its position. For a given position the mixing is one to
    one, so a change of one word always changes the sum.
    """
    if array.ndim < 3:
        return _checksum(array, jnp.uint32(0))
    layers = jnp.arange(array.shape[0], dtype=jnp.uint32), array  # one by one: the mixed words take memory
    return jnp.sum(jax.lax.map(lambda layer: _checksum(layer[1], layer[0]), layers), dtype=jnp.uint32)


def _checksum(array: jax.Array, position: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.broadcast_to(position, bits.shape)
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


def _compare(found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        raise CheckpointError(f"checksum differs for {', '.join(wrong[:3])} ({len(wrong)} arrays)")


class Restored(NamedTuple):
    step: int
    state: Any
    note: Mapping[str, Any]


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _parts(
    arrays: Mapping[str, jax.ShapeDtypeStruct], part: Callable[[str], str]
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """The arrays in groups of whole parts, each of at most `PART_BYTES` unless it is a single part."""
    parts: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for path, array in arrays.items():
        parts.setdefault(part(path), {})[path] = array
    group: dict[str, jax.ShapeDtypeStruct] = {}
    for some in parts.values():
        both = {**group, **some}
        if group and sum(array.size * array.dtype.itemsize for array in both.values()) > PART_BYTES:
            yield group
            both = some
        group = both
    yield group


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
            context=SUBTREES,
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

    def restore(self, abstract: Any) -> Restored | None:
        """Restores the newest whole checkpoint; None if there is no checkpoint.

        One that is incomplete, has other shapes or fails its checksums is reported in the log and renamed to
        `damaged-STEP`, and the one before is tried.

        Args:
          abstract: shapes and shardings of the state.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
          Exception: an error of the machine, such as too little memory; nothing is renamed then.
        """
        return self._newest(lambda step: self._load(step, abstract), rename=True)

    def _newest(self, load: Callable[[int], Restored], *, rename: bool) -> Restored | None:
        faults = []
        for step in reversed(self.steps()):
            try:
                return load(step)
            except Exception as error:  # a damaged file may fail anywhere inside Orbax or TensorStore
                if _is_of_machine(error):
                    raise
                first_line = str(error).partition("\n")[0]
                faults.append(f"step {step}: {type(error).__name__}: {first_line:.200}")
                log.warning("checkpoint of %s; trying the one before", faults[-1])
                if rename:
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
        state = self._orbax.load(step, abstract)
        _compare(checksums(state), metadata["checksums"])
        return Restored(step, state, metadata.get("note", {}))

    def _load_params(self, step: int, mesh: Mesh, convert: Convert, part: Callable[[str], str]) -> Restored:
        metadata = self._metadata(step)
        saved = self._orbax.metadata(step).metadata["params"]
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            saved,
            shardings(saved, mesh),
        )
        found: dict[str, int] = {}
        params: dict[str, Any] = {}
        with jax.set_mesh(mesh):  # the current mesh may be another run's
            for some in _parts(flatten_dict(abstract, sep="/"), part):
                wanted = {"params": unflatten_dict(some, sep="/")}
                read = jax.block_until_ready(self._orbax.load(step, wanted))
                gc.collect()  # Orbax leaves what it read the arrays from in cycles
                found |= checksums(read)
                params |= flatten_dict(convert(read.pop("params")), sep="/")  # and is not kept
        expected = metadata["checksums"].items()
        _compare(found, {name: value for name, value in expected if name.startswith("params/")})
        return Restored(step, unflatten_dict(params, sep="/"), metadata.get("note", {}))

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


def load_params(
    directory: str | os.PathLike[str],
    mesh: Mesh | None = None,
    convert: Convert = lambda part: jax.tree.map(np.asarray, part),
    part: Callable[[str], str] = _module,
) -> tuple[int, Params]:
    """The step and the parameters of a run's newest whole checkpoint; by default as numpy arrays.

    Moments are not read, and parameters part by part. A damaged checkpoint stays as it is: the run may be
    another's.

    Args:
      mesh: the devices that parameters are read to, in the saved types and split by their rules; None: this
        host's memory.
      convert: takes a subtree of the parameters, of whole parts, and returns a subtree of the result.
      part: the name of the part that the parameter of a path belongs to; by default, its layer's module.

    Raises:
      CheckpointError: there is none, or none is whole.
    """
    # The devices that the arrays were on need not exist here.
    there = mesh or make_mesh(MeshConfig(), [jax.local_devices(backend="cpu")[0]])
    checkpoints = Checkpoints(directory, keep=1_000_000, note={})
    try:
        restored = checkpoints._newest(
            lambda step: checkpoints._load_params(step, there, convert, part), rename=False
        )
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}; train first")
    return restored.step, restored.state
