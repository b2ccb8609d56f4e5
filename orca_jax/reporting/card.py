"""The data card of a trace set: cards/NAME/README.md and figures, which `experiments.prepare` makes."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig, TeacherConfig
from orca_jax.data import packing
from orca_jax.data.tokens import TokenStore, warning
from orca_jax.data.traces import PlacedTraces
from orca_jax.queries import flan, system_messages
from orca_jax.reporting import data_card
from orca_jax.reporting.data_card import Facts, Source

if TYPE_CHECKING:
    from orca_jax.config import ExperimentConfig, TeacherConfig

log = logging.getLogger(__name__)
SAMPLE = 20_000  # traces whose n-grams are counted
_LOSS_ON = {"all": "all answers", "last": "last answers", "everything": "prompts and answers"}


def make_card(
    config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, traces: Callable[[], PlacedTraces]
) -> None:
    """Writes cards/NAME.

    Args:
      traces: gives what the teacher's token store was made of.
    """
    directory, store = workdir / "cards" / teacher.name, TokenStore(workdir / "tokens" / teacher.name)
    rows = artifacts.section(config.data, ("row_length", "max_segments", "overlong"))
    provenance = artifacts.joined({"program": "card"}, rows, artifacts.section(config, ("seed",)))
    inputs = {"tokens": store.manifest["fingerprint"]}
    if not _is_up_to_date(directory, provenance, inputs):
        data_card.write(directory, _facts(config, teacher, workdir, store, traces()))
        fates = store.fates(config.data.row_length, config.data.overlong)
        artifacts.finish(directory, provenance, inputs, fates)
        log.info("%s: data card at %s", teacher.name, directory / data_card.README)


def left_out(teacher: TeacherConfig, workdir: Path, store: TokenStore) -> dict[str, int]:
    """Why rows and traces are no examples, and how many are not; those held out for validation apart."""
    collected = artifacts.read_manifest(workdir / "traces" / teacher.name)["counts"]
    quality = artifacts.read_manifest(workdir / "quality" / teacher.name)["counts"]
    rows = {name: collected[name] for name in ("malformed", "asks_a_benchmark") if collected.get(name)}
    return {**rows, **quality["left_out"], **store.manifest["counts"]["dropped"]}


def untrained(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, store: TokenStore) -> str:
    """What does not train of a teacher's traces, of how many, and what to change; empty where all does."""
    fates = store.fates(config.data.row_length, config.data.overlong)
    return warning(fates, left_out(teacher, workdir, store))


def _is_up_to_date(directory: Path, provenance: dict[str, Any], inputs: dict[str, str]) -> bool:
    """Nothing is made of a card, so one of other settings is no error: it is written anew."""
    try:
        return artifacts.is_finished(directory, provenance, inputs)
    except artifacts.ArtifactError:
        return False


def _facts(
    config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, store: TokenStore, traces: PlacedTraces
) -> Facts:
    quality = artifacts.read_manifest(workdir / "quality" / teacher.name)["counts"]
    sample = list(traces[:: max(1, len(traces) // SAMPLE)])
    asked = _queries(workdir) if teacher.kind != "file" else None
    trains = store.effective_lengths(config.data.row_length, config.data.overlong) > 0
    return Facts(
        name=teacher.name,
        about=(
            f"config {config.name}, seed {config.seed}",
            f"teacher {teacher.name}: {teacher.kind} {Path(teacher.path).name}".rstrip(),
            f"tokenizer: {Path(config.data.tokenizer).name or 'the weights own, or trained on the traces'}",
            f"layout {config.data.layout}, loss on {_LOSS_ON[config.data.supervise]}",
        ),
        columns={name: values[trains] for name, values in store.columns.items()},
        untrained=untrained(config, teacher, workdir, store),
        expected=_expected(config, store.columns["collection"][trains].tolist()),
        left_out={**left_out(teacher, workdir, store), "in no row": int((~trains).sum())},
        held_out=quality["kept"] - len(traces),
        flags=quality["flags"],
        packing=_packing(config, store),
        ngrams={
            "questions": data_card.distinct(trace.messages[-2].content for trace in sample if trace.answer),
            "answers": data_card.distinct(trace.answer for trace in sample),
        },
        sample=len(sample),
        queries=asked["counts"] if asked else None,
        sources=_sources(teacher, workdir, asked),
    )


def _queries(workdir: Path) -> dict[str, Any]:
    return artifacts.read_manifest(workdir / "queries")


def _expected(config: ExperimentConfig, collections_of: list[str]) -> dict[int, float]:
    """The shares of Figure 6 for this mixture; empty where another allocation was at work."""
    counts = collections.Counter(map(data_card.paper_collection, collections_of))
    if any(draw.messages for draw in config.flan) or set(counts) - set(system_messages.COLLECTIONS):
        return {}
    total = sum(counts.values())
    return {
        id: sum(message.shares[name] * count for name, count in counts.items()) / max(total, 1)
        for id, message in system_messages.all_messages().items()
    }


def _packing(config: ExperimentConfig, store: TokenStore) -> dict[str, float]:
    data = config.data
    plan = packing.make_plan(
        store.effective_lengths(data.row_length, data.overlong),
        row_length=data.row_length,
        max_segments=data.max_segments,
        seed=config.seed,
        epoch=0,
    )
    return {
        "rows": plan.rows,
        "factor": plan.packing_factor,
        "fill": plan.fill,
        "row_length": data.row_length,
    }


def _sources(teacher: TeacherConfig, workdir: Path, asked: Mapping[str, Any] | None) -> list[Source]:
    """The files, by the inputs of the manifests."""
    if asked is None:
        inputs = artifacts.read_manifest(workdir / "traces" / teacher.name)["inputs"]
        return [Source(Path(teacher.path).name, inputs["file"], "not stated in the file")]
    return [Source(name, sha256, _licence(name)) for name, sha256 in asked["inputs"].items()]


def _licence(name: str) -> str:
    """Of an input's name, such as "flan[0].cot: flan_cot/aqua_train.tsv"."""
    kind = name.partition(":")[0].rpartition(".")[2]
    return flan.LICENCES.get(kind, "not stated in the file")
