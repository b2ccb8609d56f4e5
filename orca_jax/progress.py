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
NARROW = 100  # columns of a terminal, below which there is no bar


@contextlib.contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Report]:
    """Yields `report(done, note="")`, which shows the progress."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, total, done)
        return
    narrow, bar = console.width < NARROW, rich_progress.BarColumn()
    columns = [
        rich_progress.TextColumn("{task.description}"),
        *([] if narrow else [bar]),
        rich_progress.MofNCompleteColumn(),
        *([] if narrow else [rich_progress.TimeElapsedColumn()]),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
    ]
    # Texts are cut to what numbers leave, since rich would cut the numbers too.
    room = console.width - 2 * len(f"{total or 0} ") - len(" 0:00:00  ") - (0 if narrow else 20)
    title = _cut(title, room)
    with rich_progress.Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")
        yield lambda done, note="": bars.update(task, completed=done, note=_cut(note, room - len(title) - 1))


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(0, room - 1)]}…"[: max(0, room)]


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
