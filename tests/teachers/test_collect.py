"""Collecting: order, duplicates, retries, bounds, and that no stored reply is lost or paid for again."""

import asyncio
import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orca_jax.config_teachers import Limits
from orca_jax.records import Message, Outcome, Reply, Usage
from orca_jax.teachers import collect as collect_module
from orca_jax.teachers.collect import LOOK_AHEAD, collect, collect_all, collect_each
from orca_jax.teachers.endpoint import Request, request_id
from orca_jax.teachers.ledger import Attempt, Ledger, LedgerError
from orca_jax.teachers.pool import Pool
from tests.teachers.tried import answer

REPOSITORY = Path(__file__).resolve().parents[2]


class Echo:
    """Answers with the question; fails the first `failures` times for each question."""

    identity = "echo"

    def __init__(self, *, failures=0, seconds=0.0, error=None):
        self.failures = failures
        self.seconds = seconds
        self.error = error
        self.calls = []
        self.running = self.most = 0

    async def reply(self, messages, sampling):
        text = messages[-1].content
        self.calls.append(text)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            # Later questions are answered earlier.
            await asyncio.sleep(self.seconds / (1 + len(self.calls) % 5))
        finally:
            self.running -= 1
        if self.calls.count(text) <= self.failures:
            if self.error:
                raise self.error
            return Reply(Outcome.ERROR, "")
        return Reply(Outcome.OK, f"echo {text}", Usage(1, 2))


class Instant:
    identity = "instant"
    calls = 0

    async def reply(self, messages, sampling):
        self.calls += 1
        return Reply(Outcome.OK, messages[-1].content)


def requests(count, start=0):
    return [Request((Message("user", str(number)),)) for number in range(start, start + count)]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


class TestReplies:
    def test_come_in_the_order_of_the_requests(self, ledger):
        replies = collect_all(Echo(seconds=0.005), requests(80), ledger)
        assert [reply.text for reply in replies] == [f"echo {number}" for number in range(80)]

    def test_none(self, ledger):
        assert collect_all(Echo(), [], ledger) == []

    def test_stored_ones_are_not_paid_for_again(self, ledger):
        collect_all(Echo(), requests(40), ledger)
        endpoint, seen = Echo(), []
        replies = collect_all(endpoint, requests(60), ledger, on_reply=seen.append)
        assert sorted(endpoint.calls, key=int) == [str(number) for number in range(40, 60)]
        assert len(replies) == 60
        assert {asked.index for asked in seen if asked.stored} == set(range(40))
        assert sorted(asked.index for asked in seen) == list(range(60))
        assert all(asked.created.endswith("Z") for asked in seen)

    def test_equal_requests_are_asked_once(self, ledger):
        endpoint = Echo(seconds=0.002)
        replies = collect_all(endpoint, requests(3) * 200, ledger, concurrency=2)
        assert sorted(endpoint.calls) == ["0", "1", "2"]
        assert [reply.text for reply in replies] == ["echo 0", "echo 1", "echo 2"] * 200

    def test_equal_requests_are_asked_once_while_stored_ones_stream(self, ledger):
        class Slow(Echo):
            async def reply(self, messages, sampling):
                await asyncio.sleep(0.05)
                return await super().reply(messages, sampling)

        async def slowly():
            asked = [*requests(1, start=9999), *stored, *requests(1, start=9999)]
            async for _ in collect(endpoint, asked, ledger, concurrency=4):
                await asyncio.sleep(0.001)  # so that answers wait to be taken, before the second one's turn

        stored = requests(2 * LOOK_AHEAD - 2)
        collect_all(Echo(), stored, ledger, concurrency=500)
        endpoint = Slow()
        asyncio.run(slowly())
        assert endpoint.calls == ["9999"]

    def test_samples_are_asked_each(self, ledger):
        endpoint = Echo()
        collect_all(
            endpoint, [Request((Message("user", "q"),), sample=sample) for sample in range(3)], ledger
        )
        assert endpoint.calls == ["q"] * 3

    def test_are_committed_before_they_are_reported(self, ledger):
        with Ledger(ledger.path) as other:

            def check(asked):
                assert answer(other, request_id("echo", asked.request)).reply == asked.reply

            collect_all(Echo(seconds=0.001), requests(50), ledger, concurrency=4, on_reply=check)

    def test_another_process_answer_stands(self, ledger):
        class Late(Echo):
            async def reply(self, messages, sampling):
                with Ledger(ledger.path) as other:
                    other.record([Attempt("echo", requests(1)[0], Reply(Outcome.OK, "earlier"))])
                return await super().reply(messages, sampling)

        assert collect_all(Late(), requests(1), ledger)[0].text == "earlier"


class TestFailures:
    @pytest.mark.parametrize("error", [None, RuntimeError("broken")])
    def test_are_asked_again(self, ledger, error):
        endpoint = Echo(failures=2, error=error)
        replies = collect_all(endpoint, requests(6), ledger, concurrency=2, retries=2, backoff=0)
        assert [reply.outcome for reply in replies] == [Outcome.OK] * 6
        assert sorted(endpoint.calls) == sorted([str(number) for number in range(6)] * 3)

    def test_are_reported_when_retries_are_spent(self, ledger):
        replies = collect_all(
            Echo(failures=2, error=OSError("no route")), requests(2), ledger, retries=1, backoff=0
        )
        assert [reply.outcome for reply in replies] == [Outcome.ERROR] * 2
        assert replies[0].raw == {"error": "OSError: no route"}
        assert ledger.status()["echo"].attempts == {Outcome.ERROR: 4}
        assert collect_all(Echo(), requests(2), ledger)[1].text == "echo 1"

    def test_a_wrong_type_is_one(self, ledger):
        class Wrong(Instant):
            async def reply(self, messages, sampling):
                return "text"

        (reply,) = collect_all(Wrong(), requests(1), ledger, retries=0)
        assert reply.raw["error"] == "TypeError: endpoint instant returned 'text', not a Reply"

    def test_of_the_ledger_end_it(self, ledger):
        class Closing(Instant):
            async def reply(self, messages, sampling):
                ledger.close()
                return await super().reply(messages, sampling)

        with pytest.raises(LedgerError, match="closed"):
            collect_all(Closing(), requests(1), ledger)

    def test_are_asked_again_after_a_while(self, ledger):
        class Timed(Echo):
            async def reply(self, messages, sampling):
                times.append(time.monotonic())
                return await super().reply(messages, sampling)

        times = []
        collect_all(Timed(failures=3), requests(1), ledger, retries=3, backoff=0.1)
        assert len(times) == 4
        assert times[-1] - times[0] <= 0.1 + 0.2 + 0.4 + 0.5

    def test_of_the_source_end_it(self, ledger):
        def broken():
            yield from requests(5)
            raise KeyError("no such row")

        with pytest.raises(KeyError, match="no such row"):
            collect_all(Instant(), broken(), ledger)


class TestBounds:
    @pytest.mark.parametrize("concurrency", [1, 7, 2 * LOOK_AHEAD])
    def test_concurrency_is_reached_and_kept(self, ledger, concurrency):
        endpoint = Echo(seconds=0.02, failures=1)
        collect_all(endpoint, requests(min(3 * concurrency, 800)), ledger, concurrency=concurrency, backoff=0)
        assert endpoint.most == concurrency

    def test_requests_are_read_as_needed(self, ledger):
        read = 0

        def endless():
            nonlocal read
            for read in itertools.count(1):
                yield from requests(1, start=read)

        async def some(count):
            async with contextlib.aclosing(collect(Instant(), endless(), ledger)) as running:
                return [asked async for asked, _ in _zip(running, range(count))]

        assert len(asyncio.run(some(1000))) == 1000
        assert 1000 <= read <= 1000 + 3 * LOOK_AHEAD

    def test_new_requests_are_asked_while_stored_ones_stream(self, ledger):
        collect_all(Instant(), requests(2000), ledger, concurrency=500)
        endpoint = Instant()
        order = []
        collect_all(
            endpoint,
            requests(1, start=9999) + requests(2000),
            ledger,
            on_reply=lambda a: order.append(a.index),
        )
        assert endpoint.calls == 1
        assert order.index(0) < 3 * LOOK_AHEAD

    def test_an_instant_endpoint_is_asked_thousands_of_times_a_second(self, tmp_path):
        rates = []
        for number in range(2):  # the best: what else the machine does takes time off each
            with Ledger(tmp_path / f"{number}.sqlite") as ledger:
                started = time.process_time()
                collect_all(Instant(), requests(1500), ledger, concurrency=128)
                rates.append(1500 / (time.process_time() - started))
        assert max(rates) > 1000  # 7,000 were seen on one idle core


async def _zip(asynchronous, iterable):
    for entry in iterable:
        yield await anext(asynchronous), entry


class TestNotebooks:
    def test_inside_a_running_loop(self, ledger):
        async def cell():
            return collect_all(Echo(), requests(5), ledger)

        assert [reply.text for reply in asyncio.run(cell())] == [f"echo {number}" for number in range(5)]

    @pytest.mark.parametrize("moment", ["while it asks", "before it asks"])
    def test_an_interrupt_ends_it(self, ledger, moment, monkeypatch):
        def interrupt(_=None):
            os.kill(os.getpid(), signal.SIGINT)

        class Submitting(concurrent.futures.ThreadPoolExecutor):
            def submit(self, *arguments):
                submitted = super().submit(*arguments)
                interrupt()
                return submitted

        async def cell():
            collect_each(Echo(seconds=0.05), requests(10_000), ledger, seen.append)

        seen = Once(interrupt) if moment == "while it asks" else []
        if moment == "before it asks":
            monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Submitting)
        loop = asyncio.new_event_loop()  # as in a notebook, an interrupt is raised where the cell is
        with contextlib.closing(loop), pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        assert len(seen) < 10_000


class Once(list):
    """A list that calls `first` when the first entry comes."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def append(self, entry):
        super().append(entry)
        if len(self) == 1:
            self.first()


class TestTicks:
    def test_come_while_nothing_else_does(self, ledger, monkeypatch):
        monkeypatch.setattr(collect_module, "TICK", 0.01)
        seen = []
        collect_each(
            Echo(seconds=0.3),
            requests(1),
            ledger,
            lambda _: None,
            on_tick=lambda: seen.append(time.monotonic()),
        )
        assert len(seen) > 3

    def test_one_that_takes_its_time_holds_up_no_request(self, ledger):
        done = threading.Event()
        seen = []

        def reply(collected):
            seen.append(collected)
            if len(seen) == 300:
                done.set()

        def look():
            assert done.wait(10)

        collect_each(Echo(), requests(300), ledger, reply, on_tick=look)
        assert len(seen) == 300

    def test_an_error_in_one_is_not_lost(self, ledger):
        def fail():
            raise OSError("no terminal")

        with pytest.raises(OSError, match="no terminal"):
            collect_each(Echo(), requests(1), ledger, lambda _: None, on_tick=fail)


def test_a_ledger_that_fails_as_requests_go_out_ends_it(tmp_path):
    class Failing(Ledger):
        def note(self, identity, requests, batch=None):
            raise LedgerError("the disk is full")

    class Unsent:
        label = "unsent"

        async def close(self):
            pass

    with Failing(tmp_path / "ledger.sqlite") as ledger, pytest.raises(LedgerError, match="disk is full"):
        collect_all(Pool("unsent", [(Unsent(), Limits())]), requests(50), ledger)


def test_leaving_early_keeps_what_was_paid(ledger):
    endpoint = Echo(seconds=0.01)

    async def first():
        async with contextlib.aclosing(collect(endpoint, requests(100), ledger, concurrency=8)) as running:
            return await anext(running)

    assert asyncio.run(first()).reply.outcome is Outcome.OK
    assert endpoint.running == 0
    assert 0 < len(endpoint.calls) - ledger.status()["echo"].answers <= 8


COLLECT = """
import asyncio, json, os, sys
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.records import Message, Outcome, Reply

path, count, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
calls = open(path + ".calls", "ab", buffering=0)
reported = open(path + ".reported", "ab", buffering=0)


class Paid:
    identity = "paid"

    async def reply(self, messages, sampling):
        text = messages[-1].content
        calls.write(text.encode() + b"\\n")
        await asyncio.sleep(0.002 + int(text) % 7 / 1000)
        return Reply(Outcome.OK, text + " " + os.urandom(4).hex())


def report(asked):
    reported.write(json.dumps([asked.index, asked.reply.text]).encode() + b"\\n")


with Ledger(path) as ledger:
    requests = (Request((Message("user", str(number)),)) for number in range(count))
    collect_all(Paid(), requests, ledger, concurrency=concurrency, on_reply=report)
"""


class Collection:
    """A program that collects, to be killed."""

    count, concurrency = 400, 8

    def __init__(self, directory):
        self.path = directory / "ledger.sqlite"

    def start(self):
        arguments = [str(self.path), str(self.count), str(self.concurrency)]
        return subprocess.Popen(
            [sys.executable, "-c", COLLECT, *arguments], cwd=REPOSITORY, stderr=subprocess.DEVNULL
        )

    def stop(self, signal_number, *, after):
        """Runs until `after` more replies are reported, then kills."""
        program, goal = self.start(), len(self.reported()) + after
        while program.poll() is None and len(self.reported()) < goal:
            time.sleep(0.002)
        program.send_signal(signal_number)
        return program.wait()

    def calls(self):
        return collections.Counter(self._lines("calls"))

    def reported(self):
        return [tuple(json.loads(line)) for line in self._lines("reported")]

    def _lines(self, suffix):
        path = Path(f"{self.path}.{suffix}")
        return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []

    def stored(self):
        keys = {request_id("paid", one): number for number, one in enumerate(requests(self.count))}
        with Ledger(self.path) as ledger:
            return {keys[key]: answer.reply.text for key, answer in ledger.get_many(keys).items()}


def test_kill_and_resume(tmp_path):
    """Killed at several moments: no stored reply is lost, and none is paid for again."""
    collection = Collection(tmp_path)
    kills = [0, 1, 37, 90]
    for after in kills:
        calls_before, stored_before = collection.calls(), collection.stored()
        collection.stop(signal.SIGKILL, after=after)
        calls, stored = collection.calls() - calls_before, collection.stored()
        assert stored_before.items() <= stored.items()
        assert set(collection.reported()) <= set(stored.items())
        assert not calls.keys() & {str(number) for number in stored_before}
        assert calls.total() - (len(stored) - len(stored_before)) <= collection.concurrency
    assert collection.start().wait() == 0
    assert set(collection.stored()) == set(range(collection.count))
    assert set(collection.reported()) == set(collection.stored().items())
    assert collection.calls().total() - collection.count <= collection.concurrency * len(kills)


def test_an_interrupt_leaves_the_ledger_whole(tmp_path):
    collection = Collection(tmp_path)
    assert collection.stop(signal.SIGINT, after=50) != 0
    assert set(collection.reported()) <= set(collection.stored().items())
    assert collection.start().wait() == 0
    assert set(collection.stored()) == set(range(collection.count))


def test_one_process_at_a_time_asks_and_a_killed_one_is_no_hindrance(tmp_path):
    collection = Collection(tmp_path)
    first = collection.start()
    while not collection.reported():
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    paid = Echo()
    paid.identity = "paid"
    try:
        with Ledger(collection.path) as ledger:
            with pytest.raises(
                LedgerError, match=rf"process {first.pid} is collecting from paid .*run again when"
            ):
                collect_all(paid, requests(5), ledger)
            assert ledger.status()["paid"].answers > 0  # reading needs no leave
        assert not paid.calls
    finally:
        first.kill()
        first.wait()
    with Ledger(collection.path) as ledger:
        collect_all(paid, requests(collection.count), ledger)
    assert not set(paid.calls) & {str(number) for number, _ in collection.reported()}


def test_other_endpoints_may_be_asked_meanwhile(ledger):
    with Ledger(ledger.path) as other, other.claim("someone else"):
        assert collect_all(Echo(), requests(1), ledger)[0].text == "echo 0"
        with (
            pytest.raises(LedgerError, match="is collecting from someone else"),
            ledger.claim("someone else"),
        ):
            pass
    with ledger.claim("someone else"), ledger.claim("someone else"):
        pass
