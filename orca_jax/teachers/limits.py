"""What limits the requests to an endpoint: its rate limits, as it states them, and a budget.

Rate limits: requests and tokens a minute, at an even pace, as far as the server allows. `Limiter` waits for
nothing: it says how long to wait (`delay`), and is told what was sent (`take`), what that used in truth
(`settle`) and what the server said (`correct`, `throttled`). Time comes from a clock that is passed in.
Budget: what a request can cost at most is reserved before it is sent, so the cap is never exceeded.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import email.utils
import math
import random
import re
import time
from collections.abc import Callable, Mapping

from orca_jax.config import Limits, Price
from orca_jax.records import Usage
from orca_jax.teachers.endpoint import CollectionStopped

LONGEST_BACKOFF = 60.0  # seconds
BATCH_PRICE = 0.5  # of the usual price (OpenAI's and Azure's batch pricing)
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
LONGEST_WAIT = 3_600.0  # seconds; a server that asks for more gets the next request after an hour
ERA = 10 * 365 * 86_400.0  # a number of seconds this near to now's since 1970 is a moment
_SCALE = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_AMOUNT = r"\d+(?:\.\d+)?"
_UNIT = r"milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d"
_PART = re.compile(rf"({_AMOUNT})\s*({_UNIT})(?![a-z])[\s,]*", re.IGNORECASE)
_WORDS = re.compile(
    rf"(?:try again|retry) (?:in|after)\s+((?:{_AMOUNT}\s*(?:{_UNIT})(?![a-z])[\s,]*)+|{_AMOUNT})",
    re.IGNORECASE,
)


class Signal:
    """Wakes all who wait when something has changed. Belongs to no event loop, unlike asyncio.Event."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        """Returns at the next `notify`, or after `timeout` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=timeout)
        finally:
            self._waiting.discard(future)


def full_jitter(base: float, failures: int) -> float:
    """Seconds to wait after so many failures: uniform in [0, base * 2^(failures - 1)], at most a minute.

    Full jitter spreads requests that failed together better than a fixed or a slightly varied wait.
    """
    return random.uniform(0.0, min(LONGEST_BACKOFF, base * 2.0 ** min(failures - 1, 30)))


# What a server says


@dataclasses.dataclass(frozen=True, slots=True)
class Quota:
    """What a server says of one limit; None where it does not say. `reset` is in seconds from now."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None


def quota(headers: Mapping[str, str], of: str) -> Quota:
    """The x-ratelimit headers of `of`, which is "requests" or "tokens". Headers by lower-case name."""
    limit = _count(headers.get(f"x-ratelimit-limit-{of}"))
    reset = headers.get(f"x-ratelimit-reset-{of}")
    return Quota(
        limit=limit if limit else None,  # proxies write 0 where there is no limit
        remaining=_count(headers.get(f"x-ratelimit-remaining-{of}")),
        reset=seconds(reset) if reset else None,
    )


def retry_after(headers: Mapping[str, str], message: str = "", now: float | None = None) -> float | None:
    """How many seconds the server asks to wait, or None.

    Read from `retry-after-ms`, `retry-after` (seconds, or a moment: a date, or seconds or milliseconds since
    1970; it counts from the server's own `date`), or the error's words ("Please try again in 1m26.4s",
    "retry after 7 seconds"). At least 0 and at most `LONGEST_WAIT`.
    """
    server = _moment(headers.get("date", ""))
    since = server if server is not None else time.time() if now is None else now
    milliseconds = _number(headers.get("retry-after-ms"))
    value = headers.get("retry-after", "")
    wait = milliseconds / 1000 if milliseconds is not None else seconds(value)
    if wait is None and (date := _moment(value)) is not None:
        wait = date - since
    if wait is None and (words := _WORDS.search(message)):
        wait = seconds(words[1])
    if wait is None:
        return None
    moments = (moment for moment in (wait, wait / 1000) if abs(moment - since) < ERA)
    wait = next((moment - since for moment in moments), wait)
    return min(max(wait, 0.0), LONGEST_WAIT)


def seconds(text: str) -> float | None:
    """A duration in seconds: "7", "0.5", "6m0s", "12ms", "1h2m3.5s", "7 seconds"; None for anything else."""
    number = _number(text)
    if number is not None or not text.strip() or _PART.sub("", text.strip()):
        return number
    found = ((float(amount), unit.lower()) for amount, unit in _PART.findall(text))
    return math.fsum(
        amount * _SCALE["ms" if unit.startswith(("ms", "milli")) else unit[0]] for amount, unit in found
    )


def _moment(date: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _count(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number is not None and number >= 0 else None


# Rate limits


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
        """Takes what was sent in the last minute for the limit, where none is known."""
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


# Budget


class BudgetSpent(CollectionStopped):
    """The next request could exceed the budget."""

    exit_status = 3  # of the program that it ends


@dataclasses.dataclass(slots=True)
class Reservation:
    """What one request may cost; `Budget.settle` ends it."""

    money: float
    tokens: int
    open: bool = True


class Budget:
    """Money (US dollars) and tokens that may be spent, None for no cap; shared by all that spend of it.

    `money_spent` and `tokens_spent` count what was used, `spend` adds what earlier runs used.
    """

    def __init__(self, money: float | None = None, tokens: int | None = None):
        if (money is not None and not money >= 0) or (tokens is not None and tokens < 0):
            raise ValueError(
                f"a budget of {money} USD and {tokens} tokens; give 0 or more, or None for no cap"
            )
        self.money, self.tokens = money, tokens
        self.money_spent, self.tokens_spent = 0.0, 0
        self._money_reserved, self._tokens_reserved, self._reservations = 0.0, 0, 0
        self._changed = Signal()

    def spend(self, usage: Usage, price: Price) -> None:
        """Counts what was used without a reservation."""
        self.money_spent += price.cost(usage)
        self.tokens_spent += usage.total

    async def reserve(self, bound: Usage, price: Price) -> Reservation:
        """Reserves what a request can cost; waits while requests in flight may give back enough.

        Raises:
          BudgetSpent: it does not fit, and nothing is in flight.
        """
        while (reservation := self.try_reserve(bound, price)) is None:
            await self._changed.wait()
        return reservation

    def try_reserve(self, bound: Usage, price: Price) -> Reservation | None:
        """Like `reserve`, but returns None where that waits."""
        wanted = Reservation(price.cost(bound), bound.total)
        money = self.money_spent + self._money_reserved + wanted.money
        tokens = self.tokens_spent + self._tokens_reserved + wanted.tokens
        if (self.money is not None and money > self.money) or (
            self.tokens is not None and tokens > self.tokens
        ):
            if not self._reservations:
                raise BudgetSpent(self._spent_message(wanted))
            return None
        return self._take(wanted)

    def hold(self, bound: Usage, price: Price) -> Reservation:
        """Reserves for what is under way already, whether it fits or not."""
        return self._take(Reservation(price.cost(bound), bound.total))

    def settle(self, reservation: Reservation, usage: Usage, price: Price) -> None:
        """Ends a reservation and counts what was used instead. Only the first call counts."""
        if not reservation.open:
            return
        reservation.open = False
        self._reservations -= 1
        self._tokens_reserved -= reservation.tokens
        # Sums of floats drift; with nothing reserved the sum is known.
        self._money_reserved = self._money_reserved - reservation.money if self._reservations else 0.0
        self.spend(usage, price)
        self._changed.notify()

    def _take(self, wanted: Reservation) -> Reservation:
        self._money_reserved += wanted.money
        self._tokens_reserved += wanted.tokens
        self._reservations += 1
        return wanted

    def _spent_message(self, wanted: Reservation) -> str:
        caps = [f"{self.money:.2f} USD"] if self.money is not None else []
        caps += [f"{self.tokens} tokens"] if self.tokens is not None else []
        return (
            f"the budget of {' and '.join(caps)} is spent ({self.money_spent:.2f} USD, "
            f"{self.tokens_spent} tokens; the next request can cost {wanted.money:.4f} USD, "
            f"{wanted.tokens} tokens): raise it to go on"
        )
