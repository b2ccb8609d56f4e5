"""Queries to traces: makes the queries and collects every teacher's answers, each answer once.

    python -m experiments.collect plan|estimate|run|retry --config=configs/api.py --workdir=runs/api
    python -m experiments.collect status --workdir=runs/api
    python -m experiments.collect export --workdir=runs/api --out=exported --schema=messages

Without a command it is `run`, which ends with status 3 when a budget is spent.
"""

from __future__ import annotations

from orca_jax import cli, conversations

SCHEMA = "The traces' columns; empty: messages, and of --input native."
EXPORT = (
    cli.Option("workdir", "", "Exports each teacher's finished traces to OUT/TEACHER.FORM."),
    cli.SCRATCH,
    cli.Option("input", "", "Instead of a workdir: WORKDIR/traces/TEACHER, or a file of traces."),
    cli.Option("out", "", "The folder to write; of --input the file.", required=True),
    cli.Option("schema", "", SCHEMA, choices=("", *conversations.SCHEMAS)),
    cli.Option("form", "parquet", "The kind of file.", choices=("parquet", "jsonl")),
    cli.Option("kept", False, "Leaves out what `prepare` left out by the teacher's filters."),
)
TRACES_MADE = ("{workdir}/traces",)
PROGRAM = cli.Program(
    __doc__,
    commands={
        "run": cli.Command(
            "Collects what is missing, and writes the traces.",
            *cli.EXPERIMENT,
            made=TRACES_MADE,
            then="prepare {same}",
        ),
        "plan": cli.Command(
            "Writes plan/TEACHER.jsonl, and counts the requests.",
            *cli.EXPERIMENT,
            made=("{workdir}/plan",),
            then="collect run {same}",
        ),
        "estimate": cli.Command(
            "Prints money and hours of the models behind APIs.", *cli.EXPERIMENT, then="collect run {same}"
        ),
        "retry": cli.Command(
            "Collects again what ended in an error, and what is missing.",
            *cli.EXPERIMENT,
            made=TRACES_MADE,
            then="prepare {same}",
        ),
        "status": cli.Command("Shows how the collections of a workdir stand.", cli.WORKDIR, cli.SCRATCH),
        "export": cli.Command(
            "Writes traces as Parquet or JSON lines, with their data cards.\n\n"
            "With --input, the suffix of --out says the form: .jsonl, .json, .ndjson, .parquet.\n"
            "The schemas other than `native` take the traces that ended well.",
            *EXPORT,
            made=("{out}",),
        ),
    },
    default="run",
    parts=("queries", "traces", "batches", "quality", "cards", "ledger.sqlite"),
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import collections
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from orca_jax import artifacts, files, hub, plugins, storage
from orca_jax.artifacts import ArtifactError
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import prepared
from orca_jax.evaluation.benchmarks import registry
from orca_jax.files import Tally
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.make import benchmark_digests, make_queries
from orca_jax.records import Outcome, RecordError, Trace
from orca_jax.scrubbing import read_key
from orca_jax.serving.local import StudentEndpoint, load_student
from orca_jax.teachers import collection
from orca_jax.teachers import estimate as estimates
from orca_jax.teachers.collection import TRACES, Job
from orca_jax.teachers.endpoint import Endpoint
from orca_jax.training import students

log = logging.getLogger(__name__)
ASKS_A_BENCHMARK, LOW_SCORE = "asks_a_benchmark", "below_min_score"  # why traces of a file are left out
RETRIED = "retried"  # a file: how often failed requests were sent again after the traces were written


def queries(config: ExperimentConfig, workdir: Path) -> dict[str, Any]:
    """Makes the queries, without the questions of the config's benchmarks; returns their manifest."""
    return make_queries(config, workdir, registry.documents(config.given_benchmarks))


def read_teacher(
    teacher: TeacherConfig, evaluated: list[str], tally: Tally, left_out: collections.Counter[str]
) -> Iterator[Trace]:
    """The traces of a file, without those whose question is one of `evaluated`, or whose score is too low.

    Args:
      tally: counts the rows, and those that are left out as malformed.
      left_out: counts the others that are left out, by reason.

    Raises:
      RecordError: too many rows are malformed, or no trace is left.
    """
    known, kept, columns = set(map(puzzles.question_key, evaluated)), 0, teacher.columns
    least = columns.min_score if columns else None
    for trace in conversations.read_traces(
        storage.local(teacher.path),
        teacher=teacher.name,
        recognise=system_messages.recognise,
        tally=tally,
        join_turns=teacher.join_turns,
        columns=artifacts.section(columns, without=("min_score",)) if columns else None,
    ):
        asked = (message.content for message in trace.messages if message.role == "user")
        if known and any(puzzles.question_key(text) in known for text in asked):
            left_out[ASKS_A_BENCHMARK] += 1
            continue
        if least is not None and (trace.extra["score"] is None or trace.extra["score"] < least):
            left_out[LOW_SCORE] += 1
            continue
        kept += 1
        yield trace
    for reason, count in left_out.items():
        log.info("%s: left out %d traces: %s", teacher.name, count, reason)
    if not kept:
        raise RecordError(f"{teacher.path}: no traces in it; give another file as the teacher's path")


@contextlib.contextmanager
def endpoint(job: Job) -> Iterator[Endpoint]:
    """What answers as a teacher that is no API."""
    if job.teacher.kind != "student":
        yield collection.endpoint(job)
        return
    source = students.open_source(job.teacher.path)
    student = load_student(source, **students.run_settings(job.config, source))
    with contextlib.closing(StudentEndpoint(student)) as answering:
        yield answering


def collect(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path) -> dict[str, Any]:
    """Writes traces/NAME/traces.jsonl and its manifest, which counts the outcomes."""
    directory = workdir / "traces" / teacher.name
    provenance, tally = _provenance(config, teacher, directory), Tally(teacher.malformed)
    left_out: collections.Counter[str] = collections.Counter()
    places = {"file": teacher.path, "student": teacher.path, "queries": workdir / "queries"}
    if teacher.kind == "file":
        inputs = {"file": artifacts.file_digest(storage.local(teacher.path))}
        documents = list(registry.documents(config.given_benchmarks))
        inputs |= benchmark_digests(documents, artifacts.recorded(directory)["inputs"])
        found = read_teacher(teacher, [document.text for document in documents], tally, left_out)
    else:
        inputs = {"queries": queries(config, workdir)["fingerprint"]}
        if teacher.kind == "student":
            source = students.open_source(teacher.path)
            inputs["student"] = source.fingerprint
            provenance = artifacts.joined(provenance, students.run_settings(config, source))
        if teacher.kind in plugins.TEACHERS.entries and Path(teacher.path).is_file():
            inputs["file"] = artifacts.file_digest(teacher.path)
        found = collection.traces(Job(config, teacher, workdir), endpoint)
    artifact = artifacts.Artifact(directory, provenance, inputs, places)
    if manifest := artifact.finished():
        return manifest
    outcomes: collections.Counter[str] = collections.Counter()

    def counted() -> Iterator[Trace]:
        for trace in found:
            outcomes[str(trace.outcome)] += 1
            yield trace

    count = files.write_jsonl(directory / TRACES, counted())
    listed = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    log.info("%s: %d traces: %s", teacher.name, count, listed)
    if outcomes[Outcome.ERROR] and teacher.kind != "file":
        log.warning("%s: to send what ended in an error again: experiments.collect retry", teacher.name)
    counts: dict[str, Any] = {"traces": count, "outcomes": dict(outcomes)}
    if teacher.kind == "file":
        counts |= {**tally.summary(), ASKS_A_BENCHMARK: 0, **left_out}
    revisions = hub.revisions(teacher.path, *config.benchmark_paths.values())
    return artifact.finish(counts, revisions)


def _provenance(config: ExperimentConfig, teacher: TeacherConfig, directory: Path) -> artifacts.Section:
    """What a teacher's traces depend on: of an API neither limits, prices, budgets nor addresses."""
    own = artifacts.section(config, ("seed",))
    of_plugin = plugins.provenance((plugins.TEACHERS, teacher.kind))
    provenance = artifacts.joined(
        {"program": "collect"}, own, {"teacher": collection.asked_as(teacher)}, of_plugin
    )
    if teacher.api:
        own = artifacts.section(teacher.api, without=teacher.api.NO_NUMBER)
        every = [artifacts.section(one, without=one.NO_NUMBER) for one in teacher.api.endpoints]
        distinct = [one for number, one in enumerate(every) if one not in every[:number]]
        provenance["api"] = artifacts.joined(
            {"identity": teacher.api.name}, own, artifacts.unrecorded({"endpoints": distinct})
        )
    if (directory / RETRIED).exists():
        provenance["retried"] = int((directory / RETRIED).read_text(encoding="utf-8"))
    return provenance


def run(config: ExperimentConfig, workdir: Path) -> None:
    _check_keys(config)
    for teacher in config.teachers:
        collect(config, teacher, workdir)


def _check_keys(config: ExperimentConfig) -> None:
    """Refuses, before anything is sent, a key that cannot be sent; one that is missing may not be needed."""
    for teacher in config.teachers:
        for one in teacher.api.endpoints if teacher.api else ():
            if os.environ.get(one.key_variable, "").strip():
                read_key(one.model, one.key_variable)


def retry(config: ExperimentConfig, workdir: Path) -> None:
    """Sends again what ended in an error, and nothing else; goes on with what was not finished."""
    _check_keys(config)
    for teacher in config.teachers:
        directory = workdir / "traces" / teacher.name
        manifest = directory / artifacts.MANIFEST
        if teacher.kind != "file" and manifest.exists():
            failed = artifacts.read_manifest(directory)["counts"].get("outcomes", {}).get(Outcome.ERROR, 0)
            log.info("%s: %d requests ended in an error", teacher.name, failed)
            if failed:
                rounds = _provenance(config, teacher, directory).get("retried", 0)
                (directory / RETRIED).write_text(str(rounds + 1), encoding="utf-8")
                manifest.unlink()
        collect(config, teacher, workdir)


def jobs(config: ExperimentConfig, workdir: Path) -> list[Job]:
    """One for each teacher that gets queries; makes them first."""
    queries(config, workdir)
    return [Job(config, teacher, workdir) for teacher in config.teachers if teacher.kind != "file"]


def plan(config: ExperimentConfig, workdir: Path) -> None:
    """Writes plan/TEACHER.jsonl and prints how many requests there are of each kind."""
    print("| teacher | collection | message | requests |\n|---|---|---|---|")
    for job in jobs(config, workdir):
        path = workdir / "plan" / f"{job.teacher.name}.jsonl"
        files.write_jsonl(path, estimates.planned_requests(job))
        for kind, planned in sorted(estimates.planned(job).items(), key=str):
            print(f"| {kind.teacher} | {kind.collection} | {kind.system_message_id} | {planned.requests:,} |")


def estimate(config: ExperimentConfig, workdir: Path) -> None:
    """Prints money and hours of each model behind an API, by collection and system message."""
    for job in jobs(config, workdir):
        if job.teacher.api is not None:
            print(estimates.report(job))


def status(workdir: Path) -> None:
    """Shows how the collections of a workdir stand."""
    stands = collection.status(workdir)
    if (console := Console()).is_terminal:
        console.print(collection.table(stands))
    else:
        print("\n".join(map(collection.line, stands)))


def export_traces(source: Path, schema: str, out: Path, *, kept: bool = False) -> int:
    """Writes the traces of a folder WORKDIR/traces/NAME, or of a file, to `out`; returns how many.

    The data card goes along, to NAME-card beside it.

    Args:
      schema: see `conversations`; those that do not say how a request ended get the `ok` traces only.
      kept: only what the teacher's filters keep.

    Raises:
      RecordError: the schema cannot hold a trace, or no filters have been applied; names it.
    """
    workdir, name = source.parent.parent, source.name
    if kept:
        if not (workdir / "quality" / name).is_dir():
            raise RecordError(f"{source}: filters have not been applied; run experiments.prepare first")
        places = [entry.offset for entry in prepared.flagged(workdir, name) if entry.left_out is None]
        traces = files.read_at(source / TRACES, places, Trace)
    elif source.is_dir():
        traces = files.read_jsonl(source / TRACES, Trace)
    else:
        traces = conversations.read_traces(source)
    chosen = (trace for trace in traces if schema == "native" or trace.outcome is Outcome.OK)
    count = conversations.write_traces(out, chosen, schema)
    card = workdir / "cards" / name
    if card.is_dir():
        shutil.copytree(card, out.with_name(f"{out.stem}-card"), dirs_exist_ok=True)
    return count


def export(options: cli.Options) -> None:
    """Writes the traces of a workdir, or of `options.input`.

    Raises:
      ArtifactError: neither is named, or both, or no traces are finished.
    """
    if bool(options.workdir) == bool(options.input):
        raise ArtifactError("give one of --workdir and --input, the traces to export")
    out, names = Path(options.out), {}
    schema = options.schema or ("native" if options.input else "messages")
    if options.input:
        names = {Path(options.input): out}
    else:
        finished = sorted((options.workdir / "traces").glob(f"*/{artifacts.MANIFEST}"))
        if not finished:
            raise ArtifactError(f"no traces are finished in {options.workdir}; run experiments.collect first")
        names = {path.parent: out / f"{path.parent.name}.{options.form}" for path in finished}
    for source, path in names.items():
        count = export_traces(source, schema, path, kept=options.kept)
        print(f"{path}: {count} traces")


def main() -> None:
    PROGRAM.main(
        run=lambda options: run(options.config, options.workdir),
        plan=lambda options: plan(options.config, options.workdir),
        estimate=lambda options: estimate(options.config, options.workdir),
        retry=lambda options: retry(options.config, options.workdir),
        status=lambda options: status(options.workdir),
        export=export,
    )


if __name__ == "__main__":
    main()
