"""What limits the requests to an endpoint: its rate limits, as it states them, and a budget.

A `Bucket` keeps an even pace: what a request can use is taken before it is sent, and the unused part is
given back when the usage is known. A `Budget` reserves what a request can cost at most.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import math
import random
import re
import time
from collections.abc import Mapping

from orca_jax.config_teachers import Price
from orca_jax.records import Usage
from orca_jax.teachers.endpoint import CollectionStopped

LONGEST_BACKOFF = 60.0  # seconds
BATCH_PRICE = 0.5  # of the usual price (OpenAI's and Azure's batch pricing)
# A limit's amount is spread over so many seconds, and CATCH_UP are made up for after a stall of this process.
# What is sent late and travels fast must not meet, within the server's minute, what was sent early.
WINDOW = 60.9
CATCH_UP = 0.5
LONGEST_WAIT = 3_600.0  # seconds; a server that asks for more gets the next request after an hour
_SCALE = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_AMOUNT = r"\d+(?:\.\d+)?"
_UNIT = r"milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d"
_PART = re.compile(rf"({_AMOUNT})\s*({_UNIT})(?![a-z])[\s,]*", re.IGNORECASE)
_WORDS = re.compile(
    rf"(?:try again|retry) (?:in|after)\s+((?:{_AMOUNT}\s*(?:{_UNIT})(?![a-z])[\s,]*)+|{_AMOUNT})",
    re.IGNORECASE,
)


def full_jitter(base: float, failures: int) -> float:
    """Seconds to wait after so many failures: uniform in [0, base * 2^(failures - 1)], at most a minute.

    Full jitter spreads requests that failed together better than a fixed or a slightly varied wait.
    """
    return random.uniform(0.0, min(LONGEST_BACKOFF, base * 2.0 ** min(failures - 1, 30)))


@dataclasses.dataclass(frozen=True, slots=True)
class Quota:
    """What a server says of one limit; None where it does not say. `reset` is in seconds from now."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None


def quota(headers: Mapping[str, str], of: str) -> Quota:
    """The x-ratelimit headers of `of`, which is "requests" or "tokens". Headers by lower-case name."""
    limit, remaining = (_number(headers.get(f"x-ratelimit-{what}-{of}")) for what in ("limit", "remaining"))
    return Quota(
        limit=int(limit) if limit and limit > 0 else None,  # proxies write 0 where there is no limit
        remaining=int(remaining) if remaining is not None and remaining >= 0 else None,
        reset=seconds(headers.get(f"x-ratelimit-reset-{of}", "")),
    )


def retry_after(headers: Mapping[str, str], message: str = "", now: float | None = None) -> float | None:
    """How many seconds the server asks to wait, or None.

    Read from `retry-after-ms`, `retry-after` (seconds, or a date, which counts from the server's own `date`),
    or the error's words ("Please try again in 1m26.4s", "retry after 7 seconds"). At least 0 and at most
    `LONGEST_WAIT`.
    """
    milliseconds, value = _number(headers.get("retry-after-ms")), headers.get("retry-after", "")
    wait = milliseconds / 1000 if milliseconds is not None else seconds(value)
    if wait is None and (date := _moment(value)) is not None:
        since = _moment(headers.get("date", ""))
        wait = date - (since or now or time.time())
    if wait is None and (words := _WORDS.search(message)):
        wait = seconds(words[1])
    return None if wait is None else min(max(wait, 0.0), LONGEST_WAIT)


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


class Bucket:
    """One limit, of `limit` a minute; 0: not known. Times are in seconds of one monotonic clock.

    Amounts that stay as they were taken never exceed the limit in any sixty seconds. Of others, a minute's
    sum can exceed it by what was given back in it of requests sent before.
    """

    def __init__(self, limit: float, now: float):
        self.limit = self._given = float(limit)
        self._next = now  # when the pace allows the next request
        self._behind = 0.0  # seconds that `_next` may be behind the clock by what was given back
        self._left, self._left_at = self.limit, now  # what the server allows, by what it says

    def delay(self, now: float, amount: float) -> float:
        """Seconds until so much may be sent; more than the whole limit goes alone."""
        if not self.limit:
            return 0.0
        short = min(amount, self.limit) - self._left_now(now)
        return max(0.0, self._next - now, short * WINDOW / self.limit)

    def take(self, now: float, amount: float) -> None:
        """Counts so much as sent now."""
        if self.limit:
            self._left, self._left_at = self._left_now(now), now
            self._next = max(self._next, now - CATCH_UP - self._behind)
            self.settle(0, amount)
            self._behind = min(self._behind, max(0.0, now - self._next))

    def settle(self, taken: float, used: float) -> None:
        """Gives back what a request took and did not use."""
        if self.limit:
            more = min(used, self.limit) - min(taken, self.limit)
            self._left -= more
            self._next += more * WINDOW / self.limit
            self._behind += max(0.0, -more * WINDOW / self.limit)

    def correct(self, now: float, said: Quota) -> None:
        """Takes over the limit and what remains of it that the server states, where that is less."""
        if said.limit:
            self._left, self._left_at = self._left_now(now) if self.limit else said.limit, now
            self.limit = min(self._given or math.inf, float(said.limit))
        if said.remaining is not None and self.limit:
            self._left, self._left_at = min(self._left_now(now), said.remaining), now
            if not said.remaining and said.reset:
                self._next = max(self._next, now + min(said.reset, WINDOW))

    def _left_now(self, now: float) -> float:
        return min(self.limit, self._left + (now - self._left_at) * self.limit / WINDOW)


class BudgetSpent(CollectionStopped):
    """The next request could exceed the budget."""

    exit_status = 3  # of the program that it ends


class Budget:
    """Money (US dollars) and tokens that may be spent, None for no cap; shared by all that spend of it.

    `money_spent` and `tokens_spent` count what was used, `spend` adds what earlier runs used.
    """

    def __init__(self, money: float | None = None, tokens: int | None = None):
        self.money, self.tokens = money, tokens
        self.money_spent, self.tokens_spent = 0.0, 0
        self._money_reserved, self._tokens_reserved, self._reservations = 0.0, 0, 0

    def spend(self, usage: Usage, price: Price) -> None:
        """Counts what was used without a reservation."""
        self.money_spent += price.cost(usage)
        self.tokens_spent += usage.total

    def reserve(self, bound: Usage, price: Price) -> bool:
        """Reserves what a request can cost; False while requests in flight may give back enough.

        Raises:
          BudgetSpent: it does not fit, and nothing is in flight.
        """
        cost = price.cost(bound)
        money = self.money_spent + self._money_reserved + cost
        tokens = self.tokens_spent + self._tokens_reserved + bound.total
        if (self.money is None or money <= self.money) and (self.tokens is None or tokens <= self.tokens):
            self.hold(bound, price)
            return True
        if self._reservations:
            return False
        caps = [f"{self.money:.2f} USD"] if self.money is not None else []
        caps += [f"{self.tokens} tokens"] if self.tokens is not None else []
        raise BudgetSpent(
            f"the budget of {' and '.join(caps)} is spent ({self.money_spent:.2f} USD, "
            f"{self.tokens_spent} tokens; the next request can cost {cost:.4f} USD, "
            f"{bound.total} tokens): raise it to go on"
        )

    def hold(self, bound: Usage, price: Price) -> None:
        """Reserves for what is under way already, whether it fits or not."""
        self._money_reserved += price.cost(bound)
        self._tokens_reserved += bound.total
        self._reservations += 1

    def settle(self, bound: Usage, used: Usage, price: Price) -> None:
        """Ends a reservation and counts what was used instead."""
        self._reservations -= 1
        self._tokens_reserved -= bound.total
        # Sums of floats drift; with nothing reserved the sum is known.
        self._money_reserved = self._money_reserved - price.cost(bound) if self._reservations else 0.0
        self.spend(used, price)
