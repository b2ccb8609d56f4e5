"""The limiter against a server that counts, in simulated time."""

import heapq
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config import Limits
from orca_jax.teachers import limiter
from orca_jax.teachers.limiter import Limiter
from orca_jax.teachers.rate_headers import Quota
from orca_jax.teachers.waiting import LONGEST_BACKOFF

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
    assert len(burst) <= 2 + 600 / limiter.WINDOW * limiter.CATCH_UP


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
        assert sent[9][0] < 1000 + limiter.WINDOW <= sent[10][0]

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
        assert clock.now < 1000 + 60 * limiter.WINDOW / 100

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
            assert one.delay(10) <= 2 * limiter.WINDOW
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
            ceiling = min(LONGEST_BACKOFF, limiter.FIRST_PAUSE * 2 ** (refusals - 1))
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
        assert one.rates()[0].limit == pytest.approx(600 * limiter.CUT)
        one.throttled(one.take(1), 0.0)
        assert one.rates()[0].limit == pytest.approx(600 * limiter.CUT**2)

    def test_the_pace_recovers_and_no_further(self):
        clock, one = make(requests=600)
        one.throttled(one.take(1), 0.0)
        clock.now += 3600
        assert one.rates()[0].limit == 600

    def test_a_limit_that_nobody_told_is_guessed_and_tried(self):
        clock, one = make()
        tickets = [one.take(1) for _ in range(500)]
        one.throttled(tickets[-1], 1.0)
        assert one.rates()[0].limit == pytest.approx(500 * limiter.CUT)
        clock.now += 600
        assert 500 < one.rates()[0].limit < 2000

    def test_a_guess_is_not_too_low(self):
        _, one = make()
        one.throttled(one.take(1), 0.0)
        assert one.rates()[0].limit == pytest.approx(limiter.LOWEST_GUESS * limiter.CUT)
