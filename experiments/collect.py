"""Queries to traces: makes the questions and asks every teacher, each reply once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments import launch, students
from experiments.config import ExperimentConfig, PuzzlesConfig, TeacherConfig, plain
from orca_jax import artifacts, record_files
from orca_jax.asking.ask import ask_all
from orca_jax.asking.endpoint import Endpoint, Request
from orca_jax.asking.ledger import Ledger
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.progress import progress
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import Knobs, OracleTeacher
from orca_jax.records import Message, Query, RecordError, Reply, Sampling, Trace
from orca_jax.serving.endpoint import StudentEndpoint

log = logging.getLogger(__name__)
QUERIES = "queries.jsonl"
TRACES = "traces.jsonl"
CONCURRENCY = 64  # twice a student's rows, so that none waits for the next request


def unit_hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    text = "\x00".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def assign_message(query_id: str, multiple_choice: bool, shares: dict[str, float], seed: int) -> int:
    """The system message of a query: by hash, so that every teacher and every rerun sees the same.

    Raises:
      ValueError: the shares allow no message for a query without options.
    """
    allowed = {
        int(name): share
        for name, share in sorted(shares.items(), key=lambda entry: int(entry[0]))
        if multiple_choice or not system_messages.get(int(name)).multiple_choice_only
    }
    point = unit_hash("message", seed, query_id) * sum(allowed.values())
    for message_id, share in allowed.items():
        point -= share
        if point < 0:
            return message_id
    if not allowed:
        raise ValueError("puzzles.messages has only messages for multiple choice; add one for other queries")
    return max(allowed)


def training_puzzles(
    config: PuzzlesConfig, seed: int, bbh_texts: Iterable[str] = ()
) -> tuple[list[Puzzle], int]:
    """The training puzzles, none of which a benchmark file asks, and how many were left out for that."""
    made = [
        puzzle
        for family in config.families
        for puzzle in puzzles.make_puzzles(
            family, difficulties=config.difficulties, count=config.per_family, seed=seed, split="train"
        )
    ]
    kept, dropped = puzzles.drop_known(made, bbh_texts)
    return kept, len(dropped)


def bbh_texts(folder: str) -> list[str]:
    """The questions of a BBH folder; empty without one."""
    return bbh.texts(folder) if folder else []


def make_queries(config: ExperimentConfig, workdir: Path) -> dict[str, Any]:
    """Writes queries/queries.jsonl: puzzles with their system messages."""
    directory = workdir / "queries"
    examined = bbh_texts(config.bbh_folder)
    made_by = {
        "program": "queries",
        "seed": config.seed,
        "puzzles": plain(config.puzzles),
        "bbh": artifacts.digest(examined),
    }
    if artifacts.is_finished(directory, made_by, {}):
        return artifacts.read_manifest(directory)
    made, known = training_puzzles(config.puzzles, config.seed, examined)
    shares = dict(config.puzzles.messages)
    queries = [
        puzzles.to_query(p, assign_message(p.id, p.multiple_choice, shares, config.seed)) for p in made
    ]
    record_files.write_jsonl(directory / QUERIES, queries)
    log.info("%d queries of %d families; %d met a benchmark's question and were left out",
             len(queries), len(config.puzzles.families), known)  # fmt: skip
    return artifacts.finish(directory, made_by, {}, {"queries": len(queries), "known_to_benchmark": known})


def conversation(query: Query) -> tuple[Message, ...]:
    """What a teacher is asked: the system message, empty or not, and the query."""
    text = system_messages.get(query.system_message_id or 1).text
    return (Message("system", text), Message("user", query.text))


def to_trace(query: Query, reply: Reply, teacher: str, sampling: Sampling, created: str) -> Trace:
    return Trace(
        id=f"{query.id}/{teacher}/0",
        query_id=query.id,
        sample=0,
        messages=(*conversation(query), Message("assistant", reply.text)),
        collection=query.collection,
        task=query.task,
        system_message_id=query.system_message_id,
        teacher=teacher,
        sampling=sampling,
        outcome=reply.outcome,
        usage=reply.usage,
        created=created,
        target=query.target,
        extra=query.extra,
    )


def oracle(config: ExperimentConfig, teacher: TeacherConfig) -> OracleTeacher:
    made, _ = training_puzzles(config.puzzles, config.seed)
    knobs = Knobs(
        brevity=teacher.brevity,
        reach=teacher.reach,
        error_rate=teacher.error_rate,
        bare_reply=teacher.bare_reply,
    )
    return OracleTeacher(teacher.name, made, knobs, config.seed)


@contextlib.contextmanager
def endpoint(config: ExperimentConfig, teacher: TeacherConfig) -> Iterator[Endpoint]:
    """Whoever answers as this teacher."""
    if teacher.kind == "oracle":
        yield oracle(config, teacher)
        return
    source = students.open_source(teacher.path)
    student = students.local(
        source, source.layout or config.data.layout, compiler_options=config.compiler_options
    )
    with StudentEndpoint(student) as answering:
        yield answering


def ask_teacher(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path) -> Iterator[Trace]:
    """Asks a teacher its share of the queries, through the ledger; yields the traces in their order."""
    queries = [
        query
        for query in record_files.read_jsonl(workdir / "queries" / QUERIES, Query)
        if unit_hash("share", config.seed, query.id) < teacher.share
    ]
    sampling = Sampling(seed=config.seed)
    if teacher.kind == "student":
        sampling = dataclasses.replace(sampling, max_tokens=teacher.max_tokens)
    requests = [Request(conversation(query), sampling, 0) for query in queries]
    created: dict[int, str] = {}
    with (
        Ledger(workdir / "ledger.sqlite") as ledger,
        endpoint(config, teacher) as answering,
        progress(f"asking {teacher.name}", len(requests)) as report,
    ):

        def count(asked: Any) -> None:
            created[asked.index] = asked.created
            report(len(created))

        replies = ask_all(answering, requests, ledger, concurrency=CONCURRENCY, on_reply=count)
    for index, (query, reply) in enumerate(zip(queries, replies)):
        yield to_trace(query, reply, teacher.name, sampling, created[index])


def read_teacher(teacher: TeacherConfig, examined: list[str]) -> Iterator[Trace]:
    """The traces of a file, without those that ask a question of `examined`.

    Raises:
      RecordError: a row cannot be read, or no trace is left.
    """
    known = set(map(puzzles.question_key, examined))
    kept = left_out = 0
    for trace in record_files.read_traces(
        teacher.path, teacher=teacher.name, recognise=system_messages.recognise
    ):
        asked = (message.content for message in trace.messages if message.role == "user")
        if known and any(puzzles.question_key(text) in known for text in asked):
            left_out += 1
            continue
        kept += 1
        yield trace
    if left_out:
        log.info("%s: left out %d traces that ask a benchmark's question", teacher.name, left_out)
    if not kept:
        raise RecordError(f"{teacher.path}: no traces in it; give another file as the teacher's path")


def collect(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path) -> dict[str, Any]:
    """Writes traces/NAME/traces.jsonl and its manifest."""
    directory = workdir / "traces" / teacher.name
    made_by: dict[str, Any] = {"program": "collect", "seed": config.seed, "teacher": plain(teacher)}
    if teacher.kind == "file":
        examined = bbh_texts(config.bbh_folder)
        inputs = {"file": artifacts.file_digest(teacher.path), "bbh": artifacts.digest(examined)}
        traces = read_teacher(teacher, examined)
    else:
        inputs = {"queries": make_queries(config, workdir)["fingerprint"]}
        if teacher.kind == "student":
            inputs["student"] = students.open_source(teacher.path).fingerprint
        traces = ask_teacher(config, teacher, workdir)
    if artifacts.is_finished(directory, made_by, inputs):
        return artifacts.read_manifest(directory)
    count = record_files.write_jsonl(directory / TRACES, traces)
    log.info("%s: %d traces", teacher.name, count)
    return artifacts.finish(directory, made_by, inputs, {"traces": count})


def run(config: ExperimentConfig, workdir: Path) -> None:
    for teacher in config.teachers:
        collect(config, teacher, workdir)


if __name__ == "__main__":
    launch.main(run)
