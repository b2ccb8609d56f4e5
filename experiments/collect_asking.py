"""One teacher asked: its requests, who answers them, and the traces of the answers in the queries' order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from orca_jax import artifacts, files, storage
from orca_jax.artifacts import atomic_write
from orca_jax.config import ApiConfig, ExperimentConfig, Limits, TeacherConfig
from orca_jax.experiments.queries import QUERIES, is_asked, training_puzzles
from orca_jax.progress import progress
from orca_jax.queries import system_messages
from orca_jax.queries.puzzles.oracles import Knobs, OracleTeacher
from orca_jax.queries.recorded import RecordedTeacher
from orca_jax.records import Message, Query, Sampling, Trace
from orca_jax.serving.endpoint import StudentEndpoint
from orca_jax.serving.local import load_student
from orca_jax.teachers import keys, monitor, spent
from orca_jax.teachers.budget import Budget
from orca_jax.teachers.collect import ask_each, run_here
from orca_jax.teachers.completions import REASONING
from orca_jax.teachers.endpoint import ID_BYTES, Endpoint, Request, request_id
from orca_jax.teachers.estimate import BATCH_PRICE
from orca_jax.teachers.ledger import Answer, Ledger, LedgerError, Status
from orca_jax.training import students

COLLECTION = "collection.json"
LEDGER = "ledger.sqlite"
TRACES = "traces.jsonl"
CONCURRENCY = 64  # twice a student's rows, so that none waits for the next request
POLL_SECONDS = 60.0
Look = Callable[[str, Limits], monitor.Progress]


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
        """The queries that the teacher is asked, each with the message that it is asked under."""
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


def batches_folder(workdir: Path, teacher: str) -> Path:
    return workdir / "batches" / teacher


def conversation(query: Query) -> tuple[Message, ...]:
    """What a teacher is asked: the system message, empty or not, and the query."""
    return (Message("system", system_messages.text_of(query)), Message("user", query.text))


def to_trace(query: Query, request: Request, answer: Answer, teacher: TeacherConfig) -> Trace:
    """What the student learns from: under the message that the teacher was asked under, or is shown."""
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


def traces(job: Job, fingerprint: str) -> Iterator[Trace]:
    """Asks what the ledger cannot answer, then reads the traces from it; each reply is paid for once.

    `fingerprint` is of what the requests depend on; their ids are kept in a file, for a later resume.

    Raises:
      AskingStopped: no further request may be sent.
    """
    with Ledger(job.ledger) as ledger:
        ask = _ask_api if job.teacher.api else _ask_local
        answers = keys.answers(keys.read(ask(job, ledger, fingerprint)), ledger)
        for (query, request), answer in zip(job.requests(), answers, strict=True):
            if answer is None:
                raise LedgerError(f"{ledger.path} holds no attempt for query {query.id}; run again")
            yield to_trace(query, request, answer, job.teacher)


def collected(job: Job, ledger: Ledger) -> Iterator[Trace]:
    """The traces of a model behind an API that the ledger can give already."""
    assert job.teacher.api is not None
    ids = (request_id(job.teacher.api.name, request) for _, request in job.requests())
    for (query, request), answer in zip(job.requests(), keys.answers(ids, ledger), strict=True):
        if answer is not None:
            yield to_trace(query, request, answer, job.teacher)


def _begin(job: Job, identity: str, fingerprint: str) -> tuple[Path, int]:
    """Writes the ids of all requests, and COLLECTION; returns the file of the ids, and how many they are."""
    ids = job.directory / f"{artifacts.digest([fingerprint, identity])[:16]}.keys"
    if not ids.exists():
        keys.write(ids, identity, (request for _, request in job.requests()))
    total, api = ids.stat().st_size // ID_BYTES, job.teacher.api
    ledger = api.ledger if api else ""
    about = Collection(teacher=job.teacher.name, identity=identity, requests=total, ledger=ledger, api=api)
    with atomic_write(job.directory / COLLECTION) as file:
        json.dump(dataclasses.asdict(about), file, indent=1)
    return ids, total


def _missing(job: Job, ledger: Ledger, ids: Path) -> tuple[int, Iterator[Request]]:
    """How many requests have no answer, and these."""
    return keys.unanswered(ids, ledger, (request for _, request in job.requests()))


def _ask_local(job: Job, ledger: Ledger, fingerprint: str) -> Path:
    with endpoint(job) as answering:
        ids, _ = _begin(job, answering.identity, fingerprint)
        missing, requests = _missing(job, ledger, ids)
        with progress(f"asking {job.teacher.name}", missing) as report:
            done = iter(range(1, missing + 1))
            ask_each(answering, requests, ledger, lambda _: report(next(done)), concurrency=CONCURRENCY)
    return ids


@contextlib.contextmanager
def endpoint(job: Job) -> Iterator[Endpoint]:
    """Whoever answers as this teacher, without an API."""
    config, teacher = job.config, job.teacher
    if teacher.kind == "oracle":
        yield oracle(config, teacher)
        return
    if teacher.kind in RecordedTeacher.KINDS:
        yield RecordedTeacher(teacher.kind, job.queries())
        return
    source = students.open_source(teacher.path)
    student = load_student(
        source, students.layout_of(config, source), compiler_options=config.compiler_options
    )
    with StudentEndpoint(student) as answering:
        yield answering


def oracle(config: ExperimentConfig, teacher: TeacherConfig) -> OracleTeacher:
    made, _ = training_puzzles(config.puzzles, config.seed)
    knobs = Knobs(
        brevity=teacher.brevity,
        reach=teacher.reach,
        error_rate=teacher.error_rate,
        bare_reply=teacher.bare_reply,
    )
    return OracleTeacher(teacher.name, made, knobs, config.seed)


def _ask_api(job: Job, ledger: Ledger, fingerprint: str) -> Path:
    api = job.teacher.api
    assert api is not None
    ids, total = _begin(job, api.name, fingerprint)
    missing, requests = _missing(job, ledger, ids)
    if missing:  # else no key is needed, and what was answered is read
        budget = Budget(api.budget_money or None, api.budget_tokens or None)
        folder = batches_folder(job.workdir, job.teacher.name)
        look = functools.partial(_look, job, api, ledger, budget, total)
        with ledger.claim(api.name):  # what others spent meanwhile would not be counted
            spent.count(budget, api, ledger.status().get(api.name, Status()), folder)
            if api.batch:
                _ask_in_batches(job, api, ledger, ids, budget, look)
            else:
                _ask_pool(api, ledger, requests, budget, look)
    return ids


def _ask_pool(
    api: ApiConfig, ledger: Ledger, requests: Iterator[Request], budget: Budget, look: Look
) -> None:
    from orca_jax.teachers.openai import OpenAIEndpoint  # its client takes a while to import
    from orca_jax.teachers.pool import Pool

    members = [(OpenAIEndpoint(one), one.limits) for one in api.endpoints]
    pool = Pool(api.name, members, budget=budget, price=api.price)

    def look_at_pool() -> monitor.Progress:
        members = pool.status()
        return look(monitor.hindrances(members), monitor.limits(members))

    with monitor.watch(look_at_pool) as tick:
        ask_each(
            pool,
            requests,
            ledger,
            lambda _: None,  # the ledger has it
            concurrency=api.concurrency,
            retries=api.retries,
            on_tick=tick,
        )


def _ask_in_batches(job: Job, api: ApiConfig, ledger: Ledger, ids: Path, budget: Budget, look: Look) -> None:
    from orca_jax.teachers.batch import Batches, BatchLimits

    batches = Batches(
        batches_folder(job.workdir, job.teacher.name),
        api.name,
        api.endpoints[0],
        ledger,
        limits=BatchLimits(requests=api.batch_requests),
        budget=budget,
        price=api.price.times(BATCH_PRICE),
    )

    def under_way() -> str:
        return f"{sum(batch.is_open for batch in batches.batches)} batches under way"

    with monitor.watch(lambda: look(under_way(), api.limits)) as tick:
        run_here(
            batches.run(
                lambda: _missing(job, ledger, ids)[1],
                poll_seconds=POLL_SECONDS,
                on_poll=lambda _: tick(),
            )
        )


def _look(
    job: Job, api: ApiConfig, ledger: Ledger, budget: Budget, total: int, note: str, limits: Limits
) -> monitor.Progress:
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
