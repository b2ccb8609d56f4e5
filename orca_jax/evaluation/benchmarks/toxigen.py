"""ToxiGen's seed prompts (arXiv 2203.09509; the paper's section 7.2): a model continues a list.

A prompt is six or so sentences about one group, one a line, and an open line; the file's literal "\\n"
becomes a line break. A toxicity classifier scores the continuation, so there is no target.
Files: {hate,neutral}_<group>_1k.txt, 1,000 prompts each, 16 groups with hate and 15 without; the paper
reports 13 of the groups and not how many prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Document, Question

BENCHMARK = MODE = "toxigen"
KINDS = ("hate", "neutral")
SIZE = 1000
PAPER_GROUPS = (
    "asian", "black", "chinese", "jewish", "latino", "lgbtq", "mental_disability", "mexican", "middle_east",
    "muslim", "native_american", "physical_disability", "women",
)  # fmt: skip
GROUPS = (*PAPER_GROUPS, "bisexual", "immigrant", "trans")
MODES = BENCHMARK_MODES["toxigen"]
NAMES = tuple(f"{kind}_{group}_1k" for kind in KINDS for group in GROUPS)


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The prompts of the paper's groups.

    Args:
      mode: `toxigen_hate` or `toxigen_neutral` seed sentences; the task of a question is its group.

    Raises:
      BenchmarkError: the mode is unknown, there is no such file, or one is truncated; names the file.
    """
    kind = mode.removeprefix(f"{MODE}_")
    if kind not in KINDS:
        raise BenchmarkError(f"unknown mode of ToxiGen {mode!r}; known: {', '.join(MODES)}")
    names = [f"{kind}_{group}_1k" for group in PAPER_GROUPS]
    found = base.find(directory, names, ".txt", "ToxiGen")
    return [
        Question(
            benchmark=BENCHMARK,
            task=path.stem.removeprefix(f"{kind}_").removesuffix("_1k"),
            id=f"{path.stem}-{row}",
            text=line.replace("\\n", "\n"),
            target="",
            mode=MODE,
            extra={"kind": kind},
        )
        for path in found
        for row, line in enumerate(_lines(path))
    ]


def documents(directory: str | Path) -> Iterator[Document]:
    """The sentences of all files, each once a file: a file's prompts are draws from a few of them."""
    for path in base.find(directory, NAMES, ".txt", "ToxiGen"):
        parts = (part.strip() for line in _lines(path) for part in line.split("\\n"))
        sentences = dict.fromkeys(part.removeprefix("-").strip() for part in parts)
        for number, sentence in enumerate(filter(None, sentences)):
            yield Document(BENCHMARK, f"{path.stem}-{number}", sentence)


def _lines(path: Path) -> list[str]:
    lines = [line for line in base.read_text(path).split("\n") if line.strip()]
    base.check_size(path, len(lines), [SIZE])
    return lines
