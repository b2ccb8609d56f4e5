"""Readers of the FLAN-v2 sub-collections as they are published (paper, section 3.1.2, Table 3).

  submix   JSON lines or Parquet: inputs, targets, task_source, task_name, template_type, with or without a
           leading underscore; rendered queries of any sub-collection
  cot      the CoT sets of google-research/FLAN: TSV without a head (question, answer, rationale; "\\n" is
           spelled out) or JSON lines (question, answer, explanation); rendered here
  niv2     a task file of Super-NaturalInstructions: Definition and outputs are texts or lists of texts
  t0       P3: JSON lines or Parquet of (inputs_pretokenized, targets_pretokenized) or (prompt, completion)
  raw      labelled sentences of the Flan 2021 kind, JSON lines of (sentence, label); rendered here

Every reader yields `Query` records one at a time, in file order. A row that cannot be read is counted with
its place in a `Tally` and left out; too many of them end the run (`files.counted`). A query's id is a
hash of what it holds, so that it depends neither on the file nor on its place, and equal rows have equal ids.

The templates that FLAN gives to the CoT and raw sets are not in those files. What is rendered here is
worded anew: enough to train on, not FLAN's distribution of templates; the submix files have that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax import files
from orca_jax.files import Row, Tally
from orca_jax.queries.multiple_choice import is_multiple_choice
from orca_jax.records import Query, RecordError, half_pair

# The sub-collections by the names that files give them.
COLLECTIONS: Mapping[str, str] = {
    "cot": "cot",
    "niv2": "niv2",
    "naturalinstructions": "niv2",
    "t0": "t0",
    "p3": "t0",
    "flan": "flan2021",
    "flan2021": "flan2021",
    "dialog": "dialog",
    "wikidialog": "dialog",
}
MALFORMED = 0.01  # the share of a file's rows that may be malformed
SETTING = "flan[].malformed"  # the config's key that says otherwise
MAX_LABELS = 20  # with more labels, a raw set's options are not listed


def read_submix(path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a submix file (.jsonl, .json, .jsonl.gz or .parquet).

    Raises:
      RecordError: too many rows are malformed, or the file is of another kind; names file and rows.
    """

    def render(values: Mapping[str, Any]) -> Iterator[Query]:
        source, task = _text(values, "task_source"), _text(values, "task_name")
        if _collection(source) is None and _collection(task) is not None:
            source, task = task, source  # FLAN's code has them the wrong way round for some sets of Flan 2021
        found = _collection(source)
        if found is None:
            raise RecordError(f"unknown task_source {source!r}; known: {', '.join(COLLECTIONS)}")
        # Files write the types with and without the underscore.
        name = _text(values, "template_type")
        plain = name.lower().replace("_", "").replace("-", "")
        if plain[:2] not in ("zs", "fs") or plain[2:] not in ("", "opt", "noopt"):
            raise RecordError(f"unknown template_type {name!r}; known: zs_opt, zs_noopt, fs_opt, fs_noopt")
        template = values.get("template_idx", values.get("_template_idx"))
        yield _query(
            found,
            task,
            _text(values, "inputs", "inputs_pretokenized"),
            _text(values, "targets", "targets_pretokenized"),
            f"{plain[:2]}_{plain[2:] or 'opt'}",
            {} if template is None else {"template_idx": template},
        )

    return _read(_rows(Path(path)), render, path, tally)


def read_cot(path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a CoT set: each row's question, and the question to be found, a task each.

    Raises:
      RecordError: too many rows are malformed; names file and rows.
    """
    name = _stem(Path(path)).removesuffix("_train")
    task = f"{'stream' if name in ('aqua', 'qed') else 'cot'}_{name}"  # as FLAN names them

    def render(values: Mapping[str, Any]) -> Iterator[Query]:
        names = (("question",), ("answer",), ("explanation", "rationale"))
        texts = [_text(values, *name).replace("\\n", "\n").strip() for name in names]
        if not all(texts):
            raise RecordError("question, answer or explanation is empty")
        question, answer, explanation = texts
        cue = _CUES[hashlib.blake2b(question.encode("utf-8", "surrogatepass")).digest()[0] % len(_CUES)]
        forward = f"{question}\n{cue}"
        yield _query("cot", task, forward, answer, "zs_opt", {"explanation": explanation})
        inverted = (
            f"Reasoning: {explanation}\nAnswer: {answer}\n"
            "Write the question to which this reasoning and this answer belong."
        )
        yield _query("cot", f"{task}_inverted", inverted, question, "zs_opt")

    return _read(_rows(Path(path)), render, path, tally)


def read_niv2(path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a Super-NaturalInstructions task file: definition, blank line, input.

    The first output is the target; where there are several, all are in `extra`. One file is held in
    memory at a time.

    Raises:
      RecordError: the file is no task file, or too many instances are malformed; names file and instance.
    """
    name = _stem(Path(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        definition, instances = _texts(content["Definition"], "Definition")[0], list(content["Instances"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: no task file, a JSON object with Definition and Instances ({error!r:.120}); "
            "fetch it again or take it out of the list"
        ) from error

    def render(values: Mapping[str, Any]) -> Iterator[Query]:
        outputs = _texts(values.get("output"), "output")
        text = f"{definition.strip()}\n\n{_text(values, 'input')}"
        extra = {"targets": outputs} if len(outputs) > 1 else {}
        yield _query("niv2", name, text, outputs[0], "zs_opt", extra)

    rows = (Row(f"{path}: Instances[{number}]", number, values) for number, values in enumerate(instances))
    return _read(rows, render, path, tally)


def read_t0(path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a P3/T0 file.

    The task of rows without `template` or `task_name` is the file's folder, as P3 keeps a folder a sub-task.

    Raises:
      RecordError: too many rows are malformed; names file and rows.
    """
    folder = Path(path).resolve().parent.name

    def render(values: Mapping[str, Any]) -> Iterator[Query]:
        named = [values[name] for name in ("template", "task_name") if isinstance(values.get(name), str)]
        text = _text(values, "inputs_pretokenized", "prompt", "inputs")
        target = _text(values, "targets_pretokenized", "completion", "targets")
        yield _query("t0", named[0] if named else folder, text.strip(), target.strip(), "zs")

    return _read(_rows(Path(path)), render, path, tally)


def read_raw(path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a raw labelled set, its labels listed as options unless they are many.

    Raises:
      RecordError: too many rows are malformed; names file and rows.
    """
    path, labels = Path(path), set[str]()
    for row in _rows(path):
        label = row.values.get("label") if isinstance(row.values, dict) else None
        if isinstance(label, str):
            labels.add(label)
        if len(labels) > MAX_LABELS:
            break
    task, listed = _stem(path), 1 < len(labels) <= MAX_LABELS
    options = "Options:" + "".join(f"\n- {label}" for label in sorted(labels)) if listed else ""

    def render(values: Mapping[str, Any]) -> Iterator[Query]:
        parts = (_text(values, "sentence").strip(), _TASK_WORDS.get(task, "Which label fits?"), options)
        text = "\n".join(part for part in parts if part)
        yield _query("flan2021", task, text, _text(values, "label"), "zs_opt" if listed else "zs_noopt")

    return _read(_rows(path), render, path, tally)


READERS: Mapping[str, Callable[..., Iterator[Query]]] = {
    "submix": read_submix,
    "cot": read_cot,
    "niv2": read_niv2,
    "t0": read_t0,
    "raw": read_raw,
}


# What the publishers of each kind of file say; the sets inside have licences of their own.
LICENCES: Mapping[str, str] = {
    "submix": "its sets' own; google-research/FLAN is Apache-2.0",
    "cot": "google-research/FLAN, Apache-2.0",
    "niv2": "allenai/natural-instructions, Apache-2.0",
    "t0": "bigscience/P3, Apache-2.0",
    "raw": "each set's own",
}


def read_all(sources: Mapping[str, Iterable[str | Path]], tally: Tally | None = None) -> Iterator[Query]:
    """The queries of many files, the kinds of file in order of `sources`, files by name.

    Args:
      sources: kind (a key of `READERS`) to files.

    Raises:
      RecordError: a kind is unknown, or too many rows of a file are malformed.
    """
    unknown = [kind for kind in sources if kind not in READERS]
    if unknown:
        raise RecordError(f"unknown kind of FLAN file {unknown[0]!r}; known: {', '.join(READERS)}")
    shared = tally if tally is not None else Tally(MALFORMED, SETTING)
    for kind, paths in sources.items():
        for path in sorted(map(str, paths)):
            yield from READERS[kind](path, shared)


def is_zero_shot(query: Query) -> bool:
    """Whether the query was rendered by a zero-shot template."""
    return query.template_type.startswith("zs")


# Rows of files


def _read(
    rows: Iterable[Row],
    render: Callable[[Mapping[str, Any]], Iterable[Query]],  # raises RecordError where a row is malformed
    path: str | Path,
    tally: Tally | None,
) -> Iterator[Query]:
    def rendered(row: Row) -> list[Query]:
        if not isinstance(row.values, Mapping):
            raise RecordError(f"expected a JSON object, got {row.values!r:.60}")
        return list(render(row.values))

    tally = tally if tally is not None else Tally(MALFORMED, SETTING)
    return itertools.chain.from_iterable(files.counted(path, rows, rendered, tally))


def _rows(path: Path) -> Iterator[Row]:
    def tsv(line: bytes) -> dict[str, str]:
        fields = files.decoded(line).rstrip("\r\n").split("\t")
        if len(fields) != 3:
            raise RecordError(
                f"expected question, answer and rationale between tabs, got {len(fields)} fields"
            )
        return dict(zip(("question", "answer", "explanation"), fields))

    return files.line_rows(path, tsv) if ".tsv" in path.suffixes[-2:] else files.rows(path)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


# From a row to a query


def _query(
    collection: str,
    task: str,
    text: str,
    target: str,
    template_type: str,
    extra: Mapping[str, Any] | None = None,
) -> Query:
    if not text.strip():
        raise RecordError("the query is empty")
    content = "\x00".join((collection, task, template_type, text, target))
    if half := half_pair(content):
        raise RecordError(f"half a surrogate pair ({half}), which is no character")
    digest = hashlib.blake2b(content.encode(), digest_size=10).hexdigest()
    return Query(
        id=f"{collection}.{digest}",
        text=text,
        collection=collection,
        task=task,
        template_type=template_type,
        multiple_choice=is_multiple_choice(text, target),
        target=target or None,
        source=task,
        extra=extra or {},
    )


def _text(values: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields that is there, with or without a leading underscore."""
    for name in (*names, *(f"_{name}" for name in names)):
        if name in values:
            if not isinstance(values[name], str):
                raise RecordError(f"{name} must be text, not {values[name]!r:.60}")
            return str(values[name])
    raise RecordError(f"{names[0]} is missing, among {', '.join(map(str, values)) or 'none'}")


def _collection(source: str) -> str | None:
    return COLLECTIONS.get("".join(filter(str.isalnum, source.lower())))


# Our words for a request to reason first; which one a row gets is decided by its hash.
_CUES = (
    "Reason step by step before you answer.",
    "Work through it in steps, then answer.",
    "Give your reasoning first and the answer last.",
    "Explain each step on the way to the answer.",
)


def _texts(value: Any, field: str) -> list[str]:
    """A field that is a text or a list of texts, as a list of at least one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError(f"{field} must be a text or a list of texts, not {value!r:.60}")
    return texts


# The question about a sentence of the raw sets, by the file's name; for others it is which label fits.
_TASK_WORDS: Mapping[str, str] = {
    "BoolQA": "Does the passage answer the question with yes (True) or no (False)?",
    "CB": "How does sentence 2 relate to sentence 1?",
    "MNLI": "How does sentence 2 relate to sentence 1?",
    "RTE": "How does sentence 2 relate to sentence 1?",
    "QQP": "Do both sentences ask the same?",
    "SST-2": "Is this a good or a bad review?",
    "WiC": "Does the word mean the same in both sentences?",
    "agnews": "What is this news about?",
    "COPA": "",
}
