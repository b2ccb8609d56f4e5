"""Rate limits against a server that counts in simulated time; headers in every form; a hard budget."""

import collections
import dataclasses
import email.utils
import heapq
import itertools
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config_teachers import Limits, Price
from orca_jax.records import Usage
from orca_jax.teachers import completions, limits
from orca_jax.teachers.limits import (
    LONGEST_BACKOFF,
    LONGEST_WAIT,
    Bucket,
    Budget,
    BudgetSpent,
    Quota,
    quota,
    retry_after,
    seconds,
)
from orca_jax.teachers.pool import Member
from tests.teachers.server import completion


def simulate(work, requests=0, tokens=0, seconds=math.inf, slots=10**9, server=None, look=0.1):
    """Sends (reserved, used, latency) as the buckets allow; returns (time, used) of what was sent.

    It looks at least every `look` seconds whether it may send.
    `server(now)` gives the headers about requests of each answer.
    """
    one, many = Bucket(requests, 0.0), Bucket(tokens, 0.0)
    now, sent, in_flight = 0.0, [], []
    for reserved, used, latency in work:
        while True:
            while in_flight and in_flight[0][0] <= now:
                _, *amounts, said = heapq.heappop(in_flight)
                many.settle(*amounts)
                one.correct(now, said)
            wait = max(one.delay(now, 1), many.delay(now, reserved))
            if wait <= 0 and len(in_flight) < slots:
                break
            now += max(min(wait, look), 1e-9)  # a smaller step may be lost in rounding
            if len(in_flight) >= slots:
                now = max(now, in_flight[0][0])
        if now >= seconds:
            break
        one.take(now, 1)
        many.take(now, reserved)
        heapq.heappush(in_flight, (now + latency, reserved, used, server(now) if server else Quota()))
        sent.append((now, used))
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


LATENCIES = st.lists(st.floats(0, 20), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), LATENCIES, st.integers(1, 20))
def test_no_minute_exceeds_the_limit_of_requests(limit, latencies, slots):
    sent = simulate([(1, 1, latency) for latency in latencies], requests=limit, slots=slots)
    assert len(sent) == len(latencies)
    assert most_in_a_minute(sent) <= limit


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0, 20)), min_size=1, max_size=300))
def test_no_minute_exceeds_the_limit_of_tokens_by_more_than_was_given_back(rows):
    work = [(reserved, math.floor(reserved * part), latency) for reserved, part, latency in rows]
    sent = simulate(work, tokens=600)
    for first, (start, _) in enumerate(sent):
        inside = [used for time, used in sent[first:] if time < start + 60]
        earlier = zip(sent[:first], work, strict=False)
        back = sum(row[0] - row[1] for (time, _), row in earlier if time + row[2] > start)
        assert sum(inside) <= 600 + 60 + back


@pytest.mark.parametrize("limit", [18, 300])
def test_the_limit_of_requests_is_used(limit):
    sent = simulate(itertools.repeat((300, 200, 2.0)), requests=limit, tokens=10**9, seconds=1200)
    assert 0.97 < len(sent) / (20 * limit) <= 1 + 1 / limit


@pytest.mark.parametrize("reserved", [450, 4000])
@pytest.mark.parametrize("tokens", [10_000, 120_000])
def test_the_limit_of_tokens_is_used_whatever_is_reserved(tokens, reserved):
    """160 tokens on average, in an hour. What is in flight holds its reservation, once."""
    used = itertools.cycle([100, 150, 50, 400, 100])
    work = ((reserved, next(used), 1.0) for _ in itertools.count())
    sent = simulate(work, requests=10**6, tokens=tokens, seconds=3600)
    assert 0.97 < sum(used for _, used in sent) / (60 * tokens) <= 1
    assert most_in_a_minute(sent, lambda entry: entry[1]) <= 1.08 * tokens


def test_the_start_is_no_burst():
    sent = simulate(itertools.repeat((100, 100, 1.0)), requests=600, tokens=60_000, seconds=10)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert min(gaps) > 0.09
    assert len(sent) == pytest.approx(100, abs=3)


def test_what_a_server_says_of_its_limit_gives_no_time_twice():
    one = Bucket(600, 0.0)
    one.correct(0.0, Quota(limit=600, remaining=0))
    for _ in range(3):
        one.correct(limits.WINDOW / 2, Quota(limit=600))
    assert one.delay(limits.WINDOW / 2, 600) == pytest.approx(limits.WINDOW / 2)


def test_a_stall_is_made_up_for_a_little():
    one = Bucket(600, 0.0)
    sent = 0
    while not one.delay(30.0, 1):
        one.take(30.0, 1)
        sent += 1
    assert sent <= 2 + 600 / limits.WINDOW * limits.CATCH_UP


def test_a_request_greater_than_the_limit_goes_alone():
    sent = simulate([(5000, 4000, 1.0), (10, 10, 1.0)], tokens=1000)
    assert sent[1][0] - sent[0][0] >= 60


def test_unused_tokens_are_given_back():
    one = Bucket(1000, 0.0)
    one.take(0.0, 900)
    assert one.delay(0.0, 500) > 40
    one.settle(900, 100)
    assert one.delay(0.0, 500) < 10


def test_no_limits_no_waiting():
    sent = simulate([(10**9, 1, 1.0)] * 1000)
    assert [time for time, _ in sent] == [0.0] * 1000


class TestServersWord:
    def test_a_lower_limit_is_taken_and_a_higher_one_where_none_was_given(self):
        given, unknown = Bucket(600, 0.0), Bucket(0, 0.0)
        for limit in (6000, 60):
            given.correct(0.0, Quota(limit=limit))
            unknown.correct(0.0, Quota(limit=limit))
            assert (given.limit, unknown.limit) == (min(limit, 600), limit)
        for one in (given, unknown):
            one.take(0.0, 1)
            assert one.delay(0.0, 1) == pytest.approx(limits.WINDOW / 60)

    def test_nothing_remains_until_the_reset(self):
        one = Bucket(100, 0.0)
        one.correct(0.0, Quota(limit=100, remaining=0, reset=7.0))
        assert one.delay(0.0, 1) == pytest.approx(7.0)
        assert one.delay(7.1, 1) == 0

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
    def test_what_others_use_is_left_to_them(self, share):
        """A server that counts any sixty seconds, and another client that sends at an even pace."""
        counted, refused = collections.deque(), []

        def server(now):
            while counted and counted[0] <= now - 60:
                counted.popleft()
            left = 600 - len(counted) - min(now, 60.0) * share * 10
            if left < 1:
                refused.append(now)
                return Quota(remaining=0, reset=2.0)  # for so long, a pool pauses after a 429
            counted.append(now)
            total[0] += 1
            return Quota(remaining=int(left) - 1)

        total = [0]
        simulate(itertools.repeat((1, 1, 0.5)), requests=600, seconds=900, slots=64, server=server)
        assert len(refused) <= 0.5 * share * total[0]
        assert total[0] / 9000 > 0.95 * (1 - share)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 50), st.integers(0, 50), st.none() | st.floats(0, 100)), max_size=40
        )
    )
    def test_whatever_it_is_a_wait_ends(self, words):
        one, now = Bucket(20, 0.0), 0.0
        for said in words:
            one.correct(now, Quota(*said))
            now += one.delay(now, 10)
            assert one.delay(now, 10) <= 2 * limits.WINDOW
            one.take(now, 10)


class TestThrottled:
    def pause(self, times=1, headers=None):
        """A member that answers with so many 429s."""
        member = Member(SimpleNamespace(label="one"), Limits(requests=600))
        busy = completions.read_json(429, {"error": {"message": "slow down"}})
        for _ in range(times):
            member._paused_until = 0.0
            member.heed(dataclasses.replace(busy, headers=headers or {}))
        return member.paused

    def test_waits_as_long_as_it_is_told(self):
        assert self.pause(headers={"retry-after": "12.5"}) == pytest.approx(12.5, abs=0.1)

    def test_waits_longer_each_time_if_it_is_not_told(self):
        for times in range(1, 12):
            waits = [self.pause(times) for _ in range(40)]
            assert max(waits) <= min(LONGEST_BACKOFF, 2 ** (times - 1))
            assert max(waits) > min(LONGEST_BACKOFF, 2 ** (times - 1)) / 2

    def test_waits_are_spread(self):
        random.seed(0)
        waits = [self.pause() for _ in range(200)]
        assert min(waits) < 0.05 < 0.95 < max(waits)
        assert 0.4 < sum(waits) / len(waits) < 0.6

    def test_an_answer_ends_the_count(self):
        member = Member(SimpleNamespace(label="one"), Limits())
        busy = completions.read_json(429, {"error": {"message": "slow down"}})
        for response in [busy] * 9 + [completions.read_json(200, completion())]:
            member.heed(response)
        member._paused_until = 0.0
        member.heed(busy)
        assert member.paused <= 1


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
    budget, in_flight = Budget(money, tokens), []
    for bound, part, settled in requests:
        for reserved, used in in_flight[:settled]:
            budget.settle(reserved, used, PRICE)
        del in_flight[:settled]
        try:
            fits = budget.reserve(bound, PRICE)
        except BudgetSpent:
            assert not in_flight
            break
        if not fits:  # some may be given back
            assert in_flight
            continue
        used = Usage(round(bound.prompt_tokens * part), round(bound.completion_tokens * part))
        in_flight.append((bound, used))
    for reserved, used in in_flight:
        budget.settle(reserved, used, PRICE)
    assert money is None or budget.money_spent <= money + 1e-9
    assert tokens is None or budget.tokens_spent <= tokens


def test_waits_for_what_is_in_flight():
    budget = Budget(tokens=100)
    assert budget.reserve(Usage(0, 90), PRICE)
    assert not budget.reserve(Usage(0, 50), PRICE)
    budget.settle(Usage(0, 90), Usage(0, 20), PRICE)
    assert budget.reserve(Usage(0, 50), PRICE)
    assert budget.tokens_spent == 20


def test_stops_when_nothing_is():
    budget = Budget(money=1.0, tokens=100)
    budget.spend(Usage(30, 50), PRICE)
    with pytest.raises(
        BudgetSpent, match=r"1\.00 USD and 100 tokens is spent \(0\.00 USD, 80 tokens; .*21 tokens"
    ):
        budget.reserve(Usage(0, 21), PRICE)
    assert budget.reserve(Usage(0, 20), PRICE)


def test_what_is_under_way_is_held_even_where_it_does_not_fit():
    budget = Budget(tokens=100)
    budget.hold(Usage(0, 150), PRICE)
    assert not budget.reserve(Usage(0, 1), PRICE)  # it waits, for some may be given back
    budget.settle(Usage(0, 150), Usage(0, 40), PRICE)
    assert budget.reserve(Usage(0, 60), PRICE)
