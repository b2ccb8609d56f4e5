"""Files in a bucket (`gs://…`, `s3://…`, what else fsspec knows) by way of local copies.

Programs work on local files alone. What a config names by an address is fetched once, and again when it has
changed. A workdir in a bucket has a copy that is kept in step with it: `remote_workdir`.
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax.artifacts import MANIFEST, atomic_write

log = logging.getLogger(__name__)
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
SCRATCH = "ORCA_JAX_SCRATCH"  # an environment variable, which the processes of a program inherit
COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint
MARKERS = (MANIFEST, COMMITTED)  # of folders that are whole
VERSION = ("size", "ETag", "etag", "md5Hash", "generation", "created", "mtime")
Synced = dict[str, list[Any]]  # file: its versions in the bucket, and the one here, when they were alike


class RemoteError(RuntimeError):
    """Something in a bucket cannot be had or written; the message says what, and what to do."""


class RemoteFile(NamedTuple):
    """A file in the bucket; `version` changes with its content."""

    version: str
    size: int


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, such as `gs://bucket/run`."""
    return "://" in os.fspath(path)


def scratch() -> Path:
    """Where local copies lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(SCRATCH) or f"{cache}/orca_jax").expanduser().absolute()


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Errors of the bucket's library, each of which has its own, as RemoteError."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RemoteError(
            f"{address}: {said:.300}; see that the bucket is there and that this machine may use it, and run "
            "the same command again to go on"
        ) from error


def _file_system(address: str) -> Any:
    import fsspec

    protocol = address.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        todo = f"pip install -e '.[{extra}]'" if extra else str(error)
        raise RemoteError(f"{address} needs an extra: {todo}") from error


class Copy:
    """The local copy of what lies below an address.

    Which versions were alike is kept beside the folder; one process at a time works on it.

    Raises:
      RemoteError: the library of such addresses is not installed; names the extra.
    """

    def __init__(self, address: str, folder: Path):
        self.address = address.rstrip("/")
        self.folder = folder
        with explained(address):
            self.files = _file_system(address)
            self._root = self.files._strip_protocol(self.address).strip("/")

    def at(self, file: str) -> str:
        return f"{self.address}/{file}"

    def remote_files(self, found: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, RemoteFile]:
        """The files below the address: all of them, or those that the file system has `found`."""
        self.files.invalidate_cache()
        found = self.files.find(self.address, detail=True) if found is None else found
        files = {}
        for name, about in found.items():
            about = about or self.files.info(name)  # of an address that is itself a file
            file = name.strip("/").removeprefix(self._root).strip("/")
            if ".." in file.split("/"):
                raise RemoteError(f"{self.at(file)} would leave its folder here; rename it")
            if about["type"] == "file" and not name.endswith("/"):
                version = json.dumps([about.get(key) for key in VERSION], default=str)
                files[file] = RemoteFile(version, about["size"])
        return files

    @contextlib.contextmanager
    def synced(self) -> Iterator[Synced]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = Path(f"{self.folder}.json")
        with open(f"{self.folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            synced = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            try:
                yield synced
            finally:
                self.note(synced)

    def note(self, synced: Synced) -> None:
        with atomic_write(f"{self.folder}.json") as file:
            json.dump(synced, file)

    def has(self, file: str, remote: RemoteFile, synced: Synced) -> bool:
        """Whether the copy is of this version, or of one made from it."""
        versions = synced.get(file, [[]])[0]
        return (remote.version in versions or remote.size in versions) and (self.folder / file).exists()

    def get(self, files: Mapping[str, RemoteFile], synced: Synced) -> None:
        """Fetches files, what marks a folder as whole last."""
        if files:
            size = sum(there.size for there in files.values()) / 1e6
            log.info("%s: fetching %d files, %.1f MB", self.address, len(files), size)
        for some in in_order(files):
            for file in some:
                _make_way(self.folder / file)
            self.files.get([self.at(file) for file in some], [str(self.folder / file) for file in some])
            for file in some:
                here = version(self.folder / file)
                if here is None or here[0] != files[file].size:
                    raise RemoteError(f"{self.at(file)} did not come whole; run the same command again")
                synced[file] = [[files[file].version], here]


def version(path: Path) -> list[int] | None:
    """Size and time of a local file, and of what SQLite has yet to put into it; None where there is none."""
    try:
        status = [path.stat()]
        with contextlib.suppress(FileNotFoundError):
            status.append(Path(f"{path}-wal").stat())
    except FileNotFoundError:
        return None
    return [number for one in status for number in (one.st_size, one.st_mtime_ns)]


def _make_way(path: Path) -> None:
    """Removes a file, and what SQLite would put into the one that comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        old.unlink(missing_ok=True)


def is_marker(file: str) -> bool:
    return file.rpartition("/")[2] in MARKERS


def in_order(files: Iterable[str]) -> Iterator[list[str]]:
    """What marks folders as whole comes after all else, and the outer folders' last."""

    def place(file: str) -> tuple[bool, int]:
        return is_marker(file), -file.count("/") if is_marker(file) else 0

    return (list(some) for _, some in itertools.groupby(sorted(files, key=place), place))


def _data() -> Path:
    return scratch() / "data"


@functools.cache
def local(path: str) -> str:
    """A path that a config names: where it is an address, the path of a local copy.

    Args:
      path: of a file, a folder or a pattern (`cot/*.tsv`).

    Raises:
      FileNotFoundError: there is nothing at the address.
      RemoteError: it cannot be read.
    """
    if not is_remote(path):
        return path
    protocol, _, rest = path.rstrip("/").partition("://")
    bucket, _, name = rest.partition("/")
    copy = Copy(f"{protocol}://{bucket}", _data() / protocol / bucket)
    with explained(path), copy.synced() as synced:
        there = copy.remote_files(
            (copy.files.glob if glob.has_magic(name) else copy.files.find)(path, detail=True)
        )
        for file in [file for file in synced if _is_of(file, name) and file not in there]:
            (copy.folder / file).unlink(missing_ok=True)
            del synced[file]
        copy.get({file: about for file, about in there.items() if not copy.has(file, about, synced)}, synced)
    if not there:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return str(copy.folder / name)


def _is_of(file: str, name: str) -> bool:
    return file == name or file.startswith(f"{name}/") or fnmatch.fnmatch(file, name)


def named(path: str | Path) -> str:
    """The address of what `local` copied, for manifests: the same on all machines. Else the path."""
    path = Path(path)
    if not path.is_relative_to(_data()):
        return str(path)
    protocol, *rest = path.relative_to(_data()).parts
    return f"{protocol}://{'/'.join(rest)}"
