"""What a collection will send, what it will cost and how long it will take, before a cent is spent.

Lengths come from traces already collected where there are enough, else from the paper's figure 9.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from orca_jax.config import Limits, Price
from orca_jax.records import Message, Outcome, Trace, Usage
from orca_jax.teachers import token_counts
from orca_jax.teachers.collection import Job, batches_folder, collected, count_spent
from orca_jax.teachers.ledger import Ledger, Status
from orca_jax.teachers.limits import BATCH_PRICE, Budget

ENOUGH = 30  # traces of a kind that make an average
BYTES_A_TOKEN = 4.0  # of English, where no prompt was measured
BATCH_HOURS = 24.0  # the completion window
_NORMAL = statistics.NormalDist()
_QUARTILE = _NORMAL.inv_cdf(0.75)


class Box(NamedTuple):
    """A box of the paper's figure 9, in tokens."""

    low: float
    q1: float
    median: float
    q3: float
    high: float

    def mean(self) -> float:
        """The mean of the log-normal distribution with these quartiles, cut off at the whiskers.

        Lengths are skewed: half of them lie below the median, but most tokens are in the long ones.
        """
        middle, spread = math.log(self.median), math.log(self.q3 / self.q1) / (2 * _QUARTILE)
        low, high = ((math.log(end) - middle) / spread for end in (self.low, self.high))
        inside = _NORMAL.cdf(high) - _NORMAL.cdf(low)
        shifted = _NORMAL.cdf(high - spread) - _NORMAL.cdf(low - spread)
        return self.median * math.exp(spread**2 / 2) * shifted / inside


# By teacher and system message (arXiv 2306.02707, figure 9, read off the boxes).
with (files("orca_jax") / "response_lengths.csv").open(encoding="utf-8") as _file:
    PAPER = {
        (teacher, int(id)): Box(*map(float, box))
        for id, teacher, *box in itertools.islice(csv.reader(_file), 1, None)
    }


class Kind(NamedTuple):
    """What an estimate is made for. None stands for all of them."""

    teacher: str
    collection: str | None
    system_message_id: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """How much of a kind is to be sent; `prompt_bytes` of all conversations together."""

    requests: int = 0
    prompt_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Means over `traces`: tokens of a reply, and bytes of a conversation to a token."""

    traces: int
    completion_tokens: float
    bytes_a_token: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """What a teacher costs and allows.

    Attributes:
      lengths: the teacher of the paper whose lengths stand in for unmeasured ones.
      limits: of all its endpoints together, a minute.
      max_tokens: of a reply; stands in where the paper has no box either.
      batch_tokens: prompt tokens that may be in its batch queue at once; 0 where that is not known.
    """

    price: Price
    limits: Limits
    lengths: str = "chatgpt"
    max_tokens: int = 1024
    batch_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The estimate for one kind, or for a teacher's whole share. Money in US dollars.

    `source` is where the reply lengths come from: measured, paper or max_tokens. `hours` is what the
    limits allow at best, 0 where no limit is known.
    """

    kind: Kind
    requests: int
    usage: Usage
    money: float
    batch_money: float
    hours: float
    batch_hours: float
    source: str


def plan(requests: Iterable[tuple[Kind, Sequence[Message]]]) -> dict[Kind, Planned]:
    """Adds up what is to be sent, from every request's kind and conversation."""
    counts: collections.Counter[Kind] = collections.Counter()
    sizes: collections.Counter[Kind] = collections.Counter()
    for kind, messages in requests:
        counts[kind] += 1
        sizes[kind] += token_counts.size(messages)
    return {kind: Planned(counts[kind], sizes[kind]) for kind in counts}


def measure(traces: Iterable[Trace]) -> dict[Kind, Measured]:
    """Means of what was answered, for each kind, for each teacher and message, and for each teacher."""
    sums: dict[Kind, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for trace in traces:
        if trace.outcome is Outcome.ERROR or not trace.usage.prompt_tokens:
            continue
        asked = [message for message in trace.messages if message.role != "assistant"]
        for kind in _wider(Kind(trace.teacher, trace.collection, trace.system_message_id)):
            total = sums[kind]
            total[0] += 1
            total[1] += trace.usage.completion_tokens
            total[2] += token_counts.size(asked)
            total[3] += trace.usage.prompt_tokens
    return {
        kind: Measured(n, replies / n, size / prompts) for kind, (n, replies, size, prompts) in sums.items()
    }


def estimate(
    planned: Mapping[Kind, Planned], terms: Terms, measured: Mapping[Kind, Measured] | None = None
) -> list[Row]:
    """A row for each kind, in order, and one with the totals; all kinds are of one teacher."""
    rows = [_row(kind, planned[kind], terms, measured or {}) for kind in sorted(planned, key=str)]
    return [*rows, _total(rows, terms)] if rows else []


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| teacher | collection | message | requests | prompt tokens | reply tokens | USD | hours "
        "| USD in batches | hours in batches | lengths |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind, usage = row.kind, row.usage
        message = "all" if kind.system_message_id is None else kind.system_message_id
        lines.append(
            f"| {kind.teacher} | {kind.collection or 'all'} | {message} | {row.requests:,} | "
            f"{usage.prompt_tokens:,} | {usage.completion_tokens:,} | {row.money:,.2f} | {row.hours:,.1f} | "
            f"{row.batch_money:,.2f} | {row.batch_hours:,.0f} | {row.source} |"
        )
    return "\n".join(lines) + "\n"


def _wider(kind: Kind) -> list[Kind]:
    """The kind, then those that stand in for it."""
    teacher = kind.teacher
    return [kind, Kind(teacher, None, kind.system_message_id), Kind(teacher, None, None)]


def _row(kind: Kind, planned: Planned, terms: Terms, measured: Mapping[Kind, Measured]) -> Row:
    means = [measured[wider] for wider in _wider(kind) if wider in measured]
    known = next((mean for mean in means if mean.traces >= ENOUGH), None)
    box = PAPER.get((terms.lengths, kind.system_message_id or 1))
    if known is not None:
        reply, source = known.completion_tokens, "measured"
    elif box is not None:
        reply, source = min(box.mean(), terms.max_tokens), "paper"
    else:
        reply, source = float(terms.max_tokens), "max_tokens"
    prompt = planned.prompt_bytes / (known.bytes_a_token if known else BYTES_A_TOKEN)
    return _priced(
        kind, planned.requests, Usage(round(prompt), round(reply * planned.requests)), terms, source
    )


def _total(rows: Sequence[Row], terms: Terms) -> Row:
    usage = sum((row.usage for row in rows), Usage())
    source = "+".join(sorted({row.source for row in rows}))
    return _priced(
        Kind(rows[0].kind.teacher, None, None), sum(row.requests for row in rows), usage, terms, source
    )


def _priced(kind: Kind, requests: int, usage: Usage, terms: Terms, source: str) -> Row:
    limits, tokens = terms.limits, usage.total
    minutes = [requests / limits.requests] if limits.requests else []
    minutes += [tokens / limits.tokens] if limits.tokens else []
    money, waves = terms.price.cost(usage), 1
    if terms.batch_tokens:
        waves = max(1, math.ceil(usage.prompt_tokens / terms.batch_tokens))
    hours = max(minutes, default=0.0) / 60
    return Row(kind, requests, usage, money, money * BATCH_PRICE, hours, BATCH_HOURS * waves, source)


# Of a teacher's job


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A line of plan/TEACHER.jsonl."""

    query_id: str
    teacher: str
    sample: int
    collection: str
    task: str
    system_message_id: int | None
    prompt_bytes: int


def planned_requests(job: Job) -> Iterator[PlannedRequest]:
    for query, request in job.requests():
        yield PlannedRequest(
            query.id,
            job.teacher.name,
            request.sample,
            query.collection,
            query.task,
            query.system_message_id,
            token_counts.size(request.messages),
        )


def of_job(job: Job) -> dict[Kind, Planned]:
    """How much of each kind a teacher is asked."""
    return plan(
        (Kind(job.teacher.name, query.collection, query.system_message_id), request.messages)
        for query, request in job.requests()
    )


def overlaps(jobs: Sequence[Job]) -> Iterator[str]:
    """How many queries each teacher gets, and how many of those the one with the most gets too."""
    ids = {
        job.teacher.name: np.fromiter((hash(query.id) for query in job.queries()), np.int64) for job in jobs
    }
    for name, own in ids.items():
        most = max(ids, key=lambda other: len(ids[other]))
        shared = "" if name == most else f", {np.isin(own, ids[most]).sum():,} of them {most}'s too"
        yield f"{name}: {len(own):,} queries{shared}"


def report(job: Job) -> str:
    """What the requests to a model behind an API will cost, as a table, and what was spent so far."""
    api = job.teacher.api
    assert api is not None
    terms = Terms(
        price=api.price,
        limits=api.limits,
        lengths=api.lengths,
        max_tokens=job.teacher.max_tokens,
        batch_tokens=api.batch_tokens,
    )
    measured, used = {}, 0.0
    if job.ledger.exists():
        with Ledger(job.ledger) as ledger:
            measured = measure(collected(job, ledger))
            status = ledger.status().get(api.name, Status())
        used = count_spent(Budget(), api, status, batches_folder(job)).money_spent
    cap = f"; the cap is {api.budget_money:,.2f} USD" if api.budget_money else ""
    rows = table(estimate(of_job(job), terms, measured))
    return f"{rows}\n{job.teacher.name}: {used:,.2f} USD spent so far on {api.name}{cap}\n"
