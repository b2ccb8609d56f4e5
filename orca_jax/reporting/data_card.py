"""The data card of a trace set: cards/NAME/README.md and figures, which `experiments.prepare` makes."""

from __future__ import annotations

import collections
import contextlib
import csv
import importlib.resources
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import packing
from orca_jax.data.tokens import TokenStore, warning
from orca_jax.data.traces import PlacedTraces
from orca_jax.evaluation.cells import ABSENT
from orca_jax.queries import flan, system_messages
from orca_jax.reporting import charts
from orca_jax.reporting.charts import BOX
from orca_jax.reporting.tables import UNNAMED, counted, described_message, markdown, message_label

log = logging.getLogger(__name__)
README = "README.md"
LENGTHS = "lengths.png"
TASKS = "tasks.png"
PAPER_PACKING = 2.7  # examples a row of 2,048 positions (section 3.2)
PAPER_QUERIES = {"cot": 150_000, "niv2": 440_000, "flan2021": 2_500_000, "t0": 2_000_000}  # Table 3
COLLECTIONS = {"cot": "CoT", "niv2": "NiV2", "flan2021": "Flan 2021", "t0": "T0"}
OPENORCA = {"niv": "niv2", "flan": "flan2021"}  # prefixes of OpenOrca's ids that are not our names
SHOWN_TASKS = 15
SAMPLE = 20_000  # traces whose n-grams are counted
_LOSS_ON = {"all": "all answers", "last": "last answers", "everything": "prompts and answers"}
TraceColumns = Mapping[str, NDArray[Any]]


def make_card(
    config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, traces: Callable[[], PlacedTraces]
) -> None:
    """Writes cards/NAME.

    Nothing depends on a card, so a card of other settings is written again and is no error.

    Args:
      traces: gives what the teacher's token store was made of.
    """
    directory, store = workdir / "cards" / teacher.name, TokenStore(workdir / "tokens" / teacher.name)
    rows = artifacts.section(config.data, without=(*config.data.STORED, "segments"))
    provenance = artifacts.joined({"program": "card"}, rows, artifacts.section(config, ("seed",)))
    artifact = artifacts.Artifact(directory, provenance, {"tokens": store.manifest["fingerprint"]})
    with contextlib.suppress(artifacts.ArtifactError):
        if artifact.finished():
            return
    write(directory, **_contents(config, teacher, workdir, store, traces()))
    fates = store.fates(config.data.row_length, config.data.overlong)
    artifact.finish(fates)
    log.info("%s: data card at %s", teacher.name, directory / README)


def left_out(teacher: TeacherConfig, workdir: Path, store: TokenStore) -> dict[str, int]:
    """Counts of rows and traces that are no examples, by reason; without those held out for validation."""
    collected = artifacts.read_manifest(workdir / "traces" / teacher.name)["counts"]
    quality = artifacts.read_manifest(workdir / "quality" / teacher.name)["counts"]
    rows = {name: collected[name] for name in ("malformed", "asks_a_benchmark") if collected.get(name)}
    return {**rows, **quality["left_out"], **store.manifest["counts"]["dropped"]}


def untrained(config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, store: TokenStore) -> str:
    """A warning about traces that do not train, with counts and what to change; empty where all train."""
    fates = store.fates(config.data.row_length, config.data.overlong)
    return warning(fates, left_out(teacher, workdir, store))


def _contents(
    config: ExperimentConfig, teacher: TeacherConfig, workdir: Path, store: TokenStore, traces: PlacedTraces
) -> dict[str, Any]:
    """The arguments of `render`."""
    data, quality = config.data, artifacts.read_manifest(workdir / "quality" / teacher.name)["counts"]
    sample = list(traces[:: max(1, len(traces) // SAMPLE)])
    lengths = store.effective_lengths(data.row_length, data.overlong)
    plan = packing.make_plan(
        lengths, row_length=data.row_length, max_segments=data.max_segments, seed=config.seed, epoch=0
    )
    columns = {name: values[lengths > 0] for name, values in store.columns.items()}
    unknown = "not stated in the file"
    if teacher.kind == "file":
        made = None
        inputs = artifacts.read_manifest(workdir / "traces" / teacher.name)["inputs"]
        sources = [(Path(teacher.path).name, inputs["file"], unknown)]
    else:  # the inputs of a draw are called such as "flan[0].cot: flan_cot/aqua_train.tsv"
        made = artifacts.read_manifest(workdir / "queries")
        kinds = {name: name.partition(":")[0].rpartition(".")[2] for name in made["inputs"]}
        sources = [(n, sha, flan.LICENCES.get(kinds[n], unknown)) for n, sha in made["inputs"].items()]
    return dict(
        name=teacher.name,
        about=(
            f"config {config.name}, seed {config.seed}",
            f"teacher {teacher.name}: {teacher.kind} {Path(teacher.path).name}".rstrip(),
            f"tokenizer: {Path(data.tokenizer).name or 'the weights own, or trained on the traces'}",
            f"layout {data.layout}, loss on {_LOSS_ON[data.supervise]}",
        ),
        columns=columns,
        untrained=untrained(config, teacher, workdir, store),
        expected=_expected(config, columns["collection"].tolist()),
        left_out={**left_out(teacher, workdir, store), "in no row": int((lengths <= 0).sum())},
        held_out=quality["kept"] - len(traces),
        flags=quality["flags"],
        packing={
            "rows": plan.rows,
            "factor": plan.packing_factor,
            "fill": plan.fill,
            "row_length": data.row_length,
        },
        ngrams={
            "questions": distinct(trace.messages[-2].content for trace in sample if trace.answer),
            "answers": distinct(trace.answer for trace in sample),
        },
        sample=len(sample),
        queries=made["counts"] if made else None,
        sources=sources,
    )


def _expected(config: ExperimentConfig, collections_of: list[str]) -> dict[int, float]:
    """The shares of Figure 6 for this mixture; empty where the config allocates messages otherwise."""
    counts = collections.Counter(map(paper_collection, collections_of))
    if any(draw.messages for draw in config.flan) or set(counts) - set(system_messages.COLLECTIONS):
        return {}
    total = max(counts.total(), 1)
    return {
        id: sum(message.shares[name] * count for name, count in counts.items()) / total
        for id, message in system_messages.all_messages().items()
    }


def write(directory: Path, columns: TraceColumns, **contents: Any) -> None:
    """Writes README.md, lengths.png and tasks.png; the arguments are those of `render`."""
    directory.mkdir(parents=True, exist_ok=True)
    if len(columns["task"]):
        _draw(contents["name"], columns, directory)
    with artifacts.atomic_write(directory / README) as file:
        file.write(render(columns=columns, **contents))


def render(
    *,
    name: str,
    about: Sequence[str],
    columns: TraceColumns,
    expected: Mapping[int, float],
    left_out: Mapping[str, int],
    held_out: int,
    flags: Mapping[str, int],
    packing: Mapping[str, float],
    ngrams: Mapping[str, Mapping[int, float]],
    sample: int,
    queries: Mapping[str, Any] | None,
    sources: Sequence[tuple[str, str, str]],
    untrained: str = "",
) -> str:
    """The card's Markdown.

    Args:
      columns: arrays [examples that train]: `collection`, `task`, `teacher`, `system_message_id` (-1: none of
        the 16) and `supervised`, the tokens of the answers with their end.
      expected: share of each message that the allocation aims at, by id; empty where it has no aim.
      left_out, flags: reason, or flag of queries.quality, to its number of traces.
      held_out: traces of validation, which only this count and the flags describe.
      ngrams: see `distinct`, of questions and of answers, in `sample` traces.
      queries: the counts of the queries' manifest; None where the traces came in a file.
      sources: (name, sha256, licence) of each file that the set was made of.
    """
    sizes = sorted(next(iter(ngrams.values()), {}))
    variety = [[what, *(f"{shares[size]:.3f}" for size in sizes)] for what, shares in ngrams.items()]
    files = [(name, sha256[:12], licence) for name, sha256, licence in sources]
    sections = {
        "Size and what was left out": _size(len(columns["task"]), left_out, held_out, flags, untrained),
        "Collections and teachers": _collections(columns),
        "Tasks": _tasks(columns["task"]),
        "System messages": _messages(columns["system_message_id"], expected, is_file=queries is None),
        "Lengths of answers": _lengths(columns),
        "Variety": f"Distinct n-grams of words over all of them, in {counted(sample, 'trace')}:\n\n"
        + markdown(["texts", *(f"n = {size}" for size in sizes)], variety),
        "Packing": f"{counted(int(packing['rows']), 'row')} of {packing['row_length']:.0f} positions: "
        f"{packing['factor']:.2f} examples a row (the paper: {PAPER_PACKING}, in rows of 2,048), "
        f"{_share(packing['fill'], 1)} of the positions filled.",
        "Queries": _queries(queries),
        "Sources and licences": markdown(["file", "sha256", "licence, as published"], files)
        if files
        else "No files: the questions and answers are made by this code.",
    }
    parts = [f"# {name}", "\n".join(f"- {line}" for line in about)]
    parts += [f"## {title}\n\n{section.strip()}" for title, section in sections.items()]
    return "\n\n".join(parts) + "\n"


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy in bits."""
    shares = np.array([count for count in counts if count], float)
    shares /= shares.sum() or 1.0
    return float((shares * -np.log2(shares)).sum()) + 0.0


def distinct(texts: Iterable[str], sizes: Sequence[int] = (1, 2, 3)) -> dict[int, float]:
    """Distinct n-grams of words over all n-grams, by n (Li and others, 2016)."""
    seen: dict[int, set[tuple[str, ...]]] = {size: set() for size in sizes}
    totals = dict.fromkeys(sizes, 0)
    for text in texts:
        words = text.lower().split()
        for size in sizes:
            seen[size].update(zip(*(words[start:] for start in range(size))))
            totals[size] += max(len(words) - size + 1, 0)
    return {size: len(seen[size]) / max(totals[size], 1) for size in sizes}


def paper_lengths() -> dict[tuple[int, str], dict[str, float]]:
    """Figure 9's boxes, read off it: (message, `chatgpt` or `gpt-4`) to the five values of `BOX`."""
    text = importlib.resources.files("orca_jax").joinpath("response_lengths.csv").read_text("utf-8")
    return {
        (int(row["system_message_id"]), row["teacher"]): {name: float(row[name]) for name in BOX}
        for row in csv.DictReader(text.splitlines())
    }


def box(lengths: NDArray[Any]) -> dict[str, float]:
    """The same five values of measured lengths; whiskers are the extremes, as the figure's seem to be."""
    return dict(zip(BOX, map(float, np.percentile(lengths, [0, 25, 50, 75, 100]))))


def _counted(values: NDArray[Any]) -> list[tuple[Any, int]]:
    return collections.Counter(values.tolist()).most_common()


def _share(count: float, total: float) -> str:
    return f"{100 * count / max(total, 1):.1f} %"


def _shares(values: NDArray[Any]) -> list[tuple[Any, int, str]]:
    return [(value, count, _share(count, len(values))) for value, count in _counted(values)]


def _size(
    trained: int, left_out: Mapping[str, int], held_out: int, flags: Mapping[str, int], untrained: str
) -> str:
    rows = [
        ("trained on", trained),
        *((f"left out: {why}", count) for why, count in sorted(left_out.items()) if count),
        ("held out for validation", held_out),
    ]
    total = sum(count for _, count in rows)
    traces = total - sum(left_out.get(name, 0) for name in ("malformed", "asks_a_benchmark"))
    flagged = [(flag, count, _share(count, traces)) for flag, count in flags.items()]
    parts = [
        f"**{untrained}**" if untrained else "",
        markdown(("traces", "number", "share"), [(*row, _share(row[1], total)) for row in rows]).strip(),
        "What was looked for in every trace, filtered or not (`orca_jax/queries/quality.py`):",
        markdown(("flag", "traces", "share"), flagged),
    ]
    return "\n\n".join(parts)


def _collections(columns: TraceColumns) -> str:
    paper = sum(PAPER_QUERIES.values())
    rows = []
    for name, *shown in _shares(columns["collection"]):
        queries = PAPER_QUERIES.get(paper_collection(name))
        rows.append((collection_label(name), *shown, _share(queries, paper) if queries else ABSENT))
    header = ("collection", "traces", "share", "FLAN-5M (Table 3)")
    teachers = [(name or UNNAMED, *shown) for name, *shown in _shares(columns["teacher"])]
    return f"{markdown(header, rows)}\n{markdown(('teacher', *header[1:3]), teachers)}"


def paper_collection(name: str) -> str:
    """The paper's collection that a name means, in its own or OpenOrca's spelling; else the name."""
    return OPENORCA.get(name, name)


def collection_label(name: str) -> str:
    """A collection as it is called in the data, with the paper's name where that is another."""
    known = COLLECTIONS.get(paper_collection(name)) if name in OPENORCA else None
    return f"{name} (the paper's {known})" if known else name or UNNAMED


def _tasks(tasks: NDArray[Any]) -> str:
    by_size = _shares(tasks)
    bits = entropy(count for _, count, _ in by_size)
    rows = [(name or UNNAMED, *shown) for name, *shown in by_size[:SHOWN_TASKS]]
    heading = "task" if len(rows) == len(by_size) else f"task (the {len(rows)} largest)"
    spread = (
        f"{len(by_size)} tasks; their entropy is {bits:.2f} bits, that of {2**bits:.1f} tasks of equal size."
    )
    if len(by_size) < 2:
        spread = f"There is one task: {by_size[0][0]}." if by_size and by_size[0][0] else "No task is named."
    picture = f"\n![tasks by size]({TASKS})" if rows else ""
    return f"{spread}\n\n{markdown((heading, 'traces', 'share'), rows)}{picture}"


def _messages(messages: NDArray[Any], expected: Mapping[int, float], *, is_file: bool) -> str:
    """`is_file`: the traces came in a file, whose aim is not known."""
    counts = dict(_counted(messages))
    rows = []
    for id in sorted({*counts, *expected}):
        aim = _share(expected[id], 1) if id in expected else ABSENT
        count = counts.get(id, 0)
        rows.append((described_message(id), count, _share(count, len(messages)), aim))
    header = ("system message", "traces", "share", "the paper's (Fig. 6)" if is_file else "aimed at")
    against = "the paper's shares" if is_file else "the shares aimed at"
    return f"{markdown(header, rows)}\n{_chi_square(counts, expected, against)}"


def _chi_square(counts: Mapping[int, int], expected: Mapping[int, float], against: str) -> str:
    """A chi-square test of the counts against the expected shares."""
    from scipy import stats

    ids = [id for id, share in expected.items() if share > 0]
    if len(ids) < 2 or not counts or set(counts) - set(ids):
        return ""
    observed = np.array([counts.get(id, 0) for id in ids], float)
    aimed = np.array([expected[id] for id in ids])
    found = stats.chisquare(observed, observed.sum() * aimed / aimed.sum())
    return (
        f"Chi-square against {against}: {found.statistic:.1f} at "
        f"{counted(len(ids) - 1, 'degree')} of freedom, p = {found.pvalue:.2g}."
    )


def _lengths(columns: TraceColumns) -> str:
    paper = paper_lengths()
    rows = []
    for id, own in by_message(columns).items():
        boxes = [box(own), *(paper.get((id, teacher), {}) for teacher in ("chatgpt", "gpt-4"))]
        shown = (f"{b['q1']:.0f} **{b['median']:.0f}** {b['q3']:.0f}" if b else ABSENT for b in boxes)
        rows.append((message_label(id), len(own), *shown))
    header = ("system message", "traces", "here", "ChatGPT (Fig. 9)", "GPT-4 (Fig. 9)")
    return (
        "Tokens of the answers, the end of sequence counted: first quartile, **median**, third quartile. "
        "The paper's are read off its Figure 9, in the tokens of another tokenizer.\n\n"
        f"{markdown(header, rows)}\n![lengths]({LENGTHS})"
    )


def by_message(columns: TraceColumns) -> dict[int, NDArray[Any]]:
    """Lengths of the answers, int [answers], by system message."""
    messages, lengths = columns["system_message_id"], columns["supervised"]
    return {int(id): lengths[messages == id] for id in np.unique(messages)}


def _queries(counts: Mapping[str, Any] | None) -> str:
    if counts is None:
        return "The traces came in a file; what was asked, and of how many, it does not say."
    parts = [
        f"Queries made: {counts['queries']:,}; puzzles left out because a benchmark asks them: "
        f"{counts['known_to_benchmark']:,}."
    ]
    for number, drawn in enumerate(counts.get("flan", ())):
        met = drawn["contamination"]
        rows = {
            "rows read": drawn["rows"]["read"],
            "malformed rows": drawn["rows"]["malformed"],
            **{f"rows not drawn from: {why}": count for why, count in drawn["not_drawn_from"].items()},
            **{f"drawn of {name}": part["queries"] for name, part in drawn["drawn"].items()},
            "exact duplicates left out": drawn["duplicates"],
            "near duplicates left out": drawn["near_duplicates"],
        }
        if isinstance(met, str):
            rows["contamination"] = met
        else:
            rows |= {"meet a benchmark": met["hit"], "of these left out": met["dropped"]}
            rows |= {f"meet {name}": count for name, count in met["by_benchmark"].items()}
            rows |= {"queries": drawn["queries"], "marked for smaller shares": drawn["expert"]}
        parts.append(f"Draw {number} of FLAN (`flan[{number}]` of the config):")
        parts.append(markdown(["rows", "number"], rows.items()))
        if places := drawn["rows"]["malformed_places"]:
            parts.append("The first malformed rows: " + "; ".join(places))
    return "\n\n".join(parts)


# Figures


def _draw(name: str, columns: TraceColumns, directory: Path) -> None:
    """Boxes of the answers' lengths beside the paper's two teachers; traces a task by collection."""
    paper = paper_lengths()
    theirs = {"ChatGPT, Fig. 9": "chatgpt", "GPT-4, Fig. 9": "gpt-4"}
    rows = {}
    for id, lengths in by_message(columns).items():
        boxes = {label: paper[id, teacher] for label, teacher in theirs.items() if (id, teacher) in paper}
        rows[f"message {id}" if id >= 0 else "other"] = {name: box(lengths), **boxes}
    counts = {}
    for collection, _ in _counted(columns["collection"]):
        found = [count for _, count in _counted(columns["task"][columns["collection"] == collection])]
        label = f"{collection_label(collection)} ({counted(len(found), 'task')})"
        counts[label] = list(enumerate(map(float, found), 1))
    lengths_chart = charts.boxes(rows, caption="Lengths of answers.", x="tokens of the answer")
    tasks = charts.lines(
        counts, caption="Tasks.", y="traces", x="tasks, the largest first", log="xy", marks=True
    )
    for chart, file in ((lengths_chart, LENGTHS), (tasks, TASKS)):
        if chart:
            chart.save(directory / file)
