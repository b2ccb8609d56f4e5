"""An artifact is one directory with a `manifest.json`, written last: without it the work is unfinished.

The manifest says what made the directory (program, config, seed, hashes of the inputs' manifests,
package versions, XLA flags) and what is in it (counts). A program skips work that a finished
manifest already proves, refuses a finished directory that another config made, and makes an unfinished one
of another config again. Settings are compared value by value, so that a manifest stands which was written
before there was a setting, as long as that has its default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from orca_jax import plugins

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
STARTED = ".started.json"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "tokenizers", "jinja2",
    "numpy",
)  # fmt: skip
ABSENT = object()
SHOWN = 60  # characters of a long value in an error
SHA256 = re.compile("[0-9a-f]{64}")


class ArtifactError(RuntimeError):
    """An artifact is missing, unfinished or made by something else; the message says what to do."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under `path` whole or not at all: written beside, synced, then renamed.

    Raises:
      OSError: it cannot be written, the disk being full for example; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # a failed write() does not know its file
        raise


def digest(value: Any) -> str:
    """The sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digests(entries: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By name the digest of the JSON values that have it, so that an error can name what changed."""
    by_name: dict[str, list[Any]] = {}
    for name, value in entries:
        by_name.setdefault(name, []).append(value)
    return {name: digest(values) for name, values in by_name.items()}


def file_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Python's and the main packages' versions and the XLA flags: what a number may depend on."""
    found = {"python": platform.python_version(), "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    if "LIBTPU_INIT_ARGS" in os.environ:
        found["LIBTPU_INIT_ARGS"] = os.environ["LIBTPU_INIT_ARGS"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a finished artifact.

    Raises:
      ArtifactError: there is none, or it cannot be read.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise ArtifactError(
            f"{directory} has no {MANIFEST}: it is unfinished or not an artifact; run what makes it first"
        )
    try:
        manifest = _read(path)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not JSON ({error}); remove the directory and run again") from error
    if not isinstance(manifest, dict) or not {"fingerprint", "provenance", "inputs"} <= manifest.keys():
        raise ArtifactError(f"{path} is not a manifest of this project; use another directory")
    return manifest


def _read(path: Path) -> Any:
    """A manifest, or what was noted at the beginning; `provenance` was once called `made_by`."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if isinstance(found, dict) and "made_by" in found:
        found["provenance"] = found.pop("made_by")
    return found


def fingerprint(provenance: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What an artifact's content depends on: its maker's settings and its inputs' fingerprints."""
    return digest({"made_by": provenance, "inputs": inputs})  # as earlier manifests have it


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A directory, and what it is to be made of.

    Attributes:
      provenance: settings; those in a `Section` may be absent there where they have their default.
      inputs: fingerprints of the inputs by name.
      places: of inputs by name: where they lie, for errors.
    """

    directory: Path
    provenance: Mapping[str, Any]
    inputs: Mapping[str, str]
    places: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def finished(self, *, remake: bool = False) -> dict[str, Any] | None:
        """The manifest, where the directory holds already what would be made; None: it is to be made.

        Args:
          remake: whether what something else made is removed, since nothing was made of it yet.

        Raises:
          ArtifactError: it holds a finished artifact that something else made.
        """
        if not (self.directory / MANIFEST).exists():
            return None
        manifest = read_manifest(self.directory)
        if not (changed := self._changes(manifest)):
            return manifest
        if not remake:
            raise ArtifactError(
                f"{self.directory} was made with other settings ({changed}). "
                "Use another workdir, or remove that directory to make it again."
            )
        self._remove(changed)
        return None

    def begin(self, *, costly: str = "", own: Iterable[str] = ("*",)) -> str:
        """Marks the directory as unfinished, and returns its fingerprint: the one of its beginning.

        What other settings began is removed first.

        Args:
          costly: a pattern of files; where there are any, what other settings began is refused instead.
          own: patterns of what may be removed, in a folder that the user has named.

        Raises:
          ArtifactError: something else began it, and it is costly.
        """
        if begun := _read(self.directory / STARTED):
            changed = self._changes(begun)
            if not changed:
                return str(begun["fingerprint"])
            if costly and any(self.directory.glob(costly)):
                raise ArtifactError(
                    f"{self.directory} was begun with other settings ({changed}) and holds "
                    f"{costly.partition('/')[0]}. Go on with those settings, use another workdir, or remove "
                    "that directory to make it again."
                )
            self._remove(changed, own)
        noted = self._noted()
        with atomic_write(self.directory / STARTED) as file:
            json.dump(noted, file, default=str)
        return str(noted["fingerprint"])

    def finish(self, counts: Mapping[str, Any], revisions: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes the manifest, which marks the artifact as whole, and returns it.

        Neither `revisions` nor where plugins are is compared; their contents are.

        Args:
          revisions: what was taken from the hub, see `hub.revisions`.
        """
        manifest = self._noted() | {"counts": dict(counts), "versions": versions()}
        if (begun := _read(self.directory / STARTED)) and not self._changes(begun):
            manifest["fingerprint"] = begun["fingerprint"]
        if revisions:
            manifest["revisions"] = dict(revisions)
        if found := plugins.places(self.provenance):
            manifest["plugins"] = found
        with atomic_write(self.directory / MANIFEST) as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False, default=str)
            file.write("\n")
        return manifest

    def _noted(self) -> dict[str, Any]:
        provenance, inputs = dict(self.provenance), dict(self.inputs)
        return {"fingerprint": fingerprint(provenance, inputs), "provenance": provenance, "inputs": inputs}

    def _changes(self, there: Mapping[str, Any]) -> str:
        """What differs from a manifest, or from what was noted at the beginning; empty: nothing."""
        if there["fingerprint"] == fingerprint(self.provenance, self.inputs):
            return ""
        found = list(differences(there["provenance"], self.provenance))
        for name in sorted({*there["inputs"], *self.inputs}):
            before, now = (known.get(name, ABSENT) for known in (there["inputs"], self.inputs))
            place = f" ({self.places[name]})" if name in self.places else ""
            found += [f"{line}{place}" for line in differences(before, now, name)]
        return "; ".join(found)

    def _remove(self, changed: str, own: Iterable[str] = ("*",)) -> None:
        log.warning("%s is of other settings (%s): it is removed and made again", self.directory, changed)
        for path in [path for pattern in own for path in self.directory.glob(pattern)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (self.directory / STARTED).unlink(missing_ok=True)


def recorded(directory: str | os.PathLike[str]) -> Mapping[str, Any]:
    """`provenance` and `inputs` of a directory, finished or begun; empty where it holds nothing."""
    if (Path(directory) / MANIFEST).exists():
        return read_manifest(directory)
    return _read(Path(directory) / STARTED) or {"provenance": {}, "inputs": {}}


# Settings: what an artifact's content depends on, compared leaf by leaf


class Section(dict[str, Any]):
    """Settings as JSON values; `defaults` has those of settings that need not be given."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__(values)
        self.defaults = dict(defaults)


def section(part: Any, only: Collection[str] = (), *, without: Collection[str] = ()) -> Section:
    """A dataclass's fields, nested ones too: all, or `only` some, or all `without` some."""
    fields = [f for f in dataclasses.fields(part) if f.name not in without and (not only or f.name in only)]
    defaults = {field.name: default(field) for field in fields}
    return Section(
        {field.name: plain(getattr(part, field.name)) for field in fields},
        {name: plain(value) for name, value in defaults.items() if value is not dataclasses.MISSING},
    )


def joined(*parts: Mapping[str, Any]) -> Section:
    """One section of several, which may be plain mappings; the last one that has a key counts."""
    both = Section({}, {})
    for part in parts:
        both.update(part)
        both.defaults.update(part.defaults if isinstance(part, Section) else {})
    return both


def unrecorded(values: Mapping[str, Any]) -> Section:
    """Settings that earlier manifests lack, and that are taken to be the same there."""
    return Section(values, values)


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; MISSING where a value must be given."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def plain(value: Any) -> Any:
    """A dataclass, or a tuple of them, as JSON values; sections in lists, which ConfigDict can override."""
    if dataclasses.is_dataclass(value):
        return section(value)
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if not isinstance(value, tuple):
        return value
    entries = tuple(map(plain, value))
    return list(entries) if entries and isinstance(entries[0], dict) else entries


def differences(there: Any, now: Any, where: str = "") -> Iterator[str]:
    """Each leaf that differs, as `curriculum[2].steps: 4 there, 8 now`; lists are compared by index.

    What `there` lacks and `now` knows a default of (`Section`) had that default: so settings kept before
    there was such a key are those of today.
    """
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        defaults = now.defaults if isinstance(now, Section) else {}
        for key in sorted({*there, *now}):
            place, new = f"{where}.{key}" if where else key, now.get(key, ABSENT)
            if key in there or key not in defaults:
                yield from differences(there.get(key, ABSENT), new, place)
            else:
                usual = differences(defaults[key], new, place)
                yield from (f"{line} (absent there: the default)" for line in usual)
    elif isinstance(there, list | tuple) and isinstance(now, list | tuple):
        for index, (before, after) in enumerate(itertools.zip_longest(there, now, fillvalue=ABSENT)):
            yield from differences(before, after, f"{where}[{index}]")
    elif there != now and all(isinstance(one, str) and SHA256.fullmatch(one) for one in (there, now)):
        yield f"{where}: contents {there[:8]} there, {now[:8]} now"
    elif there != now:
        before, after = (
            "absent" if one is ABSENT else repr(json.loads(json.dumps(one, default=str)))
            for one in (there, now)
        )
        if before != after:
            yield "{}: {} there, {} now".format(where, *_shown(before, after))


def _shown(*texts: str) -> list[str]:
    """The texts, or where they are long, what is around their first difference."""
    same = len(list(itertools.takewhile(lambda letters: letters[0] == letters[1], zip(*texts))))
    start = max(0, same - SHOWN // 3) if max(map(len, texts)) > SHOWN else 0
    ends = ["…" if len(text) > start + SHOWN else "" for text in texts]
    return [f"{'…' if start else ''}{text[start : start + SHOWN]}{end}" for text, end in zip(texts, ends)]
