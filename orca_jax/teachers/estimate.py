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
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import NamedTuple

from orca_jax.config_teachers import ApiConfig
from orca_jax.records import Outcome, Trace, Usage
from orca_jax.teachers import pool
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


class Planned(NamedTuple):
    """How much of a kind is to be sent; `prompt_bytes` of all conversations together."""

    requests: int = 0
    prompt_bytes: int = 0


class Measured(NamedTuple):
    """Means over `traces`: tokens of a reply, and bytes of a conversation to a token."""

    traces: int
    completion_tokens: float
    bytes_a_token: float


class Row(NamedTuple):
    """The estimate for one kind, or for a teacher's whole share. Money in US dollars, at the usual price.

    `source` is where the reply lengths come from: measured, paper or max_tokens. `hours` is what the
    limits allow at best, 0 where no limit is known.
    """

    kind: Kind
    requests: int
    usage: Usage
    source: str
    money: float
    hours: float
    batch_hours: float


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
            pool.size(request.messages),
        )


def planned(job: Job) -> dict[Kind, Planned]:
    """How much of each kind a teacher is asked."""
    counts: dict[Kind, Planned] = collections.defaultdict(Planned)
    for one in planned_requests(job):
        kind = Kind(one.teacher, one.collection, one.system_message_id)
        counts[kind] = Planned(counts[kind].requests + 1, counts[kind].prompt_bytes + one.prompt_bytes)
    return counts


def measure(traces: Iterable[Trace]) -> dict[Kind, Measured]:
    """Means of what was answered, for each kind, for each teacher and message, and for each teacher."""
    sums: dict[Kind, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for trace in traces:
        if trace.outcome is Outcome.ERROR or not trace.usage.prompt_tokens:
            continue
        prompt = [message for message in trace.messages if message.role != "assistant"]
        values = (1, trace.usage.completion_tokens, pool.size(prompt), trace.usage.prompt_tokens)
        for kind in _wider(Kind(trace.teacher, trace.collection, trace.system_message_id)):
            sums[kind] = [total + value for total, value in zip(sums[kind], values, strict=True)]
    return {
        kind: Measured(n, replies / n, size / prompts) for kind, (n, replies, size, prompts) in sums.items()
    }


def estimate(
    planned: Mapping[Kind, Planned],
    api: ApiConfig,
    max_tokens: int,
    measured: Mapping[Kind, Measured] | None = None,
) -> list[Row]:
    """A row for each kind, in order, and one with the totals; all kinds are of one teacher."""
    rows = []
    for kind, (requests, prompt_bytes) in sorted(planned.items(), key=str):
        means = [measured[wider] for wider in _wider(kind) if wider in measured] if measured else []
        known = next((mean for mean in means if mean.traces >= ENOUGH), None)
        box = PAPER.get((api.lengths, kind.system_message_id or 1))
        if known is not None:
            reply, source = known.completion_tokens, "measured"
        elif box is not None:
            reply, source = min(box.mean(), max_tokens), "paper"
        else:
            reply, source = float(max_tokens), "max_tokens"
        prompt = prompt_bytes / (known.bytes_a_token if known else BYTES_A_TOKEN)
        rows.append(_row(kind, requests, Usage(round(prompt), round(reply * requests)), source, api))
    if rows:
        usage = sum((row.usage for row in rows), Usage())
        source = "+".join(sorted({row.source for row in rows}))
        requests = sum(row.requests for row in rows)
        rows.append(_row(Kind(rows[0].kind.teacher, None, None), requests, usage, source, api))
    return rows


def _wider(kind: Kind) -> list[Kind]:
    """The kind, then those that stand in for it."""
    return [kind, kind._replace(collection=None), Kind(kind.teacher, None, None)]


def _row(kind: Kind, requests: int, usage: Usage, source: str, api: ApiConfig) -> Row:
    limits = api.limits
    minutes = [requests / limits.requests] if limits.requests else []
    minutes += [usage.total / limits.tokens] if limits.tokens else []
    waves = max(1, math.ceil(usage.prompt_tokens / api.batch_tokens)) if api.batch_tokens else 1
    hours = max(minutes, default=0.0) / 60
    return Row(kind, requests, usage, source, api.price.cost(usage), hours, BATCH_HOURS * waves)


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| teacher | collection | message | requests | prompt tokens | reply tokens | USD | hours "
        "| USD in batches | hours in batches | lengths |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (teacher, collection, id), requests, usage, source, money, hours, batch_hours in rows:
        lines.append(
            f"| {teacher} | {collection or 'all'} | {'all' if id is None else id} | {requests:,} | "
            f"{usage.prompt_tokens:,} | {usage.completion_tokens:,} | {money:,.2f} | {hours:,.1f} | "
            f"{money * BATCH_PRICE:,.2f} | {batch_hours:,.0f} | {source} |"
        )
    return "\n".join(lines) + "\n"


def report(job: Job) -> str:
    """What the requests to a model behind an API will cost, as a table, and what was spent so far."""
    api = job.teacher.api
    assert api is not None
    measured, spent = {}, 0.0
    if job.ledger.exists():
        with Ledger(job.ledger) as ledger:
            measured = measure(trace for _, trace in collected(job, api.name, ledger) if trace is not None)
            status = ledger.status().get(api.name, Status())
        spent = count_spent(Budget(), api, status, batches_folder(job)).money_spent
    cap = f"; the cap is {api.budget_money:,.2f} USD" if api.budget_money else ""
    rows = table(estimate(planned(job), api, job.teacher.max_tokens, measured))
    return f"{rows}\n{job.teacher.name}: {spent:,.2f} USD spent so far on {api.name}{cap}\n"
