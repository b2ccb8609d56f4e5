"""Queries to traces: makes the questions and asks every teacher, each reply once.

    python -m experiments.collect plan|estimate|run|retry --config=configs/api.py --workdir=runs/api
    python -m experiments.collect status --workdir=runs/api
    python -m experiments.collect export --workdir=runs/api --to=exported --schema=messages

No word is `run`, which ends with status 3 where a budget is spent.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("collect")  # before the imports below, which take seconds

import collections
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from orca_jax import artifacts, conversations, files, storage
from orca_jax.artifacts import ArtifactError
from orca_jax.config import ExperimentConfig, TeacherConfig
from orca_jax.evaluation.benchmarks import registry
from orca_jax.experiments import collect_plan, options
from orca_jax.experiments import export as trace_files
from orca_jax.experiments.collect_asking import LEDGER, TRACES, Job, traces
from orca_jax.experiments.queries import asked_as, benchmark_digests, make_queries
from orca_jax.files import Tally
from orca_jax.queries import puzzles, system_messages
from orca_jax.records import Outcome, RecordError, Trace
from orca_jax.scrubbing import read_key
from orca_jax.teachers import monitor
from orca_jax.training import students

log = logging.getLogger(__name__)
options.define("collect")
RETRIED = "retried"  # a file: how often failed requests were asked again after the traces were written


def read_teacher(teacher: TeacherConfig, evaluated: list[str], tally: Tally) -> Iterator[Trace]:
    """The traces of a file, without those that ask a question of `evaluated`.

    Args:
      tally: counts the rows, and those that are left out as malformed.

    Raises:
      RecordError: too many rows are malformed, or no trace is left.
    """
    known = set(map(puzzles.question_key, evaluated))
    kept = 0
    for trace in conversations.read_traces(
        storage.local(teacher.path),
        teacher=teacher.name,
        recognise=system_messages.recognise,
        tally=tally,
        join_turns=teacher.join_turns,
    ):
        asked = (message.content for message in trace.messages if message.role == "user")
        if known and any(puzzles.question_key(text) in known for text in asked):
            continue
        kept += 1
        yield trace
    if kept < tally.read:
        log.info("%s: left out %d traces that ask a benchmark's question", teacher.name, tally.read - kept)
    if not kept:
        raise RecordError(f"{teacher.path}: no traces in it; give another file as the teacher's path")


def collect(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path) -> dict[str, Any]:
    """Writes traces/NAME/traces.jsonl and its manifest, which counts the outcomes."""
    directory = workdir / "traces" / teacher.name
    provenance, tally = _provenance(config, teacher, directory), Tally(teacher.malformed)
    places = {"file": teacher.path, "student": teacher.path, "queries": workdir / "queries"}
    if teacher.kind == "file":
        inputs = {"file": artifacts.file_digest(storage.local(teacher.path))}
        documents = list(registry.documents(config.given_benchmarks))
        inputs |= benchmark_digests(documents, artifacts.recorded(directory)["inputs"])
        found = read_teacher(teacher, [document.text for document in documents], tally)
    else:
        inputs = {"queries": make_queries(config, workdir)["fingerprint"]}
        if teacher.kind == "student":
            inputs["student"] = students.open_source(teacher.path).fingerprint
        found = traces(Job(config, teacher, workdir), artifacts.fingerprint(provenance, inputs))
    if artifacts.is_finished(directory, provenance, inputs, places=places):
        return artifacts.read_manifest(directory)
    outcomes: collections.Counter[str] = collections.Counter()
    count = files.write_jsonl(directory / TRACES, _counted(found, outcomes))
    log.info("%s: %d traces: %s", teacher.name, count, _listed(outcomes))
    if outcomes[Outcome.ERROR] and teacher.kind != "file":
        log.warning("%s: to ask again what ended in an error: experiments.collect retry", teacher.name)
    counts: dict[str, Any] = {"traces": count, "outcomes": dict(outcomes)}
    if teacher.kind == "file":
        counts |= {**tally.summary(), "asks_a_benchmark": tally.read - count}
    return artifacts.finish(directory, provenance, inputs, counts)


def _provenance(config: ExperimentConfig, teacher: TeacherConfig, directory: Path) -> artifacts.Section:
    """What a teacher's traces depend on: of an API neither limits, prices, budgets nor addresses."""
    own = artifacts.section(config, ("seed",))
    provenance = artifacts.joined({"program": "collect"}, own, {"teacher": asked_as(teacher)})
    if teacher.api:
        provenance["api"] = artifacts.joined(
            {"identity": teacher.api.name}, artifacts.section(teacher.api, teacher.api.DRAWN)
        )
    if (directory / RETRIED).exists():
        provenance["retried"] = int((directory / RETRIED).read_text(encoding="utf-8"))
    return provenance


def _counted(found: Iterator[Trace], outcomes: collections.Counter[str]) -> Iterator[Trace]:
    for trace in found:
        outcomes[str(trace.outcome)] += 1
        yield trace


def _listed(outcomes: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def run(config: ExperimentConfig, workdir: Path) -> None:
    _check_keys(config)
    for teacher in config.teachers:
        collect(config, teacher, workdir)


def _check_keys(config: ExperimentConfig) -> None:
    """Refuses, before anybody is asked, a key that cannot be sent; one that is missing may not be needed."""
    for teacher in config.teachers:
        for one in teacher.api.endpoints if teacher.api else ():
            if os.environ.get(one.key_variable, "").strip():
                read_key(one.model, one.key_variable)


def retry(config: ExperimentConfig, workdir: Path) -> None:
    """Asks again what ended in an error, and nothing else; goes on with what was not finished."""
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


def status(workdir: Path) -> None:
    """Shows how the collections of a workdir stand."""
    stands = collect_plan.status(workdir)
    console = Console()
    if console.is_terminal:
        console.print(monitor.table(stands))
    else:
        print("\n".join(map(monitor.line, stands)))


def export(workdir: Path) -> None:
    """`write_exports` with what the flags say."""
    to, schema, form = (str(flags.FLAGS[name].value) for name in ("to", "schema", "form"))
    if not to:
        raise ArtifactError("--to is empty; name a folder for the exported traces")
    write_exports(workdir, Path(to), schema, form)


def write_exports(workdir: Path, to: Path, schema: str, form: str) -> None:
    """Writes each teacher's finished traces to TO/TEACHER.parquet or .jsonl, as experiments.export does.

    Raises:
      ArtifactError: no traces are finished.
    """
    finished = sorted((workdir / "traces").glob(f"*/{artifacts.MANIFEST}"))
    if not finished:
        raise ArtifactError(f"no traces are finished in {workdir}; run experiments.collect first")
    for directory in (manifest.parent for manifest in finished):
        path = to / f"{directory.name}.{form}"
        log.info("%s: %d traces", path, trace_files.export(directory, schema, path))


def main() -> None:
    words = {
        "run": run,
        "plan": collect_plan.plan,
        "estimate": collect_plan.estimate_cost,
        "retry": retry,
    }
    parts = ("queries", "traces", "batches", "cards", LEDGER)
    launch.main(run, words=words, of_workdir={"status": status, "export": export}, parts=parts)


if __name__ == "__main__":
    main()
