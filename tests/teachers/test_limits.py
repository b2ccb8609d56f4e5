"""Rate limits against a server that counts in simulated time; headers in every form; a hard budget."""

import asyncio
import email.utils
import heapq
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.records import Usage
from orca_jax.teachers import limits
from orca_jax.teachers.limits import (
    LONGEST_BACKOFF,
    LONGEST_WAIT,
    Budget,
    BudgetSpent,
    Limiter,
    Limits,
    Price,
    Quota,
    quota,
    retry_after,
    seconds,
)

NOTHING = Quota()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make(**limits):
    clock = Clock()
    return clock, Limiter(Limits(**limits), clock=clock)


def simulate(clock, limiter, work, until=math.inf):
    """Sends (estimate, actual, latency) as the limiter allows; returns (time, actual) of what was sent."""
    sent, in_flight, count = [], [], itertools.count()
    for estimate, actual, latency in work:
        while (delay := limiter.delay(estimate)) > 0:
            wake = clock.now + delay
            if in_flight and in_flight[0][0] < wake:
                clock.now, _, ticket, used = heapq.heappop(in_flight)
                limiter.settle(ticket, used)
            else:
                clock.now = wake
        if clock.now >= until:
            break
        heapq.heappush(in_flight, (clock.now + latency, next(count), limiter.take(estimate), actual))
        sent.append((clock.now, actual))
    return sent


def most_in_a_minute(sent, amount=lambda entry: 1):
    most = total = first = 0
    for entry in sent:
        total += amount(entry)
        while sent[first][0] <= entry[0] - 60:
            total -= amount(sent[first])
            first += 1
        most = max(most, total)
    return most


WORK = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0, 20)), min_size=1, max_size=300
).map(lambda rows: [(estimate, math.floor(estimate * part), latency) for estimate, part, latency in rows])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(60, 1000), WORK)
def test_no_minute_exceeds_the_limits(requests, tokens, work):
    sent = simulate(*make(requests=requests, tokens=tokens), work)
    assert len(sent) == len(work)
    assert most_in_a_minute(sent) <= requests
    assert most_in_a_minute(sent, lambda entry: entry[1]) <= tokens


@pytest.mark.parametrize("requests", [18, 300, 6000])
def test_the_limit_of_requests_is_used(requests):
    clock, limiter = make(requests=requests, tokens=10**9)
    sent = simulate(clock, limiter, itertools.repeat((300, 200, 2.0)), clock.now + 1200)
    assert 0.97 < len(sent) / (20 * requests) <= 1 + 1 / requests


@pytest.mark.parametrize("tokens", [10_000, 120_000, 1_000_000])
def test_the_limit_of_tokens_is_used_whatever_replies_need(tokens):
    clock, limiter = make(requests=10**6, tokens=tokens)
    actual = itertools.cycle([100, 150, 50, 400, 100])  # 160 on average
    work = ((200, next(actual), 1.0) for _ in itertools.count())
    sent = simulate(clock, limiter, work, clock.now + 1200)
    assert 0.96 < sum(used for _, used in sent) / (20 * tokens) <= 1.01


def test_the_start_is_no_burst():
    clock, limiter = make(requests=600, tokens=60_000)
    sent = simulate(clock, limiter, itertools.repeat((100, 100, 1.0)), clock.now + 10)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert min(gaps) > 0.09
    assert len(sent) == pytest.approx(100, abs=3)


def test_a_stall_is_made_up_for_a_little():
    clock, one = make(requests=600)
    simulate(clock, one, [(1, 1, 0)] * 20)
    clock.now += 30
    burst = simulate(clock, one, itertools.repeat((1, 1, 0)), clock.now + 0.01)
    assert len(burst) <= 2 + 600 / limits.WINDOW * limits.CATCH_UP


def test_a_request_greater_than_the_limit_goes_alone():
    clock, one = make(tokens=1000)
    sent = simulate(clock, one, [(5000, 4000, 1.0), (10, 10, 1.0)])
    assert sent[1][0] - sent[0][0] >= 60


def test_unused_tokens_are_given_back():
    _, one = make(tokens=1000)
    ticket = one.take(900)
    assert one.delay(500) > 40
    one.settle(ticket, 100)
    assert one.delay(500) < 10


def test_no_limits_no_waiting():
    clock, one = make()
    assert len(simulate(clock, one, [(10**9, 1, 1.0)] * 1000)) == 1000
    assert clock.now == 1000.0


class TestServersWord:
    def test_a_lower_limit_is_taken(self):
        clock, one = make(requests=6000)
        one.correct(Quota(limit=60), NOTHING)
        assert len(simulate(clock, one, itertools.repeat((1, 1, 0)), clock.now + 600)) <= 601

    def test_a_higher_one_is_not_but_where_none_was_given(self):
        _, one = make(requests=60)
        one.correct(Quota(limit=6000), Quota(limit=9000))
        requests, tokens = one.rates()
        assert (requests.limit, tokens.limit) == (60, 9000)

    def test_what_others_use_is_counted(self):
        clock, one = make(requests=100)
        one.take(1)
        one.correct(Quota(limit=100, remaining=10), NOTHING)
        sent = simulate(clock, one, [(1, 1, 0)] * 30)
        assert sent[9][0] < 1000 + limits.WINDOW <= sent[10][0]

    def test_nothing_remains_until_the_reset(self):
        clock, one = make(requests=100)
        one.correct(Quota(limit=100, remaining=0, reset=7.0), NOTHING)
        assert one.delay(1) == pytest.approx(7.0)
        clock.now += 7.1
        assert one.delay(1) == 0

    def test_our_own_use_is_not_counted_twice(self):
        clock, one = make(requests=100)
        for used in range(1, 60):
            while one.delay(1) > 0:
                clock.now += one.delay(1)
            one.take(1)
            one.correct(Quota(limit=100, remaining=100 - used), NOTHING)
        assert clock.now < 1000 + 60 * limits.WINDOW / 100

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 50), st.integers(0, 50), st.none() | st.floats(0, 100)), max_size=40
        )
    )
    def test_whatever_it_is_a_wait_ends(self, words):
        clock, one = make(requests=20)
        for limit, remaining, reset in words:
            one.correct(Quota(limit, remaining, reset), Quota(limit * 100, remaining, reset))
            clock.now += one.delay(10)
            assert one.delay(10) <= 2 * limits.WINDOW
            one.take(10)


class TestThrottled:
    def test_waits_as_long_as_it_is_told(self):
        _, one = make(requests=600)
        one.throttled(one.take(1), 12.5)
        assert one.delay(1) == pytest.approx(12.5)

    def test_waits_longer_each_time_if_it_is_not_told(self):
        clock, one = make(requests=600)
        for refusals in range(1, 12):
            one.throttled(one.take(1), None)
            ceiling = min(LONGEST_BACKOFF, limits.FIRST_PAUSE * 2 ** (refusals - 1))
            assert one.paused() <= ceiling
            clock.now += LONGEST_BACKOFF
        assert one.paused() == 0

    def test_waits_are_spread(self):
        waits = []
        random.seed(0)
        for _ in range(200):
            _, one = make(requests=600)
            one.throttled(one.take(1), None)
            waits.append(one.paused())
        assert min(waits) < 0.05 < 0.95 < max(waits)
        assert 0.4 < sum(waits) / len(waits) < 0.6

    def test_lowers_the_pace_once_for_requests_sent_together(self):
        clock, one = make(requests=600)
        tickets = [one.take(1) for _ in range(10)]
        clock.now += 1
        for ticket in tickets:
            one.throttled(ticket, 0.0)
        assert one.rates()[0].limit == pytest.approx(600 * limits.CUT)
        one.throttled(one.take(1), 0.0)
        assert one.rates()[0].limit == pytest.approx(600 * limits.CUT**2)

    def test_the_pace_recovers_and_no_further(self):
        clock, one = make(requests=600)
        one.throttled(one.take(1), 0.0)
        clock.now += 3600
        assert one.rates()[0].limit == 600

    def test_a_limit_that_nobody_told_is_guessed_and_tried(self):
        clock, one = make()
        tickets = [one.take(1) for _ in range(500)]
        one.throttled(tickets[-1], 1.0)
        assert one.rates()[0].limit == pytest.approx(500 * limits.CUT)
        clock.now += 600
        assert 500 < one.rates()[0].limit < 2000

    def test_a_guess_is_not_too_low(self):
        _, one = make()
        one.throttled(one.take(1), 0.0)
        assert one.rates()[0].limit == pytest.approx(limits.LOWEST_GUESS * limits.CUT)


# Headers

NOW = 1_700_000_000.0
DATE = email.utils.formatdate(NOW + 30, usegmt=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("0.25", 0.25),
        ("1s", 1),
        ("12ms", 0.012),
        ("6m0s", 360),
        ("1m26.4s", 86.4),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800),
        ("7 seconds", 7),
        ("1 minute, 5 seconds", 65),
        ("3 Minutes", 180),
        ("", None),
        ("soon", None),
        ("1 fortnight", None),
        ("nan", None),
        ("inf", None),
        ("1s and more", None),
    ],
)
def test_durations(text, expected):
    assert seconds(text) == (expected if expected is None else pytest.approx(expected))


@given(st.integers(0, 9), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_go_durations(hours, minutes, rest, milliseconds):
    text = f"{hours}h{minutes}m{rest}.{milliseconds:03}s"
    assert math.isclose(seconds(text), hours * 3600 + minutes * 60 + rest + milliseconds / 1000)


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ({}, "", None),
        ({"retry-after": "20"}, "", 20),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, "", 0.25),
        ({"retry-after": "2m"}, "", 120),
        ({"retry-after": DATE}, "", 30),
        ({"retry-after": DATE, "date": email.utils.formatdate(NOW + 10, usegmt=True)}, "", 20),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, "", 0),
        ({"retry-after": "-5"}, "", 0),
        ({"retry-after": "1e300"}, "", LONGEST_WAIT),
        ({"retry-after": "later"}, "", None),
        ({"retry-after": f"{NOW + 30:.0f}"}, "", 30),
        ({"retry-after": f"{NOW + 30.5}"}, "", 30.5),
        ({"retry-after": f"{1000 * (NOW + 30):.0f}"}, "", 30),
        ({"retry-after-ms": f"{1000 * (NOW + 30):.0f}"}, "", 30),
        ({"retry-after": f"{NOW - 30:.0f}"}, "", 0),
        ({"retry-after": f"{NOW + 30:.0f}", "date": email.utils.formatdate(NOW + 10, usegmt=True)}, "", 20),
        ({}, f"Please retry after {NOW + 30:.0f}", 30),
        ({"retry-after": "999999"}, "", LONGEST_WAIT),
        ({"retry-after": "7200"}, "", LONGEST_WAIT),
        ({"retry-after": email.utils.formatdate(NOW + 1e8, usegmt=True)}, "", LONGEST_WAIT),
        ({}, "Rate limit reached for gpt-4. Please try again in 1m26.4s. Visit the page.", 86.4),
        ({}, "Please try again in 6ms.", 0.006),
        ({}, "Rate limit is exceeded. Try again in 7 seconds.", 7),
        ({}, "have exceeded the token rate limit. Please retry after 26 seconds. Contact us", 26),
        ({}, "retry after 3", 3),
        ({"retry-after": "4"}, "try again in 9s", 4),
        ({}, "try again later", None),
    ],
)
def test_retry_after(headers, message, expected):
    found = retry_after(headers, message, NOW)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_pause_is_bounded():
    assert 60 <= LONGEST_WAIT <= 3600


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()), st.text())
def test_anything_is_read(headers, message):
    wait = retry_after(headers, message)
    assert wait is None or 0 <= wait <= LONGEST_WAIT


@pytest.mark.parametrize(
    ("value", "expected"),
    [("60", 60), ("60.0", 60), ("0", None), ("-1", None), ("None", None), ("", None), ("1e400", None)],
)
def test_limits(value, expected):
    assert quota({"x-ratelimit-limit-requests": value}, "requests").limit == expected


def test_quotas():
    headers = {
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-remaining-requests": "3",
    }
    assert quota(headers, "tokens") == Quota(150_000, 0, 360.0)
    assert quota(headers, "requests") == Quota(None, 3, None)


# Budget

PRICE = Price(prompt=0.03, completion=0.06)
USAGE = st.builds(Usage, st.integers(0, 500), st.integers(0, 500))


def test_cost():
    assert PRICE.cost(Usage(2000, 1000)) == pytest.approx(0.12)
    assert PRICE.times(0.5).cost(Usage(2000, 1000)) == pytest.approx(0.06)


@given(
    st.lists(st.tuples(USAGE, st.floats(0, 1), st.integers(0, 5)), max_size=60),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 20_000),
)
def test_never_exceeded(requests, money, tokens):
    async def run():
        budget, in_flight = Budget(money, tokens), []
        for bound, part, settled in requests:
            for reservation, used in in_flight[:settled]:
                budget.settle(reservation, used, PRICE)
            del in_flight[:settled]
            try:
                reserving = asyncio.wait_for(budget.reserve(bound, PRICE), 0 if in_flight else None)
                reservation = await reserving
            except BudgetSpent:
                assert not in_flight
                break
            except TimeoutError:
                continue
            used = Usage(round(bound.prompt_tokens * part), round(bound.completion_tokens * part))
            in_flight.append((reservation, used))
        for reservation, used in in_flight:
            budget.settle(reservation, used, PRICE)
        assert money is None or budget.money_spent <= money + 1e-9
        assert tokens is None or budget.tokens_spent <= tokens

    asyncio.run(run())


def test_waits_for_what_is_in_flight():
    async def run():
        budget = Budget(tokens=100)
        first = await budget.reserve(Usage(0, 90), PRICE)
        second = asyncio.create_task(budget.reserve(Usage(0, 50), PRICE))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, Usage(0, 20), PRICE)
        await second
        assert budget.tokens_spent == 20

    asyncio.run(run())


def test_stops_when_nothing_is():
    async def run():
        budget = Budget(money=1.0, tokens=100)
        budget.spend(Usage(30, 50), PRICE)
        with pytest.raises(
            BudgetSpent, match=r"1\.00 USD and 100 tokens is spent \(0\.00 USD, 80 tokens; .*21 tokens"
        ):
            await budget.reserve(Usage(0, 21), PRICE)
        budget.settle(await budget.reserve(Usage(0, 20), PRICE), Usage(), PRICE)

    asyncio.run(run())


def test_a_reservation_ends_once():
    async def run():
        budget = Budget(tokens=100)
        reservation = await budget.reserve(Usage(0, 50), PRICE)
        for _ in range(3):
            budget.settle(reservation, Usage(0, 10), PRICE)
        assert budget.tokens_spent == 10

    asyncio.run(run())


@pytest.mark.parametrize("cap", [{"money": -1.0}, {"money": float("nan")}, {"tokens": -5}])
def test_senseless_caps(cap):
    with pytest.raises(ValueError, match="0 or more"):
        Budget(**cap)


def test_what_is_under_way_is_held_even_where_it_does_not_fit():
    budget = Budget(tokens=100)
    held = budget.hold(Usage(0, 150), PRICE)
    assert budget.try_reserve(Usage(0, 1), PRICE) is None  # it waits, for some may be given back
    budget.settle(held, Usage(0, 40), PRICE)
    assert budget.try_reserve(Usage(0, 60), PRICE) is not None
