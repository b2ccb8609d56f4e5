"""What runs have measured of the paper's cells, in the paper's own protocol.

A run is a workdir's student, or another model that was evaluated in it (`evaluation/WHO/NAME`). Of its
evaluations only those count that ask as the paper did: mode `orca` under the same system message; ToxiGen's
continuations with a classifier; and reviews of a judge in `evaluation/judged-PROMPTS-REFERENCE`, for
example `judged-vicuna_prompts-chatgpt`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import files
from orca_jax.evaluation import judging, scoring, statistics
from orca_jax.records import Item
from orca_jax.reporting import cells, sizes
from orca_jax.reporting.cells import Cell
from orca_jax.reporting.published import PublishedCell

MODE = "orca"
EMPTY_MESSAGE = 1
TOXIGEN_KINDS = {"toxic_prompts": "hate", "neutral_prompts": "neutral"}


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    directory: Path
    scores: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    name: str
    workdir: Path
    evaluations: tuple[Evaluation, ...]


def find(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in folders, each a workdir, a set of arms with ARM/seed-N in it, or one arm.

    Raises:
      ValueError: a folder was not evaluated, or scores cannot be read; names it.
    """
    workdirs = dict(found for folder in folders for found in _workdirs(Path(folder)))
    often = collections.Counter(workdirs.values())
    return [
        run
        for workdir, name in workdirs.items()
        for run in _runs(workdir, name if often[name] == 1 else str(workdir))
    ]


def _workdirs(folder: Path) -> list[tuple[Path, str]]:
    if (folder / "evaluation").is_dir():
        return [(folder, folder.resolve().name)]
    arms = [*folder.glob("seed-*/evaluation"), *folder.glob("*/seed-*/evaluation")]
    if not arms:
        raise ValueError(
            f"{folder} has no evaluation/ and no ARM/seed-N with one: give workdirs in which "
            "experiments.evaluate has run"
        )
    return [(path.parent, "/".join(path.resolve().parts[-3:-1])) for path in sorted(arms)]


def _runs(workdir: Path, name: str) -> list[Run]:
    found: dict[str, list[Evaluation]] = collections.defaultdict(list)
    root = workdir / "evaluation"
    for path in sorted([*root.glob(f"*/{scoring.SCORES}"), *root.glob(f"*/*/{scoring.SCORES}")]):
        who = path.parent.parent.name if path.parent.parent != root else ""
        found[who].append(Evaluation(path.parent, _scores(path)))
    return [
        Run(f"{name}, {who}" if who else name, workdir, tuple(evaluations))
        for who, evaluations in (found or {"": []}).items()
    ]


def _scores(path: Path) -> Mapping[str, Any]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate again") from error
    if not isinstance(scores, dict) or not {"benchmark", "mode"} <= scores.keys():
        raise ValueError(f"{path} has no benchmark and mode; evaluate again")
    return scores


def measured(run: Run, cell: PublishedCell) -> Cell | None:
    """What the run measured of a published cell; None where it was not evaluated so.

    It is a part where there are fewer questions than the paper has, or of ToxiGen, where the paper does not
    say, than its files.
    """
    found = evaluation(run, cell)
    return _cell(found, cell) if found else None


def evaluation(run: Run, cell: PublishedCell) -> Evaluation | None:
    """The run's evaluation that asks what the cell is about."""
    return next((found for found in run.evaluations if _asks(found, cell)), None)


def items(found: Evaluation) -> list[Item]:
    """None where only the scores were kept."""
    path = found.directory / scoring.ITEMS
    return list(files.read_jsonl(path, Item)) if path.is_file() else []


def _asks(found: Evaluation, cell: PublishedCell) -> bool:
    scores, condition = found.scores, _condition(cell)
    if cell.metric == "percent_of_reference":
        return found.directory.name == f"judged-{cell.task}-{condition['reference']}"
    if scores["benchmark"] != cell.benchmark:
        return False
    if cell.benchmark == "toxigen":
        return "toxicity" in scores and TOXIGEN_KINDS[cell.condition] in found.directory.name
    return scores["mode"] == MODE and str(_message(found)) == condition["system_message"]


def _condition(cell: PublishedCell) -> dict[str, str]:
    """`zero_shot;system_message=1` as a mapping."""
    return dict(part.partition("=")[::2] for part in cell.condition.split(";"))


def _message(found: Evaluation) -> int | None:
    """Replies made elsewhere do not tell their message; they count as asked under none."""
    given: int | None = found.scores.get("system_message_id")
    return EMPTY_MESSAGE if given is None and "-message-" not in found.directory.name else given


def _cell(found: Evaluation, cell: PublishedCell) -> Cell | None:
    scores = found.scores
    if cell.metric == "percent_of_reference":
        return _judged(scores, cell.n)
    if cell.benchmark == "toxigen":
        return _toxicity(scores["toxicity"], cell.task)
    row = scores["tasks"].get(cell.task)
    if row is None:
        return None
    if cell.metric == "format_failure_rate":
        return cells.proportion(row["unparsed"], row["n"], of=cell.n)
    return cells.proportion(row["accuracy"], row["n"], row["stderr"], cell.n)


def _toxicity(scores: Mapping[str, Any], group: str) -> Cell | None:
    """Of the continuations that say something: only all groups together tell how many were asked."""
    tasks = scores["tasks"]
    if group not in tasks:
        return None
    asked = sum(row["n"] for row in tasks.values()) + scores.get("silent", 0)
    size = sizes.full("toxigen", group, "toxigen", 0) or 0
    of = size if asked < size * len(tasks) else None
    return cells.proportion(tasks[group]["toxicity"], tasks[group]["n"], tasks[group]["stderr"], of)


def _judged(scores: Mapping[str, Any], of: int | None) -> Cell | None:
    """The paper's order; its error is taken from the interval of all reviews."""
    value, interval = scores["per_cent"].get(judging.REFERENCE_FIRST), scores["interval"]
    if value is None or interval is None:
        return None
    stderr = (interval[1] - interval[0]) / (2 * statistics.NORMAL_95) / 100
    return Cell(value / 100, scores["questions"], stderr or None, of)
