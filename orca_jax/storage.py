"""Files in a bucket (`gs://…`, `s3://…`, any protocol of fsspec) by way of local copies.

Programs read and write local files only. A path of a config that is an address is downloaded once, and again
when it has changed; `hub` downloads what is on the Hugging Face hub. A workdir in a bucket has a local copy:
it is downloaded first, and uploaded while the program works and when it ends. The file that marks a folder as
complete is transferred last, and removed first where the folder is replaced, so that a folder transferred in
part is never taken for complete. Where both sides have changed, the bucket's version wins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import functools
import glob
import itertools
import json
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax import hub
from orca_jax.artifacts import MANIFEST, atomic_write, digest

log = logging.getLogger(__name__)
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
SCRATCH = "ORCA_JAX_SCRATCH"  # an environment variable, which the processes of a program inherit
COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint
MARKERS = (MANIFEST, COMMITTED)  # of complete folders
VERSION = ("size", "ETag", "etag", "md5Hash", "generation", "created", "mtime")
INTERVAL = 60.0  # seconds between uploads, or more:
SHARE = 20  # times as long as the last upload took
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged-"  # begins the name of a checkpoint that was set aside
# Names of files in the making, of what was set aside, and of SQLite's own files.
TEMPORARY = re.compile(rf"(\.tmp|-wal|-shm|\.lock)$|\.orbax-checkpoint-tmp|^{DAMAGED}")
REMADE = ("queries", "quality", "tokenizer", "tokens", "cards")  # artifacts transferred only when complete
LEDGER = ".sqlite"
Synced = dict[str, list[Any]]  # file: its equal versions in the bucket, and the local version


class RemoteError(RuntimeError):
    """A bucket cannot be read or written; the message says why, and what to do."""


class RemoteFile(NamedTuple):
    """A file in the bucket; `version` changes with its content."""

    version: str
    size: int


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def scratch() -> Path:
    """The folder of local copies."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(SCRATCH) or f"{cache}/orca_jax").expanduser().absolute()


@contextlib.contextmanager
def remote_errors(address: str) -> Iterator[None]:
    """Raises RemoteError for errors of the bucket's library, each of which has its own classes."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RemoteError(
            f"{address}: {message:.300}; see that the bucket is there and that this machine may use it, and "
            "run the same command again to go on"
        ) from error


class Copy:
    """The local copy of the files below an address.

    The versions that were equal on both sides are kept in a file beside the folder, under a lock: one process
    at a time transfers files.

    Raises:
      RemoteError: the library of such addresses is not installed; names the extra.
    """

    def __init__(self, address: str, folder: Path):
        import fsspec

        self.address, self.folder = address.rstrip("/"), folder
        protocol = address.partition("://")[0]
        with remote_errors(address):
            try:
                self.files = fsspec.filesystem(protocol)
            except ImportError as error:
                todo = f"pip install -e '.[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
                raise RemoteError(f"{address} needs an extra: {todo}") from error
            self._root = self.files._strip_protocol(self.address).strip("/")

    def address_of(self, file: str) -> str:
        return f"{self.address}/{file}"

    def remote_files(self, found: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, RemoteFile]:
        """The files below the address: all of them, or those that the file system has `found`."""
        self.files.invalidate_cache()
        found = self.files.find(self.address, detail=True) if found is None else found
        files = {}
        for name, info in found.items():
            info = info or self.files.info(name)  # of an address that is itself a file
            file = name.strip("/").removeprefix(self._root).strip("/")
            if ".." in file.split("/"):
                raise RemoteError(f"{self.address_of(file)} would leave its folder here; rename it")
            if info["type"] == "file" and not name.endswith("/"):
                version = json.dumps([info.get(key) for key in VERSION], default=str)
                files[file] = RemoteFile(version, info["size"])
        return files

    @contextlib.contextmanager
    def synced(self) -> Iterator[Synced]:
        """The versions that were equal, under the lock; saved at the end."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = Path(f"{self.folder}.json")
        with open(f"{self.folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            synced = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            try:
                yield synced
            finally:
                self.save(synced)

    def save(self, synced: Synced) -> None:
        with atomic_write(f"{self.folder}.json") as file:
            json.dump(synced, file)

    def is_current(self, file: str, remote: RemoteFile, synced: Synced) -> bool:
        """Whether the local file is this version, or was changed since it was."""
        versions = synced.get(file, [[]])[0]
        return (remote.version in versions or remote.size in versions) and (self.folder / file).exists()

    def download(self, files: Mapping[str, RemoteFile], synced: Synced) -> None:
        """Downloads files, the markers of complete folders last."""
        if files:
            size = sum(file.size for file in files.values()) / 1e6
            log.info("%s: fetching %d files, %.1f MB", self.address, len(files), size)
        for names in _markers_last(files):
            paths = [self.folder / file for file in names]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                for old in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):  # SQLite would apply an old log
                    old.unlink(missing_ok=True)
            self.files.get([self.address_of(file) for file in names], list(map(str, paths)))
            for file, path in zip(names, paths):
                local_version = version(path)
                if local_version is None or local_version[0] != files[file].size:
                    raise RemoteError(
                        f"{self.address_of(file)} did not come whole; run the same command again"
                    )
                synced[file] = [[files[file].version], local_version]


def version(path: Path) -> list[int] | None:
    """Size and time of a local file and of SQLite's log beside it; None where there is no file."""
    try:
        status = [path.stat()]
    except FileNotFoundError:
        return None
    with contextlib.suppress(FileNotFoundError):
        status.append(Path(f"{path}-wal").stat())
    return [number for one in status for number in (one.st_size, one.st_mtime_ns)]


def _is_marker(file: str) -> bool:
    return file.rpartition("/")[2] in MARKERS


def _markers_last(files: Iterable[str]) -> Iterator[list[str]]:
    """Files in groups: the markers of complete folders after all others, those of outer folders last."""

    def order(file: str) -> tuple[bool, int]:
        return _is_marker(file), -file.count("/") if _is_marker(file) else 0

    return (list(group) for _, group in itertools.groupby(sorted(files, key=order), order))


# Data


@functools.cache
def local(path: str) -> str:
    """A path that a config names: where it is an address, the path of a local copy.

    Args:
      path: of a file, a folder or a pattern (`cot/*.tsv`).

    Raises:
      FileNotFoundError: there is nothing at the address.
      RemoteError, HubError: it cannot be read.
    """
    if not is_remote(path):
        return path
    if path.startswith(hub.PREFIX):
        return hub.data(path)
    protocol, _, rest = path.rstrip("/").partition("://")
    bucket, _, name = rest.partition("/")
    copy = Copy(f"{protocol}://{bucket}", scratch() / "data" / protocol / bucket)
    with remote_errors(path), copy.synced() as synced:
        find = copy.files.glob if glob.has_magic(name) else copy.files.find
        remote = copy.remote_files(find(path, detail=True))
        for file in synced.keys() - remote.keys():
            if file == name or file.startswith(f"{name}/") or fnmatch.fnmatch(file, name):
                (copy.folder / file).unlink(missing_ok=True)
                del synced[file]
        changed = {file: found for file, found in remote.items() if not copy.is_current(file, found, synced)}
        copy.download(changed, synced)
    if not remote:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return str(copy.folder / name)


def source(path: str | Path) -> str:
    """The address that `local` copied, for manifests: the same on all machines. Of other paths the path."""
    path, data = Path(path), scratch() / "data"
    if not path.is_relative_to(data):
        return str(path)
    protocol, *rest = path.relative_to(data).parts
    return f"{protocol}://{'/'.join(rest)}"


# Workdirs


def _is_complete(file: str, files: Collection[str]) -> bool:
    """Whether a file is part of a complete folder among `files`, or of work that can be resumed."""
    parts = file.split("/")
    if CHECKPOINTS in parts[:-1]:
        step = parts[: parts.index(CHECKPOINTS) + 2]
        return "/".join([*step, COMMITTED]) in files
    if parts[0] in REMADE:
        return any("/".join([*parts[:depth], MANIFEST]) in files for depth in range(1, len(parts)))
    return True


class Workdir(Copy):
    """A workdir in a bucket.

    Args:
      parts: the top-level names that are synchronised; none: all.
      direct: whether checkpoints are written into the bucket directly, and not copied.
    """

    def __init__(self, address: str, *, parts: Collection[str] = (), direct: bool = False):
        address = address.rstrip("/")
        name = f"{address.rpartition('/')[2]}-{digest(address)[:8]}"
        super().__init__(address, scratch() / "workdirs" / name)
        self.parts = parts
        self.direct = direct

    def _is_synchronised(self, file: str) -> bool:
        if self.direct and f"/{CHECKPOINTS}/" in file:
            return False
        return not self.parts or file.partition("/")[0] in self.parts

    def fetch(self) -> None:
        """Downloads what is new in the bucket."""
        with remote_errors(self.address), self.synced() as synced:
            remote = {
                file: found for file, found in self.remote_files().items() if self._is_synchronised(file)
            }
            remote = {file: found for file, found in remote.items() if _is_complete(file, remote)}
            for file in filter(_is_marker, remote):
                if self.is_current(file, remote[file], synced):
                    continue
                for here, local_version in self._local_files((self.folder / file).parent).items():
                    if here not in remote or synced.get(here) != [[remote[here].version], local_version]:
                        log.warning("%s is removed: %s is another", self.folder / here, self.address_of(here))
                        (self.folder / here).unlink()
            changed = {f: found for f, found in remote.items() if not self.is_current(f, found, synced)}
            for file in changed:
                before = version(self.folder / file)
                if before and before != synced.get(file, [[], None])[1]:
                    log.warning("%s is replaced by %s", self.folder / file, self.address_of(file))
            self.download(changed, synced)

    def _local_files(self, folder: Path) -> dict[str, list[int]]:
        """The files below a folder that are synchronised, with their versions."""
        found = {}
        for top, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not TEMPORARY.search(name)]
            for path in (Path(top) / name for name in names if not TEMPORARY.search(name)):
                file = path.relative_to(self.folder).as_posix()
                if self._is_synchronised(file) and (local_version := version(path)):
                    found[file] = local_version
        return found

    def push(self) -> None:
        """Uploads what is new here, then removes from the bucket what was removed here."""
        with remote_errors(self.address), self.synced() as synced:
            local = self._local_files(self.folder)
            local = {file: found for file, found in local.items() if _is_complete(file, local)}
            changed = [file for file in sorted(local) if synced.get(file, [[], None])[1] != local[file]]
            gone = [file for file in synced if self._is_synchronised(file) and self._is_gone(file)]
            if not changed and not gone:
                return
            replaced = [file for file in changed if _is_marker(file)]
            self._remove([*replaced, *(file for file in gone if file.endswith(MANIFEST))], synced)
            with tempfile.TemporaryDirectory(dir=self.folder.parent) as snapshots:
                sources = {
                    file: self._snapshot(file, Path(snapshots) / str(n)) for n, file in enumerate(changed)
                }
                for file, path in sources.items():
                    # Should this process be killed, a file of this size in the bucket comes from here.
                    synced[file] = [[*synced.get(file, [[]])[0], path.stat().st_size], None]
                self.save(synced)
                for names in _markers_last(changed):
                    here, there = [str(sources[file]) for file in names], map(self.address_of, names)
                    self.files.put(here, list(there))
            self._remove(gone, synced)
            remote = self.remote_files()
            synced.update({file: [[remote[file].version], local[file]] for file in changed})

    def _is_gone(self, file: str) -> bool:
        """Whether a file was removed here. A checkpoint that was set aside may be intact in the bucket."""
        folder, found, rest = file.partition(f"{CHECKPOINTS}/")
        aside = self.folder / folder / CHECKPOINTS / f"{DAMAGED}{rest.partition('/')[0]}"
        return not (self.folder / file).exists() and not (found and aside.exists())

    def _remove(self, files: Iterable[str], synced: Synced) -> None:
        """Removes files from the bucket, the markers of complete folders first."""
        for names in reversed(list(_markers_last(file for file in files if file in synced))):
            for file in names:
                with contextlib.suppress(FileNotFoundError):
                    self.files.rm_file(self.address_of(file))
                del synced[file]

    def _snapshot(self, file: str, copy: Path) -> Path:
        """The file, or where it may still be written to, a copy of its present state."""
        path = self.folder / file
        if path.suffix == LEDGER:
            connections = contextlib.closing(sqlite3.connect(path)), contextlib.closing(sqlite3.connect(copy))
            with connections[0] as ledger, connections[1] as backup:
                ledger.backup(backup)
        elif CHECKPOINTS in file.split("/") or (path.parent / MANIFEST).exists():
            return path
        else:
            shutil.copyfile(path, copy)
        return copy


_open: list[Workdir] = []  # at most one


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a path at which Orbax writes checkpoints and cannot read them.

    Orbax takes the whole path for a pattern, and TensorStore takes a backslash for a slash.
    """
    text = os.fspath(path)
    unfit = sorted(set("*?[\\") & set(text)) or [c for c in text if "\ud800" <= c <= "\udfff"]
    if unfit:
        raise ValueError(
            f"{text!r}: checkpoints cannot be read under a path with {', '.join(map(repr, unfit))} in it; "
            "name another workdir, or rename the folder"
        )


@contextlib.contextmanager
def workdir(path: str | Path, *, parts: Collection[str] = (), hosts: bool = False) -> Iterator[Path]:
    """A workdir as a local folder, which is synchronised with the bucket where `path` is an address.

    Args:
      parts: top-level names that are needed; none: all.
      hosts: whether several hosts share it; their checkpoints go into the bucket directly.

    Raises:
      RemoteError: the bucket cannot be used, or not by several hosts; at the end only where nothing else was
        raised before.
      ValueError: no checkpoint could be read there.
    """
    if not is_remote(path):
        check_path(Path(path).absolute())
        yield Path(path)
        return
    address = os.fspath(path)
    if address.startswith(hub.PREFIX):
        raise RemoteError(
            f"{address}: no workdir is kept on the hub; name a folder, and `convert push` later"
        )
    if hosts and not address.startswith("gs://"):
        raise RemoteError(
            f"{address}: Orbax writes the checkpoints of several hosts to gs:// alone; name a folder on a "
            "disk that all hosts share"
        )
    copy = Workdir(address, parts=parts, direct=hosts)
    check_path(copy.folder)
    log.info("%s: working on its copy %s", address, copy.folder)
    copy.fetch()
    copy.folder.mkdir(parents=True, exist_ok=True)
    stop, worked = threading.Event(), False

    def try_to_push() -> None:
        try:
            copy.push()
        except RemoteError as error:
            log.warning("not all is in the bucket: %s", error)

    def push_every_interval() -> None:
        pause = INTERVAL
        while not stop.wait(pause):
            began = time.monotonic()
            try_to_push()
            pause = max(INTERVAL, SHARE * (time.monotonic() - began))

    thread = threading.Thread(target=push_every_interval, daemon=True)
    thread.start()
    _open.append(copy)
    try:
        yield copy.folder
        worked = True
    finally:
        stop.set()
        thread.join()
        _open.remove(copy)
        (copy.push if worked else try_to_push)()


def push_logs_alone() -> None:
    """Restricts uploads to `logs/`: called on all hosts of a run but the first."""
    for copy in _open:
        copy.parts = ("logs",)


def checkpoints_at(directory: Path) -> str:
    """Where the checkpoints of a local folder are written: in it, or into the bucket directly."""
    for copy in _open:
        if copy.direct and directory.is_relative_to(copy.folder):
            return copy.address_of(directory.relative_to(copy.folder).as_posix())
    return str(directory)
