"""The sources of a report: runs, evaluations and artifacts of a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from orca_jax import artifacts, files
from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation import scoring
from orca_jax.evaluation.run import RecordedReply
from orca_jax.records import Item
from orca_jax.reporting import arms
from orca_jax.reporting.tables import message_name

SET, CONFIG, TABLE = "set.json", "experiment.json", "table.md"
RAN = [(key, "training") for key in ("seed", "curriculum", "optimizer", "compiler_options", "data", "train")]
RAN += [("evaluation", "evaluation"), ("puzzles", "queries")]
DEPTHS = ("*", "*/*", "*/*/*")  # of a workdir's artifacts
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


class ResultColumn(NamedTuple):
    """One column of a table of results: an evaluation, of several runs where they differ in the seed."""

    group: str
    label: str
    directories: tuple[Path, ...]

    def items(self) -> pd.DataFrame:
        """The `arms.frame` of the column's items, under its label; of a single run, `run` is the seed."""
        runs = [files.read_jsonl(directory / scoring.ITEMS, Item) for directory in self.directories]
        items = arms.frame({self.label: runs})
        return items if len(runs) > 1 or items.empty else items.assign(run=items.seed)

    def replies(self) -> dict[Key, str]:
        """The texts of the first run's first seed; empty where they were not kept."""
        first = self.directories[0]
        paths = [first / evaluation_run.REPLIES, *sorted(first.glob(f"seed-*/{evaluation_run.REPLIES}"))]
        path = next((path for path in paths if path.is_file()), None)
        found = files.read_jsonl(path, RecordedReply) if path else ()
        return {(reply.benchmark, reply.task, reply.id): reply.text for reply in found}


@dataclasses.dataclass(frozen=True, slots=True)
class RunSet:
    """A workdir, opened. `about` is what set.json says of an arm set; empty for a run."""

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
        found: dict[str, Run] = {}
        for run in self.runs:
            found.setdefault(run.arm, run)
        return found

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
    if about := read_json(directory / SET):
        try:
            return _open_set(directory, about)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{directory / SET} is not of experiments.ablate ({error}); make it again"
            ) from error
    config = read_json(directory / CONFIG)
    if not (config or any(manifests(directory))):
        raise FileNotFoundError(
            f"{directory} is no workdir of a run or of an arm set: it has no {SET}, no {CONFIG} and no "
            "finished artifact; name the --workdir of experiments.run or experiments.ablate"
        )
    name = config.get("name") or directory.resolve().name
    return RunSet(name, directory, {}, (Run(name, directory),), tuple(_columns(directory)))


def _open_set(directory: Path, about: Mapping[str, Any]) -> RunSet:
    if "examined" in about:  # as version 0.1.0 wrote it
        results = [{"title": one["title"], "evaluation": one["examination"]} for one in about["examined"]]
        arms = [{**arm, "evaluations": arm.get("examined", {})} for arm in about["arms"]]
        about = {**about, "results": results, "arms": arms}
    planned = itertools.product((arm["name"] for arm in about["arms"]), about["seeds"])
    runs = [Run(arm, directory / arm / f"seed-{seed}", seed) for arm, seed in planned]
    runs, columns = [run for run in runs if run.directory.is_dir()], []
    for result, arm in itertools.product(about["results"], about["arms"]):
        # Evaluated in the set's way, or its own.
        name = arm.get("evaluations", {}).get(result["title"], result["evaluation"])
        paths = (run.directory / "evaluation" / name for run in runs if run.arm == arm["name"])
        if found := tuple(path for path in paths if (path / scoring.ITEMS).is_file()):
            columns.append(ResultColumn(f"{result['title']}: {_asked(found[0])}", arm["name"], found))
    return RunSet(about["name"], directory, about, tuple(runs), tuple(columns))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
      ValueError: it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object; make it again")
    return found


def evaluation_folders(workdir: Path, file: str) -> list[Path]:
    """The folders with such a file, of the workdir's student and of other models."""
    return sorted(path.parent for at in ("*", "*/*") for path in workdir.glob(f"evaluation/{at}/{file}"))


def config_of(run: Run) -> dict[str, Any]:
    """The kept config, updated from the manifests of what ran; empty where no config was kept."""
    if not (config := read_json(run.directory / CONFIG)):
        return {}
    made = manifests(run.directory).items()
    provenance = {name.partition("/")[0]: found["provenance"] for name, found in made}
    for key, part in RAN:
        kept, ran = config.get(key), provenance.get(part, {}).get(key)
        if ran is not None:
            config[key] = {**kept, **ran} if isinstance(kept, Mapping) else ran
    return config


def _columns(directory: Path) -> Iterator[ResultColumn]:
    """Every scored evaluation of a run, those of other models than its student by their folder."""
    top = directory / "evaluation"
    known: set[tuple[str, str]] = set()
    for path in evaluation_folders(directory, scoring.ITEMS):
        message = read_json(path / scoring.SCORES).get("system_message_id")
        label = message_name(message) if message else path.name
        if path.parent != top:
            label = f"{path.parent.name}: {label}"
        if (_asked(path), label) in known:
            label = f"{label} ({path.name})"
        known.add((_asked(path), label))
        yield ResultColumn(_asked(path), label, (path,))


def _asked(evaluation: Path) -> str:
    """The benchmark and mode of an evaluation."""
    scores = read_json(evaluation / scoring.SCORES)
    return f"{scores.get('benchmark', evaluation.name)}, mode {scores.get('mode', 'unknown')}"


def unscored(runs: Iterable[Run]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Evaluations without right answers: their run, name and scores.json."""
    for run in runs:
        for path in evaluation_folders(run.directory, scoring.SCORES):
            if not (path / scoring.ITEMS).is_file() and (scores := read_json(path / scoring.SCORES)):
                yield run.name, path.name, scores


def manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a workdir's finished artifacts, by their folder; of another program's, none."""
    found = {}
    for path in sorted(itertools.chain(*(directory.glob(f"{at}/manifest.json") for at in DEPTHS))):
        name = path.parent.relative_to(directory)
        if "checkpoints" not in name.parts:
            with contextlib.suppress(artifacts.ArtifactError):
                found[name.as_posix()] = artifacts.read_manifest(path.parent)
    return found
