"""Small tools for waiting: a signal for whoever waits, and back-off with full jitter."""

from __future__ import annotations

import asyncio
import random

LONGEST_BACKOFF = 60.0


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
