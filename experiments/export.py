"""A trace set in other forms: a TFDS data set, Parquet or JSON lines, in our own or a common schema.

    python -m experiments.export --traces=runs/mini/traces/expert --to=expert.parquet --schema=messages
    python -m experiments.export --traces=runs/mini/traces/expert --to=expert_tfds --kept

The suffix of --to says the form: .jsonl, .json, .ndjson, .parquet; a folder's name makes a TFDS data set.
--kept leaves out what `experiments.prepare` left out by the teacher's filters. The data card goes along.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("export")  # before the imports below, which take seconds

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from orca_jax import conversations, files
from orca_jax.data import trace_export
from orca_jax.experiments import options, prepare
from orca_jax.experiments.launch import checked
from orca_jax.records import Outcome, RecordError, Trace


def export(directory: str | Path, schema: str, out: str | Path, *, kept: bool = False) -> int:
    """Writes the traces of a folder WORKDIR/traces/NAME, or of a file, to `out`; returns how many.

    Args:
      schema: `native`, `openorca`, `messages` or `sharegpt`; a TFDS data set has its own. Those that do not
        say how a request ended get the `ok` traces only.
      out: a file, whose suffix is its form, or a folder for a TFDS data set.
      kept: only what the teacher's filters keep.

    Raises:
      RecordError: the schema is unknown or cannot hold a trace; names it.
      FileExistsError: the folder is not empty.
    """
    directory, out = Path(directory), Path(out)
    traces = _kept(directory) if kept else _traces(directory)
    if out.suffix:
        chosen = (trace for trace in traces if schema == "native" or trace.outcome is Outcome.OK)
        count = conversations.write_traces(out, chosen, schema)
    else:
        count = trace_export.write_tfds(out, traces)
    card = directory.parent.parent / "cards" / directory.name
    if card.is_dir():
        shutil.copytree(card, out.with_name(f"{out.stem}-card"), dirs_exist_ok=True)
    return count


def _traces(path: Path) -> Iterator[Trace]:
    if path.is_dir():
        return files.read_jsonl(path / prepare.TRACES, Trace)
    return conversations.read_traces(path)


def _kept(directory: Path) -> Iterator[Trace]:
    workdir, name = directory.parent.parent, directory.name
    if not (workdir / "quality" / name).is_dir():
        raise RecordError(f"{directory}: filters have not been applied; run experiments.prepare first")
    places = [entry.offset for entry in prepare.flagged(workdir, name) if entry.left_out is None]
    return files.read_at(directory / prepare.TRACES, places, Trace)


def main(arguments: Sequence[str]) -> None:
    given = options.parser("export").parse_args(arguments)
    count = checked(lambda: export(given.traces, given.schema, given.to, kept=given.kept))
    print(f"{count} traces: {given.to}")


if __name__ == "__main__":
    main(sys.argv[1:])
