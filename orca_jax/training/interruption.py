"""Ctrl-C and SIGTERM at a step's end instead of in its middle, where the state is half on the devices."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = os.EX_TEMPFAIL  # 75: nothing is wrong; run the same command again


class Interruption:
    """Whether a signal has come. A second one ends the program at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """While inside, signals are only noted; the handlers before come back after. Main thread only."""
    interruption = Interruption()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interruption) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_for(why: signal.Signals) -> NoReturn:
    """Ends the program as `why` asks: schedulers that preempt send SIGTERM, and start again what left so."""
    if why == signal.SIGTERM:
        raise SystemExit(AGAIN)
    raise KeyboardInterrupt(why.name)
