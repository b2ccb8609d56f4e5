"""Keeps one endpoint's limits: requests and tokens a minute, at an even pace, as far as the server allows.

`Limiter` waits for nothing: it says how long to wait (`delay`), and is told what was sent (`take`),
what that used in truth (`settle`) and what the server said (`correct`, `throttled`). Time comes from
a clock that is passed in.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable

from orca_jax.config import Limits
from orca_jax.teachers.rate_headers import Quota
from orca_jax.teachers.waiting import full_jitter

# Never more than a limit within any WINDOW. The server's minute begins when a request arrives, so what
# is sent late and travels fast must not meet what was sent early and travelled slowly.
WINDOW = 60.9
CATCH_UP = 0.5  # seconds behind the even pace that are made up for, after a stall of this process
CUT = 0.85  # a 429 lowers the pace to this share of what it was
LOWEST = 0.05
LOWEST_GUESS = 60.0  # requests a minute; an early 429 must not stop everything
RECOVERY = 0.2 / 60  # share of the limit that the pace regains in a second
ROUNDING = 1e-6
FIRST_PAUSE = 1.0  # after a 429 that does not say how long to wait


@dataclasses.dataclass(slots=True)
class _Entry:
    sent: float
    amount: float


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """What one request holds of the limits, from `take` to `settle`."""

    sent: float
    request: _Entry
    tokens: _Entry


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """How one limit stands: `used` in the last minute, of `limit` (0: none known)."""

    used: float
    limit: float


class Limiter:
    """The limits of one endpoint. Amounts of tokens are estimates until they are settled."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._requests = _Meter(limits.requests)
        self._tokens = _Meter(limits.tokens)
        self._share = 1.0  # of the limits, lowered by 429s
        self._share_since = clock()
        self._paused_until = -math.inf
        self._refusals = 0  # 429s since the last answer

    def delay(self, tokens: float) -> float:
        """Seconds until a request of so many tokens may be sent; 0 if now."""
        now, share = self._clock(), self._current_share()
        waits = (self._requests.delay(now, 1, share), self._tokens.delay(now, tokens, share))
        return max(0.0, self._paused_until - now, *waits)

    def take(self, tokens: float) -> Ticket:
        """Counts a request of so many tokens as sent now."""
        now, share = self._clock(), self._current_share()
        return Ticket(now, self._requests.take(now, 1, share), self._tokens.take(now, tokens, share))

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """Replaces the estimate by what the request used."""
        self._tokens.change(self._clock(), ticket.tokens, tokens, self._current_share())

    def answered(self) -> None:
        """Notes that the server took a request."""
        self._refusals = 0

    def correct(self, requests: Quota, tokens: Quota) -> None:
        """Goes by the server's own count where that leaves less than ours."""
        now = self._clock()
        self._requests.correct(now, requests)
        self._tokens.correct(now, tokens)

    def throttled(self, ticket: Ticket, retry_after: float | None) -> None:
        """Pauses and lowers the pace after a 429. `retry_after` in seconds, if the server said."""
        now, share = self._clock(), self._current_share()
        self._refusals += 1
        if retry_after is None:
            retry_after = full_jitter(FIRST_PAUSE, self._refusals)
        self.pause(retry_after)
        if ticket.sent >= self._share_since:  # those sent before the last cut say nothing new
            if not (self._requests.limit or self._tokens.limit):
                self._requests.guess(now)
            self._share, self._share_since = max(LOWEST, share * CUT), now

    def pause(self, seconds: float) -> None:
        """Sends nothing for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def rates(self) -> tuple[Rate, Rate]:
        """How the limits of requests and of tokens stand."""
        now, share = self._clock(), self._current_share()
        return self._requests.rate(now, share), self._tokens.rate(now, share)

    def paused(self) -> float:
        """Seconds that it is still paused."""
        return max(0.0, self._paused_until - self._clock())

    def _current_share(self) -> float:
        regained = self._share + (self._clock() - self._share_since) * RECOVERY
        # A guessed limit has no known top.
        return regained if self._requests.guessed else min(1.0, regained)


class _Meter:
    """One limit: an even pace, and never more than the limit within any WINDOW."""

    def __init__(self, limit: float):
        self.limit = float(limit)
        self.guessed = False
        self._given = float(limit)
        self._entries: collections.deque[_Entry] = collections.deque()
        self._used = 0.0
        self._next = -math.inf  # when the even pace allows the next request
        self._foreign = 0.0  # used by others of the same limit, as the server's count shows
        self._foreign_until = -math.inf

    def delay(self, now: float, amount: float, share: float) -> float:
        if not self.limit:
            return 0.0
        return max(0.0, self._next - now, self._until_room(now, amount, self.limit * share))

    def take(self, now: float, amount: float, share: float) -> _Entry:
        entry = _Entry(now, amount)
        self._entries.append(entry)
        self._used += amount
        spacing = self._spacing(amount, share)
        earliest = now if self._next == -math.inf else now - max(CATCH_UP, spacing)
        self._next = max(self._next, earliest) + spacing
        self._expire(now)
        return entry

    def change(self, now: float, entry: _Entry, amount: float, share: float) -> None:
        self._expire(now)
        more = amount - entry.amount
        entry.amount = amount
        if entry.sent > now - WINDOW:
            self._used += more
        self._next += self._spacing(more, share)

    def correct(self, now: float, quota: Quota) -> None:
        if quota.limit:
            self.limit = min(self._given or math.inf, float(quota.limit))
            self.guessed = False
        limit = quota.limit or self.limit
        if quota.remaining is not None and limit:
            self._expire(now)
            self._foreign = max(0.0, limit - quota.remaining - self._used)
            self._foreign_until = now + min(WINDOW, WINDOW if quota.reset is None else max(0.0, quota.reset))

    def guess(self, now: float) -> None:
        """Takes what was sent in the last minute for the limit, which nobody has told."""
        self._expire(now)
        self.limit, self.guessed = max(LOWEST_GUESS, self._used), True

    def rate(self, now: float, share: float) -> Rate:
        self._expire(now)
        return Rate(self._used, self.limit * share)

    def _spacing(self, amount: float, share: float) -> float:
        return amount * WINDOW / (self.limit * share) if self.limit else 0.0

    def _until_room(self, now: float, amount: float, limit: float) -> float:
        """Seconds until `amount` fits; one that is greater than the limit fits alone."""
        self._expire(now)
        excess = self._used + min(amount, limit) - limit
        if now >= self._foreign_until:
            return self._until_freed(now, excess)
        without_foreign = max(self._foreign_until - now, self._until_freed(now, excess))
        return min(without_foreign, self._until_freed(now, excess + self._foreign))

    def _until_freed(self, now: float, excess: float) -> float:
        """Seconds until so much of what was sent has left the window; infinity if all is too little."""
        if excess <= ROUNDING:
            return 0.0
        for entry in self._entries:
            excess -= entry.amount
            if excess <= ROUNDING:
                return entry.sent + WINDOW - now
        return math.inf

    def _expire(self, now: float) -> None:
        while self._entries and self._entries[0].sent <= now - WINDOW:
            self._used -= self._entries.popleft().amount
        if not self._entries:
            self._used = 0.0  # sums of floats drift
