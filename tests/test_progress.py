"""Progress: seldom and plain where nobody watches, a bar on a terminal."""

import re

import pytest

from orca_jax import progress as module
from orca_jax.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """Time that a test sets, in seconds."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_plain_lines_come_seldom_and_at_the_end(clock, capsys):
    with progress("packing", 40) as report:
        for done in range(1, 41):
            clock.now += 1.0
            report(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["packing: 15/40", "packing: 30/40", "packing: 40/40"]


def test_time_left_is_reckoned_from_what_this_run_did(clock, capsys):
    with progress("collecting", 100, done=60) as report:
        clock.now += 20
        report(80, "8 refused")
    assert capsys.readouterr().err == "collecting: 80/100, 20 s, 20 s left 8 refused\n"


def test_an_unknown_total_has_no_time_left(clock, capsys):
    with progress("reading", None) as report:
        clock.now += 20
        report(7)
    assert capsys.readouterr().err == "reading: 7, 20 s\n"


def test_nothing_is_said_of_work_that_is_quick_or_stands_still(clock, capsys):
    with progress("collecting", 100, done=60) as report:
        report(61)
        clock.now += 16
        report(60)
    assert capsys.readouterr().err == "collecting: 60/100, 16 s\n"


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("packing", 40) as report:
        report(40, "a note")
    shown = capsys.readouterr().err
    for part in ("packing", "40/40", "a note"):
        assert part in shown


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_the_numbers_whole_in_one_line_and_no_colour_where_none_is_wanted(
    monkeypatch, capsys, columns
):
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    with progress("evaluating puzzles under system message 16, step by step", 3000) as report:
        report(3000, "a note that is as long as the notes of training are")
    said = capsys.readouterr().err
    last = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", said).splitlines()[-1]
    assert "3000/3000 0:00:00" in last
    assert last.startswith("evaluating")
    assert len(last) <= columns
    assert not re.search(r"\x1b\[[\d;]*m", said)
