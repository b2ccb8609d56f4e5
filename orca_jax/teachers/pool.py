"""Several endpoints and keys of one model share its work, each within its limits, all within a budget."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Protocol

from orca_jax.config import Limits, Price
from orca_jax.records import Message, Reply, Sampling, Usage
from orca_jax.teachers import limits, token_counts
from orca_jax.teachers.completions import Sent
from orca_jax.teachers.endpoint import EndpointRefused, Fault
from orca_jax.teachers.limits import Budget, Limiter, Rate, Reservation, Signal, Ticket

log = logging.getLogger(__name__)
UNPAID = (Fault.RATE_LIMIT, Fault.REFUSED, Fault.REQUEST, Fault.TOO_LONG)


class Sender(Protocol):
    """One address, model and key, such as `openai.OpenAIEndpoint`."""

    @property
    def label(self) -> str: ...
    async def send(self, messages: Sequence[Message], sampling: Sampling) -> Sent: ...
    def refusal(self, status: int | None, said: str) -> str: ...
    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class MemberStatus:
    """How one endpoint of a pool stands. `paused` in seconds; `refused` says why it is left out."""

    label: str
    requests: Rate
    tokens: Rate
    paused: float
    refused: str


@dataclasses.dataclass(slots=True)
class _Member:
    sender: Sender
    limiter: Limiter
    sent: int = 0
    refused: str = ""


class Pool:
    """The endpoints of one model. `identity` is the model's name, whichever endpoint answers.

    A member that refuses (wrong key, unknown model, exhausted quota) is left out and the log says
    what to do; when the last one refuses, nothing more is sent. A request goes where it can be sent first.

    Raises:
      ValueError: there are no members.
    """

    def __init__(
        self,
        identity: str,
        members: Sequence[tuple[Sender, Limits]],
        *,
        budget: Budget | None = None,
        price: Price | None = None,
    ):
        if not members:
            raise ValueError(f"{identity}: a pool needs at least one endpoint")
        self.identity = identity
        self.budget = budget or Budget()
        self.price = price or Price()
        self._members = [_Member(sender, Limiter(limits)) for sender, limits in members]
        self._expectation = token_counts.Expectation()
        self._changed = Signal()

    async def admit(self, messages: Sequence[Message], sampling: Sampling) -> _Admission:
        """Waits until budget and limits allow a request.

        Raises:
          BudgetSpent: the request could exceed the budget.
          EndpointRefused: every endpoint refuses.
        """
        bound = token_counts.bound(messages, sampling)
        reservation = await self.budget.reserve(bound, self.price)
        try:
            expected = self._expectation.usage(messages, sampling)
            member = await self._free_member(expected.total)
        except BaseException:
            self.budget.settle(reservation, Usage(), self.price)
            raise
        member.sent += 1
        ticket = member.limiter.take(expected.total)
        return _Admission(self, member, ticket, reservation, messages, sampling, bound, expected)

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Waits until a request may be sent, then sends it."""
        return await (await self.admit(messages, sampling)).reply()

    async def close(self) -> None:
        for member in self._members:
            await member.sender.close()

    def status(self) -> list[MemberStatus]:
        """How each endpoint stands against its limits, now."""
        return [
            MemberStatus(
                member.sender.label, *member.limiter.rates(), member.limiter.paused(), member.refused
            )
            for member in self._members
        ]

    async def _free_member(self, tokens: int) -> _Member:
        while True:
            members = [member for member in self._members if not member.refused]
            if not members:
                raise EndpointRefused("; ".join(member.refused for member in self._members))
            delays = [member.limiter.delay(tokens) for member in members]
            delay = min(delays)
            if delay <= 0:
                free = [member for member, wait in zip(members, delays, strict=True) if wait <= 0]
                return min(free, key=lambda member: member.sent)
            await self._changed.wait(delay)

    def settle(self, admission: _Admission, answer: Sent) -> Reply:
        """Takes in what an answer says of usage and limits; returns the reply, its usage filled in."""
        reading, member = answer.reading, admission.member
        used = self._expectation.used(reading, admission.messages, admission.sampling)
        limiter = member.limiter
        limiter.correct(limits.quota(answer.headers, "requests"), limits.quota(answer.headers, "tokens"))
        unpaid = reading.fault in UNPAID
        counted = used.total or (0 if unpaid else admission.expected.total)
        limiter.settle(admission.ticket, counted)
        self._heed(admission, answer)
        if reading.usage_known:
            self._expectation.learn(admission.messages, reading.reply.usage)
        self.budget.settle(admission.reservation, used, self.price)
        self._changed.notify()
        raw = reading.reply.raw
        if len(self._members) > 1:
            raw = {**raw, "endpoint": member.sender.label}
        reply = dataclasses.replace(reading.reply, usage=used, raw=raw)
        if reading.fault is Fault.REFUSED:
            first = not member.refused
            member.refused = member.sender.refusal(answer.status, reading.message)
            if all(other.refused for other in self._members):
                raise EndpointRefused(member.refused, reply)
            if first:
                log.error("%s; the other endpoints go on", member.refused)
        return reply

    def release(self, admission: _Admission, used: Usage) -> None:
        """Ends a request that was not settled, having used at most so much."""
        self.budget.settle(admission.reservation, used, self.price)

    def _heed(self, admission: _Admission, answer: Sent) -> None:
        wait = limits.retry_after(answer.headers, answer.reading.message)
        fault, limiter = answer.reading.fault, admission.member.limiter
        if fault is Fault.RATE_LIMIT:
            limiter.throttled(admission.ticket, wait)
        elif fault is Fault.SERVER and wait:
            limiter.pause(wait)
        elif fault is None:
            limiter.answered()


@dataclasses.dataclass(slots=True, eq=False)
class _Admission:
    """Leave to send one request to one member."""

    pool: Pool
    member: _Member
    ticket: Ticket
    reservation: Reservation
    messages: Sequence[Message]
    sampling: Sampling
    bound: Usage
    expected: Usage
    sent: bool = False

    async def reply(self) -> Reply:
        self.sent = True
        answer = await self.member.sender.send(self.messages, self.sampling)
        return self.pool.settle(self, answer)

    def release(self) -> None:
        # A request that was cancelled on its way may be paid for all the same.
        self.pool.release(self, self.bound if self.sent else Usage())
