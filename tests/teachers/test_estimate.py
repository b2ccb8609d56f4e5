"""Estimates: the paper's own collection comes out near what the paper says it took."""

import csv
import math
import random
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest

from orca_jax.config_teachers import ApiConfig, Limits, OpenAIConfig, Price
from orca_jax.records import Message, Outcome, Query, Sampling, Trace, Usage
from orca_jax.teachers import estimate
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.estimate import Box, Kind, Measured, Planned


def terms(prompt=0.002, completion=0.002, requests=0, tokens=0, **changes):
    endpoint = OpenAIConfig(model="m", limits=Limits(requests=requests, tokens=tokens))
    return ApiConfig(endpoints=(endpoint,), price=Price(prompt=prompt, completion=completion), **changes)


# The paper's table 4.
CHATGPT = terms(requests=300, tokens=120_000)
GPT4 = terms(0.03, 0.06, requests=18, tokens=10_000, lengths="gpt-4")
# Shares of the system messages over FLAN-5M.
SHARES = {1: 0.088, 2: 0.088, 3: 0.209, 4: 0.131, 5: 0.088, 7: 0.219, 8: 0.049, 10: 0.05} | dict.fromkeys(
    (6, 9, 11, 12, 13, 14, 15, 16), 0.00975
)


def paper_plan(teacher, requests, prompt_bytes=800):
    numbers = {message: round(requests * share) for message, share in SHARES.items()}
    return {Kind(teacher, "flan", m): Planned(count, count * prompt_bytes) for m, count in numbers.items()}


def trace(teacher="t", collection="cot", message=1, usage=Usage(10, 20), outcome=Outcome.OK):  # noqa: B008
    messages = (Message("user", "q" * 32), Message("assistant", "So."))
    return Trace("id", "q", 0, messages, collection, "task", message, teacher, Sampling(), outcome, usage)


class TestBoxes:
    def test_a_sample_of_the_distribution_has_the_mean(self):
        draw = random.Random(0)
        sample = [draw.lognormvariate(4.5, 0.9) for _ in range(40_000)]
        sample = sorted(length for length in sample if 2 <= length <= 900)
        quartiles = statistics.quantiles(sample, n=4)
        assert Box(2, *quartiles, 900).mean() == pytest.approx(statistics.fmean(sample), rel=0.05)

    @pytest.mark.parametrize("box", estimate.PAPER.values())
    def test_means_lie_inside_and_above_the_median(self, box):
        assert box.median * 0.95 < box.mean() < 1.3 * box.q3

    def test_gpt4_answers_are_longer_as_the_paper_says(self):
        mean = {
            teacher: math.fsum(share * estimate.PAPER[teacher, id].mean() for id, share in SHARES.items())
            for teacher in ("chatgpt", "gpt-4")
        }
        assert 1.3 < mean["gpt-4"] / mean["chatgpt"] < 1.8  # 1.5 in section 3.1.3

    @pytest.mark.realdata
    def test_are_the_papers(self, shared_data):
        with open(Path(shared_data).parent / "paper/response_lengths.csv") as file:
            rows = [list(row.values()) for row in csv.DictReader(file)]
        assert {(teacher, int(id)): tuple(map(float, box)) for id, teacher, *box in rows} == estimate.PAPER


class TestThePapersCollection:
    def test_chatgpt(self):
        *rows, total = estimate.estimate(paper_plan("chatgpt", 5_090_000), CHATGPT, 1024)
        assert len(rows) == 16
        assert {row.source for row in rows} == {"paper"}
        assert total.requests == pytest.approx(5_090_000, rel=0.01)
        assert 2500 < total.money < 5500  # 4 thousand at 400 tokens an item
        assert 11 < total.hours / 24 < 14.5  # two weeks, says section 3.2
        assert f"| {total.money / 2:,.2f} | 24 | paper |" in estimate.table([total])

    def test_gpt4(self):
        *_, total = estimate.estimate(paper_plan("gpt-4", 1_000_000), GPT4, 1024)
        assert 10_000 < total.money < 20_000
        assert 30 < total.hours / 24 < 50  # on one endpoint; the paper used several


class TestLengths:
    PLAN = {Kind("t", "cot", 1): Planned(100, 40_000)}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("measured", "tokens", "source"),
        [
            ({Kind("t", "cot", 1): Measured(30, 50.0, 2.0)}, Usage(20_000, 5000), "measured"),
            ({Kind("t", None, 1): Measured(30, 60.0, 4.0)}, Usage(10_000, 6000), "measured"),
            ({Kind("t", None, None): Measured(99, 70.0, 4.0)}, Usage(10_000, 7000), "measured"),
            (
                {Kind("t", "cot", 1): Measured(29, 50.0, 4.0), Kind("t", None, 1): Measured(40, 60.0, 4.0)},
                Usage(10_000, 6000),
                "measured",
            ),
            ({Kind("other", "cot", 1): Measured(99, 70.0, 4.0)}, None, "paper"),
        ],
    )
    def test_the_nearest_measured_ones_are_taken(self, measured, tokens, source):
        row, _ = estimate.estimate(self.PLAN, CHATGPT, 1024, measured)
        assert row.source == source
        assert row.usage == (tokens or Usage(10_000, round(100 * estimate.PAPER["chatgpt", 1].mean())))

    def test_without_any(self):
        row, total = estimate.estimate(self.PLAN, terms(lengths="nobody"), 77)
        assert (row.usage.completion_tokens, row.source, row.hours) == (7700, "max_tokens", 0.0)
        assert total.kind == Kind("t", None, None)

    def test_measuring(self):
        traces = [
            trace(usage=Usage(26, 10)),
            trace(usage=Usage(26, 30)),
            trace(message=2),
            trace(collection="t0"),
        ]
        traces += [trace(outcome=Outcome.ERROR, usage=Usage(9, 9)), trace(usage=Usage())]
        measured = estimate.measure(traces)
        assert measured[Kind("t", "cot", 1)] == Measured(2, 20.0, 4.0)  # 104 bytes with the template's
        assert measured[Kind("t", None, 1)].traces == 3
        assert measured[Kind("t", None, None)].traces == 4


@pytest.mark.parametrize(
    ("limits", "hours"),
    [
        (dict(requests=10), 1.0),
        (dict(requests=10, tokens=2000), 1.0),
        (dict(requests=10, tokens=505), 2.0),
        (dict(tokens=1010), 1.0),
        ({}, 0.0),
    ],
)
def test_hours_go_by_the_tighter_limit(limits, hours):
    """600 requests of 100 and 1 tokens."""
    api = terms(lengths="nobody", **limits)
    row, total = estimate.estimate({Kind("t", "cot", 1): Planned(600, 600 * 400)}, api, 1)
    assert row.hours == total.hours == pytest.approx(hours)


def test_batches_go_in_waves():
    row, _ = estimate.estimate({Kind("t", "cot", 1): Planned(100, 40_000)}, terms(batch_tokens=4_000), 1024)
    assert row.batch_hours == 72.0


def test_planning():
    query, request = Query("q", "", "cot", "sums", system_message_id=1), Request((Message("user", "q" * 28),))
    job = SimpleNamespace(teacher=SimpleNamespace(name="t"), requests=lambda: iter([(query, request)] * 3))
    assert estimate.planned(job) == {Kind("t", "cot", 1): Planned(3, 300)}


def test_the_table():
    rows = estimate.estimate(paper_plan("chatgpt", 10_000), CHATGPT, 1024)
    lines = estimate.table(rows).splitlines()
    assert len(lines) == 2 + 17
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| chatgpt | all | all | 9,9") or lines[-1].startswith(
        "| chatgpt | all | all | 10,"
    )
