"""Collecting through OpenAI's or Azure's Batch API: half the price, within a day, in files of requests.

Every step can be killed and run again. A batch's requests are noted in the ledger as its file is written,
and the notes go as results are recorded, so that nothing is recorded twice, or as another process finds
that the file was not submitted. `batches.json` beside the input
files says what became of each; a batch that was submitted but not written down there is found again on the
server by its file's hash.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai

from orca_jax import config_check
from orca_jax.artifacts import atomic_write
from orca_jax.config_teachers import ApiConfig
from orca_jax.records import Outcome, Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers import completions, pool
from orca_jax.teachers.collect import FOR_GOOD
from orca_jax.teachers.completions import Response
from orca_jax.teachers.endpoint import CollectionStopped, EndpointRefused, Fault, Request, request_id
from orca_jax.teachers.ledger import NOTHING, Attempt, Ledger
from orca_jax.teachers.limits import BATCH_PRICE, Budget
from orca_jax.teachers.openai import OpenAIEndpoint

log = logging.getLogger(__name__)
Result = TypeVar("Result")
STATE = "batches.json"
MARK = "orca_jax_file"  # the metadata by which a batch is found again
SUBMITTING = "submitting"  # our own word: the server may know the batch, or not
ENDED = ("completed", "failed", "expired", "cancelled")
FULL = "token_limit_exceeded"  # too many prompt tokens are in the queue: later they are not
SIZE, OPEN_BATCHES = 200_000_000, 10  # bytes of a file and batches at a time that OpenAI takes
ROUNDS = 3
CHUNK = 500
LARGEST = 4 * 2**30  # bytes of an output file
TIMEOUT = 3600.0


class BatchError(CollectionStopped):
    """The Batch API does not take the work; the message says why."""


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
    def mark(self) -> int:
        """What the ledger calls the batch."""
        return int(self.digest[:12], 16)


@dataclasses.dataclass(kw_only=True)
class Batch:
    """An input file and what became of it: `status` is the server's word, empty while it is not submitted,
    and `used` what its results used."""

    file: InputFile
    input_file_id: str = ""
    batch_id: str = ""
    status: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    collected: bool = False
    used: Usage = NOTHING

    @property
    def is_open(self) -> bool:
        """Whether the server works on it, or may."""
        return bool(self.status) and not self.collected


def read_state(folder: Path) -> list[Batch]:
    """What became of the batches of `folder`.

    Raises:
      BatchError: the state cannot be read.
    """
    path = folder / STATE
    if not path.exists():
        return []
    try:
        return [config_check.build(Batch, row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise BatchError(f"{path} cannot be read ({error}); move it away to begin anew") from error


class Batches:
    """The batches of one collection, in `folder`; for one process at a time.

    Raises:
      BatchError: `folder` holds a `batches.json` that cannot be read.
    """

    def __init__(self, folder: Path, api: ApiConfig, ledger: Ledger, budget: Budget):
        self.folder, self.api, self.config, self.limits = folder, api, api.endpoints[0], api.limits
        self._endpoint = OpenAIEndpoint(dataclasses.replace(self.config, largest=LARGEST, timeout=TIMEOUT))
        self._ledger, self._budget = ledger, budget
        self._price = api.price.times(BATCH_PRICE)
        self._address: Any = "/chat/completions" if self.config.api_version else "/v1/chat/completions"
        self._hopeless: set[bytes] = set()
        self._stopped: CollectionStopped | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.batches = []
        for batch in read_state(folder):
            if batch.status:
                self.batches.append(batch)
            else:  # it was not submitted: its requests are written to files again
                ledger.forget(api.name, batch.file.mark)

    @property
    def note(self) -> str:
        return f"{sum(batch.is_open for batch in self.batches)} batches under way"

    async def run(
        self,
        requests: Callable[[], Iterable[Request]],
        *,
        poll_seconds: float = 60.0,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Collects what of the requests is missing; what then is missing is submitted again, ROUNDS times.

        Raises:
          BatchError: the server refuses a file.
          BudgetSpent: the next file could exceed the budget; what is under way is waited for first.
          EndpointRefused: wrong key, or no Batch API there.
          ValueError: one request alone is greater than a file may be.
        """
        self._poll_seconds, self._on_poll = poll_seconds, on_poll
        for batch in self.batches:
            if batch.is_open:  # submitted before this process was there
                self._budget.hold(batch.file.bound, self._price)
        try:
            for _ in range(ROUNDS):
                self._write(requests())
                waiting = [batch for batch in self.batches if not batch.collected]
                if not waiting:
                    return
                room = asyncio.Semaphore(OPEN_BATCHES)
                async with asyncio.TaskGroup() as group:
                    for batch in waiting:
                        group.create_task(self._carry(batch, room))
                if self._stopped is not None:
                    raise self._stopped
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._endpoint.close()

    async def _carry(self, batch: Batch, room: asyncio.Semaphore) -> None:
        """Submits one file, waits for its end and records its results."""
        async with room:
            try:
                while not batch.collected:
                    while not batch.is_open:
                        if self._stopped:
                            return
                        if self._budget.reserve(batch.file.bound, self._price):
                            break
                        await asyncio.sleep(min(pool.LOOK_AGAIN, self._poll_seconds))
                    if not batch.batch_id:
                        await self._patiently(lambda: self._submit(batch))
                    await self._patiently(lambda: self._look(batch))
                    self._on_poll()
                    if not batch.collected:
                        await asyncio.sleep(self._poll_seconds)
            except CollectionStopped as stopped:
                self._stopped = self._stopped or stopped

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """What a call to the server returns, repeated after failures that may pass.

        Raises:
          EndpointRefused: wrong key, or no Batch API there.
        """
        while True:
            try:
                return await call()
            except (openai.APIError, httpx2.HTTPError) as error:
                said = scrub(f"{type(error).__name__}: {error}")[: completions.LONGEST_ERROR]
                status = error.status_code if isinstance(error, openai.APIStatusError) else None
                if status is not None and status < 500 and status not in (408, 409, 429):
                    advice = completions.advice(status, said)
                    label = self._endpoint.label
                    raise EndpointRefused(f"{label}: {advice} (the Batch API says: {said})") from None
                log.warning("the Batch API did not answer, trying again later: %s", said)
                await asyncio.sleep(self._poll_seconds)

    async def _submit(self, batch: Batch) -> None:
        found = await self._find(batch) if batch.status == SUBMITTING else None
        if found is None:
            batch.status = SUBMITTING
            self._write_state()
            file, client = batch.file, self._endpoint.client()
            with open(self.folder / file.name, "rb") as content:
                uploaded = await client.files.create(file=(file.name, content), purpose="batch")
            found = await client.batches.create(
                input_file_id=uploaded.id,
                endpoint=self._address,
                completion_window="24h",
                metadata={MARK: file.digest},
            )
            log.info("%s: submitted as %s", file.name, found.id)
        self._update(batch, found)

    async def _find(self, batch: Batch) -> Any:
        """The server's batch of this file, if there is one that is not known here."""
        known = {other.batch_id for other in self.batches}
        async for found in self._endpoint.client().batches.list(limit=100):
            if (found.metadata or {}).get(MARK) == batch.file.digest and found.id not in known:
                return found
        return None

    async def _look(self, batch: Batch) -> None:
        """Asks what became of a batch, and records its results if it has ended."""
        found = await self._endpoint.client().batches.retrieve(batch.batch_id)
        self._update(batch, found)
        if batch.status not in ENDED:
            return
        name, errors = batch.file.name, (found.errors and found.errors.data) or []
        others = any(other.is_open for other in self.batches if other is not batch)
        full = batch.status == "failed" and others and any(error.code == FULL for error in errors)
        if full:
            log.info("%s: the server's queue is full; submitted again later", name)
            batch.status = batch.batch_id = ""
        else:
            batch.used = await self._collect(batch)
            batch.collected = True
        self._budget.settle(batch.file.bound, batch.used, self._price)
        self._write_state()
        if batch.status == "failed":
            said = "; ".join(f"{error.code}: {error.message}" for error in errors) or "no reason given"
            raise BatchError(scrub(f"{name}: the server refused it: {said}"))

    async def _collect(self, batch: Batch) -> Usage:
        """Records all results, and a failure for each request without one; returns what they used."""
        used = Usage()
        for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            if not file_id:
                continue
            path = (self.folder / batch.file.name).with_suffix(f".{kind}.jsonl")
            async with self._endpoint.client().files.with_streaming_response.content(file_id) as response:
                with atomic_write(path, "wb") as file:
                    async for chunk in response.iter_bytes():
                        file.write(chunk)
            with open(path, "rb") as lines:
                results = filter(None, map(_result, lines))
                while some := dict(itertools.islice(results, CHUNK)):
                    used += self._record(batch, some)
        nothing = completions.failed(Fault.SERVER, None, f"no result: the batch is {batch.status}")
        for keys in self._keys(batch.file):
            self._record(batch, dict.fromkeys(keys, nothing))
        return used

    def _record(self, batch: Batch, results: dict[bytes, Response]) -> Usage:
        attempts = []
        for key, (note, request) in self._ledger.awaited(results, batch.file.mark).items():
            response = results[key].cleaned(request.sampling.max_tokens)
            reply = dataclasses.replace(response.reply, usage=pool.used(response, request))
            attempts.append(Attempt(self.api.name, request, reply, note=note))
            if response.fault in FOR_GOOD:
                self._hopeless.add(key)
        self._ledger.record(attempts)
        return sum((attempt.reply.usage for attempt in attempts), Usage())

    def _write(self, requests: Iterable[Request]) -> None:
        """Writes the requests that are neither answered nor in a file to files."""
        lines = self._missing(requests)
        waiting = next(lines, None)
        for number in itertools.count(1 + max((batch.file.number for batch in self.batches), default=0)):
            if waiting is None:
                return
            digest, size, noted = hashlib.sha256(), 0, list[tuple[Request, Usage]]()
            with atomic_write(self.folder / f"{number:05}.jsonl", "wb") as file:
                while waiting and len(noted) < self.api.batch_requests and size + len(waiting[0]) <= SIZE:
                    line, request = waiting
                    file.write(line)
                    digest.update(line)
                    size += len(line)
                    noted.append((request, pool.bound(request.messages, request.sampling)))
                    waiting = next(lines, None)
                if not noted:
                    raise ValueError(
                        f"{self.api.name}: a request of more than {SIZE} bytes fits into no batch file"
                    )
            bound = sum((most for _, most in noted), Usage())
            made = InputFile(number=number, requests=len(noted), digest=digest.hexdigest(), bound=bound)
            self.batches.append(Batch(file=made))
            self._write_state()  # first, so that no note is of a file that is not known
            self._ledger.note(self.api.name, noted, made.mark)

    def _missing(self, requests: Iterable[Request]) -> Iterator[tuple[bytes, Request]]:
        """The lines of requests that are neither answered nor in a file, each once."""
        waiting = [batch.file for batch in self.batches if not batch.collected]
        known = self._hopeless | {key for file in waiting for keys in self._keys(file) for key in keys}
        source = iter(requests)
        while some := list(itertools.islice(source, CHUNK)):
            keyed = {request_id(self.api.name, request): request for request in some}
            found = self._ledger.get_many(keyed)
            known |= {key for key, answer in found.items() if answer.reply.outcome is not Outcome.ERROR}
            new = {key: request for key, request in keyed.items() if key not in known}
            known |= new.keys()
            for key, request in new.items():
                body = completions.body(self.config, request.messages, request.drawn)
                line = {"custom_id": key.hex(), "method": "POST", "url": self._address, "body": body}
                yield json.dumps(line).encode() + b"\n", request

    def _keys(self, file: InputFile) -> Iterator[list[bytes]]:
        """The ids of a file's requests, some at a time."""
        with open(self.folder / file.name, "rb") as lines:
            ids = (bytes.fromhex(json.loads(line)["custom_id"]) for line in lines)
            while some := list(itertools.islice(ids, CHUNK)):
                yield some

    def _update(self, batch: Batch, found: Any) -> None:
        batch.batch_id, batch.status = found.id, found.status
        batch.input_file_id = found.input_file_id
        batch.output_file_id, batch.error_file_id = found.output_file_id or "", found.error_file_id or ""
        self._write_state()

    def _write_state(self) -> None:
        with atomic_write(self.folder / STATE) as file:
            json.dump([dataclasses.asdict(batch) for batch in self.batches], file, indent=1)


def _result(line: bytes) -> tuple[bytes, Response] | None:
    """One line of the results; None, and a warning, for one that cannot be read."""
    try:
        row = json.loads(line)
        key, response, error = bytes.fromhex(row["custom_id"]), row.get("response"), row.get("error")
        if response:
            return key, completions.read_json(int(response["status_code"]), response["body"])
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        log.warning("a line of a batch's results cannot be read and is left out: %s", scrub(str(problem)))
        return None
    return key, completions.failed(Fault.SERVER, None, json.dumps(error))
