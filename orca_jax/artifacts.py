"""An artifact is one directory with a `manifest.json`, written last: without it the work is unfinished.

The manifest says what made the directory (program, config, seed, hashes of the inputs' manifests,
package versions, XLA flags) and what is in it (counts). A program skips work that a finished
manifest already proves, and refuses a directory that another config made.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"
STARTED = ".started.json"
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "tokenizers",
    "jinja2",
    "numpy",
)


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


def file_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Python's and the main packages' versions and the XLA flags: what a number may depend on."""
    found = {"python": platform.python_version(), "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
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
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{directory} has no {MANIFEST}: it is unfinished or not an artifact; run what makes it first"
        ) from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not JSON ({error}); remove the directory and run again") from error
    if not isinstance(manifest, dict) or not {"fingerprint", "made_by", "inputs"} <= manifest.keys():
        raise ArtifactError(f"{path} is not a manifest of this project; use another directory")
    return manifest


def fingerprint(made_by: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What an artifact's content depends on: its maker's settings and its inputs' fingerprints."""
    return digest({"made_by": made_by, "inputs": inputs})


def is_finished(
    directory: str | os.PathLike[str], made_by: Mapping[str, Any], inputs: Mapping[str, str]
) -> bool:
    """Whether `directory` already holds what `made_by` would make of `inputs`.

    Raises:
      ArtifactError: it holds a finished artifact that something else made.
    """
    if not (Path(directory) / MANIFEST).exists():
        return False
    manifest = read_manifest(directory)
    if manifest["fingerprint"] == fingerprint(made_by, inputs):
        return True
    raise _made_otherwise(directory, manifest, made_by, inputs)


def _made_otherwise(
    directory: str | os.PathLike[str],
    there: Mapping[str, Any],
    made_by: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> ArtifactError:
    changed = _changes(there["made_by"], dict(made_by)) + _changes(there["inputs"], dict(inputs))
    return ArtifactError(
        f"{directory} was made with other settings ({'; '.join(changed) or 'unknown'}). "
        "Use another workdir, or remove that directory to make it again."
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), json.loads(json.dumps(new.get(key), default=str))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _changes(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before!r:.60} there, {after!r:.60} now")
    return changes


def begin(directory: str | os.PathLike[str], made_by: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Marks an unfinished artifact with what makes it, so that only the same program goes on with it.

    Raises:
      ArtifactError: something else began it.
    """
    path, mark = Path(directory) / STARTED, fingerprint(made_by, inputs)
    if not path.exists():
        with atomic_write(path) as file:
            json.dump(
                {"fingerprint": mark, "made_by": dict(made_by), "inputs": dict(inputs)}, file, default=str
            )
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun["fingerprint"] != mark:
        raise _made_otherwise(directory, begun, made_by, inputs)


def finish(
    directory: str | os.PathLike[str],
    made_by: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the manifest, which marks the artifact as whole, and returns it."""
    manifest = {
        "fingerprint": fingerprint(made_by, inputs),
        "made_by": dict(made_by),
        "inputs": dict(inputs),
        "counts": dict(counts),
        "versions": versions(),
    }
    with atomic_write(Path(directory) / MANIFEST) as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")
    return manifest
