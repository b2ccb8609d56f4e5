"""Traces to a token store, beside the SentencePiece library's encoding of the same texts on one core.

python -m benchmarks.encode TRACES TOKENIZER    # TRACES: a file of traces; TOKENIZER: a SentencePiece model

Times are CPU seconds of this process, all threads counted, which other work on the machine does not touch.
The traces are repeated until they fill a shard.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import sentencepiece

from benchmarks.racing import Contestant, command, race, report
from orca_jax import conversations, files
from orca_jax.data import layouts, tokens
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.traces import PlacedTraces
from orca_jax.records import Trace


def write_shard(folder: Path, traces: PlacedTraces, encoder: tokens.Encoder) -> int:
    """Writes one shard, as a worker of `prepare` does; returns its tokens."""
    tokens.write_shard(folder, 1, encoder, (0, traces))
    with np.load(folder / ".shard-00000.npz") as columns:
        return int(columns["length"].sum()) + len(columns["length"])


def main(traces: str, tokenizer: str, layout: str = "orca", rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "traces.jsonl", tokens.SHARD_SIZE
        some = itertools.islice(
            itertools.filterfalse(tokens.reason, conversations.read_traces(Path(traces))), size
        )
        files.write_jsonl(path, itertools.islice(itertools.cycle(some), size))
        placed = PlacedTraces.of({path: [offset for offset, _ in files.read_placed(path, Trace)]})
        encoder = tokens.Encoder(tokenizers.load(tokenizer, layouts.CONTROL_TOKENS[layout]), layout)
        pieces = [layouts.LAYOUTS[layout](trace.messages) for trace in placed]
        texts = ["".join(piece.text for piece in each if not piece.control) for each in pieces]
        library = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
        steps = {
            "prepare, file of traces to shard": lambda: write_shard(Path(folder), placed, encoder),
            "sentencepiece": lambda: sum(len(library.encode(text)) for text in texts),
        }
        contestants = [Contestant(name, step, count := step(), count) for name, step in steps.items()]
        report(f"{len(texts)} traces", contestants, race(contestants, rounds, 0, clock=time.process_time))


if __name__ == "__main__":
    command(main)
