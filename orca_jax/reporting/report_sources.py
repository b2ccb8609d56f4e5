"""The sources of a report: runs, evaluations and artifacts of a workdir, and its Markdown files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from orca_jax import artifacts, files
from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation import scoring
from orca_jax.evaluation.run import RecordedReply
from orca_jax.records import Item
from orca_jax.reporting.tables import message_name

# Markdown


LONG = 30  # characters of a cell that is no figure with its error
_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_CELLS = re.compile(r"(?<!\\)\|")


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Cells as text or Markup; `classes` are the rows', `numbers` says that all but the first are figures."""

    caption: Markup | str
    header: Sequence[object]
    rows: Sequence[Sequence[object]]
    note: str = ""
    classes: Sequence[str] = ()
    numbers: bool = True

    @property
    def wordy(self) -> set[int]:
        """The columns among the numbers that hold texts, or long lists."""
        every = range(1, len(self.header))
        return {at for at in every if any(len(Markup(row[at]).striptags()) > LONG for row in self.rows)}


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One piece of a text: `heading`, `paragraph`, `list` or `table`."""

    kind: str
    text: Markup | str = ""
    entries: tuple[Markup, ...] = ()
    table: Table | None = None


def inline(text: str) -> Markup:
    """Escaped, then `code` and **bold**; images are left out, of links the words are kept."""
    plain = _LINK.sub(r"\1", _IMAGE.sub("", text))
    marked = _BOLD.sub(r"<strong>\1</strong>", _CODE.sub(r"<code>\1</code>", str(escape(plain))))
    return Markup(marked)


def blocks(text: str) -> Iterator[Block]:
    """The pieces of a text; a table's caption is the heading above it."""
    heading = ""
    for part in _parts(text):
        if part[0].startswith("#"):
            heading = part[0].lstrip("# ")
            yield Block("heading", inline(heading))
        elif part[0].startswith("|"):
            yield Block("table", table=_table(part, heading))
        elif part[0].startswith("- "):
            yield Block("list", entries=tuple(inline(line.removeprefix("- ")) for line in part))
        elif shown := inline(" ".join(part)).strip():
            yield Block("paragraph", Markup(shown))


def _parts(text: str) -> Iterator[list[str]]:
    """Lines that belong together: a heading alone, a table, a list, a paragraph."""
    part: list[str] = []
    for line in [*map(str.strip, text.splitlines()), ""]:
        kind = _kind(line)
        if part and (kind != _kind(part[0]) or kind == "heading"):
            yield part
            part = []
        if line:
            part.append(line)


def _kind(line: str) -> str:
    starts = {"#": "heading", "|": "table", "- ": "list"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text" if line else "")


def _table(lines: Sequence[str], caption: str) -> Table:
    rows = [_cells(line) for line in lines]
    rule = "".join(rows[1]) if len(rows) > 1 else ""
    body = rows[2:] if rule and not set(rule) - set("-: ") else rows[1:]
    return Table(inline(caption), rows[0], body)


def _cells(line: str) -> list[Markup]:
    cells = _CELLS.split(line.strip().removeprefix("|").removesuffix("|"))
    return [inline(cell.strip().replace("\\|", "|")) for cell in cells]


# Workdirs


SET, CONFIG, TABLE = "set.json", "experiment.json", "table.md"
RAN = [(key, "training") for key in ("seed", "curriculum", "optimizer", "compiler_options", "data", "train")]
RAN += [("evaluation", "evaluation"), ("puzzles", "queries")]
Key = tuple[str, str, str]  # benchmark, task, id


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One workdir; `arm` is its name in the report, `seed` None where it is no arm."""

    arm: str
    directory: Path
    seed: int | None = None

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


@dataclasses.dataclass(frozen=True, slots=True)
class ResultColumn:
    """One column of a table of results: an evaluation, of several runs where they differ in the seed."""

    group: str
    label: str
    directories: tuple[Path, ...]

    def items(self) -> list[Item]:
        """All items, with the run's number in the place of the seed where there are several runs."""
        found = []
        for number, directory in enumerate(self.directories):
            for item in files.read_jsonl(directory / scoring.ITEMS, Item):
                several = len(self.directories) > 1
                found.append(dataclasses.replace(item, seed=number) if several else item)
        return found

    def scores(self) -> Mapping[str, Any]:
        return _json(self.directories[0] / scoring.SCORES) or {}

    def replies(self) -> dict[Key, RecordedReply]:
        """The first run's, and of these the first seed's; empty where they were not kept."""
        first = self.directories[0]
        paths = [first / evaluation_run.REPLIES, *sorted(first.glob(f"seed-*/{evaluation_run.REPLIES}"))]
        path = next((path for path in paths if path.is_file()), None)
        found = files.read_jsonl(path, RecordedReply) if path else ()
        return {(reply.benchmark, reply.task, reply.id): reply for reply in found}


@dataclasses.dataclass(frozen=True, slots=True)
class RunSet:
    """A workdir, opened. `arms` is what set.json says of an arm set; empty for a run."""

    name: str
    directory: Path
    about: Mapping[str, Any]
    runs: tuple[Run, ...]
    columns: tuple[ResultColumn, ...]

    @property
    def arms(self) -> Sequence[Mapping[str, Any]]:
        return tuple(self.about.get("arms", ()))

    @property
    def first_runs(self) -> dict[str, Run]:
        """Of each arm, in their order, the run that comes first."""
        return {arm: next(run for run in self.runs if run.arm == arm) for arm in self._names}

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def table(self) -> str:
        path = self.directory / TABLE
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def open_workdir(directory: Path) -> RunSet:
    """A run's workdir, or an arm set's.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: the file that describes it cannot be read.
    """
    about = _json(directory / SET)
    if about:
        try:
            return _open_set(directory, about)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{directory / SET} is not of experiments.ablate ({error}); make it again"
            ) from error
    config = _json(directory / CONFIG)
    if not (config or any(manifests(directory))):
        raise FileNotFoundError(
            f"{directory} is no workdir of a run or of an arm set: it has no {SET}, no {CONFIG} and no "
            "finished artifact; name the --workdir of experiments.run or experiments.ablate"
        )
    name = (config or {}).get("name") or directory.resolve().name
    columns = tuple(_columns(directory))
    return RunSet(name, directory, {}, (Run(name, directory),), columns)


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file.

    Raises:
      ValueError: it is no JSON object.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object; make it again")
    return found


def config_of(run: Run) -> dict[str, Any] | None:
    """The kept config, updated from the manifests of what ran; None where no config was kept."""
    config = _json(run.directory / CONFIG)
    if config:
        ran = {
            name.partition("/")[0]: found["provenance"] for name, found in manifests(run.directory).items()
        }
        for key, part in RAN:
            config[key] = _over(config.get(key), ran.get(part, {}).get(key))
    return config


def _over(kept: Any, ran: Any) -> Any:
    """The kept values, replaced by those that ran where these are known."""
    if isinstance(kept, Mapping) and isinstance(ran, Mapping):
        return {**kept, **ran}
    return kept if ran is None else ran


def _columns(directory: Path) -> Iterator[ResultColumn]:
    """Every scored evaluation of a run, those of other models than its student by their folder."""
    top = directory / "evaluation"
    found = sorted(path.parent for depth in ("*", "*/*") for path in top.glob(f"{depth}/{scoring.ITEMS}"))
    known: set[tuple[str, str]] = set()
    for path in found:
        message = (_json(path / scoring.SCORES) or {}).get("system_message_id")
        label = message_name(message) if message else path.name
        if path.parent != top:
            label = f"{path.parent.name}: {label}"
        group = _asked(path)
        if (group, label) in known:
            label = f"{label} ({path.name})"
        known.add((group, label))
        yield ResultColumn(group, label, (path,))


def _asked(evaluation: Path) -> str:
    """The benchmark and mode of an evaluation."""
    scores = _json(evaluation / scoring.SCORES) or {}
    return f"{scores.get('benchmark', evaluation.name)}, mode {scores.get('mode', 'unknown')}"


def _open_set(directory: Path, about: Mapping[str, Any]) -> RunSet:
    if "examined" in about:  # as earlier versions wrote it
        results = [{"title": one["title"], "evaluation": one["examination"]} for one in about["examined"]]
        arms = [{**arm, "evaluations": arm.get("examined", {})} for arm in about["arms"]]
        about = {**about, "results": results, "arms": arms}
    runs = tuple(
        Run(arm["name"], path, seed)
        for arm in about["arms"]
        for seed in about["seeds"]
        if (path := directory / arm["name"] / f"seed-{seed}").is_dir()
    )
    columns = tuple(
        ResultColumn(f"{result['title']}: {_asked(found[0])}", arm["name"], found)
        for result in about["results"]
        for arm in about["arms"]
        if (found := tuple(_items_of(runs, arm, result)))
    )
    return RunSet(about["name"], directory, about, runs, columns)


def _items_of(runs: Iterable[Run], arm: Mapping[str, Any], result: Mapping[str, str]) -> Iterator[Path]:
    """The evaluations that an arm's result is taken from: its own, or the set's."""
    evaluation = arm.get("evaluations", {}).get(result["title"], result["evaluation"])
    for run in runs:
        path = run.directory / "evaluation" / evaluation
        if run.arm == arm["name"] and (path / scoring.ITEMS).is_file():
            yield path


def unscored(runs: Iterable[Run]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Evaluations without right answers: their run, name and scores.json."""
    for run in runs:
        for path in sorted((run.directory / "evaluation").glob(f"**/{scoring.SCORES}")):
            if not (path.parent / scoring.ITEMS).is_file() and (scores := _json(path)):
                yield run.name, path.parent.name, scores


def manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a workdir's finished artifacts, by their folder; of another program's, none."""
    found = {}
    for path in sorted(
        path for depth in ("*", "*/*", "*/*/*") for path in directory.glob(f"{depth}/manifest.json")
    ):
        name = path.parent.relative_to(directory)
        if "checkpoints" not in name.parts:
            try:
                found[name.as_posix()] = artifacts.read_manifest(path.parent)
            except artifacts.ArtifactError:
                continue
    return found
