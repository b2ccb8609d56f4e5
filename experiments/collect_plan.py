"""What a collection will ask, what that will cost, and how it stands."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from orca_jax import artifacts, config_check, files
from orca_jax.config import ExperimentConfig, Limits
from orca_jax.experiments.collect_asking import (
    COLLECTION,
    Collection,
    Job,
    batches_folder,
    collected,
    ledger_path,
)
from orca_jax.experiments.queries import make_queries
from orca_jax.records import Message, Outcome
from orca_jax.teachers import estimate, monitor, spent, token_counts
from orca_jax.teachers.budget import Budget
from orca_jax.teachers.estimate import Kind, Row, Terms
from orca_jax.teachers.ledger import Ledger, LedgerError, Status

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One row of a plan's table."""

    query_id: str
    teacher: str
    sample: int
    collection: str
    task: str
    system_message_id: int | None
    prompt_bytes: int


def jobs(config: ExperimentConfig, workdir: Path) -> list[Job]:
    """One for each teacher that is asked; makes the queries first."""
    make_queries(config, workdir)
    return [Job(config, teacher, workdir) for teacher in config.teachers if teacher.kind != "file"]


def plan(config: ExperimentConfig, workdir: Path) -> None:
    """Writes plan/TEACHER.jsonl and prints how many requests there are of each kind."""
    every = jobs(config, workdir)
    print("| teacher | collection | message | requests |\n|---|---|---|---|")
    for job in every:
        files.write_jsonl(workdir / "plan" / f"{job.teacher.name}.jsonl", _rows(job))
        for kind, planned in sorted(estimate.plan(_kinds(job)).items(), key=str):
            print(f"| {kind.teacher} | {kind.collection} | {kind.system_message_id} | {planned.requests:,} |")
    print("\n" + "\n".join(_overlaps(every)))


def _rows(job: Job) -> Iterator[PlannedRequest]:
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


def _kinds(job: Job) -> Iterator[tuple[Kind, Sequence[Message]]]:
    for query, request in job.requests():
        kind = Kind(job.teacher.name, query.collection, query.system_message_id)
        yield kind, request.messages


def _overlaps(every: Sequence[Job]) -> Iterator[str]:
    """How many queries each teacher is asked, and how many of those the one who is asked most."""
    asked = {
        job.teacher.name: np.fromiter((hash(query.id) for query in job.queries()), np.int64) for job in every
    }
    for name, own in asked.items():
        most = max(asked, key=lambda other: len(asked[other]))
        shared = "" if name == most else f", {np.isin(own, asked[most]).sum():,} of them {most}'s too"
        yield f"{name}: {len(own):,} queries{shared}"


def estimate_cost(config: ExperimentConfig, workdir: Path) -> None:
    """Prints money and hours of each model behind an API, by collection and system message."""
    for job in jobs(config, workdir):
        if job.teacher.api is not None:
            print(estimate.table(_estimated(job)))
            print(_so_far(job) + "\n")


def _estimated(job: Job) -> list[Row]:
    api = job.teacher.api
    assert api is not None
    terms = Terms(
        price=api.price,
        limits=api.limits,
        lengths=api.lengths,
        max_tokens=job.teacher.max_tokens,
        batch_tokens=api.batch_tokens,
    )
    measured = {}
    if job.ledger.exists():
        with Ledger(job.ledger) as ledger:
            measured = estimate.measure(collected(job, ledger))
    return estimate.estimate(estimate.plan(_kinds(job)), terms, measured)


def _so_far(job: Job) -> str:
    api, used = job.teacher.api, 0.0
    assert api is not None
    if job.ledger.exists():
        with Ledger(job.ledger) as ledger:
            status = ledger.status().get(api.name, Status())
        used = spent.count(Budget(), api, status, batches_folder(job.workdir, job.teacher.name)).money_spent
    cap = f"; the cap is {api.budget_money:,.2f} USD" if api.budget_money else ""
    return f"{job.teacher.name}: {used:,.2f} USD spent so far on {api.name}{cap}"


def status(workdir: Path) -> list[monitor.Progress]:
    """How every collection of a workdir stands, from what it left there, whether it runs or not.

    Raises:
      ArtifactError: nothing was collected there.
    """
    found = sorted((workdir / "traces").glob(f"*/{COLLECTION}"))
    if not found:
        raise artifacts.ArtifactError(
            f"no collection was begun in {workdir}; name the --workdir of a collection"
        )
    return [_stand(workdir, path) for path in found]


def _stand(workdir: Path, path: Path) -> monitor.Progress:
    about = config_check.build(Collection, json.loads(path.read_text(encoding="utf-8")))
    api, cap, money, done = about.api, 0.0, 0.0, None
    ledger_file = ledger_path(workdir, about.ledger)
    if not ledger_file.exists():
        raise LedgerError(f"{ledger_file}: the ledger of {about.teacher} is gone; put it back")
    with Ledger(ledger_file) as ledger:
        if api is not None:
            known = ledger.status().get(about.identity, Status())
            batches = batches_folder(workdir, about.teacher)
            cap, money = api.budget_money, spent.count(Budget(), api, known, batches).money_spent
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
