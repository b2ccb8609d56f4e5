"""What a server's headers and words say about its limits: x-ratelimit-* and Retry-After, in all forms."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import math
import re
import time
from collections.abc import Mapping

LONGEST = 3_600.0  # seconds; a server that asks for more is asked again after an hour
ERA = 10 * 365 * 86_400.0  # a number of seconds this near to now's since 1970 is a moment
_SCALE = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_AMOUNT = r"\d+(?:\.\d+)?"
_UNIT = r"milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d"
_PART = re.compile(rf"({_AMOUNT})\s*({_UNIT})(?![a-z])[\s,]*", re.IGNORECASE)
_WORDS = re.compile(
    rf"(?:try again|retry) (?:in|after)\s+((?:{_AMOUNT}\s*(?:{_UNIT})(?![a-z])[\s,]*)+|{_AMOUNT})",
    re.IGNORECASE,
)


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
    "retry after 7 seconds"). At least 0 and at most `LONGEST`.
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
    return None if wait is None else min(max(_from_now(wait, since), 0.0), LONGEST)


def seconds(text: str) -> float | None:
    """A duration in seconds: "7", "0.5", "6m0s", "12ms", "1h2m3.5s", "7 seconds"; None for anything else."""
    number = _number(text)
    if number is not None or not text.strip() or _PART.sub("", text.strip()):
        return number
    return math.fsum(float(amount) * _scale(unit.lower()) for amount, unit in _PART.findall(text))


def _scale(unit: str) -> float:
    return _SCALE["ms" if unit.startswith(("ms", "milli")) else unit[0]]


def _from_now(wait: float, now: float) -> float:
    """Seconds from now, where `wait` is a moment in seconds or milliseconds since 1970."""
    moments = (moment for moment in (wait, wait / 1000) if abs(moment - now) < ERA)
    return next((moment - now for moment in moments), wait)


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
