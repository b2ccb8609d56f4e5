"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress as rich_progress
from rich.console import Console

Report = Callable[..., None]
PLAIN_SECONDS = 15.0


@contextlib.contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Report]:
    """Yields `report(done, note="")`, which shows the progress."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, total, done)
        return
    columns = [
        rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(), rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(), rich_progress.TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    with rich_progress.Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")
        yield lambda done, note="": bars.update(task, completed=done, note=note)


def _plain(title: str, total: int | None, done: int) -> Report:
    started = last = time.monotonic()
    first = done

    def report(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        finished = total is not None and done >= total
        if now - last < PLAIN_SECONDS and not finished:
            return
        last = now
        rate = (done - first) / max(now - started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if total and rate > 0 and not finished else ""
        of = f"/{total}" if total is not None else ""
        line = f"{title}: {done}{of}, {now - started:.0f} s{left} {note}".rstrip()
        print(line, file=sys.stderr, flush=True)

    return report
