"""Collecting through OpenAI's or Azure's Batch API: half the price, within a day, in files of requests.

Every step can be killed and run again. A batch's requests are noted in the ledger as sent before it is
submitted, and the notes go as results are recorded, so that nothing is recorded twice. `batches.json`
beside the input files says what became of each; a batch that was submitted but not written down there
is found again on the server by its file's hash.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import openai

from orca_jax.artifacts import atomic_write
from orca_jax.config import OpenAIConfig, Price
from orca_jax.records import Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers import batch_files, completions, token_counts
from orca_jax.teachers.batch_files import BatchLimits, InputFile
from orca_jax.teachers.collect import FOR_GOOD
from orca_jax.teachers.endpoint import CollectionStopped, EndpointRefused, Fault, Request
from orca_jax.teachers.ledger import Attempt, Ledger
from orca_jax.teachers.limits import Budget, Reservation
from orca_jax.teachers.openai import OpenAIEndpoint

log = logging.getLogger(__name__)
STATE = "batches.json"
MARK = "orca_jax_file"  # the metadata by which a batch is found again
SUBMITTING = "submitting"  # our own word: the server may know the batch, or not
ENDED = ("completed", "failed", "expired", "cancelled")
FULL = "token_limit_exceeded"  # too many prompt tokens are in the queue: later they are not
CHUNK = 500
LARGEST = 4 * 2**30  # bytes of an output file
TIMEOUT = 3600.0


class BatchError(CollectionStopped):
    """The Batch API does not take the work; the message says why."""


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
    used: Usage = dataclasses.field(default_factory=Usage)
    reservation: Reservation | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server works on it, or may."""
        return bool(self.status) and not self.collected

    def to_json(self) -> dict[str, Any]:
        row = dataclasses.asdict(dataclasses.replace(self, reservation=None))
        return {name: value for name, value in row.items() if name != "reservation"}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Batch:
        file, used = InputFile.from_json(row["file"]), Usage(**row.get("used", {}))
        return cls(**{**row, "file": file, "used": used})


class Batches:
    """The batches of one collection, in `folder`; for one process at a time. `identity` is the ledger's
    name of what answers. The price is the one of batches.

    Raises:
      BatchError: `folder` holds a `batches.json` that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        config: OpenAIConfig,
        ledger: Ledger,
        *,
        limits: BatchLimits | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
    ):
        self.folder, self.identity, self.config = folder, identity, config
        self._endpoint = OpenAIEndpoint(dataclasses.replace(config, largest=LARGEST, timeout=TIMEOUT))
        self._ledger = ledger
        self._limits = limits or BatchLimits()
        self._budget, self._price = budget or Budget(), price or Price()
        self._expectation = token_counts.Expectation()
        self._hopeless: set[bytes] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.batches = read_state(folder)

    async def run(
        self,
        requests: Callable[[], Iterable[Request]],
        *,
        rounds: int = 3,
        poll_seconds: float = 60.0,
        on_poll: Callable[[list[Batch]], None] | None = None,
    ) -> None:
        """Collects what of the requests is missing; what then is missing is submitted again, `rounds` times.

        Raises:
          BatchError: the server refuses a file.
          BudgetSpent: the next file could exceed the budget; what is under way is waited for first.
          EndpointRefused: wrong key, or no Batch API there.
        """
        for batch in self.batches:
            if batch.is_open:  # submitted before this process was there
                batch.reservation = self._budget.hold(batch.file.bound, self._price)
        try:
            for _ in range(rounds):
                self.write(requests())
                if all(batch.collected for batch in self.batches):
                    return
                await self._finish(poll_seconds, on_poll)
        finally:
            await self._endpoint.close()

    def write(self, requests: Iterable[Request]) -> int:
        """Writes the requests that are neither answered nor in a file to files; returns their number."""
        waiting = [batch.file for batch in self.batches if not batch.collected]
        known = self._hopeless | batch_files.keys(self.folder, waiting)
        written = 0
        for file in batch_files.write(
            self.folder,
            self._missing(requests, known),
            self.identity,
            self.config,
            self._limits,
            first=1 + max((batch.file.number for batch in self.batches), default=0),
        ):
            self.batches.append(Batch(file=file))
            self._write_state()
            written += file.requests
        return written

    async def submit(self) -> None:
        """Submits as many files as limits and budget allow."""
        for batch in self.batches:
            if batch.status == SUBMITTING:
                await self._submit(batch)
            elif (
                not batch.status and sum(other.is_open for other in self.batches) < self._limits.open_batches
            ):
                batch.reservation = self._budget.try_reserve(batch.file.bound, self._price)
                if batch.reservation is None:
                    return
                await self._submit(batch)

    async def poll(self) -> None:
        """Asks what became of the batches, and records the results of those that ended."""
        for batch in self.batches:
            if not batch.is_open or batch.status == SUBMITTING:
                continue
            found = await self._client().batches.retrieve(batch.batch_id)
            self._update(batch, found)
            if batch.status in ENDED:
                await self._end(batch, found)

    async def _finish(self, poll_seconds: float, on_poll: Callable[[list[Batch]], None] | None) -> None:
        """Submits and polls until every file is collected, or no more can be submitted."""
        stopped: CollectionStopped | None = None
        while True:
            try:
                if stopped is None:
                    await self.submit()
                await self.poll()
            except CollectionStopped as error:
                stopped = stopped or error
            except (openai.APIError, httpx2.HTTPError) as error:
                self._survive(error)
            if on_poll is not None:
                on_poll(self.batches)
            if all(batch.collected for batch in self.batches if stopped is None or batch.batch_id):
                break
            await asyncio.sleep(poll_seconds)
        if stopped is not None:
            raise stopped

    async def _submit(self, batch: Batch) -> None:
        found = await self._find(batch) if batch.status == SUBMITTING else None
        if found is None:
            batch.status = SUBMITTING
            self._write_state()
            self._note(batch)
            client = self._client()
            with open(self.folder / batch.file.name, "rb") as file:
                uploaded = await client.files.create(file=(batch.file.name, file), purpose="batch")
            found = await client.batches.create(
                input_file_id=uploaded.id,
                endpoint=batch_files.address(self.config),  # type: ignore[arg-type]  # Azure has its own
                completion_window="24h",
                metadata={MARK: batch.file.digest},
            )
            log.info("%s: submitted as %s", batch.file.name, found.id)
        self._update(batch, found)

    async def _find(self, batch: Batch) -> Any:
        """The server's batch of this file, if there is one that is not known here."""
        known = {other.batch_id for other in self.batches}
        async for found in self._client().batches.list(limit=100):
            if (found.metadata or {}).get(MARK) == batch.file.digest and found.id not in known:
                return found
        return None

    def _note(self, batch: Batch) -> None:
        """Notes the file's requests in the ledger, each with its part of the bound."""
        for keys in batch_files.chunks(self.folder, batch.file, CHUNK):
            self._ledger.send_known([(key, batch.file.bound_each) for key in keys], batch.file.ticket)

    def _update(self, batch: Batch, found: Any) -> None:
        batch.batch_id, batch.status = found.id, found.status
        batch.input_file_id = found.input_file_id
        batch.output_file_id, batch.error_file_id = found.output_file_id or "", found.error_file_id or ""
        self._write_state()

    async def _end(self, batch: Batch, found: Any) -> None:
        errors = [
            (error.code or "", error.message or "") for error in (found.errors and found.errors.data) or []
        ]
        others = any(other.is_open for other in self.batches if other is not batch)
        if batch.status == "failed" and others and any(code == FULL for code, _ in errors):
            log.info("%s: the server's queue is full; submitted again later", batch.file.name)
            batch.status = batch.batch_id = ""
            self._settle(batch, Usage())
            self._write_state()
            return
        batch.used = await self._collect(batch)
        self._settle(batch, batch.used)
        batch.collected = True
        self._write_state()
        if batch.status == "failed":
            said = "; ".join(f"{code}: {message}" for code, message in errors) or "no reason given"
            raise BatchError(scrub(f"{batch.file.name}: the server refused it: {said}"))

    def _settle(self, batch: Batch, used: Usage) -> None:
        if batch.reservation is not None:
            self._budget.settle(batch.reservation, used, self._price)

    async def _collect(self, batch: Batch) -> Usage:
        """Records all results, and a failure for each request without one; returns what they used."""
        used = Usage()
        for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            if not file_id:
                continue
            path = (self.folder / batch.file.name).with_suffix(f".{kind}.jsonl")
            async with self._client().files.with_streaming_response.content(file_id) as response:
                with atomic_write(path, "wb") as file:
                    async for chunk in response.iter_bytes():
                        file.write(chunk)
            for results in batch_files.results(path, CHUNK):
                used += self._record(batch, results)
        nothing = completions.failed(Fault.SERVER, None, f"no result: the batch is {batch.status}")
        for keys in batch_files.chunks(self.folder, batch.file, CHUNK):
            self._record(batch, dict.fromkeys(keys, nothing))
        return used

    def _record(self, batch: Batch, results: dict[bytes, completions.ParsedResponse]) -> Usage:
        attempts = []
        for key in self._ledger.awaited(results, batch.file.ticket):
            request = self._ledger.request(key)
            assert request is not None  # it is awaited, hence known
            reading = results[key].within(request.sampling.max_tokens).cleaned()
            used = self._expectation.used(reading, request.messages, request.sampling)
            reply = dataclasses.replace(reading.reply, usage=used)
            attempts.append(Attempt(self.identity, request, reply, ticket=batch.file.ticket))
            if reading.usage_known:
                self._expectation.learn(request.messages, used)
            if reading.fault in FOR_GOOD:
                self._hopeless.add(key)
        self._ledger.record(attempts)
        return sum((attempt.reply.usage for attempt in attempts), Usage())

    def _missing(self, requests: Iterable[Request], known: set[bytes]) -> Iterable[tuple[bytes, Request]]:
        """The requests that are neither answered nor in `known`, each once; makes the ledger know them."""
        known = set(known)
        for some in batch_files.keyed(self.identity, requests, CHUNK):
            answered = self._ledger.get_many(some)
            new = {key: request for key, request in some.items() if key not in answered and key not in known}
            self._ledger.add(self.identity, new.values())
            known |= new.keys()
            yield from new.items()

    def _client(self) -> openai.AsyncOpenAI:
        return self._endpoint.client()

    def _survive(self, error: Exception) -> None:
        """Goes on after a failure that may pass; one that will not is raised.

        Raises:
          EndpointRefused: wrong key, or no Batch API there.
        """
        said = scrub(f"{type(error).__name__}: {error}")[: completions.LONGEST_ERROR]
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status is not None and status < 500 and status not in (408, 409, 429):
            advice = completions.advice(status, said)
            raise EndpointRefused(f"{self._endpoint.label}: {advice} (the Batch API says: {said})") from None
        log.warning("the Batch API did not answer, trying again later: %s", said)

    def _write_state(self) -> None:
        with atomic_write(self.folder / STATE) as file:
            json.dump([batch.to_json() for batch in self.batches], file, indent=1)


def read_state(folder: Path) -> list[Batch]:
    """What became of the batches of `folder`.

    Raises:
      BatchError: the state cannot be read.
    """
    path = folder / STATE
    if not path.exists():
        return []
    try:
        return [Batch.from_json(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise BatchError(f"{path} cannot be read ({error}); move it away to begin anew") from error
