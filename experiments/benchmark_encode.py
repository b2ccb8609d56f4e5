"""Traces to a token store, beside the SentencePiece library's encoding of the same texts on the same core."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece

from orca_jax import conversations, files
from orca_jax.data import layouts, tokens
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.traces import PlacedTraces
from orca_jax.records import Trace
from orca_jax.reporting.tables import markdown
from orca_jax.teachers.collection import TRACES


def encode(traces: str, tokenizer: str, layout: str, rounds: int) -> str:
    """Prints and returns a table: tokens a second of CPU time, alone and with all that `prepare` does.

    Args:
      traces: a file of traces, or WORKDIR/traces/NAME; repeated until they fill a shard.
      tokenizer: a SentencePiece model.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(traces) / TRACES if Path(traces).is_dir() else Path(traces)
        path = Path(folder) / TRACES
        some = itertools.islice(
            filter(tokens.trainable, conversations.read_traces(source)), tokens.SHARD_SIZE
        )
        files.write_jsonl(path, itertools.islice(itertools.cycle(some), tokens.SHARD_SIZE))
        placed = PlacedTraces.of({path: [offset for offset, _ in files.read_placed(path, Trace)]})
        encoder = tokens.Encoder(tokenizers.load(tokenizer, layouts.CONTROL_TOKENS[layout]), layout)
        texts = [_text(trace, layout) for trace in placed]
        library = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
        contestants: dict[str, Callable[[], int]] = {
            "sentencepiece, encode of the texts": lambda: sum(len(library.encode(text)) for text in texts),
            "prepare, file of traces to shard": lambda: _shard(Path(folder), placed, encoder),
        }
        speeds = [{name: _speed(work) for name, work in contestants.items()} for _ in range(rounds)]
    shares = [prepare / alone for alone, prepare in (round.values() for round in speeds)]
    rows = [(name, f"{statistics.median(round[name] for round in speeds):,.0f}") for name in contestants]
    table = markdown(("one core", "tokens a second"), rows)
    share = (
        f"share: {statistics.median(shares):.2f} (of {rounds} rounds {min(shares):.2f} to {max(shares):.2f})"
    )
    print(f"{len(texts)} traces\n\n{table}\n{share}")
    return table


def _text(trace: Trace, layout: str) -> str:
    pieces = layouts.LAYOUTS[layout](trace.messages)
    return "".join(piece.text for piece in pieces if not piece.control)


def _shard(folder: Path, traces: PlacedTraces, encoder: tokens.Encoder) -> int:
    """Writes one shard, as a worker of `prepare` does; returns its tokens."""
    import numpy as np

    tokens.write_shard(folder, 0, 1, traces, encoder)
    with np.load(folder / ".shard-00000.npz") as columns:
        return int(columns["length"].sum()) + len(columns["length"])


def _speed(work: Callable[[], int]) -> float:
    """Tokens a second of this process's CPU time, all threads counted, which other work does not touch."""
    started = time.process_time()
    done = work()
    return done / (time.process_time() - started)
