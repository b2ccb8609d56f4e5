"""Several endpoints and keys of one model share its work, each within its limits, all within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from orca_jax.config_teachers import Limits, Price
from orca_jax.records import Message, Reply, Sampling, Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers import completions, limits
from orca_jax.teachers.completions import NO_USAGE, Response
from orca_jax.teachers.endpoint import EndpointRefused, Fault, Request
from orca_jax.teachers.limits import Bucket, Budget

if TYPE_CHECKING:  # its client takes a while to import
    from orca_jax.teachers.openai import OpenAIEndpoint

log = logging.getLogger(__name__)
UNPAID = (Fault.RATE_LIMIT, Fault.REFUSED, Fault.REQUEST, Fault.TOO_LONG)
MESSAGE_BYTES, REQUEST_BYTES = 8, 64  # most tokens that a chat template adds, to each and in all
BYTES_A_TOKEN = 3.0  # English has about four
LOOK_AGAIN = 0.1  # seconds; meanwhile a request may end and give back what it reserved


def size(messages: Sequence[Message]) -> int:
    """Bytes of a conversation, with an allowance for what a chat template adds."""
    texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    return texts + MESSAGE_BYTES * len(messages) + REQUEST_BYTES


def bound(messages: Sequence[Message], sampling: Sampling) -> Usage:
    """The most that a request can use: no tokenizer makes more tokens than there are bytes."""
    return Usage(size(messages), sampling.max_tokens)


def used(response: Response, request: Request) -> Usage:
    """What a request used: as the server says, else an estimate; where neither is known, the most."""
    if response.usage_known:
        return response.reply.usage
    prompt, most = round(size(request.messages) / BYTES_A_TOKEN), request.sampling.max_tokens
    if response.fault:
        return Usage(prompt, most) if response.maybe_paid else Usage()
    completion = len(response.reply.text.encode("utf-8", "surrogatepass")) / BYTES_A_TOKEN
    return Usage(prompt, min(most, round(completion)))


class Member:
    """One endpoint of a pool, and how it stands; `refused` says why it is left out."""

    def __init__(self, sender: OpenAIEndpoint, given: Limits):
        now = time.monotonic()
        self.sender = sender
        self.requests, self.tokens = Bucket(given.requests, now), Bucket(given.tokens, now)
        self.sent, self.refused, self._warned = 0, "", False
        self._paused_until, self._refusals = 0.0, 0  # 429s since the last answer

    @property
    def paused(self) -> float:
        """Seconds that it is still paused."""
        return max(0.0, self._paused_until - time.monotonic())

    def delay(self, tokens: int) -> float:
        """Seconds until a request of so many tokens may be sent."""
        now = time.monotonic()
        return max(self.paused, self.requests.delay(now, 1), self.tokens.delay(now, tokens))

    def take(self, tokens: int) -> None:
        self.sent += 1
        self.requests.take(time.monotonic(), 1)
        self.tokens.take(time.monotonic(), tokens)

    def heed(self, response: Response) -> None:
        """Corrects the limits by what the server states, and pauses after a 429 as long as it asks for."""
        now = time.monotonic()
        self.requests.correct(now, limits.quota(response.headers, "requests"))
        self.tokens.correct(now, limits.quota(response.headers, "tokens"))
        if (said := response.reply.raw.get(NO_USAGE)) and not self._warned:
            self._warned = True
            log.warning("the server says a request used %.200s, which cannot be: counted by its text", said)
        wait = limits.retry_after(response.headers, response.message)
        if response.fault is Fault.RATE_LIMIT:
            self._refusals += now >= self._paused_until  # once for those that were in flight together
            wait = limits.full_jitter(1.0, self._refusals) if wait is None else wait
        elif response.fault is None:
            self._refusals = 0
        if response.fault in (Fault.RATE_LIMIT, Fault.SERVER) and wait:
            self._paused_until = max(self._paused_until, now + wait)


@dataclasses.dataclass(slots=True)
class Admission:
    """Permission to send one request to one member; `tokens` are taken of its limit.

    The request can use `bound`; `used` is what it used, as far as that is known.
    """

    request: Request
    member: Member
    tokens: int
    bound: Usage
    used: Usage = dataclasses.field(default_factory=Usage)


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
        members: Sequence[tuple[OpenAIEndpoint, Limits]],
        *,
        budget: Budget | None = None,
        price: Price | None = None,
    ):
        if not members:
            raise ValueError(f"{identity}: a pool needs at least one endpoint")
        self.identity = identity
        self.budget = budget or Budget()
        self.price = price or Price()
        self.members = [Member(sender, given) for sender, given in members]
        self._turn = asyncio.Lock()  # so that no request overtakes another
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def note(self) -> str:
        """Which members are paused or left out."""
        paused = [(one, one.paused) for one in self.members if not one.refused]
        notes = [f"{one.sender.label} paused {seconds:.0f} s" for one, seconds in paused if seconds]
        return "; ".join(notes + [f"{one.sender.label} left out" for one in self.members if one.refused])

    @property
    def limits(self) -> Limits:
        """Of the members together, as far as they are known; 0 for what is not."""
        left = [one for one in self.members if not one.refused]
        return Limits.together([one.requests.limit for one in left], [one.tokens.limit for one in left])

    @contextlib.asynccontextmanager
    async def admit(self, request: Request) -> AsyncIterator[Admission]:
        """Waits until budget and limits allow a request.

        Raises:
          BudgetSpent: the request could exceed the budget.
          EndpointRefused: every endpoint refuses.
        """
        most = bound(request.messages, request.sampling)
        tokens = round(most.prompt_tokens / BYTES_A_TOKEN) + most.completion_tokens
        if self._loop is not (loop := asyncio.get_running_loop()):  # a lock belongs to its event loop
            self._turn, self._loop = asyncio.Lock(), loop
        async with self._turn:
            while not self.budget.reserve(most, self.price):
                await asyncio.sleep(LOOK_AGAIN)
            try:
                member = await self._free_member(tokens)
                member.take(tokens)
            except BaseException:
                self.budget.settle(most, Usage(), self.price)
                raise
        admission = Admission(request, member, tokens, most)
        try:
            yield admission
        finally:
            self.budget.settle(most, admission.used, self.price)

    async def send(self, admission: Admission) -> Reply:
        """Sends an admitted request and takes in what its answer says of usage and limits.

        Raises:
          EndpointRefused: every endpoint refuses.
        """
        request, member = admission.request, admission.member
        admission.used = admission.bound  # one that is cancelled on its way may be paid for all the same
        try:
            response = await member.sender.send(request.messages, request.drawn)
        except Exception as error:
            said = scrub(f"{type(error).__name__}: {error}")
            response = completions.failed(Fault.CONNECTION, None, said, maybe_paid=True)
        usage = used(response, request)
        member.heed(response)
        unpaid = response.fault in UNPAID
        member.tokens.settle(admission.tokens, usage.total or (0 if unpaid else admission.tokens))
        admission.used = usage
        reply = dataclasses.replace(response.reply, usage=usage)
        if len(self.members) > 1:
            reply = dataclasses.replace(reply, raw={**reply.raw, "endpoint": member.sender.label})
        if response.fault is Fault.REFUSED:
            said, first = response.message, not member.refused
            advice = completions.advice(response.status, said)
            member.refused = f"{member.sender.label}: {advice} (the server says: {said})"
            if all(other.refused for other in self.members):
                raise EndpointRefused(member.refused, reply)
            if first:
                log.error("%s; the other endpoints go on", member.refused)
        return reply

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Waits until a request may be sent, then sends it."""
        async with self.admit(Request(tuple(messages), sampling)) as admission:
            return await self.send(admission)

    async def close(self) -> None:
        """Closes connections; they are opened again when needed."""
        for member in self.members:
            await member.sender.close()

    async def _free_member(self, tokens: int) -> Member:
        while members := [member for member in self.members if not member.refused]:
            delays = [member.delay(tokens) for member in members]
            if (delay := min(delays)) <= 0:
                free = [member for member, wait in zip(members, delays, strict=True) if wait <= 0]
                return min(free, key=lambda member: member.sent)
            await asyncio.sleep(min(delay, LOOK_AGAIN))
        raise EndpointRefused("; ".join(member.refused for member in self.members))
