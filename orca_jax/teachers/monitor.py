"""What a collection shows while it runs and afterwards: done, rates, tokens, money, end, outcomes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orca_jax.config import Limits
from orca_jax.scrubbing import scrub
from orca_jax.teachers.ledger import Status

LIVE_SECONDS, PLAIN_SECONDS = 2.0, 15.0
LOOKING = 0.05  # most of the time that may go into looking: reading a great ledger takes a while


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How a collection stands: `done` of `total` requests, money in US dollars, `cap` of it (0: none).

    `status` is of all that the ledger holds for this model, `note` what holds it up.
    """

    name: str
    total: int
    done: int
    status: Status
    limits: Limits
    money: float
    cap: float
    note: str = ""

    def columns(self) -> dict[str, str]:
        """What is shown, by title, without secrets."""
        status = self.status
        outcomes = [f"{outcome} {count:,}" for outcome, count in sorted(status.attempts.items())]
        outcomes += [f"in flight {status.in_flight:,}"] if status.in_flight else []
        columns = {
            "teacher": self.name,
            "done": f"{self.done:,} of {self.total:,}",
            "requests/min": _of(status.recent, self.limits.requests),
            "tokens/min": _of(status.recent_usage.total, self.limits.tokens),
            "tokens": f"{status.usage.prompt_tokens:,} + {status.usage.completion_tokens:,}",
            "USD": f"{self.money:,.2f}" + (f" of {self.cap:,.2f}" if self.cap else ""),
            "end": self.end(),
            "attempts": ", ".join(outcomes) or "none",
            "note": self.note,
        }
        return {title: scrub(text) for title, text in columns.items()}

    def end(self) -> str:
        """When it is done, should each minute be like the last; else how long it has stood still."""
        left, status = self.total - self.done, self.status
        if left <= 0:
            return "done"
        if status.recent:
            return "in " + _duration(left / status.recent * 60)
        return f"no reply for {_duration(time.time() - status.last)}" if status.last else "not begun"


def table(stands: Iterable[Progress]) -> Table:
    """One row a teacher, for a terminal."""
    rows = [stand.columns() for stand in stands]
    made = Table(*(rows[0] if rows else ()))
    for row in rows:
        made.add_row(*row.values())
    return made


def line(stand: Progress) -> str:
    """The same in plain text."""
    name, *rest = stand.columns().items()
    return f"{name[1]}: " + "; ".join(f"{title} {text}" for title, text in rest if text)


@contextlib.contextmanager
def watch(look: Callable[[], Progress]) -> Iterator[Callable[[], None]]:
    """Shows what `look` returns: a panel on a terminal, plain lines elsewhere.

    Yields a function to be called often; it looks when it is time to, and once more at the end.
    """
    console = Console(stderr=True)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    seconds, due = LIVE_SECONDS if live else PLAIN_SECONDS, 0.0

    def show() -> None:
        nonlocal due
        started = time.monotonic()
        stand = look()
        due = time.monotonic() + max(seconds, (time.monotonic() - started) / LOOKING)
        if live is not None:
            live.update(table([stand]), refresh=True)
        else:
            print(line(stand), file=sys.stderr, flush=True)

    with live or contextlib.nullcontext():
        show()
        try:
            yield lambda: show() if time.monotonic() >= due else None
        finally:
            show()


def _of(used: float, limit: float) -> str:
    return f"{used:,.0f} of {limit:,.0f}" if limit else f"{used:,.0f}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
