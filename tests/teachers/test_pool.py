"""Several endpoints share one model's work: limits, refusals, budget, retries."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.config_teachers import Limits, Price
from orca_jax.records import ROLES, Message, Outcome, Sampling, Usage
from orca_jax.teachers import collect as collect_module
from orca_jax.teachers import completions, limits
from orca_jax.teachers.collect import LOOK_AHEAD, collect, collect_all, collect_each
from orca_jax.teachers.endpoint import CollectionStopped, EndpointRefused, Fault, Request, request_id
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.limits import Budget, BudgetSpent, Quota
from orca_jax.teachers.pool import Pool, bound
from tests.teachers.server import completion
from tests.teachers.tried import tried

PRICE = Price(prompt=0.001, completion=0.002)


def answered(status, body, headers=()):
    return dataclasses.replace(completions.read_json(status, body), status=status, headers=dict(headers))


class Sender:
    """An endpoint without a network. `answer(number)` is the JSON, a status, or an Answer."""

    def __init__(self, label="one", answer=lambda number: completion("So.", (5, 3)), seconds=0.0):
        self.label, self.answer, self.seconds = label, answer, seconds
        self.questions, self.times, self.closed = [], [], 0

    async def send(self, messages, sampling) -> Any:
        number = len(self.questions)
        self.questions.append(messages[-1].content)
        self.times.append(time.monotonic())
        await asyncio.sleep(self.seconds)
        answer = self.answer(number)
        if isinstance(answer, int):
            return answered(answer, {"error": {"message": f"status {answer}"}})
        return answered(200, answer) if isinstance(answer, dict) else answer

    async def close(self):
        self.closed += 1


def requests(count, **sampling):
    return [Request((Message("user", str(number)),), Sampling(**sampling)) for number in range(count)]


def pool(*senders, budget=None, **allowed):
    return Pool("teacher", [(one, Limits(**allowed)) for one in senders], budget=budget, price=PRICE)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


class TestSharing:
    def test_all_endpoints_work(self, ledger):
        senders = [Sender(name) for name in "abc"]
        replies = collect_all(pool(*senders), requests(300), ledger)
        assert {reply.text for reply in replies} == {"So."}
        assert [len(one.questions) for one in senders] == [100] * 3
        assert {reply.raw["endpoint"] for reply in replies} == {"a", "b", "c"}
        assert all(one.closed for one in senders)

    def test_each_within_its_own_limits(self, ledger):
        slow, fast = Sender("slow"), Sender("fast")
        both = Pool("teacher", [(slow, Limits(requests=240)), (fast, Limits(requests=1200))])
        collect_all(both, requests(48), ledger)
        assert 6 <= len(slow.questions) <= 10
        for one, gap in ((slow, 0.25), (fast, 0.05)):
            assert one.times[-1] - one.times[0] >= gap * (len(one.times) - 1) * 0.9

    def test_one_that_is_paused_leaves_its_work_to_the_others(self, ledger):
        def busy(number):
            return answered(429, {"error": {"message": "slow"}}, {"retry-after": "60"})

        paused, other = Sender("paused", busy), Sender("other")
        both = pool(paused, other)
        replies = collect_all(both, requests(50), ledger, concurrency=2, backoff=0)
        assert {reply.text for reply in replies} == {"So."}
        assert len(paused.questions) <= 2
        first, second = both.members
        assert 50 < first.paused <= 60
        assert (second.paused, second.refused) == (0, "")
        assert re.fullmatch(r"paused paused \d+ s", both.note)

    def test_what_holds_it_up_and_what_it_allows(self):
        three = Pool("teacher", [(Sender(name), Limits(requests=60)) for name in "abc"])
        three.members[1].tokens.correct(time.monotonic(), Quota(limit=900))
        busy = answered(429, {"error": {"message": "slow"}}, {"retry-after": "40"})
        for member in three.members[1:]:
            member.heed(busy)
        three.members[2].refused = "the key is wrong"
        assert three.note == "b paused 40 s; c left out"
        assert three.limits == Limits(requests=120)  # one endpoint's tokens are not known
        three.members[0].refused = "the key is wrong"
        assert three.limits == Limits(requests=60, tokens=900)

    def test_none(self):
        with pytest.raises(ValueError, match="teacher: a pool needs at least one endpoint"):
            pool()


class TestRefusals:
    def test_one_is_left_out_and_named(self, ledger, caplog):
        wrong, right = Sender("wrong", lambda number: 401), Sender("right")
        both = pool(wrong, right)
        replies = collect_all(both, requests(40), ledger, concurrency=4, backoff=0, retries=0)
        assert {reply.outcome for reply in replies} == {Outcome.OK}
        assert len(wrong.questions) <= 4
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "wrong: the key is wrong" in caplog.text
        assert "the key is wrong" in both.members[0].refused

    @pytest.mark.parametrize(("status", "word"), [(401, "key is wrong"), (404, "unknown"), (402, "quota")])
    def test_the_last_one_stops_it_at_once(self, ledger, status, word):
        one = Sender("one", lambda number: status)
        with pytest.raises(EndpointRefused, match=f"one: .*{word}"):
            collect_all(pool(one), requests(500), ledger, concurrency=8)
        assert len(one.questions) <= 8
        assert ledger.status()["teacher"].attempts == {Outcome.ERROR: len(one.questions)}
        with pytest.raises(EndpointRefused, match=word):
            collect_all(pool(one), requests(1), ledger)

    def test_answers_that_came_before_are_kept(self, ledger):
        one = Sender("one", lambda number: completion("So.") if number < 30 else 401)
        kept = []
        with pytest.raises(EndpointRefused):
            collect_each(pool(one), requests(500), ledger, kept.append, concurrency=8)
        assert ledger.status()["teacher"].answers == 30
        assert sum(asked.reply.outcome is Outcome.OK for asked in kept) == 30


class TestFaults:
    def test_limits_do_not_count_as_failures(self, ledger):
        slow = answered(429, {"error": {"message": "try again in 10ms"}})
        limited = Sender("limited", lambda number: slow if number < 5 else completion("So."))
        asked_pool = pool(limited, requests=60_000)
        (reply,) = collect_all(asked_pool, requests(1), ledger, retries=0, backoff=0.01)
        assert reply.text == "So."
        assert ledger.status()["teacher"].attempts == {Outcome.ERROR: 5, Outcome.OK: 1}

    def test_a_request_at_fault_is_not_asked_again(self, ledger):
        one = Sender("one", lambda number: 422 if number == 0 else completion("So."))
        replies = collect_all(pool(one), requests(3), ledger, retries=5, backoff=0)
        assert [reply.outcome for reply in replies] == [Outcome.ERROR, Outcome.OK, Outcome.OK]
        assert replies[0].raw["fault"] == Fault.REQUEST
        assert len(one.questions) == 3

    def test_a_filtered_one_is_never(self, ledger):
        one = Sender("one", lambda number: completion(None, finish_reason="content_filter"))
        for _ in range(3):
            (reply,) = collect_all(pool(one), requests(1), ledger, retries=5)
            assert reply.outcome is Outcome.FILTERED
        assert len(one.questions) == 1

    def test_a_server_that_fails_is_asked_again(self, ledger):
        one = Sender("one", lambda number: 500 if number < 3 else completion("So."))
        assert collect_all(pool(one), requests(1), ledger, retries=3, backoff=0.01)[0].text == "So."

    def test_a_server_that_fails_may_say_how_long(self, ledger):
        def overloaded(number):
            busy = answered(503, {"error": {"message": "overloaded"}}, {"retry-after-ms": "300"})
            return busy if number == 0 else completion("So.")

        one = Sender("one", overloaded)
        collect_all(pool(one), requests(1), ledger, backoff=0)
        assert one.times[1] - one.times[0] >= 0.3

    def test_a_server_that_is_down_is_not_asked_everything(self, ledger):
        one = Sender("one", lambda number: completion("So.") if number < 5 else 500)
        replies = []
        with contextlib.suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(self.collect(pool(one), ledger, replies), 1.0))
        assert len(set(one.questions)) <= 5 + 4 * 4 + 4  # of 1,000

    async def collect(self, pool, ledger, replies):
        async with contextlib.aclosing(
            collect(pool, requests(1000), ledger, concurrency=4, retries=9, backoff=1000)
        ) as running:
            async for asked in running:
                replies.append(asked)

    def test_settings_that_cannot_work_stop_it(self, ledger):
        one = Sender("one", lambda number: 400)
        with pytest.raises(
            CollectionStopped, match="first 20 requests all failed, the last with: status 400; correct"
        ):
            collect_all(pool(one), requests(500), ledger, concurrency=4)
        assert len(one.questions) <= 24

    def test_what_waits_for_limits_does_not_delay_the_end(self, ledger, monkeypatch):
        monkeypatch.setattr(collect_module, "HOPELESS", 3)
        started = time.monotonic()
        asked_pool = pool(Sender("one", lambda number: 400), tokens=6000)  # each of the rest waits 10 s
        with pytest.raises(CollectionStopped, match="first 3 requests all failed"):
            collect_all(asked_pool, requests(500, max_tokens=1000), ledger)
        assert time.monotonic() - started < 5
        assert asked_pool.budget.tokens_spent == 0

    def test_one_that_ends_it_lets_the_others_send_nothing(self, ledger):
        class Unsent(Sender):
            async def send(self, messages, sampling):
                response = await super().send(messages, sampling)
                if messages[-1].content != "0":
                    return response
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    return completions.failed(Fault.CONNECTION, None, "interrupted before it was sent")

        def broken():
            yield from requests(LOOK_AHEAD)
            raise KeyError("no such row")

        one = Unsent()
        with pytest.raises(KeyError, match="no such row"):
            collect_all(pool(one), broken(), ledger, concurrency=2, backoff=0)
        assert collections.Counter(one.questions) == {str(number): 1 for number in range(LOOK_AHEAD)}
        assert ledger.status()["teacher"].in_flight == 0

    def test_an_error_may_be_paid(self, ledger):
        def broken(number):
            raise RuntimeError("broken")

        asked_pool = pool(Sender("one", broken))
        (reply,) = collect_all(asked_pool, requests(1, max_tokens=70), ledger, retries=0)
        assert reply.raw["error"] == "RuntimeError: broken"
        assert asked_pool.budget.tokens_spent == ledger.status()["teacher"].usage.total > 70

    def test_refusals_of_requests_in_flight_together_count_once(self, monkeypatch):
        seen = []
        monkeypatch.setattr(limits, "full_jitter", lambda base, failures: seen.append(failures) or 5.0)
        (member,) = pool(Sender()).members
        for _ in range(32):
            member.heed(answered(429, {"error": {"message": "slow"}}))
        assert set(seen) == {1}

    def test_long_requests_do_not(self, ledger):
        long = {"error": {"message": "m", "code": "context_length_exceeded"}}
        one = Sender("one", lambda number: answered(400, long))
        replies = collect_all(pool(one), requests(50), ledger)
        assert {reply.raw["fault"] for reply in replies} == {Fault.TOO_LONG}

    def test_what_may_be_paid_is_counted(self, ledger):
        broken = completions.failed(Fault.TIMEOUT, None, "late", maybe_paid=True)
        asked_pool = pool(Sender("one", lambda number: broken))
        (reply,) = collect_all(asked_pool, requests(1, max_tokens=70), ledger, retries=0)
        assert reply.usage.completion_tokens == 70
        assert asked_pool.budget.tokens_spent == reply.usage.prompt_tokens + 70
        assert ledger.status()["teacher"].usage == reply.usage

    @pytest.mark.parametrize("usage", [None, (1e30, 1e30), (5, -1), (10**30, 3), (float("nan"), 3), ("5", 3)])
    def test_an_answer_without_usage_is_estimated(self, ledger, caplog, usage):
        names = ("prompt_tokens", "completion_tokens")
        said = completion("word " * 60, None) | {"usage": usage and dict(zip(names, usage, strict=True))}
        replies = collect_all(pool(Sender("one", lambda number: said)), requests(3), ledger)
        for reply in replies:
            assert 30 < reply.usage.completion_tokens < 300
            assert 0 < reply.usage.prompt_tokens < 100
        assert caplog.text.count("which cannot be: counted by its text") == (usage is not None)


MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), st.text()), max_size=4)


class TestBudget:
    @given(MESSAGES, st.integers(1, 4096))
    def test_a_bound_is_no_less_than_one_token_a_byte(self, messages, most):
        known = bound(messages, Sampling(max_tokens=most))
        texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
        assert known.prompt_tokens > texts + 4 * len(messages)
        assert known.completion_tokens == most

    def test_is_never_exceeded_and_stops_it(self, ledger):
        one = Sender("one", lambda number: completion("So.", (80, 100)), seconds=0.002)
        budget = Budget(money=0.02)
        with pytest.raises(BudgetSpent, match=r"budget of 0\.02 USD is spent"):
            collect_all(pool(one, budget=budget), requests(500, max_tokens=100), ledger, concurrency=8)
        status = ledger.status()["teacher"]
        assert status.answers == len(one.questions)  # those in flight were waited for
        assert PRICE.cost(status.usage) == pytest.approx(budget.money_spent)
        assert 0.0195 < budget.money_spent <= 0.02

    def test_is_shared(self, ledger):
        budget = Budget(tokens=2000)
        budget.spend(Usage(500, 0), PRICE)
        first, second = pool(Sender(), budget=budget), pool(Sender("two"), budget=budget)
        second.identity = "other"
        collect_all(first, requests(5, max_tokens=10), ledger)
        with pytest.raises(BudgetSpent):
            collect_all(second, requests(500, max_tokens=10), ledger)
        assert 1850 < budget.tokens_spent <= 2000


def test_samples_are_drawn_apart(ledger):
    seeds = collections.Counter()

    class Seeing(Sender):
        async def send(self, messages, sampling):
            seeds[sampling.seed] += 1
            return await super().send(messages, sampling)

    question = (Message("user", "q"),)
    collect_all(pool(Seeing()), [Request(question, Sampling(seed=7), sample) for sample in range(3)], ledger)
    assert seeds == {7: 1, 8: 1, 9: 1}


def test_latency_is_without_the_wait_for_leave(ledger):
    collect_all(pool(Sender(seconds=0.01), requests=300), requests(6), ledger)
    assert all(one.seconds < 0.09 for r in requests(6) for one in tried(ledger, request_id("teacher", r)))


def test_what_is_on_its_way_is_noted(ledger):
    class Looking(Sender):
        async def send(self, messages, sampling):
            with Ledger(ledger.path) as other:
                seen.append(other.status()["teacher"])
            return await super().send(messages, sampling)

    seen = []
    collect_all(pool(Looking()), requests(3, max_tokens=50), ledger, concurrency=1)
    assert [status.in_flight for status in seen] == [1, 1, 1]
    assert seen[0].in_flight_usage.completion_tokens == 50
    assert ledger.status()["teacher"].in_flight == 0
