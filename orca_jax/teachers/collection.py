"""The collection of one teacher's traces: its requests, what answers them, what was paid, and how it stands.

The ids of all requests are kept in one file: `write_ids` writes it when the requests are planned. A resume
need not read the requests then; which of two million lack an answer is found in seconds (`missing`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orca_jax import artifacts, config_check, files, storage
from orca_jax.artifacts import atomic_write
from orca_jax.config import ApiConfig, ExperimentConfig, Limits, TeacherConfig
from orca_jax.progress import progress
from orca_jax.queries import system_messages
from orca_jax.queries.make import QUERIES, is_asked, training_puzzles
from orca_jax.queries.puzzles.oracles import Knobs, OracleTeacher
from orca_jax.records import Message, Outcome, Query, Reply, Sampling, Trace, Usage
from orca_jax.teachers import monitor
from orca_jax.teachers.collect import collect_each, run_here
from orca_jax.teachers.completions import REASONING
from orca_jax.teachers.endpoint import ID_BYTES, Endpoint, Request, request_id
from orca_jax.teachers.ledger import Answer, Ledger, LedgerError, Status
from orca_jax.teachers.limits import BATCH_PRICE, Budget

COLLECTION = "collection.json"
LEDGER = "ledger.sqlite"
TRACES = "traces.jsonl"
CONCURRENCY = 64  # twice a student's rows, so that none waits for the next request
POLL_SECONDS = 60.0
CHUNK = 500  # answers read from the ledger at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """What `status` must know of a collection; written as it begins. An empty ledger is the workdir's own."""

    teacher: str
    identity: str
    requests: int
    ledger: str = ""
    api: ApiConfig | None = None


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
            for sample in range(self.teacher.asked):
                yield query, Request(conversation(query), sampling, sample)


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


def traces(
    job: Job, fingerprint: str, endpoint: Callable[[Job], AbstractContextManager[Endpoint]]
) -> Iterator[Trace]:
    """Collects the answers that the ledger lacks, then reads the traces from it in the order of the queries.

    Args:
      fingerprint: of what the requests depend on; the file of their ids is named after it.
      endpoint: opens what answers, where that is no API.

    Raises:
      CollectionStopped: no further request may be sent.
    """
    with Ledger(job.ledger) as ledger:
        if job.teacher.api:
            ids = _collect_from_api(job, job.teacher.api, ledger, fingerprint)
        else:
            with endpoint(job) as answering:
                ids, _ = _begin(job, answering.identity, fingerprint)
                missing, requests = _missing(job, ledger, ids)
                with progress(f"collecting {job.teacher.name}", missing) as report:
                    done = iter(range(1, missing + 1))
                    collect_each(
                        answering, requests, ledger, lambda _: report(next(done)), concurrency=CONCURRENCY
                    )
        for (query, request), answer in zip(job.requests(), answers(read_ids(ids), ledger), strict=True):
            if answer is None:
                raise LedgerError(f"{ledger.path} holds no attempt for query {query.id}; run again")
            yield to_trace(query, request, answer, job.teacher)


def collected(job: Job, ledger: Ledger) -> Iterator[Trace]:
    """The traces of a model behind an API that the ledger can give already."""
    assert job.teacher.api is not None
    ids = (request_id(job.teacher.api.name, request) for _, request in job.requests())
    for (query, request), answer in zip(job.requests(), answers(ids, ledger), strict=True):
        if answer is not None:
            yield to_trace(query, request, answer, job.teacher)


@contextlib.contextmanager
def endpoint(job: Job) -> Iterator[Endpoint]:
    """Answers as a teacher that needs neither an API nor a student."""
    if job.teacher.kind == "oracle":
        yield oracle(job.config, job.teacher)
    else:
        yield RecordedTeacher(job.teacher.kind, job.queries())


class RecordedTeacher:
    """Answers that the data sets hold themselves; empty for a query without a target, refused for any other.

    They stand in for the two teachers where there is no other.

    Args:
      kind: `targets` answers with the target; `rationales` gives the reasons first that people wrote for it.
      queries: `extra["explanation"]` holds a query's reasons.
    """

    KINDS = ("targets", "rationales")

    def __init__(self, kind: str, queries: Iterable[Query]):
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of recorded teacher {kind!r}; known: {', '.join(self.KINDS)}")
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
    knobs = Knobs(
        brevity=teacher.brevity,
        reach=teacher.reach,
        error_rate=teacher.error_rate,
        bare_reply=teacher.bare_reply,
    )
    return OracleTeacher(teacher.name, made, knobs, config.seed)


def _begin(job: Job, identity: str, fingerprint: str) -> tuple[Path, int]:
    """Writes the ids of all requests, and COLLECTION; returns the file of the ids, and how many they are."""
    ids = job.directory / f"{artifacts.digest([fingerprint, identity])[:16]}.keys"
    if not ids.exists():
        write_ids(ids, identity, (request for _, request in job.requests()))
    total, api = ids.stat().st_size // ID_BYTES, job.teacher.api
    ledger = api.ledger if api else ""
    about = Collection(teacher=job.teacher.name, identity=identity, requests=total, ledger=ledger, api=api)
    with atomic_write(job.directory / COLLECTION) as file:
        json.dump(dataclasses.asdict(about), file, indent=1)
    return ids, total


def _missing(job: Job, ledger: Ledger, ids: Path) -> tuple[int, Iterator[Request]]:
    """How many requests have no answer, and these."""
    return unanswered(ids, ledger, (request for _, request in job.requests()))


def _collect_from_api(job: Job, api: ApiConfig, ledger: Ledger, fingerprint: str) -> Path:
    ids, total = _begin(job, api.name, fingerprint)
    missing, requests = _missing(job, ledger, ids)
    if not missing:  # no key is needed to read what was answered
        return ids
    budget = Budget(api.budget_money or None, api.budget_tokens or None)

    def look(note: str, limits: Limits) -> monitor.Progress:
        return monitor.progress(
            ledger,
            api.name,
            name=job.teacher.name,
            total=total,
            limits=limits,
            money=budget.money_spent,
            cap=api.budget_money,
            note=note,
        )

    with ledger.claim(api.name):  # what others spent meanwhile would not be counted
        count_spent(budget, api, ledger.status().get(api.name, Status()), batches_folder(job))
        if api.batch:
            _collect_in_batches(job, api, ledger, ids, budget, look)
        else:
            _collect_from_pool(api, ledger, requests, budget, look)
    return ids


def _collect_from_pool(
    api: ApiConfig,
    ledger: Ledger,
    requests: Iterator[Request],
    budget: Budget,
    look: Callable[[str, Limits], monitor.Progress],
) -> None:
    from orca_jax.teachers.openai import OpenAIEndpoint  # its client takes a while to import
    from orca_jax.teachers.pool import Pool

    members = [(OpenAIEndpoint(one), one.limits) for one in api.endpoints]
    pool = Pool(api.name, members, budget=budget, price=api.price)

    def look_at_pool() -> monitor.Progress:
        members = pool.status()
        return look(monitor.hindrances(members), monitor.limits(members))

    with monitor.watch(look_at_pool) as tick:
        collect_each(
            pool,
            requests,
            ledger,
            lambda _: None,  # the ledger has it
            concurrency=api.concurrency,
            retries=api.retries,
            on_tick=tick,
        )


def _collect_in_batches(
    job: Job,
    api: ApiConfig,
    ledger: Ledger,
    ids: Path,
    budget: Budget,
    look: Callable[[str, Limits], monitor.Progress],
) -> None:
    from orca_jax.teachers.batch import Batches, BatchLimits

    batches = Batches(
        batches_folder(job),
        api.name,
        api.endpoints[0],
        ledger,
        limits=BatchLimits(requests=api.batch_requests),
        budget=budget,
        price=api.price.times(BATCH_PRICE),
    )

    def look_at_batches() -> monitor.Progress:
        return look(f"{sum(batch.is_open for batch in batches.batches)} batches under way", api.limits)

    with monitor.watch(look_at_batches) as tick:
        run_here(
            batches.run(
                lambda: _missing(job, ledger, ids)[1],
                poll_seconds=POLL_SECONDS,
                on_poll=lambda _: tick(),
            )
        )


# The ids of all requests, in one file


def write_ids(path: str | os.PathLike[str], identity: str, requests: Iterable[Request]) -> int:
    """Writes the ids of requests to the endpoint `identity`, in order; returns how many there are."""
    with atomic_write(path, "wb") as file:
        count = 0
        for request in requests:
            file.write(request_id(identity, request))
            count += 1
    return count


def read_ids(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The ids of a file in their order."""
    with open(path, "rb") as file:
        while key := file.read(ID_BYTES):
            yield key


def missing(path: str | os.PathLike[str], ledger: Ledger) -> NDArray[np.int64]:
    """The places, from 0 and in order, of the requests in the file that the ledger holds no answer to.

    Raises:
      ValueError: the file is no file of ids.
    """
    content = Path(path).read_bytes()
    if len(content) % ID_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes are no whole number of request ids; write it again")
    # [ids, 2]: numbers in the order of the bytes.
    wanted, answered = (
        np.frombuffer(ids, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        for ids in (content, ledger.answered())
    )
    if not len(answered):
        return np.arange(len(wanted))
    # The ledger's ids come in order. Two that share their first half are too rare to matter: the
    # second would be requested, and found in the ledger then.
    places = np.minimum(np.searchsorted(answered[:, 0], wanted[:, 0]), len(answered) - 1)
    return np.flatnonzero((answered[places] != wanted).any(axis=1))


def unanswered(
    path: str | os.PathLike[str], ledger: Ledger, requests: Iterable[Request]
) -> tuple[int, Iterator[Request]]:
    """How many of the file's requests have no answer, and those of `requests`, which are the file's.

    Raises:
      ValueError: the file is no file of ids.
    """
    places = missing(path, ledger)
    wanted = np.zeros(os.path.getsize(path) // ID_BYTES, dtype=bool)
    wanted[places] = True
    return len(places), itertools.compress(requests, wanted)


def answers(ids: Iterable[bytes], ledger: Ledger) -> Iterator[Answer | None]:
    """What the ledger holds for each id: the answer, else the last failure, else None."""
    ids = iter(ids)
    while some := list(itertools.islice(ids, CHUNK)):
        found = ledger.get_many(some)
        yield from (found.get(key) or ledger.failure(key) for key in some)


# What was paid, and how a collection stands


def batches_folder(job: Job) -> Path:
    return job.workdir / "batches" / job.teacher.name


def count_spent(budget: Budget, api: ApiConfig, status: Status, batches: Path) -> Budget:
    """Counts in `budget` what was used before, from the ledger and the states of batches; returns it.

    Requests whose program was killed count as much as they could have used; those in open batches do not
    count: they are reserved when the batches are taken up again. `batches` is the folder of the batches.
    """
    batched, waiting = Usage(), Usage()
    if batches.exists():
        from orca_jax.teachers.batch import read_state  # brings the client with it

        found = read_state(batches)
        batched = sum((batch.used for batch in found if batch.collected), Usage())
        waiting = sum((batch.file.bound for batch in found if batch.is_open), Usage())
    budget.spend(_less(status.usage, batched), api.price)
    budget.spend(batched, api.price.times(BATCH_PRICE))
    budget.spend(_less(status.in_flight_usage, waiting), api.price)
    return budget


def _less(whole: Usage, part: Usage) -> Usage:
    return Usage(
        max(0, whole.prompt_tokens - part.prompt_tokens),
        max(0, whole.completion_tokens - part.completion_tokens),
    )


def status(workdir: Path) -> list[monitor.Progress]:
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


def _status(workdir: Path, path: Path) -> monitor.Progress:
    about = config_check.build(Collection, json.loads(path.read_text(encoding="utf-8")))
    api, cap, money, done = about.api, 0.0, 0.0, None
    ledger_file = ledger_path(workdir, about.ledger)
    if not ledger_file.exists():
        raise LedgerError(f"{ledger_file}: the ledger of {about.teacher} is gone; put it back")
    with Ledger(ledger_file) as ledger:
        if api is not None:
            known = ledger.status().get(about.identity, Status())
            batches = workdir / "batches" / about.teacher
            cap, money = api.budget_money, count_spent(Budget(), api, known, batches).money_spent
        if (path.parent / artifacts.MANIFEST).exists():
            outcomes = artifacts.read_manifest(path.parent)["counts"]["outcomes"]
            done = about.requests - outcomes.get(Outcome.ERROR, 0)
        return monitor.progress(
            ledger,
            about.identity,
            name=about.teacher,
            total=about.requests,
            limits=api.limits if api else Limits(),
            money=money,
            cap=cap,
            done=done,
        )
