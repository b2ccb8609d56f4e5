"""The lineage of a report: every artifact, what it was made of, and with which versions."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from orca_jax.reporting import report_charts, report_sources
from orca_jax.reporting.report_charts import Chart
from orca_jax.reporting.report_markdown import Table
from orca_jax.reporting.report_sources import Run

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
        """What made it and what is in it, as JSON."""
        parts = {key: self.manifest.get(key, {}) for key in ("provenance", "counts")}
        return json.dumps(parts, indent=1, ensure_ascii=False, default=str)


def anchor(name: str, fingerprint: str) -> str:
    return f"artifact-{re.sub('[^a-zA-Z0-9]+', '-', name)}-{fingerprint[:SHOWN]}"


def artifacts(runs: Iterable[Run]) -> list[Artifact]:
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
    return sorted(found.values(), key=lambda one: _place(one.name.partition("/")[0]))


def _place(folder: str) -> int:
    return ORDER.index(folder) if folder in ORDER else len(ORDER)


def _input(key: str, fingerprint: str, manifests: Mapping[str, Mapping[str, Any]]) -> Input:
    """Found by fingerprint; a tokenizer, which enters by its content, by its name."""
    name = next((name for name, other in manifests.items() if other["fingerprint"] == fingerprint), None)
    if name is None and key in manifests:
        name = key
    return Input(key, fingerprint[:SHOWN], anchor(name, str(manifests[name]["fingerprint"])) if name else "")


def graph(found: Iterable[Artifact], run: Run) -> Chart | None:
    """The artifacts of one run."""
    own = [artifact for artifact in found if run.name in artifact.runs]
    nodes = {artifact.anchor: (artifact.name, artifact.fingerprint[:SHOWN]) for artifact in own}
    edges = [(entry.anchor, artifact.anchor) for artifact in own for entry in artifact.inputs]
    return report_charts.graph(nodes, edges, caption=f"What was made of what: {run.name}.")


def versions(found: Iterable[Artifact]) -> Table:
    """Packages with the versions that the artifacts were made with."""
    used: dict[str, dict[str, None]] = {}
    for artifact in found:
        for package, version in artifact.manifest.get("versions", {}).items():
            used.setdefault(package, {})[str(version) or "none"] = None
    rows = [[name, ", ".join(seen)] for name, seen in used.items()]
    return Table("Versions", ["package", "version"], rows, numbers=False)
