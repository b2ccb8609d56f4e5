"""Readers of the FLAN-v2 sub-collections as they are published (paper, section 3.1.2, Table 3).

  submix   JSON lines or Parquet: inputs, targets, task_source, task_name, template_type, with or without a
           leading underscore; rendered queries of any sub-collection
  cot      the CoT sets of google-research/FLAN: TSV without a head (question, answer, rationale; "\\n" is
           spelled out) or JSON lines (question, answer, explanation); rendered here
  niv2     a task file of Super-NaturalInstructions: Definition and outputs are texts or lists of texts
  t0       P3: JSON lines or Parquet of (inputs_pretokenized, targets_pretokenized) or (prompt, completion)
  raw      labelled sentences of the Flan 2021 kind, JSON lines of (sentence, label); rendered here

Queries are read one at a time, in file order. A row that cannot be read is counted with its place in a
`Tally` and left out; too many of them end the run (`files.counted`). A query's id is a hash of what it
holds, so that it depends neither on the file nor on its place, and equal rows have equal ids.

The templates that FLAN gives to the CoT and raw sets are not in those files. What is rendered here is
worded anew: enough to train on, not FLAN's distribution of templates; the submix files have that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
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


# What the publishers of each kind of file say; the sets inside have licences of their own.
LICENCES: Mapping[str, str] = {
    "submix": "its sets' own; google-research/FLAN is Apache-2.0",
    "cot": "google-research/FLAN, Apache-2.0",
    "niv2": "allenai/natural-instructions, Apache-2.0",
    "t0": "bigscience/P3, Apache-2.0",
    "raw": "each set's own",
}
# Our words for a request to reason first; which one a row gets is decided by its hash.
_CUES = (
    "Reason step by step before you answer.",
    "Work through it in steps, then answer.",
    "Give your reasoning first and the answer last.",
    "Explain each step on the way to the answer.",
)
# The question about a sentence of the raw sets, by the file's name; for others it is which label fits.
_TASK_WORDS: Mapping[str, str] = {
    "BoolQA": "Does the passage answer the question with yes (True) or no (False)?",
    **dict.fromkeys(("CB", "MNLI", "RTE"), "How does sentence 2 relate to sentence 1?"),
    "QQP": "Do both sentences ask the same?",
    "SST-2": "Is this a good or a bad review?",
    "WiC": "Does the word mean the same in both sentences?",
    "agnews": "What is this news about?",
    "COPA": "",
}
Values = Mapping[str, Any]
# The rows of a file, and what makes queries of a row; this raises RecordError where the row is malformed.
Reader = tuple[Iterable[Row], Callable[[Values], Iterator[Query]]]


def _submix(path: Path) -> Reader:
    def render(values: Values) -> Iterator[Query]:
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
        text = _text(values, "inputs", "inputs_pretokenized")
        target = _text(values, "targets", "targets_pretokenized")
        template = values.get("template_idx", values.get("_template_idx"))
        extra = {} if template is None else {"template_idx": template}
        yield _query(found, task, text, target, f"{plain[:2]}_{plain[2:] or 'opt'}", extra)

    return files.rows(path), render


def _cot(path: Path) -> Reader:
    """Each row's question, and the question to be found, a task each."""
    name = _stem(path).removesuffix("_train")
    task = f"{'stream' if name in ('aqua', 'qed') else 'cot'}_{name}"  # as FLAN names them

    def tsv(line: bytes) -> dict[str, str]:
        fields = files.decoded(line).rstrip("\r\n").split("\t")
        if len(fields) != 3:
            raise RecordError(
                f"expected question, answer and rationale between tabs, got {len(fields)} fields"
            )
        return dict(zip(("question", "answer", "explanation"), fields))

    def render(values: Values) -> Iterator[Query]:
        names = (("question",), ("answer",), ("explanation", "rationale"))
        texts = [_text(values, *name).replace("\\n", "\n").strip() for name in names]
        if not all(texts):
            raise RecordError("question, answer or explanation is empty")
        question, answer, explanation = texts
        cue = _CUES[hashlib.blake2b(question.encode("utf-8", "surrogatepass")).digest()[0] % len(_CUES)]
        yield _query("cot", task, f"{question}\n{cue}", answer, "zs_opt", {"explanation": explanation})
        inverted = (
            f"Reasoning: {explanation}\nAnswer: {answer}\n"
            "Write the question to which this reasoning and this answer belong."
        )
        yield _query("cot", f"{task}_inverted", inverted, question, "zs_opt")

    return files.line_rows(path, tsv) if ".tsv" in path.suffixes[-2:] else files.rows(path), render


def _niv2(path: Path) -> Reader:
    """Definition, blank line, input. The first output is the target; several are all in `extra`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        definition, instances = _texts(content["Definition"], "Definition")[0], list(content["Instances"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: no task file, a JSON object with Definition and Instances ({error!r:.120}); "
            "fetch it again or take it out of the list"
        ) from error

    def render(values: Values) -> Iterator[Query]:
        outputs = _texts(values.get("output"), "output")
        text = f"{definition.strip()}\n\n{_text(values, 'input')}"
        extra = {"targets": outputs} if len(outputs) > 1 else {}
        yield _query("niv2", _stem(path), text, outputs[0], "zs_opt", extra)

    rows = (Row(f"{path}: Instances[{number}]", number, values) for number, values in enumerate(instances))
    return rows, render


def _t0(path: Path) -> Reader:
    """Rows without `template` or `task_name` are of the task that the file's folder names, as in P3."""
    folder = Path(os.path.abspath(path)).parent.name  # a copy of the hub is a link into another

    def render(values: Values) -> Iterator[Query]:
        named = [values[name] for name in ("template", "task_name") if isinstance(values.get(name), str)]
        text = _text(values, "inputs_pretokenized", "prompt", "inputs")
        target = _text(values, "targets_pretokenized", "completion", "targets")
        yield _query("t0", named[0] if named else folder, text.strip(), target.strip(), "zs")

    return files.rows(path), render


def _raw(path: Path) -> Reader:
    """The labels are listed as options unless they are many."""
    labels = set[str]()
    for row in files.rows(path):
        label = row.values.get("label") if isinstance(row.values, dict) else None
        if isinstance(label, str):
            labels.add(label)
        if len(labels) > MAX_LABELS:
            break
    task, listed = _stem(path), 1 < len(labels) <= MAX_LABELS
    options = "Options:" + "".join(f"\n- {label}" for label in sorted(labels)) if listed else ""

    def render(values: Values) -> Iterator[Query]:
        parts = (_text(values, "sentence").strip(), _TASK_WORDS.get(task, "Which label fits?"), options)
        text = "\n".join(filter(None, parts))
        yield _query("flan2021", task, text, _text(values, "label"), "zs_opt" if listed else "zs_noopt")

    return files.rows(path), render


READERS = {"submix": _submix, "cot": _cot, "niv2": _niv2, "t0": _t0, "raw": _raw}


def read(kind: str, path: str | Path, tally: Tally | None = None) -> Iterator[Query]:
    """The queries of a file of a kind (a key of `READERS`).

    Raises:
      RecordError: the kind is unknown, too many rows are malformed, or the file is of another kind; names it.
    """
    if kind not in READERS:
        raise RecordError(f"unknown kind of FLAN file {kind!r}; known: {', '.join(READERS)}")
    rows, render = READERS[kind](Path(path))

    def rendered(row: Row) -> list[Query]:
        if not isinstance(row.values, Mapping):
            raise RecordError(f"expected a JSON object, got {row.values!r:.60}")
        return list(render(row.values))

    tally = tally if tally is not None else Tally(MALFORMED, SETTING)
    return itertools.chain.from_iterable(files.counted(path, rows, rendered, tally))


def read_all(sources: Mapping[str, Iterable[str | Path]], tally: Tally | None = None) -> Iterator[Query]:
    """The queries of many files by kind, in the order of the kinds and files by name; raises as `read`."""
    shared = tally if tally is not None else Tally(MALFORMED, SETTING)
    for kind, paths in sources.items():
        for path in sorted(map(str, paths)):
            yield from read(kind, path, shared)


def is_zero_shot(query: Query) -> bool:
    """Whether the query was rendered by a zero-shot template."""
    return query.template_type.startswith("zs")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _query(
    collection: str, task: str, text: str, target: str, template_type: str, extra: Values | None = None
) -> Query:
    if not text.strip():
        raise RecordError("the query is empty")
    content = "\x00".join((collection, task, template_type, text, target))
    if half := half_pair(content):
        raise RecordError(f"half a surrogate pair ({half}), which is no character")
    return Query(
        id=f"{collection}.{hashlib.blake2b(content.encode(), digest_size=10).hexdigest()}",
        text=text,
        collection=collection,
        task=task,
        template_type=template_type,
        multiple_choice=is_multiple_choice(text, target),
        target=target or None,
        source=task,
        extra=extra or {},
    )


def _text(values: Values, *names: str) -> str:
    """The first of the named fields that is there, with or without a leading underscore."""
    for name in (*names, *(f"_{name}" for name in names)):
        if name in values:
            if not isinstance(values[name], str):
                raise RecordError(f"{name} must be text, not {values[name]!r:.60}")
            return str(values[name])
    raise RecordError(f"{names[0]} is missing, among {', '.join(map(str, values)) or 'none'}")


def _texts(value: Any, field: str) -> list[str]:
    """A field that is a text or a list of texts, as a list of at least one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError(f"{field} must be a text or a list of texts, not {value!r:.60}")
    return texts


def _collection(source: str) -> str | None:
    return COLLECTIONS.get("".join(filter(str.isalnum, source.lower())))
