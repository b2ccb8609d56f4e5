"""report.html: one self-contained page about a run or an arm set.

The page fetches nothing: style, script and drawings are in it, and its policy forbids everything else, so
that markup in a reply stays text. The page names the parts that a workdir lacks.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import importlib.resources
import itertools
import json
import logging
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from orca_jax import artifacts
from orca_jax.config import load, plain
from orca_jax.evaluation import run as evaluation_run
from orca_jax.reporting import data_card, report_charts, report_results, report_sources, tables
from orca_jax.reporting.report_charts import Chart
from orca_jax.reporting.report_results import EvaluationGroup, History
from orca_jax.reporting.report_sources import Block, Key, Run, RunSet, Table
from orca_jax.reporting.tables import ORACLE_NOTE, UNNAMED, described_message
from orca_jax.training import metrics

log = logging.getLogger(__name__)
FILE = "report.html"
NO_DEFAULT = "no default"

# Data: counts and lengths of the token stores, and the data cards


COLUMNS = {"collection": "collection", "task": "task", "system_message_id": "system message"}
MOST_ROWS = 40  # of a table of counts


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """One data set: its examples' lengths in tokens, int [examples], and columns, arrays [examples]."""

    name: str
    lengths: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]


def stores(runs: Iterable[Run]) -> list[Store]:
    """The token stores of some runs; those that are unfinished are left out."""
    found = []
    for name, path in _named_apart(runs, "tokens/*/columns.npz"):
        with np.load(path) as columns:
            lengths = np.load(path.with_name("lengths.npy"))
            found.append(Store(name, lengths, {column: columns[column] for column in columns.files}))
    return found


def cards(runs: Iterable[Run]) -> dict[str, list[Block]]:
    """The data cards of some runs by their name, less the title."""
    return {
        name: list(report_sources.blocks(path.read_text(encoding="utf-8")))[1:]
        for name, path in _named_apart(runs, f"cards/*/{data_card.README}")
    }


def _named_apart(runs: Iterable[Run], pattern: str) -> Iterator[tuple[str, Path]]:
    """Files by their folders' names, those that runs share once; of one name, those of later runs by arm."""
    known: set[Path] = set()
    names: set[str] = set()
    for run in runs:
        for path in sorted(run.directory.glob(pattern)):
            if path.resolve() not in known:
                name = path.parent.name
                yield (f"{name} ({run.arm})" if name in names else name), path
                known.add(path.resolve())
                names.add(name)


def data_tables(found: list[Store]) -> Iterator[Table]:
    """Sizes, then examples by collection, task and message, a column a data set."""
    rows = [
        [store.name, *(f"{int(n):,}" for n in (len(store.lengths), store.lengths.sum(), supervised.sum()))]
        for store, supervised in ((store, store.columns["supervised"]) for store in found)
    ]
    yield Table("Data sets", ["data set", "examples", "tokens", "supervised tokens"], rows)
    for column, title in COLUMNS.items():
        counts = {store.name: collections.Counter(store.columns[column].tolist()) for store in found}
        totals = sum(counts.values(), collections.Counter())
        kept = [value for value, _ in totals.most_common(MOST_ROWS)]
        yield Table(
            f"Examples by {title}",
            [title, *counts],
            [[_label(column, value), *(f"{count[value]:,}" for count in counts.values())] for value in kept],
            f"The {MOST_ROWS} most frequent of {len(totals)}." if len(totals) > MOST_ROWS else "",
        )


def _label(column: str, value: object) -> str:
    if isinstance(value, int):
        return described_message(value)
    return data_card.collection_label(str(value)) if column == "collection" else str(value) or UNNAMED


def length_chart(found: list[Store]) -> Chart | None:
    """Boxes of the answers' lengths by system message, a box a data set."""
    boxes: dict[str, dict[str, Mapping[str, float]]] = {}
    ids = sorted(set(itertools.chain.from_iterable(s.columns["system_message_id"].tolist() for s in found)))
    for id, store in itertools.product(ids, found):
        own = store.columns["supervised"][store.columns["system_message_id"] == id]
        if len(own):
            boxes.setdefault(f"message {id}" if id >= 0 else "other", {})[store.name] = data_card.box(own)
    caption = (
        "Tokens of the answers by system message (other: a text not among the 16): quartiles, and whiskers "
        "to the extremes."
    )
    return report_charts.boxes(boxes, caption=caption, x="supervised tokens (log)")


# Lineage: every artifact, what it was made of, and with which versions


SHOWN = 10  # characters of a fingerprint
ORDER = ("queries", "traces", "quality", "tokenizer", "tokens", "cards", "training", "evaluation")


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """What an artifact was made of; `anchor` is empty where it is no artifact of the workdir."""

    name: str
    fingerprint: str
    anchor: str


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """A finished directory; `name` is its folder in a run, `runs` those that have it."""

    name: str
    runs: tuple[str, ...]
    manifest: Mapping[str, Any]
    inputs: tuple[Input, ...]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def anchor(self) -> str:
        return anchor(self.name, self.fingerprint)

    @property
    def details(self) -> str:
        """Its provenance and counts as JSON."""
        parts = {key: self.manifest.get(key, {}) for key in ("provenance", "counts")}
        return json.dumps(parts, indent=1, ensure_ascii=False, default=str)


def anchor(name: str, fingerprint: str) -> str:
    return f"artifact-{re.sub('[^a-zA-Z0-9]+', '-', name)}-{fingerprint[:SHOWN]}"


def lineage(runs: Iterable[Run]) -> list[Artifact]:
    """The artifacts of all runs in the order of the work, those that several share once."""
    found: dict[str, Artifact] = {}
    for run in runs:
        manifests = report_sources.manifests(run.directory)
        for name, manifest in manifests.items():
            inputs = tuple(_input(key, str(value), manifests) for key, value in manifest["inputs"].items())
            one = Artifact(name, (run.name,), manifest, inputs)
            if one.anchor in found:
                one = dataclasses.replace(one, runs=(*found[one.anchor].runs, run.name))
            found[one.anchor] = one
    return sorted(found.values(), key=lambda one: _order(one.name.partition("/")[0]))


def _order(folder: str) -> int:
    return ORDER.index(folder) if folder in ORDER else len(ORDER)


def _input(key: str, fingerprint: str, manifests: Mapping[str, Mapping[str, Any]]) -> Input:
    """Found by fingerprint; a tokenizer, which enters by its content, by its name."""
    name = next((name for name, other in manifests.items() if other["fingerprint"] == fingerprint), None)
    if name is None and key in manifests:
        name = key
    return Input(key, fingerprint[:SHOWN], anchor(name, str(manifests[name]["fingerprint"])) if name else "")


def lineage_graph(found: Iterable[Artifact], run: Run) -> Chart | None:
    """The artifacts of one run."""
    own = [artifact for artifact in found if run.name in artifact.runs]
    nodes = {artifact.anchor: (artifact.name, artifact.fingerprint[:SHOWN]) for artifact in own}
    edges = [(entry.anchor, artifact.anchor) for artifact in own for entry in artifact.inputs]
    return report_charts.graph(nodes, edges, caption=f"What was made of what: {run.name}.")


def version_table(found: Iterable[Artifact]) -> Table:
    """Versions of the packages that made the artifacts."""
    used: dict[str, dict[str, None]] = {}
    for artifact in found:
        for package, version in artifact.manifest.get("versions", {}).items():
            used.setdefault(package, {})[str(version) or "none"] = None
    rows = [[name, ", ".join(seen)] for name, seen in used.items()]
    return Table("Versions", ["package", "version"], rows, numbers=False)


# The page


def write(workdir: Path, path: Path | None = None) -> Path:
    """Writes the report of a workdir, to WORKDIR/report.html unless told otherwise, and returns its path.

    Raises:
      FileNotFoundError: the workdir holds neither a run nor an arm set.
    """
    path = path or workdir / FILE
    text = render(report_sources.open_workdir(workdir))
    page = text.encode(errors="replace")  # a reply may hold half a character pair
    with artifacts.atomic_write(path, "wb") as file:
        file.write(page)
    log.info("%s: %.1f MB", path, len(page) / 1e6)
    return path


def render(source: RunSet) -> str:
    """The page."""
    found = lineage(source.runs)
    note = ORACLE_NOTE if _has_oracles(found) else ""
    said = {*map(escape, (source.name, source.about.get("question", ""), note))} - {""}  # at the page's head
    script = _resource("report.js")
    page = _template().render(
        source=source,
        note=note,
        written=[block for block in report_sources.blocks(source.table) if block.text not in said],
        artifacts=found,
        graph=lineage_graph(found, source.runs[0]) if source.runs else None,
        versions=version_table(found),
        style=Markup(_resource("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_making(source),
        **_results(source),
    )
    return page.lstrip()


def _making(source: RunSet) -> dict[str, Any]:
    """The page's parts on data, training and config."""
    firsts = source.first_runs
    histories = [_history(run, run.name) for run in source.runs]
    of_arms = [_history(run, arm) for arm, run in firsts.items()]
    data_sets = stores(firsts.values())
    return {
        "tiles": _tiles(source, histories),
        "training": report_results.training_table([history for history in histories if history.train]),
        "training_charts": report_results.training_charts([history for history in of_arms if history.train]),
        "data": list(data_tables(data_sets)) if data_sets else [],
        "lengths": length_chart(data_sets),
        "cards": cards(firsts.values()),
        "configs": [(run.name, _config_tables(run)) for run in firsts.values()],
        "arms": _arms(source) if source.arms else [],
    }


def _results(source: RunSet) -> dict[str, Any]:
    """The page's parts on evaluations."""
    groups = report_results.groups(source)
    firsts = source.first_runs.values()
    texts = {key: text for run in firsts for key, text in questions(run).items()}
    return {
        "scores": [tile for group in groups[:1] for tile in _score_tiles(group)],
        "results": [(report_results.table(group), report_results.charts(group)) for group in groups],
        "unscored": [
            (f"{run}: {name}", tables.unscored_sentence(found, name))
            for run, name, found in report_sources.unscored(source.runs)
        ],
        "samples": report_results.samples(groups, texts),
        "tasks": sorted({task for group in groups for task in group.tasks}),
        "labels": list(dict.fromkeys(label for group in groups for label in group.items)),
    }


def _score_tiles(group: EvaluationGroup) -> Iterator[tuple[str, str]]:
    """The headline figures of a group: (benchmark, mode, message or arm, and n; the accuracy)."""
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


def _history(run: Run, name: str) -> History:
    path = run.directory / "training" / metrics.FILE
    return History.of(name, metrics.read(path) if path.is_file() else [])


def _has_oracles(found: Iterable[Artifact]) -> bool:
    teachers = (artifact.manifest["provenance"].get("teacher") for artifact in found)
    return any(isinstance(teacher, Mapping) and teacher.get("kind") == "oracle" for teacher in teachers)


def _tiles(source: RunSet, histories: Sequence[History]) -> list[tuple[str, str]]:
    """The headline figures of the page: (name, value)."""
    if source.arms:
        planned = len(source.arms) * len(source.about["seeds"])
        return [("arms", str(len(source.arms))), ("runs begun", f"{len(source.runs)} of {planned}")]
    trained = [("training steps", f"{row['step']:,}") for row in histories[0].train[-1:]]
    return trained + [
        ("validation loss, nats a supervised token", f"{row['loss']:.3f}")
        for row in histories[0].validations[-1:]
    ]


def questions(run: Run) -> dict[Key, str]:
    """The texts of a run's evaluated questions by its config; none where that was not kept."""
    kept = report_sources.config_of(run)
    try:
        asked = evaluation_run.all_questions(load(kept)) if kept else ()
        return {question.key: question.text for question in asked}
    except (OSError, ValueError) as error:
        log.warning("%s: the questions' texts are left out: %s", run.name, error)
        return {}


def _config_tables(run: Run) -> list[Table]:
    """The keys that differ from their defaults, and all keys; empty where the config was not kept."""
    kept = report_sources.config_of(run)
    if not kept:
        return []
    rows = settings(kept)
    changed = [row for row in rows if row[1] != row[2]]
    parts = {"Different from the default": changed, "The whole config": rows}
    return [
        Table(
            title,
            ["key", "here", "default"],
            part,
            classes=["changed" if value != default else "" for _, value, default in part],
            numbers=False,
        )
        for title, part in parts.items()
    ]


def settings(kept: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value, default) of a kept config, entries of lists apart; of another version's, no defaults."""
    try:
        return list(_settings(load(kept)))
    except ValueError as error:
        log.warning("the config was kept by another version, and defaults are not shown: %s", error)
        return [(key, _json(value), NO_DEFAULT) for key, value in kept.items()]


def _settings(part: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    defaults = {field.name: artifacts.default(field) for field in dataclasses.fields(part)}
    defaults = {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}
    try:
        usual: Any = dataclasses.replace(part, **defaults)
    except ValueError:  # what it must name, such as a size, does not go with the defaults
        usual = types.SimpleNamespace(**defaults)
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{key}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, entry in enumerate(value):
                yield from _settings(entry, f"{key}[{number}].")
        else:
            default = _json(getattr(usual, field.name)) if field.name in defaults else NO_DEFAULT
            yield key, _json(value), default


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, default=str)


def _arms(source: RunSet) -> list[Table]:
    """The arms, and the changes of each to the set's base config."""
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
