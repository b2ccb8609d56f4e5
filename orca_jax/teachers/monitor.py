"""What a collection shows while it runs and afterwards: done, rates, tokens, money, end, outcomes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orca_jax.config import Limits
from orca_jax.records import Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers.ledger import Ledger, Recent, Status
from orca_jax.teachers.pool import MemberStatus

LIVE_SECONDS, PLAIN_SECONDS = 2.0, 15.0
MINUTE = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How a collection stands. `total` requests are planned, money in US dollars.

    Attributes:
      status: of all that the ledger holds for this model.
      recent: of the last minute; None where nothing came in it.
      last: when the last attempt ended, in Unix time; 0 where there was none.
      cap: of the money; 0: none.
      note: what holds it up.
    """

    name: str
    total: int
    done: int
    status: Status
    recent: Recent | None
    last: float
    limits: Limits
    money: float
    cap: float
    note: str = ""

    def columns(self) -> dict[str, str]:
        """What is shown, by title, without secrets."""
        status, usage = self.status, self.recent.usage if self.recent else Usage()
        requests = self.recent.attempts if self.recent else 0
        outcomes = [f"{outcome} {count:,}" for outcome, count in sorted(status.attempts.items())]
        outcomes += [f"in flight {status.in_flight:,}"] if status.in_flight else []
        columns = {
            "teacher": self.name,
            "done": f"{self.done:,} of {self.total:,}",
            "requests/min": _of(requests, self.limits.requests),
            "tokens/min": _of(usage.total, self.limits.tokens),
            "tokens": f"{status.usage.prompt_tokens:,} + {status.usage.completion_tokens:,}",
            "USD": f"{self.money:,.2f}" + (f" of {self.cap:,.2f}" if self.cap else ""),
            "end": self.end(requests),
            "attempts": ", ".join(outcomes) or "none",
            "note": self.note,
        }
        return {title: scrub(text) for title, text in columns.items()}

    def end(self, a_minute: int) -> str:
        """When it is done, should so many be answered in each minute; else how long it has stood still."""
        if self.done >= self.total:
            return "done"
        if a_minute:
            return "in " + _duration((self.total - self.done) / a_minute * MINUTE)
        return f"no reply for {_duration(time.time() - self.last)}" if self.last else "not begun"


def progress(
    ledger: Ledger,
    identity: str,
    *,
    name: str,
    total: int,
    limits: Limits,
    money: float,
    cap: float,
    done: int | None = None,
    note: str = "",
) -> Progress:
    """Reads how a collection stands; `done` by default is what the ledger holds for this model."""
    status = ledger.status().get(identity, Status())
    recent = ledger.recent(MINUTE).get(identity)
    last = ledger.last(identity) if status.attempts and not recent else 0.0
    return Progress(
        name=name,
        total=total,
        done=min(status.answers, total) if done is None else done,
        status=status,
        recent=recent,
        last=recent.last if recent else last,
        limits=limits,
        money=money,
        cap=cap,
        note=note,
    )


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


def hindrances(members: Iterable[MemberStatus]) -> str:
    """Which endpoints of a pool are paused or left out."""
    paused = [f"{one.label} paused {one.paused:.0f} s" for one in members if one.paused and not one.refused]
    return "; ".join(paused + [f"{one.label} left out" for one in members if one.refused])


def limits(members: Sequence[MemberStatus]) -> Limits:
    """The limits of a pool's endpoints together, as far as the servers have told them; 0 for none known."""
    left = [one for one in members if not one.refused]
    return Limits.together([one.requests.limit for one in left], [one.tokens.limit for one in left])


@contextlib.contextmanager
def watch(look: Callable[[], Progress]) -> Iterator[Callable[[], None]]:
    """Shows what `look` returns: a panel on a terminal, plain lines elsewhere.

    Yields a function to be called often; it looks when it is time to, and once more at the end.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _shown(PLAIN_SECONDS, lambda: print(line(look()), file=sys.stderr, flush=True))
        return
    with Live(console=console, auto_refresh=False) as live:
        yield from _shown(LIVE_SECONDS, lambda: live.update(table([look()]), refresh=True))


def _shown(seconds: float, show: Callable[[], None]) -> Iterator[Callable[[], None]]:
    last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            show()

    show()
    try:
        yield tick
    finally:
        show()


def _of(used: float, limit: float) -> str:
    return f"{used:,.0f} of {limit:,.0f}" if limit else f"{used:,.0f}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
