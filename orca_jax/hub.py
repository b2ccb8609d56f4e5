"""Repositories of the Hugging Face hub, by reference: `hf://owner/name[@revision]` is a model's folder, and
`hf://datasets/owner/name[@revision]/PATH` a file, a folder or a pattern (`data/*.parquet`) of a data set.

The transfers are huggingface_hub's: its cache, tokens (HF_TOKEN), resumption, mirrors (HF_ENDPOINT) and
offline mode (HF_HUB_OFFLINE). A reference is resolved to a commit once a process.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax.artifacts import file_digest
from orca_jax.scrubbing import guard

if TYPE_CHECKING:
    from huggingface_hub import HfUri

log = logging.getLogger(__name__)
PREFIX = "hf://"
PLAIN = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")
REPOSITORY = re.compile(PREFIX + "((?:datasets/)?[^/@]+/[^/@]+)")
QUERY = re.compile(r"(?<=\w)\?\S+")  # of an address: a CDN's has a signature there
TOKENIZER = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
STALE = "model*.safetensors*"  # what another export may have left in a repository
PUSH_TIMEOUT = 120  # seconds: the hub answers when it has taken a whole commit
AGAIN = "run the same command again to go on"
UNREACHED = (
    "the hub at {endpoint} cannot be reached ({cause}), and the cache has not all of it; see to the network, "
    f"HF_ENDPOINT and HF_HUB_OFFLINE, and {AGAIN}"
)
FAILED = f"the transfer failed ({{cause}}); {AGAIN}"
# What an error of huggingface_hub means, by its class or the first of its bases that is here.
MEANING = {
    "GatedRepoError": "the repository is gated; accept its terms at {page}, and put a token of that account "
    "into HF_TOKEN",
    "RepositoryNotFoundError": "the hub has no such repository, or shows it to some only; correct the name, "
    "or put a token that may use it into HF_TOKEN",
    "RevisionNotFoundError": "the repository has no such revision; see {page}",
    "HfHubHTTPError": f"the hub answers {{status}}; {AGAIN}",
    "HfUriError": "{error} A model is hf://owner/name, a file hf://datasets/owner/name/FILE",
    "LocalEntryNotFoundError": UNREACHED,
    "CachedRepoTreeNotFoundError": UNREACHED,
    "RevisionResolutionError": UNREACHED,
    "TransportError": UNREACHED,
    "OfflineModeIsEnabled": UNREACHED,
    "OSError": FAILED,
    "RuntimeError": FAILED,
}
REFUSED = "the hub refuses the token ({status}); put one that may use the repository into HF_TOKEN"
_taken: dict[str, tuple[Path, set[str]]] = {}  # reference: its local folder, and the files taken


class HubError(RuntimeError):
    """A repository cannot be read or written; the message says why, and what to do."""

    explained = True  # cli.checked adds no advice


def reference(path: str) -> str:
    """The reference that a model's key means, with `hf://`; empty: it means no repository.

    `owner/name` does where there is no folder `owner`: a run's mistyped path is not looked for outside.
    """
    plain = PLAIN.fullmatch(path) and not Path(path.partition("/")[0]).exists()
    return path if path.startswith(PREFIX) else f"{PREFIX}{path}" if plain else ""


def repository(path: str) -> str:
    """`owner/name` or `datasets/owner/name` of a reference; empty for other paths."""
    found = REPOSITORY.match(reference(path))
    return found[1] if found else ""


def unpinned(path: str) -> str:
    """A path for settings: of a reference the revision is left out, since contents are compared instead."""
    return re.sub(r"@(refs/[a-z]+/)?[^/]*", "", path, count=1) if path.startswith(PREFIX) else path


@functools.cache
def model(path: str) -> str:
    """A model's path; of a reference the local folder, with config, tokenizer and weights.

    Raises:
      HubError: the repository cannot be read, or has no safetensors.
    """
    if not (named := reference(path)):
        return path
    with _client(path, named) as uri:
        if uri.type != "model" or uri.path_in_repo:
            raise HubError(f"{path} is no model's folder; a model is hf://owner/name")
        folder, files = _fetch(named, uri, [*TOKENIZER, INDEX, ADAPTER])
        index = (folder / INDEX).read_text("utf-8") if INDEX in files else ""
        shards = [SINGLE] if SINGLE in files else [name for name in files if f'"{name}"' in index]
        if not shards and ADAPTER not in files:  # which is refused elsewhere
            others = ", ".join(sorted(files)[:5])
            raise HubError(
                f"{path}: the repository has neither {SINGLE} nor {INDEX}, but {others}; of weights only "
                "safetensors are read: see docs/students.md"
            )
        return str(_fetch(named, uri, shards)[0])


@functools.cache
def tokenizer(path: str) -> str:
    """A tokenizer's path; of a reference the local folder, without weights, or file."""
    if not (named := reference(path)):
        return path
    with _client(path, named) as uri:
        return data(named) if uri.path_in_repo else str(_fetch(named, uri, TOKENIZER)[0])


def data(path: str) -> str:
    """The local path of a reference to a file, a folder, or a pattern of files.

    Raises:
      HubError: the repository cannot be read, or has no such file.
    """
    with _client(path, path) as uri:
        if not (name := uri.path_in_repo) or uri.type not in ("model", "dataset"):
            raise HubError(f"{path} is no file; a data set's is hf://datasets/owner/name/FILE")
        folder, files = _fetch(path, uri, patterns := [name, f"{name}/*"])
        if not any(fnmatchcase(file, pattern) for file in files for pattern in patterns):
            near = difflib.get_close_matches(name, files, cutoff=0.3) or sorted(files)[:5]
            raise HubError(f"{path}: the repository has no {name}, but {', '.join(near)}; correct the name")
        return str(folder / name)


def revisions(*paths: str) -> dict[str, Any]:
    """For a manifest: of each path that is a reference the commit, and the sha256 of each file taken."""
    found = {named: _taken[named] for path in paths if (named := reference(path)) in _taken}
    return {
        named: {"commit": folder.name, "files": {name: _digest(folder / name) for name in sorted(names)}}
        for named, (folder, names) in found.items()
    }


def create(to: str, *, public: bool = False) -> None:
    """Makes a repository for `push`, private unless `public`, where it is not there.

    Raises:
      HubError: the hub refuses it, or the repository is there, is public, and is not to be.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _client(to := PREFIX + to.removeprefix(PREFIX), to) as uri:
        api.create_repo(uri.id, private=not public, exist_ok=True)
        if not (public or api.model_info(uri.id).private):
            raise HubError(f"{to}: the repository is public; give --public to upload to it, or another name")


def push(folder: Path, to: str, message: str) -> str:
    """Uploads a folder's files in one commit, and returns its address.

    The commit removes weights that the repository has from before, and the folder has not.

    Raises:
      HubError: the hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, names = HfApi(), sorted(path.name for path in folder.iterdir() if path.is_file())
    with _client(to := PREFIX + to.removeprefix(PREFIX), to, PUSH_TIMEOUT) as uri:
        old = set(api.list_repo_files(uri.id)) - set(names)
        changes: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        changes += [CommitOperationDelete(name) for name in sorted(old) if fnmatchcase(name, STALE)]
        # Not upload_folder, which may make several commits.
        return str(api.create_commit(uri.id, changes, commit_message=message).commit_url)


_digest = functools.cache(file_digest)


@functools.cache
def _commit(id: str, type: str, revision: str | None) -> Any:
    from huggingface_hub import resolve_revision

    found = resolve_revision(id, repo_type=type, revision=revision)
    log.info("%s of the hub: commit %s", id, found.resolved)
    return found


def _fetch(named: str, uri: HfUri, patterns: Sequence[str]) -> tuple[Path, set[str]]:
    """The local folder of the commit, with its files of these patterns, and the names of all its files."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    where: Any = {"repo_type": uri.type, "revision": _commit(uri.id, uri.type, uri.revision)}
    folder = Path(snapshot_download(uri.id, allow_patterns=list(patterns), **where))
    files = {file.path for file in get_cached_repo_tree(uri.id, **where)}
    _, taken = _taken.setdefault(named, (folder, set()))
    taken |= {file for file in files if any(fnmatchcase(file, pattern) for pattern in patterns)}
    return folder, files


class _Forward(logging.Handler):
    """Hands on what huggingface_hub logs, without signatures in addresses."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, QUERY.sub("", record.getMessage()))


@contextlib.contextmanager
def _client(path: str, named: str, timeout: int = 0) -> Iterator[HfUri]:
    """The parsed reference; errors of huggingface_hub become HubError, and no wait for the hub is endless.

    Args:
      path: what the user gave.
      timeout: seconds without an answer where the library sets none; 0: HF_HUB_DOWNLOAD_TIMEOUT.
    """
    from huggingface_hub import constants, get_session, get_token, parse_hf_uri
    from huggingface_hub.utils import disable_progress_bars

    def bound(request: Any) -> None:
        limits, most = request.extensions["timeout"], timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT
        request.extensions["timeout"] = {step: limit or most for step, limit in limits.items()}

    guard(get_token() or "")
    library = logging.getLogger("huggingface_hub")
    library.handlers, library.propagate = [_Forward()], False
    if not sys.stderr.isatty():
        disable_progress_bars()
    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before["request"], bound]}
    try:
        yield parse_hf_uri(named)
    except HubError:
        raise
    except Exception as error:
        if said := _meaning(error, named):
            where = path if path == named else f"{path} (no folder here)"
            raise HubError(f"{where}: {said}") from error
        raise
    finally:
        session.event_hooks = before


def _meaning(error: BaseException, named: str) -> str:
    """What an error of huggingface_hub means to the user; empty: it is a fault, or the disk's."""
    from huggingface_hub import constants

    known = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in MEANING), "")
    if not known or (known == "OSError" and getattr(error, "errno", None)):
        return ""
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    status = next((one.response.status_code for one in causes if hasattr(one, "response")), 0)
    if status and MEANING[known] in (UNREACHED, FAILED):
        known = "HfHubHTTPError"
    meaning = REFUSED if known == "HfHubHTTPError" and status in (401, 403) else MEANING[known]
    cause = f"{type(causes[-1]).__name__}: {causes[-1]}".partition("\n")[0]
    return meaning.format(
        page=f"{constants.ENDPOINT}/{repository(named)}",
        status=status,
        endpoint=constants.ENDPOINT,
        cause=QUERY.sub("", cause)[:300].rstrip(": "),
        error=error,
    )
