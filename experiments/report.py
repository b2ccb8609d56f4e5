"""Writes one page about a finished or unfinished run or arm set: a file that needs no network.

python -m experiments.report --workdir=runs/mini
python -m experiments.report --workdir=runs/main --out=main.html
"""

from __future__ import annotations

from orca_jax import cli

OUT = cli.Option("out", "", "The file to write; empty: WORKDIR/report.html.")
PROGRAM = cli.Program(__doc__, cli.WORKDIR, cli.SCRATCH, OUT)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import dataclasses
import json
import logging
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig, load, plain
from orca_jax.evaluation.benchmarks import puzzles, registry
from orca_jax.evaluation.questions import Question
from orca_jax.experiments import evaluate, tables
from orca_jax.queries import system_messages
from orca_jax.reporting import report, report_sources
from orca_jax.reporting.report import Given, Setting
from orca_jax.reporting.report_sources import Key, Run
from orca_jax.training import metrics

log = logging.getLogger(__name__)
FILE = "report.html"


def write(workdir: Path, path: Path | None = None) -> Path:
    """Writes the report of a workdir, by default into it, and returns its path."""
    path = path or workdir / FILE
    purposes = {id: message.purpose for id, message in system_messages.all_messages().items()}
    given = Given(
        messages={id: tables.MESSAGE_NAMES.get(id, f"message {id}") for id in purposes},
        purposes=purposes,
        oracle_note=tables.ORACLE_NOTE,
        read_metrics=metrics.read,
        questions=questions,
        settings=settings,
    )
    size = report.write(workdir, path, given)
    log.info("%s: %.1f MB", path, size / 1e6)
    return path


def questions(run: Run) -> dict[Key, str]:
    """What a run's student was asked, as its config says; nothing where that was not kept."""
    kept = report_sources.config_of(run)
    try:
        return {question.key: question.text for question in _asked(load(kept))} if kept else {}
    except (OSError, ValueError) as error:
        log.warning("%s: the questions' texts are left out: %s", run.name, error)
        return {}


def _asked(config: ExperimentConfig) -> Iterator[Question]:
    yield from puzzles.questions(evaluate.test_puzzles(config))
    for name, path in config.given_benchmarks.items():
        for mode in config.evaluation.modes[name]:
            yield from registry.questions(name, path, mode=mode)


def settings(kept: Mapping[str, Any]) -> list[Setting]:
    """A config's keys, entries of lists apart, with defaults; of another version's config, the keys alone."""
    try:
        return list(_settings(load(kept)))
    except ValueError as error:
        log.warning("the config was kept by another version, and defaults are not shown: %s", error)
        return [Setting(key, _shown(value), None) for key, value in kept.items()]


def _settings(part: Any, prefix: str = "") -> Iterator[Setting]:
    usual = _usual(part)
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{key}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, entry in enumerate(value):
                yield from _settings(entry, f"{key}[{number}].")
        else:
            default = (
                _shown(getattr(usual, field.name))
                if artifacts.default(field) is not dataclasses.MISSING
                else None
            )
            yield Setting(key, _shown(value), default)


def _usual(part: Any) -> Any:
    """The same part with every default."""
    defaults = {f.name: artifacts.default(f) for f in dataclasses.fields(part)}
    defaults = {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}
    try:
        return dataclasses.replace(part, **defaults)
    except ValueError:  # what it must name, such as a size, does not go with the defaults
        return types.SimpleNamespace(**defaults)


def _shown(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, default=str)


def main() -> None:
    PROGRAM.main(lambda options: print(write(options.workdir, Path(options.out) if options.out else None)))


if __name__ == "__main__":
    main()
