"""Retry-After and x-ratelimit headers in every form that servers send them."""

import email.utils
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.teachers.rate_headers import LONGEST, Quota, quota, retry_after, seconds

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
        ({"retry-after": "1e300"}, "", LONGEST),
        ({"retry-after": "later"}, "", None),
        ({"retry-after": f"{NOW + 30:.0f}"}, "", 30),
        ({"retry-after": f"{NOW + 30.5}"}, "", 30.5),
        ({"retry-after": f"{1000 * (NOW + 30):.0f}"}, "", 30),
        ({"retry-after-ms": f"{1000 * (NOW + 30):.0f}"}, "", 30),
        ({"retry-after": f"{NOW - 30:.0f}"}, "", 0),
        ({"retry-after": f"{NOW + 30:.0f}", "date": email.utils.formatdate(NOW + 10, usegmt=True)}, "", 20),
        ({}, f"Please retry after {NOW + 30:.0f}", 30),
        ({"retry-after": "999999"}, "", LONGEST),
        ({"retry-after": "7200"}, "", LONGEST),
        ({"retry-after": email.utils.formatdate(NOW + 1e8, usegmt=True)}, "", LONGEST),
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
    assert 60 <= LONGEST <= 3600


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()), st.text())
def test_anything_is_read(headers, message):
    wait = retry_after(headers, message)
    assert wait is None or 0 <= wait <= LONGEST


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
