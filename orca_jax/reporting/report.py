"""report.html: one self-contained page about a run or an arm set.

The page fetches nothing: style, script and drawings are in it, and its policy forbids everything else, so
that markup in a reply stays text. What a workdir lacks is named in the page.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from orca_jax import artifacts
from orca_jax.reporting import (
    report_data,
    report_lineage,
    report_markdown,
    report_results,
    report_sources,
    report_training,
    scores,
)
from orca_jax.reporting.report_markdown import Table
from orca_jax.reporting.report_results import Group
from orca_jax.reporting.report_sources import Key, Run, Source
from orca_jax.reporting.report_training import History

METRICS = "training/metrics.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One key of a config and its default; both as they are shown. None: the key has no default."""

    key: str
    value: str
    default: str | None

    @property
    def changed(self) -> bool:
        return self.value != self.default


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What the report's package does not know itself.

    Attributes:
      messages: the system messages' short names by id.
      purposes: what each asks for, by id.
      oracle_note: what is said where teachers are procedural oracles.
      read_metrics: the lines of a metrics file.
      questions: the texts of a run's evaluated questions.
      settings: the keys of a kept config.
    """

    messages: Mapping[int, str]
    purposes: Mapping[int, str]
    oracle_note: str
    read_metrics: Callable[[Path], list[dict[str, Any]]]
    questions: Callable[[Run], Mapping[Key, str]]
    settings: Callable[[Mapping[str, Any]], Sequence[Setting]]


def write(workdir: Path, path: Path, given: Given) -> int:
    """Writes the report of a workdir, and returns the file's size in bytes.

    Raises:
      FileNotFoundError: the workdir holds neither a run nor an arm set.
    """
    text = render(report_sources.open_workdir(workdir, given.messages), given)
    page = text.encode(errors="replace")  # a reply may hold half a character pair
    with artifacts.atomic_write(path, "wb") as file:
        file.write(page)
    return len(page)


def render(source: Source, given: Given) -> str:
    """The page."""
    found = report_lineage.artifacts(source.runs)
    note = given.oracle_note if _has_oracles(found) else ""
    said = {*map(escape, (source.name, source.about.get("question", ""), note))} - {""}  # at the page's head
    script = _resource("report.js")
    page = _template().render(
        source=source,
        note=note,
        written=[block for block in report_markdown.blocks(source.table) if block.text not in said],
        artifacts=found,
        graph=report_lineage.graph(found, source.runs[0]) if source.runs else None,
        versions=report_lineage.versions(found),
        style=Markup(_resource("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_making(source, given),
        **_results(source, given),
    )
    return page.lstrip()


def _making(source: Source, given: Given) -> dict[str, Any]:
    """What the page says of data, training and config."""
    firsts = source.first_runs
    histories = [_history(run, run.name, given) for run in source.runs]
    of_arms = [_history(run, arm, given) for arm, run in firsts.items()]
    stores = report_data.stores(firsts.values())
    return {
        "tiles": _tiles(source, histories),
        "training": report_training.table([history for history in histories if history.train]),
        "training_charts": report_training.charts([history for history in of_arms if history.train]),
        "data": list(report_data.tables(stores, given.purposes)) if stores else [],
        "lengths": report_data.lengths(stores),
        "cards": report_data.cards(firsts.values()),
        "configs": [(run.name, _config_tables(run, given)) for run in firsts.values()],
        "arms": _arms(source) if source.arms else [],
    }


def _results(source: Source, given: Given) -> dict[str, Any]:
    """What the page says of evaluations."""
    groups = report_results.groups(source)
    asked = {key: text for run in source.first_runs.values() for key, text in given.questions(run).items()}
    return {
        "scores": [tile for group in groups[:1] for tile in _score_tiles(group)],
        "results": [(report_results.table(group), report_results.charts(group)) for group in groups],
        "unscored": [
            (f"{run}: {name}", scores.unscored(found, name))
            for run, name, found in report_sources.unscored(source.runs)
        ],
        "samples": report_results.samples(groups, asked),
        "tasks": sorted({task for group in groups for task in group.tasks}),
        "labels": list(dict.fromkeys(label for group in groups for label in group.items)),
    }


def _score_tiles(group: Group) -> Iterator[tuple[str, str]]:
    """The first figures of a group: what was asked, under which message or of which arm, and of how many."""
    for label in group.items:
        if cell := report_results.mean(group, label):
            tasks = f"mean of {len(group.tasks)} tasks, " if len(group.tasks) > 1 else ""
            yield f"{group.title}, {label}: accuracy in %, {tasks}n = {cell.size}", str(cell)


def _template() -> jinja2.Template:
    text = _resource("report.html.jinja")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(text)


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _history(run: Run, name: str, given: Given) -> History:
    path = run.directory / METRICS
    return History.of(name, given.read_metrics(path) if path.is_file() else [])


def _has_oracles(found: Iterable[report_lineage.Artifact]) -> bool:
    teachers = (artifact.manifest["provenance"].get("teacher") for artifact in found)
    return any(isinstance(teacher, Mapping) and teacher.get("kind") == "oracle" for teacher in teachers)


def _tiles(source: Source, histories: Sequence[History]) -> list[tuple[str, str]]:
    """The first figures of the page: (what, how much)."""
    if source.arms:
        planned = len(source.arms) * len(source.about["seeds"])
        return [("arms", str(len(source.arms))), ("runs begun", f"{len(source.runs)} of {planned}")]
    trained = [("training steps", f"{row['step']:,}") for row in histories[0].train[-1:]]
    return trained + [
        ("validation loss, nats a supervised token", f"{row['loss']:.3f}")
        for row in histories[0].validations[-1:]
    ]


def _config_tables(run: Run, given: Given) -> list[Table]:
    """What differs from the defaults, and everything; empty where the config was not kept."""
    config = report_sources.config_of(run)
    settings = given.settings(config) if config else []
    parts = {"Different from the default": [s for s in settings if s.changed], "The whole config": settings}
    return [_settings_table(title, part) for title, part in parts.items() if settings]


def _settings_table(title: str, settings: Iterable[Setting]) -> Table:
    rows = [[s.key, s.value, "no default" if s.default is None else s.default] for s in settings]
    classes = ["changed" if s.changed else "" for s in settings]
    return Table(title, ["key", "here", "default"], rows, classes=classes, numbers=False)


def _arms(source: Source) -> list[Table]:
    """What the arms are, and what each changes of the set's base."""
    about = source.about
    classes = ["base" if arm["name"] == about["baseline"] else "" for arm in source.arms]
    note = f"The baseline is {about['baseline']}; seeds {', '.join(map(str, about['seeds']))}."
    notes = [[arm["name"], arm.get("note", "")] for arm in source.arms]
    changes = [[arm["name"], "; ".join(_flat(arm.get("changes", {}))) or "nothing"] for arm in source.arms]
    return [
        Table("Arms", ["arm", "what it is"], notes, note, classes, numbers=False),
        Table("Changes of the base config", ["arm", "changes"], changes, note, classes, numbers=False),
    ]


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested changes as `dotted.key = value`."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {json.dumps(value, ensure_ascii=False)}"
