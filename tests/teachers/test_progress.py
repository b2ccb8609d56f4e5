"""What a collection shows: from the ledger, as a panel on a terminal and in lines elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from orca_jax.config_teachers import ApiConfig, Limits, OpenAIConfig
from orca_jax.records import Message, Outcome, Reply, Usage
from orca_jax.teachers import collection
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Attempt, Ledger, Status


def record(ledger, count, outcome=Outcome.OK, ago=0.0, start=0):
    ledger.record(
        Attempt(
            "gpt-4",
            Request((Message("user", str(number)),)),
            Reply(outcome, "So.", Usage(100, 50)),
            1.5,
            time.time() - ago,
        )
        for number in range(start, start + count)
    )


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def look(ledger, **changes):
    status = ledger.status().get("gpt-4", Status())
    end = OpenAIConfig(model="gpt-4", limits=Limits(requests=18, tokens=10_000))
    api = ApiConfig(endpoints=(end,), budget_money=20.0)
    about = collection.Collection(teacher="dear", identity="gpt-4", requests=100, api=api)
    settings = {"about": about, "limits": api.limits, "money": 1.25, "done": min(status.answers, 100)}
    return collection.Progress(**settings | {"status": status} | changes)


def test_while_it_runs(ledger):
    record(ledger, 9)
    record(ledger, 1, Outcome.FILTERED, start=9)
    record(ledger, 2, Outcome.ERROR, start=10)
    assert look(ledger, note="paused").columns() == {
        "teacher": "dear",
        "done": "10 of 100",
        "requests/min": "12 of 18",
        "tokens/min": "1,800 of 10,000",
        "tokens": "1,200 + 600",
        "USD": "1.25 of 20.00",
        "end": "in 7.5 min",
        "attempts": "error 2, filtered 1, ok 9",
        "note": "paused",
    }


def test_after_it_died(ledger):
    record(ledger, 10, ago=3 * 3600)
    ledger.note("gpt-4", [(Request((Message("user", "on its way"),)), Usage(1, 2))])
    columns = look(ledger, limits=Limits()).columns()
    assert columns["end"] == "no reply for 3.0 h"
    assert columns["attempts"] == "ok 10, in flight 1"
    assert (columns["requests/min"], columns["USD"]) == ("0", "1.25 of 20.00")


def test_before_and_after(ledger):
    assert look(ledger).columns()["end"] == "not begun"
    record(ledger, 200)
    assert look(ledger).columns()["end"] == "done"


def test_another_model_that_was_asked_more_since_hides_nothing(ledger):
    record(ledger, 3, ago=3 * 3600)
    asked = Request((Message("user", "others"),))
    ledger.record([Attempt("other", asked, Reply(Outcome.OK, "So."), 1.0, time.time())] * 6)
    assert look(ledger).columns()["end"] == "no reply for 3.0 h"


def test_in_a_line(ledger):
    record(ledger, 10)
    assert collection.line(look(ledger)).startswith("dear: done 10 of 100; requests/min 10 of 18; ")


@pytest.mark.parametrize("terminal", [True, False])
def test_is_shown_as_time_passes_and_at_the_end(ledger, monkeypatch, capsys, terminal):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=250)
    monkeypatch.setattr(collection, "Console", lambda **_: console)
    monkeypatch.setattr(collection, "LIVE_SECONDS", 0.1)
    monkeypatch.setattr(collection, "PLAIN_SECONDS", 0.1)
    monkeypatch.setattr(collection, "LOOKING", 1.0)
    with collection.watch(lambda: look(ledger)) as tick:
        for number in range(5):
            record(ledger, 1, start=number)
            tick()
        time.sleep(0.15)
        tick()
        record(ledger, 1, start=5)
    said = shown.getvalue() if terminal else capsys.readouterr().err
    found = list(map(int, re.findall(r"(\d+) of 100", said)))
    assert (found[0], found[-1]) == (0, 6)
    assert 5 in found
    assert len(found) <= 6
