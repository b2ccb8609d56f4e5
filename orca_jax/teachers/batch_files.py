"""The files of the Batch API: input files within the documented limits, and lines of results."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax.artifacts import atomic_write
from orca_jax.config import OpenAIConfig
from orca_jax.records import Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers import completions, token_counts
from orca_jax.teachers.endpoint import Fault, Request, request_id

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """What one file may hold, and how many batches may be under way at once.

    OpenAI's documented limits; Azure takes 100,000 requests a file.
    """

    requests: int = 50_000
    size: int = 200_000_000  # bytes
    open_batches: int = 10

    def __post_init__(self) -> None:
        if min(self.requests, self.size, self.open_batches) < 1:
            raise ValueError(f"{self}: each must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputFile:
    """A written file: its number, requests, sha256, and the most tokens that it can use."""

    number: int
    requests: int
    digest: str
    bound: Usage

    @property
    def name(self) -> str:
        return f"{self.number:05}.jsonl"

    @property
    def ticket(self) -> int:
        """The ledger's ticket of all its requests."""
        return int(self.digest[:12], 16)

    @property
    def bound_each(self) -> Usage:
        """A request's part of the bound."""
        return Usage(
            -(-self.bound.prompt_tokens // self.requests), -(-self.bound.completion_tokens // self.requests)
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> InputFile:
        return cls(**{**row, "bound": Usage(**row["bound"])})


def address(config: OpenAIConfig) -> str:
    """The path that a batch's requests go to."""
    return "/chat/completions" if config.api_version else "/v1/chat/completions"


def write(
    folder: Path,
    requests: Iterable[tuple[bytes, Request]],
    identity: str,
    config: OpenAIConfig,
    limits: BatchLimits,
    first: int = 1,
) -> Iterator[InputFile]:
    """Writes requests, given with their ids, to files numbered from `first`; yields each when it is whole.

    Raises:
      ValueError: one request alone is greater than a file may be.
    """
    lines = ((_line(key, request, config), request) for key, request in requests)
    waiting = next(lines, None)
    for number in itertools.count(first):
        if waiting is None:
            return
        digest, count, size, bound = hashlib.sha256(), 0, 0, Usage()
        with atomic_write(folder / f"{number:05}.jsonl", "wb") as file:
            while waiting is not None and count < limits.requests and size + len(waiting[0]) <= limits.size:
                line, request = waiting
                file.write(line)
                digest.update(line)
                bound += token_counts.bound(request.messages, request.sampling)
                count, size = count + 1, size + len(line)
                waiting = next(lines, None)
            if not count:
                raise ValueError(
                    f"{identity}: a request of more than {limits.size} bytes fits into no batch file"
                )
        yield InputFile(number=number, requests=count, digest=digest.hexdigest(), bound=bound)


def chunks(folder: Path, file: InputFile, size: int) -> Iterator[list[bytes]]:
    """The ids of a file's requests, `size` at a time."""
    with open(folder / file.name, "rb") as lines:
        ids = (bytes.fromhex(json.loads(line)["custom_id"]) for line in lines)
        while some := list(itertools.islice(ids, size)):
            yield some


def keys(folder: Path, files: Sequence[InputFile]) -> set[bytes]:
    """The ids of all requests in these files."""
    return {key for file in files for some in chunks(folder, file, 1000) for key in some}


def keyed(identity: str, requests: Iterable[Request], size: int) -> Iterator[dict[bytes, Request]]:
    """Requests by their ids, `size` at a time."""
    source = iter(requests)
    while some := list(itertools.islice(source, size)):
        yield {request_id(identity, request): request for request in some}


def results(path: Path, size: int) -> Iterator[dict[bytes, completions.ParsedResponse]]:
    """The results in an output or error file by request id, `size` at a time, without unreadable lines."""
    with open(path, "rb") as file:
        found = (result for result in map(_result, file) if result is not None)
        while some := dict(itertools.islice(found, size)):
            yield some


def _line(key: bytes, request: Request, config: OpenAIConfig) -> bytes:
    body = completions.body(
        config.model,
        request.messages,
        request.drawn,
        limit_name=config.limit_name,
        parameters=config.parameters,
    )
    line = {"custom_id": key.hex(), "method": "POST", "url": address(config), "body": body}
    return json.dumps(line).encode() + b"\n"


def _result(line: bytes) -> tuple[bytes, completions.ParsedResponse] | None:
    try:
        row = json.loads(line)
        key, response, error = bytes.fromhex(row["custom_id"]), row.get("response"), row.get("error")
        if response:
            return key, completions.read_json(int(response["status_code"]), response["body"])
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        log.warning("a line of a batch's results cannot be read and is left out: %s", scrub(str(problem)))
        return None
    return key, completions.failed(Fault.SERVER, None, json.dumps(error))
