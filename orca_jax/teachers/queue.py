"""The requests that wait to be asked: filled from the source through the ledger, failures at the end."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import time
from collections.abc import Iterable

from orca_jax.records import Outcome, Reply
from orca_jax.teachers.endpoint import AskingStopped, Fault, Request, request_id
from orca_jax.teachers.ledger import Answer, Attempt, Ledger
from orca_jax.teachers.limits import full_jitter

LOOK_AHEAD = 256  # requests looked up together in the ledger
HOPELESS = 20  # requests that failed for good, before any was answered
UNCOUNTED = (Fault.RATE_LIMIT, Fault.REFUSED)
FOR_GOOD = (Fault.REQUEST, Fault.TOO_LONG)


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """One request's reply. `index` is its place among the requests, `created` ISO 8601 in UTC.

    `stored` says that the ledger held the reply already and nothing was paid for it now.
    """

    index: int
    request: Request
    reply: Reply
    created: str
    stored: bool


@dataclasses.dataclass(slots=True)
class Pending:
    """A request to be asked for the callers at `indices`."""

    key: bytes
    request: Request
    indices: list[int]
    tries: int = 0
    failures: int = 0


class Queue:
    """The requests that wait, are in flight or are to be asked again."""

    def __init__(
        self, identity: str, requests: Iterable[Request], ledger: Ledger, retries: int, backoff: float
    ):
        self.exhausted = False
        self._identity = identity
        self._source = enumerate(requests)
        self._ledger = ledger
        self._retries, self._backoff = retries, backoff
        self._waiting: collections.deque[Pending] = collections.deque()
        self._unsettled: dict[bytes, Pending] = {}  # waiting or in flight
        self._delayed: list[tuple[float, int, Pending]] = []  # a heap, by the time when they are due
        self._count = itertools.count()
        self._answered, self._failed = 0, 0

    def wants_more(self, enough: int) -> bool:
        """Whether fewer than `enough` wait, and the source has more."""
        return not self.exhausted and len(self._waiting) < enough

    def refill(self) -> list[Collected]:
        """Takes in the next few requests; returns those that the ledger answers."""
        chunk = list(itertools.islice(self._source, LOOK_AHEAD))
        self.exhausted = len(chunk) < LOOK_AHEAD
        keys = [request_id(self._identity, request) for _, request in chunk]
        answers = self._ledger.get_many(keys)
        stored = []
        for key, (index, request) in zip(keys, chunk, strict=True):
            if key in answers:
                stored.append(_asked(index, request, answers[key], stored=True))
            else:
                self._add(key, index, request)
        return stored

    def pop(self, most_delayed: int) -> Pending | None:
        """The next request to ask, if there is one now.

        While `most_delayed` requests wait after failures there is none: a server that is down shall
        not be asked everything in vain.
        """
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._waiting.append(heapq.heappop(self._delayed)[2])
        if not self._waiting or len(self._delayed) >= most_delayed:
            return None
        return self._waiting.popleft()

    def next_due(self) -> float | None:
        """Seconds until a failed request is to be asked again; None if there is none."""
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else None

    def settled(self) -> bool:
        """Whether every request is."""
        return self.exhausted and not self._unsettled

    def settle(self, ended: list[tuple[Pending, Attempt]]) -> list[Collected]:
        """Commits attempts; returns what is settled and puts failures back into the queue.

        A failure for the request's own fault is settled at once; one for a limit or for an endpoint
        that refuses everything does not count against the retries.

        Raises:
          AskingStopped: the first requests all failed for good, so the rest would too.
        """
        settled = []
        answers = self._ledger.record(attempt for _, attempt in ended)
        for (pending, _), answer in zip(ended, answers, strict=True):
            if answer.reply.outcome is Outcome.ERROR and self._again(pending, answer.reply):
                continue
            del self._unsettled[pending.key]
            self._note(answer.reply)
            settled += [_asked(index, pending.request, answer, stored=False) for index in pending.indices]
        return settled

    def _again(self, pending: Pending, reply: Reply) -> bool:
        """Puts a failed request back, unless it had its chances."""
        fault = reply.raw.get("fault")
        pending.tries += 1
        pending.failures += fault not in UNCOUNTED
        if fault in FOR_GOOD or pending.failures > self._retries:
            return False
        delay = full_jitter(self._backoff, pending.tries)
        if delay:
            heapq.heappush(self._delayed, (time.monotonic() + delay, next(self._count), pending))
        else:
            self._waiting.append(pending)
        return True

    def _note(self, reply: Reply) -> None:
        failed = reply.outcome is Outcome.ERROR
        self._answered += not failed
        self._failed += failed and reply.raw.get("fault") != Fault.TOO_LONG
        if self._failed >= HOPELESS and not self._answered:
            raise AskingStopped(
                f"{self._identity}: the first {self._failed} requests all failed, the last with: "
                f"{reply.raw.get('error', 'no reason given')}; correct the endpoint's settings and run again"
            )

    def _add(self, key: bytes, index: int, request: Request) -> None:
        if key in self._unsettled:
            self._unsettled[key].indices.append(index)
            return
        pending = Pending(key, request, [index])
        self._unsettled[key] = pending
        self._waiting.append(pending)


def _asked(index: int, request: Request, answer: Answer, *, stored: bool) -> Collected:
    return Collected(index, request, answer.reply, answer.created, stored)
