"""Workdirs in a bucket: a local folder that is kept in step with one.

What is new in the bucket comes first, and while the program works and when it ends, what is new here goes
there. What marks a folder as whole is written last on both sides, and goes first where the folder is
replaced, so that nothing half-written is taken for whole. Where both sides have changed, the bucket's counts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from orca_jax import remote
from orca_jax.artifacts import MANIFEST, digest
from orca_jax.remote import RemoteError, RemoteFile, Synced

log = logging.getLogger(__name__)
INTERVAL = 60.0  # seconds from push to push, or more:
SHARE = 20  # times as long as the last one took
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged-"
REMADE = ("queries", "quality", "tokenizer", "tokens", "cards")  # what is unfinished there does not travel
LEDGER = ".sqlite"


def _is_complete(file: str, files: Collection[str]) -> bool:
    """Whether a file is of something whole among `files`, or of something that can be gone on with."""
    parts = file.split("/")
    if CHECKPOINTS in parts[:-1]:
        step = parts[: parts.index(CHECKPOINTS) + 2]
        return "/".join([*step, remote.COMMITTED]) in files
    if parts[0] in REMADE:
        return any("/".join([*parts[:depth], MANIFEST]) in files for depth in range(1, len(parts)))
    return True


def _is_temporary(name: str) -> bool:
    """Names of what is half-written or set aside, and SQLite's own."""
    return (
        name.endswith((".tmp", "-wal", "-shm", ".lock"))
        or ".orbax-checkpoint-tmp" in name
        or name.startswith(DAMAGED)
    )


class Workdir(remote.Copy):
    """A workdir in a bucket.

    Args:
      parts: the top-level names that are kept in step; none: all.
      straight: whether checkpoints are written straight into the bucket, and are not copied.
    """

    def __init__(self, address: str, *, parts: Collection[str] = (), straight: bool = False):
        address = address.rstrip("/")
        name = f"{address.rpartition('/')[2]}-{digest(address)[:8]}"
        super().__init__(address, remote.scratch() / "workdirs" / name)
        self.parts = parts
        self.straight = straight

    def _is_kept(self, file: str) -> bool:
        if self.straight and f"/{CHECKPOINTS}/" in file:
            return False
        return not self.parts or file.partition("/")[0] in self.parts

    def fetch(self) -> None:
        """Brings what is new in the bucket."""
        with remote.explained(self.address), self.synced() as synced:
            there = {file: about for file, about in self.remote_files().items() if self._is_kept(file)}
            there = {file: about for file, about in there.items() if _is_complete(file, there)}
            for file in filter(remote.is_marker, there):
                if not self.has(file, there[file], synced):
                    self._drop_others((self.folder / file).parent, there, synced)
            wanted = {file: about for file, about in there.items() if not self.has(file, about, synced)}
            for file in wanted:
                if (here := remote.version(self.folder / file)) and here != synced.get(file, [[], None])[1]:
                    log.warning("%s is replaced by %s", self.folder / file, self.at(file))
            self.get(wanted, synced)

    def _drop_others(self, folder: Path, there: Mapping[str, RemoteFile], synced: Synced) -> None:
        """Removes the files of a folder that are not as those of the bucket."""
        for file, here in self._here(folder).items():
            if file not in there or synced.get(file) != [[there[file].version], here]:
                log.warning("%s is removed: %s is another", self.folder / file, self.at(file))
                (self.folder / file).unlink()

    def _here(self, folder: Path) -> dict[str, list[int]]:
        """The files below a folder that are kept in step, with their versions."""
        found = {}
        for top, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not _is_temporary(name)]
            for path in (Path(top) / name for name in files if not _is_temporary(name)):
                file = path.relative_to(self.folder).as_posix()
                if self._is_kept(file) and (here := remote.version(path)):
                    found[file] = here
        return found

    def push(self) -> None:
        """Takes what is new here to the bucket, then from there what is no longer here."""
        with remote.explained(self.address), self.synced() as synced:
            here = self._here(self.folder)
            here = {file: version for file, version in here.items() if _is_complete(file, here)}
            changed = [file for file in sorted(here) if synced.get(file, [[], None])[1] != here[file]]
            gone = [file for file in synced if self._is_kept(file) and self._is_gone(file)]
            if not changed and not gone:
                return
            replaced = [file for file in changed if remote.is_marker(file)]
            self._remove([*replaced, *(file for file in gone if file.endswith(MANIFEST))], synced)
            self._put(changed, synced)
            self._remove(gone, synced)
            there = self.remote_files()
            synced.update({file: [[there[file].version], here[file]] for file in changed})

    def _is_gone(self, file: str) -> bool:
        """Whether a file was removed here. A checkpoint that was set aside may be whole in the bucket."""
        folder, found, rest = file.partition(f"{CHECKPOINTS}/")
        aside = self.folder / folder / CHECKPOINTS / f"{DAMAGED}{rest.partition('/')[0]}"
        return not (self.folder / file).exists() and not (found and aside.exists())

    def _remove(self, files: Iterable[str], synced: Synced) -> None:
        """Removes files from the bucket, what marks a folder as whole first."""
        for some in reversed(list(remote.in_order(file for file in files if file in synced))):
            for file in some:
                with contextlib.suppress(FileNotFoundError):
                    self.files.rm_file(self.at(file))
                del synced[file]

    def _put(self, files: list[str], synced: Synced) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as held:
            sources = {file: self._snapshot(file, Path(held) / str(n)) for n, file in enumerate(files)}
            for file, source in sources.items():
                # Should this process be killed, a file of this size in the bucket is known to come from here.
                synced[file] = [[*synced.get(file, [[]])[0], source.stat().st_size], None]
            self.note(synced)
            for some in remote.in_order(files):
                self.files.put([str(sources[file]) for file in some], [self.at(file) for file in some])

    def _snapshot(self, file: str, copy: Path) -> Path:
        """The file, or where it may still be written to, a copy of it as it is now."""
        path = self.folder / file
        if path.suffix == LEDGER:
            _back_up(path, copy)
        elif CHECKPOINTS in file.split("/") or (path.parent / MANIFEST).exists():
            return path
        else:
            shutil.copyfile(path, copy)
        return copy

    @contextlib.contextmanager
    def kept(self) -> Iterator[Path]:
        """The local folder, in step with the bucket as long as the context lasts and when it ends.

        Raises:
          RemoteError: the bucket cannot be used; at the end only where nothing else was raised before.
        """
        self.fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        pushing = threading.Thread(target=self._push_on, args=(stop,), daemon=True)
        pushing.start()
        try:
            yield self.folder
        except BaseException:
            _end(stop, pushing)
            self._try_to_push()
            raise
        _end(stop, pushing)
        self.push()

    def _push_on(self, stop: threading.Event) -> None:
        pause = INTERVAL
        while not stop.wait(pause):
            began = time.monotonic()
            self._try_to_push()
            pause = max(INTERVAL, SHARE * (time.monotonic() - began))

    def _try_to_push(self) -> None:
        try:
            self.push()
        except RemoteError as error:
            log.warning("not all is in the bucket: %s", error)


def _end(stop: threading.Event, pushing: threading.Thread) -> None:
    stop.set()
    pushing.join()


def _back_up(ledger: Path, copy: Path) -> None:
    """A whole copy of a ledger that may be written to meanwhile."""
    with contextlib.closing(sqlite3.connect(ledger)) as old, contextlib.closing(sqlite3.connect(copy)) as new:
        old.backup(new)


_kept: list[Workdir] = []  # at most one


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a path at which Orbax writes checkpoints and cannot read them.

    It takes the whole path for a pattern, and TensorStore takes a backslash for a slash.
    """
    text = os.fspath(path)
    unfit = sorted(set("*?[\\") & set(text)) or [c for c in text if "\ud800" <= c <= "\udfff"]
    if unfit:
        raise ValueError(
            f"{text!r}: checkpoints cannot be read under a path with {', '.join(map(repr, unfit))} in it; "
            "name another workdir, or rename the folder"
        )


@contextlib.contextmanager
def workdir(given: str | Path, *, parts: Collection[str] = (), hosts: bool = False) -> Iterator[Path]:
    """A workdir as a local folder, which is kept in step with the bucket where `given` is an address.

    Args:
      parts: top-level names that are needed; none: all.
      hosts: whether several hosts share it; their checkpoints go straight into the bucket.

    Raises:
      RemoteError: the bucket cannot be used, or not by several hosts.
      ValueError: no checkpoint could be read there.
    """
    if not remote.is_remote(given):
        check_path(Path(given).absolute())
        yield Path(given)
        return
    address = os.fspath(given)
    if hosts and not address.startswith("gs://"):
        raise RemoteError(
            f"{address}: Orbax writes the checkpoints of several hosts to gs:// alone; name a folder on a "
            "disk that all hosts share"
        )
    copy = Workdir(address, parts=parts, straight=hosts)
    check_path(copy.folder)
    log.info("%s: working on its copy %s", address, copy.folder)
    _kept.append(copy)
    try:
        with copy.kept() as folder:
            yield folder
    finally:
        _kept.remove(copy)


def push_logs_alone() -> None:
    """What all hosts of a run but the first do."""
    for copy in _kept:
        copy.parts = ("logs",)


def checkpoints_at(directory: Path) -> str:
    """Where the checkpoints of a local folder are written: there, or straight into the bucket."""
    for copy in _kept:
        if copy.straight and directory.is_relative_to(copy.folder):
            return copy.at(directory.relative_to(copy.folder).as_posix())
    return str(directory)
