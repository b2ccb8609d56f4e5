"""The collection of one teacher's traces: its requests, what answers them, the cost, and how it stands.

What is shown of it is the same while it runs and afterwards: all of it is read from the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orca_jax import artifacts, config_check, files, hub, plugins, storage
from orca_jax.artifacts import atomic_write
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import ApiConfig, Limits, TeacherConfig
from orca_jax.progress import progress
from orca_jax.queries import system_messages
from orca_jax.queries.make import QUERIES, is_asked, training_puzzles
from orca_jax.queries.puzzles.oracles import Knobs, OracleTeacher
from orca_jax.records import Message, Outcome, Query, Reply, Sampling, Trace, Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers.collect import collect_each, run_here
from orca_jax.teachers.completions import REASONING
from orca_jax.teachers.endpoint import Endpoint, Request, request_id
from orca_jax.teachers.ledger import Answer, Ledger, LedgerError, Status, id_array
from orca_jax.teachers.limits import BATCH_PRICE, Budget
from orca_jax.teachers.pool import Pool

COLLECTION = "collection.json"
LEDGER = "ledger.sqlite"
TRACES = "traces.jsonl"
CONCURRENCY = 64  # twice a student's rows, so that none waits for the next request
POLL_SECONDS = 60.0
LIVE_SECONDS, PLAIN_SECONDS = 2.0, 15.0  # between two looks at how it stands
NARROW = 100  # columns of a terminal, below which a teacher's figures stand below one another
LOOKING = 0.05  # most of the time that may go into looking: reading a great ledger takes a while
CHUNK = 500  # answers read from the ledger at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """What `status` must know of a collection; written as it begins. An empty ledger is the workdir's own."""

    teacher: str
    identity: str
    requests: int
    ledger: str = ""
    api: ApiConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How a collection stands: `done` of its requests; money in US dollars; `note` is what holds it up.

    `status` is of all that the ledger holds for this model, `limits` are those known at present.
    """

    about: Collection
    done: int
    status: Status
    limits: Limits
    money: float
    note: str = ""

    def columns(self) -> dict[str, str]:
        """What is shown, by title, without secrets."""
        status, left, api = self.status, self.about.requests - self.done, self.about.api
        outcomes = [f"{outcome} {count:,}" for outcome, count in sorted(status.attempts.items())]
        outcomes += [f"in flight {status.in_flight:,}"] if status.in_flight else []
        if left <= 0:
            end = "done"
        elif status.recent:
            end = f"in {_duration(left / status.recent * 60)}"
        else:
            end = f"no reply for {_duration(time.time() - status.last)}" if status.last else "not begun"
        columns = {
            "teacher": self.about.teacher,
            "done": f"{self.done:,} of {self.about.requests:,}",
            "requests/min": _of(f"{status.recent:,}", self.limits.requests),
            "tokens/min": _of(f"{status.recent_usage.total:,}", self.limits.tokens),
            "tokens": f"{status.usage.prompt_tokens:,} + {status.usage.completion_tokens:,}",
            "USD": _of(f"{self.money:,.2f}", api.budget_money if api else 0.0, ",.2f"),
            "end": end,
            "attempts": ", ".join(outcomes) or "none",
            "note": self.note,
        }
        return {title: scrub(text) for title, text in columns.items()}


def _of(used: str, limit: float, form: str = ",.0f") -> str:
    return f"{used} of {limit:{form}}" if limit else used


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


@dataclasses.dataclass(frozen=True)
class Job:
    """A teacher's part of the queries of a workdir."""

    config: ExperimentConfig
    teacher: TeacherConfig
    workdir: Path

    @property
    def directory(self) -> Path:
        return self.workdir / "traces" / self.teacher.name

    @property
    def ledger(self) -> Path:
        return ledger_path(self.workdir, self.teacher.api.ledger if self.teacher.api else "")

    @property
    def sampling(self) -> Sampling:
        if self.teacher.api:
            return self.teacher.api.sampling(self.teacher.max_tokens)
        sampling = Sampling(seed=self.config.seed)
        if self.teacher.kind == "student":
            return dataclasses.replace(sampling, max_tokens=self.teacher.max_tokens)
        return sampling

    def queries(self) -> Iterator[Query]:
        """The queries that are put to the teacher, each with the message that it is put under."""
        for query in files.read_jsonl(self.workdir / "queries" / QUERIES, Query):
            if is_asked(query, self.teacher.share, self.config.seed):
                yield system_messages.under(query, self.teacher.message)

    def requests(self) -> Iterator[tuple[Query, Request]]:
        """Every request, each query's samples one after the other."""
        sampling = self.sampling
        for query in self.queries():
            messages = conversation(query)
            for sample in range(self.teacher.asked):
                yield query, Request(messages, sampling, sample)


def ledger_path(workdir: Path, named: str) -> Path:
    if storage.is_remote(named):
        raise LedgerError(f"api.ledger={named!r} is no file on a disk; leave it empty for one in the workdir")
    return Path(named) if named else workdir / LEDGER


def conversation(query: Query) -> tuple[Message, ...]:
    """The prompt of a query: the system message, empty or not, and the text."""
    return (Message("system", system_messages.text_of(query)), Message("user", query.text))


def to_trace(query: Query, request: Request, answer: Answer, teacher: TeacherConfig) -> Trace:
    """The trace of an answer, under the message of the request, or under the one to be shown instead."""
    reply = answer.reply
    kept = {name: reply.raw[name] for name in ("logprobs", REASONING) if name in reply.raw}
    query = system_messages.under(query, teacher.shown)
    return Trace(
        id=f"{query.id}/{teacher.name}/{request.sample}",
        query_id=query.id,
        sample=request.sample,
        messages=(*conversation(query), Message("assistant", reply.text)),
        collection=query.collection,
        task=query.task,
        system_message_id=query.system_message_id,
        teacher=teacher.name,
        sampling=request.sampling,
        outcome=reply.outcome,
        usage=reply.usage,
        created=answer.created,
        target=query.target,
        extra={**query.extra, **kept},
    )


# The requests, and what answers them


def traces(job: Job, endpoint: Callable[[Job], AbstractContextManager[Endpoint]]) -> Iterator[Trace]:
    """Collects the answers that the ledger lacks, then reads the traces from it in the order of the queries.

    Args:
      endpoint: opens what answers, where that is no API.

    Raises:
      CollectionStopped: no further request may be sent.
    """
    with Ledger(job.ledger) as ledger:
        if job.teacher.api:
            identity = job.teacher.api.name
            _collect_from_api(job, job.teacher.api, ledger)
        else:
            with endpoint(job) as answering:
                identity = answering.identity
                _, wanted = _begin(job, identity, ledger)
                with progress(f"collecting {job.teacher.name}", sum(wanted)) as report:
                    done = itertools.count(1)
                    collect_each(
                        answering,
                        _chosen(job, wanted),
                        ledger,
                        lambda _: report(next(done)),
                        concurrency=CONCURRENCY,
                    )
        for query, trace in collected(job, identity, ledger):
            if trace is None:
                raise LedgerError(f"{ledger.path} holds no attempt for query {query.id}; run again")
            yield trace


def collected(job: Job, identity: str, ledger: Ledger) -> Iterator[tuple[Query, Trace | None]]:
    """The trace of each request, or None where the ledger holds no attempt."""
    source = job.requests()
    while some := list(itertools.islice(source, CHUNK)):
        keys = [request_id(identity, request) for _, request in some]
        answers = ledger.get_many(keys)
        for key, (query, request) in zip(keys, some, strict=True):
            answer = answers.get(key)
            yield query, to_trace(query, request, answer, job.teacher) if answer else None


def missing(identity: str, requests: Iterable[Request], ledger: Ledger) -> bytearray:
    """A byte for each request: 1 where the ledger holds no answer, else 0."""
    answered = ledger.answered()
    ids = id_array(request_id(identity, request) for request in requests)
    if not len(answered):
        return bytearray(b"\1" * len(ids))
    # The first halves are looked up, in their order, which is far faster. Where two answered ones are equal,
    # one more request is found to be answered when it is its turn.
    wanted = ids[:, 0].astype(np.uint64)
    order = np.argsort(wanted)
    places = np.empty(len(ids), np.int64)
    places[order] = np.searchsorted(answered[:, 0].astype(np.uint64), wanted[order])
    found = answered[np.minimum(places, len(answered) - 1)]
    return bytearray((found != ids).any(axis=1))


def endpoint(job: Job) -> Endpoint:
    """Answers as a teacher that needs neither an API nor a student."""
    if job.teacher.kind == "oracle":
        return oracle(job.config, job.teacher)
    if job.teacher.kind in plugins.TEACHERS.entries:
        return PluginTeacher(job)
    return RecordedTeacher(job.teacher.kind, job.queries())


def asked_as(teacher: TeacherConfig) -> artifacts.Section:
    """The settings that a teacher's traces depend on, its API's apart; the others are for later."""
    teacher = dataclasses.replace(teacher, path=hub.unpinned(teacher.path))
    return artifacts.section(teacher, without=(*teacher.NO_NUMBER, *teacher.LATER, "api"))


class PluginTeacher:
    """A teacher of a plugin's; its identity changes with its settings and source, as its answers may."""

    def __init__(self, job: Job):
        kind, path = job.teacher.kind, Path(job.teacher.path)
        made = [asked_as(job.teacher), plugins.provenance((plugins.TEACHERS, kind)), job.config.seed]
        made += [artifacts.file_digest(path)] if path.is_file() else []
        self.identity = f"{kind}-{artifacts.digest(made)[:16]}"
        self.reply = plugins.TEACHERS.entries[kind](job.config, job.teacher, job.queries()).reply


class RecordedTeacher:
    """Answers that the data sets hold themselves; empty for a query without a target, refused for any other.

    They stand in for the two teachers where there is no other.

    Args:
      kind: `targets` answers with the target; `rationales` gives the reasons first that people wrote for it.
      queries: `extra["explanation"]` holds a query's reasons.
    """

    def __init__(self, kind: str, queries: Iterable[Query]):
        self._answers = {query.text: _answer(kind, query) for query in queries}
        digest = hashlib.sha256("\x00".join(self._answers.values()).encode("utf-8", "surrogatepass"))
        self.identity = f"{kind}-{digest.hexdigest()[:16]}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers the last user message; usage counts words."""
        question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        answer = self._answers.get(question)
        if answer is None:
            return Reply(Outcome.REFUSED, "")
        words = sum(len(message.content.split()) for message in messages)
        return Reply(Outcome.OK if answer else Outcome.EMPTY, answer, Usage(words, len(answer.split())))


def _answer(kind: str, query: Query) -> str:
    target = query.target or ""
    reasons = query.extra.get("explanation") if kind == "rationales" else None
    return f"{reasons}\nSo the answer is {target}." if reasons and target else target


def oracle(config: ExperimentConfig, teacher: TeacherConfig) -> OracleTeacher:
    made, _ = training_puzzles(config.puzzles, config.seed)
    names = ("brevity", "reach", "error_rate", "bare_reply", "style", "steps")
    knobs = Knobs(**{name: getattr(teacher, name) for name in names})
    return OracleTeacher(teacher.name, made, knobs, config.seed)


def _missing(job: Job, identity: str, ledger: Ledger) -> bytearray:
    return missing(identity, (request for _, request in job.requests()), ledger)


def _begin(job: Job, identity: str, ledger: Ledger) -> tuple[Collection, bytearray]:
    """Writes COLLECTION; returns it, and which requests have no answer."""
    wanted, api = _missing(job, identity, ledger), job.teacher.api
    about = Collection(
        teacher=job.teacher.name,
        identity=identity,
        requests=len(wanted),
        ledger=api.ledger if api else "",
        api=api,
    )
    with atomic_write(job.directory / COLLECTION) as file:
        json.dump(dataclasses.asdict(about), file, indent=1)
    return about, wanted


def _chosen(job: Job, wanted: Iterable[int]) -> Iterator[Request]:
    return (request for _, request in itertools.compress(job.requests(), wanted))


def _collect_from_api(job: Job, api: ApiConfig, ledger: Ledger) -> None:
    about, wanted = _begin(job, api.name, ledger)
    if not any(wanted):  # no key is needed to read what was answered
        return
    from orca_jax.teachers.batch import Batches  # its client takes a while to import
    from orca_jax.teachers.openai import OpenAIEndpoint

    def look() -> Progress:
        with Ledger(ledger.path) as reader:  # in another thread, and reading a great one takes a while
            status = reader.status().get(api.name, Status())
        return Progress(
            about=about,
            done=min(status.answers, about.requests),
            status=status,
            limits=sender.limits,
            money=budget.money_spent,
            note=sender.note,
        )

    with ledger.claim(api.name):  # what others spent meanwhile would not be counted
        budget = Budget(api.budget_money or None, api.budget_tokens or None)
        count_spent(budget, api, ledger.status().get(api.name, Status()), batches_folder(job))
        sender: Batches | Pool
        if api.batch:
            sender = Batches(batches_folder(job), api, ledger, budget)
        else:
            members = [(OpenAIEndpoint(one), one.limits) for one in api.endpoints]
            sender = Pool(api.name, members, budget=budget, price=api.price)
        with watch(look) as tick:
            if isinstance(sender, Batches):
                left = functools.partial(_missing, job, api.name, ledger)
                run_here(sender.run(lambda: _chosen(job, left()), poll_seconds=POLL_SECONDS, on_poll=tick))
            else:
                collect_each(
                    sender,
                    _chosen(job, wanted),
                    ledger,
                    lambda _: None,  # the ledger has it
                    concurrency=api.concurrency,
                    retries=api.retries,
                    on_tick=tick,
                )


# What was paid, and how a collection stands


def batches_folder(job: Job) -> Path:
    return job.workdir / "batches" / job.teacher.name


def count_spent(budget: Budget, api: ApiConfig, status: Status, batches: Path) -> Budget:
    """Counts in `budget` what was used before, from the ledger and the states of batches; returns it.

    Requests whose program was killed count as much as they could have used; those in batches do not count:
    they are reserved when the batches are taken up again. `batches` is the folder of the batches.
    """
    batched, waiting = Usage(), Usage()
    if batches.exists():
        from orca_jax.teachers.batch import read_state  # brings the client with it

        found = read_state(batches)
        batched = sum((batch.used for batch in found if batch.collected), Usage())
        waiting = sum((batch.file.bound for batch in found if not batch.collected), Usage())
    budget.spend(status.usage, api.price)
    budget.money_spent -= api.price.times(1 - BATCH_PRICE).cost(batched)
    lost, names = status.in_flight_usage, ("prompt_tokens", "completion_tokens")
    lost = Usage(*(max(0, getattr(lost, name) - getattr(waiting, name)) for name in names))
    budget.spend(lost, api.price)
    return budget


def status(workdir: Path) -> list[Progress]:
    """How every collection of a workdir stands, from what it left there, whether it runs or not.

    Raises:
      ArtifactError: nothing was collected there.
      LedgerError: the ledger of a collection is gone.
    """
    found = sorted((workdir / "traces").glob(f"*/{COLLECTION}"))
    if not found:
        raise artifacts.ArtifactError(
            f"no collection was begun in {workdir}; name the --workdir of a collection"
        )
    return [_status(workdir, path) for path in found]


def _status(workdir: Path, path: Path) -> Progress:
    about = config_check.build(Collection, json.loads(path.read_text(encoding="utf-8")))
    api, ledger_file = about.api, ledger_path(workdir, about.ledger)
    if not ledger_file.exists():
        raise LedgerError(f"{ledger_file}: the ledger of {about.teacher} is gone; put it back")
    with Ledger(ledger_file) as ledger:
        known = ledger.status().get(about.identity, Status())
    done, money = min(known.answers, about.requests), 0.0
    if api is not None:
        money = count_spent(Budget(), api, known, workdir / "batches" / about.teacher).money_spent
    if (path.parent / artifacts.MANIFEST).exists():
        outcomes = artifacts.read_manifest(path.parent)["counts"]["outcomes"]
        done = about.requests - outcomes.get(Outcome.ERROR, 0)
    limits = api.limits if api else Limits()
    return Progress(about=about, done=done, status=known, limits=limits, money=money)


def table(stands: Iterable[Progress]) -> Table:
    """One row a teacher, for a terminal; on a narrow one a line for each of its columns."""
    rows = [stand.columns() for stand in stands]
    if Console().width < NARROW:
        made = Table(show_header=False)
        for row in rows:
            for title, text in row.items():
                if text:
                    made.add_row(title, text)
            made.add_section()
        return made
    made = Table(*(rows[0] if rows else ()))
    for row in rows:
        made.add_row(*row.values())
    return made


def line(stand: Progress) -> str:
    """The same in plain text."""
    name, *rest = stand.columns().items()
    return f"{name[1]}: " + "; ".join(f"{title} {text}" for title, text in rest if text)


@contextlib.contextmanager
def watch(look: Callable[[], Progress]) -> Iterator[Callable[[], None]]:
    """Shows what `look` returns: a panel on a terminal, plain lines elsewhere.

    Yields a function to be called often; it looks when it is time to, and once more at the end.
    """
    console = Console(stderr=True)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    seconds, due = LIVE_SECONDS if live else PLAIN_SECONDS, 0.0

    def show() -> None:
        nonlocal due
        started = time.monotonic()
        stand = look()
        due = time.monotonic() + max(seconds, (time.monotonic() - started) / LOOKING)
        if live is not None:
            live.update(table([stand]), refresh=True)
        else:
            print(line(stand), file=sys.stderr, flush=True)

    with live or contextlib.nullcontext():
        show()
        try:
            yield lambda: show() if time.monotonic() >= due else None
        finally:
            show()
