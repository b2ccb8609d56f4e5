"""report.html: one self-contained page about a run or an arm set.

The page fetches nothing: style, script and drawings are in it, and its policy forbids everything else, so
that markup in a reply stays text. The page names the parts that a workdir lacks.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import json
import logging
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from markupsafe import Markup

from orca_jax import artifacts
from orca_jax.artifacts import plain
from orca_jax.config import load
from orca_jax.evaluation import run as evaluation_run
from orca_jax.reporting import charts, data_card, report_results, report_sources, tables
from orca_jax.reporting.charts import Chart
from orca_jax.reporting.report_results import History
from orca_jax.reporting.report_sources import Key, Run, RunSet
from orca_jax.reporting.tables import ORACLE_NOTE, UNNAMED, Table, described_message
from orca_jax.training import metrics

log = logging.getLogger(__name__)
FILE = "report.html"
NO_DEFAULT = "no default"
MOST_ROWS = 40  # of a table of counts
SHOWN = 10  # characters of a fingerprint
ORDER = ("queries", "traces", "quality", "tokenizer", "tokens", "cards", "training", "evaluation")

# Markdown of the project's programs


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
for _rule in ("image", "link_open", "link_close"):  # the page links to nothing outside it
    _MARKDOWN.add_render_rule(_rule, lambda *_: "")


def inline(text: str) -> Markup:
    """The text of a line: escaped, with code and bold; images are left out, of links the words are kept."""
    return Markup(_MARKDOWN.renderInline(text).strip())


def prose(text: str, said: Iterable[str] = ()) -> Iterator[Markup | Table]:
    """The pieces of a text less its title and what is `said`; a table's title is the heading above it."""
    heading = ""
    for node in SyntaxTreeNode(_MARKDOWN.parse(text)).children:
        content = node.children[0].content if node.type in ("heading", "paragraph") else ""
        if node.tag == "h1" or content in said:
            continue
        if node.type == "table":
            lines = [line for part in node.children for line in part.children]
            header, *rows = ([inline(cell.children[0].content) for cell in line.children] for line in lines)
            yield Table(header, rows, inline(heading))
        elif node.type == "heading":
            heading = content
            yield Markup("<h3>{}</h3>").format(inline(content))
        elif node.type != "paragraph" or inline(content):
            yield Markup(_MARKDOWN.renderer.render(node.to_tokens(), _MARKDOWN.options, {}))


# Data: counts and lengths of the token stores, and the data cards


COLUMNS = {"collection": "collection", "task": "task", "system_message_id": "system message"}
LABELS: Mapping[str, Callable[[Any], str]] = {
    "collection": data_card.collection_label,
    "system_message_id": lambda id: described_message(int(id)),
}


def examples(runs: Iterable[Run]) -> pd.DataFrame:
    """A row an example of the token stores: its `store`, tokens and columns; empty where none is finished."""
    frames = []
    for name, path in _named_apart(runs, "tokens/*/columns.npz"):
        with np.load(path) as columns:
            kept = {column: columns[column] for column in ("supervised", *COLUMNS)}
        frames.append(pd.DataFrame({"store": name, "tokens": np.load(path.with_name("lengths.npy")), **kept}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


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


def data_tables(found: pd.DataFrame) -> Iterator[Table]:
    """Sizes, then examples by collection, task and message, a column a data set."""
    stores = found.groupby("store", sort=False)
    sizes = pd.concat([stores.size(), stores.tokens.sum(), stores.supervised.sum()], axis=1)
    rows = [[name, *(f"{n:,}" for n in row)] for name, *row in sizes.itertuples()]
    yield Table(["data set", "examples", "tokens", "supervised tokens"], rows, "Data sets")
    for column, title in COLUMNS.items():
        counts = found.groupby([column, "store"], sort=False).size().unstack(fill_value=0)[[*sizes.index]]
        counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
        label = LABELS.get(column, lambda value: value or UNNAMED)
        rows = [[label(value), *(f"{n:,}" for n in row)] for value, *row in counts[:MOST_ROWS].itertuples()]
        cut = len(counts) > MOST_ROWS
        notes = [f"The {MOST_ROWS} most frequent of {len(counts)}."] if cut else []
        yield Table([title, *counts], rows, f"Examples by {title}", notes)


def length_chart(found: pd.DataFrame) -> Chart | None:
    """Boxes of the answers' lengths by system message, a box a data set."""
    named = {}
    for id, of_message in found.groupby("system_message_id"):
        lengths = {
            store: data_card.box(part.to_numpy())
            for store in dict.fromkeys(found.store)
            if len(part := of_message.supervised[of_message.store == store])
        }
        named[f"message {id}" if id >= 0 else "other"] = lengths
    caption = (
        "Tokens of the answers by system message (other: a text not among the 16): quartiles, and whiskers "
        "to the extremes."
    )
    return charts.boxes(named, caption=caption, x="supervised tokens (log)")


# Lineage: every artifact, and what it was made of


def anchor(name: str, manifest: Mapping[str, Any]) -> str:
    return f"artifact-{re.sub('[^a-zA-Z0-9]+', '-', name)}-{manifest['fingerprint'][:SHOWN]}"


def lineage(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The finished artifacts of all runs in the order of the work, those that several share once.

    Of each its name, manifest, anchor, `runs` that have it, and `inputs`: name, fingerprint and anchor, which
    is empty where it is no artifact of the workdir. An input is found by its fingerprint; a tokenizer, which
    enters by its content, by its name.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        manifests = report_sources.manifests(run.directory)
        names = {manifest["fingerprint"]: name for name, manifest in reversed(manifests.items())}
        for name, manifest in manifests.items():
            inputs = []
            for key, fingerprint in manifest["inputs"].items():
                source = names.get(fingerprint, key)
                link = anchor(source, manifests[source]) if source in manifests else ""
                inputs.append((key, str(fingerprint)[:SHOWN], link))
            place = anchor(name, manifest)
            one = {"name": name, "manifest": manifest, "anchor": place, "inputs": inputs, "runs": []}
            found.setdefault(place, one)["runs"].append(run.name)
    order = {folder: place for place, folder in enumerate(ORDER)}
    return sorted(found.values(), key=lambda one: order.get(one["name"].partition("/")[0], len(ORDER)))


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
    teachers = [artifact["manifest"]["provenance"].get("teacher") for artifact in found]
    note = ORACLE_NOTE if any(isinstance(t, Mapping) and t.get("kind") == "oracle" for t in teachers) else ""
    said = (source.about.get("question", ""), note)  # at the page's head
    script = _resource("report.js")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["pretty"] = functools.partial(json.dumps, indent=1, ensure_ascii=False, default=str)
    page = environment.from_string(_resource("report.html.jinja")).render(
        source=source,
        note=note,
        written=list(prose(source.table, said)),
        artifacts=found,
        style=Markup(_resource("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_making(source),
        **_results(source),
    )
    return page.lstrip()


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _making(source: RunSet) -> dict[str, Any]:
    """The page's parts on data, training and config."""
    firsts = source.first_runs
    histories = [history for run in source.runs if (history := _history(run, run.name)).train]
    of_arms = [history for arm, run in firsts.items() if (history := _history(run, arm)).train]
    data = examples(firsts.values())
    tiles = []
    if source.arms:
        planned = len(source.arms) * len(source.about["seeds"])
        tiles = [("arms", str(len(source.arms))), ("runs begun", f"{len(source.runs)} of {planned}")]
    elif histories:
        tiles = [("training steps", f"{histories[0].train[-1]['step']:,}")]
        losses = [row["loss"] for row in histories[0].validations[-1:]]
        tiles += [("validation loss, nats a supervised token", f"{loss:.3f}") for loss in losses]
    return {
        "tiles": tiles,
        "training": report_results.training_table(histories),
        "training_charts": report_results.training_charts(of_arms),
        "data": list(data_tables(data)) if len(data) else [],
        "lengths": length_chart(data) if len(data) else None,
        "cards": {
            name: list(prose(path.read_text(encoding="utf-8")))
            for name, path in _named_apart(firsts.values(), f"cards/*/{data_card.README}")
        },
        "configs": [(run.name, _config_tables(run)) for run in firsts.values()],
        "arms": _arms(source) if source.arms else [],
    }


def _results(source: RunSet) -> dict[str, Any]:
    """The page's parts on evaluations; the headline figures are those of the first group."""
    groups = report_results.groups(source)
    texts = {key: text for run in source.first_runs.values() for key, text in questions(run).items()}
    scores = []
    for group in groups[:1]:
        tasks = f"mean of {len(group.bars)} tasks, " if len(group.bars) > 1 else ""
        for label, cell in group.means.items():
            if cell:
                asked = f"{group.title}, {label}: accuracy in %, {tasks}n = {cell.size}"
                scores.append((asked, str(cell)))
    return {
        "scores": scores,
        "results": [(report_results.table(group), report_results.result_charts(group)) for group in groups],
        "unscored": [
            (f"{run}: {name}", tables.unscored_sentence(found, name))
            for run, name, found in report_sources.unscored(source.runs)
        ],
        "samples": report_results.samples(groups, texts),
        "tasks": sorted({task for group in groups for task in group.bars}),
        "labels": list(dict.fromkeys(label for group in groups for label in group.labels)),
    }


def _history(run: Run, name: str) -> History:
    path = run.directory / "training" / metrics.FILE
    return History.of(name, metrics.read(path) if path.is_file() else [])


def questions(run: Run) -> dict[Key, str]:
    """The texts of a run's evaluated questions by its config; none where that was not kept."""
    kept = report_sources.config_of(run)
    try:
        asked = evaluation_run.evaluations(load(kept)).values() if kept else ()
        return {question.key: question.text for question in itertools.chain(*asked)}
    except (OSError, ValueError) as error:
        log.warning("%s: the questions' texts are left out: %s", run.name, error)
        return {}


def _config_tables(run: Run) -> list[Table]:
    """The keys that differ from their defaults, and all keys; empty where the config was not kept."""
    if not (kept := report_sources.config_of(run)):
        return []
    rows = settings(kept)
    changed = [row for row in rows if row[1] != row[2]]
    header, classes = ["key", "here", "default"], ["changed" if row in changed else "" for row in rows]
    return [
        Table(
            header, changed, "Different from the default", classes=["changed"] * len(changed), numbers=False
        ),
        Table(header, rows, "The whole config", classes=classes, numbers=False),
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
    note = f"The baseline is {about['baseline']}; seeds {', '.join(map(str, about['seeds']))}."
    classes = ["base" if arm["name"] == about["baseline"] else "" for arm in source.arms]
    more: dict[str, Any] = {"notes": [note], "classes": classes, "numbers": False}
    notes = [[arm["name"], arm.get("note", "")] for arm in source.arms]
    changes = [[arm["name"], "; ".join(_flat(arm.get("changes", {}))) or "nothing"] for arm in source.arms]
    return [
        Table(["arm", "what it is"], notes, "Arms", **more),
        Table(["arm", "changes"], changes, "Changes of the base config", **more),
    ]


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested changes as `dotted.key = value`."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {json.dumps(value, ensure_ascii=False)}"
