"""ToxiGen's seed prompts (arXiv 2203.09509; the paper's section 7.2): a model continues a list.

A prompt is six or so sentences about one group, one a line, and an open line; the file's literal "\\n"
becomes a line break. A toxicity classifier scores the continuation, so there is no target.
Files: {hate,neutral}_<group>_1k.txt, 1,000 prompts each, 16 groups with hate and 15 without; the paper
reports 13 of the groups and not how many prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orca_jax import files
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Document, Question

BENCHMARK = MODE = "toxigen"
KINDS = ("hate", "neutral")  # modes `toxigen_hate` and `toxigen_neutral`
SIZE = 1000
PAPER_GROUPS = (
    "asian", "black", "chinese", "jewish", "latino", "lgbtq", "mental_disability", "mexican", "middle_east",
    "muslim", "native_american", "physical_disability", "women",
)  # fmt: skip
GROUPS = (*PAPER_GROUPS, "bisexual", "immigrant", "trans")


def questions(directory: str | Path, *, mode: str) -> list[Question]:
    """The prompts of the paper's groups; a question's task is its group."""
    kind = mode.removeprefix(f"{MODE}_")
    return [
        Question(
            benchmark=BENCHMARK,
            task=name.removeprefix(f"{kind}_").removesuffix("_1k"),
            id=f"{name}-{row}",
            text=line.replace("\\n", "\n"),
            target="",
            mode=MODE,
            extra={"kind": kind},
        )
        for name, lines in _files(directory, [kind], PAPER_GROUPS)
        for row, line in enumerate(lines)
    ]


def documents(directory: str | Path) -> Iterator[Document]:
    """The sentences of all files, each once a file: a file's prompts are draws from a few of them."""
    for name, lines in _files(directory, KINDS, GROUPS):
        parts = (part.strip() for line in lines for part in line.split("\\n"))
        sentences = dict.fromkeys(part.removeprefix("-").strip() for part in parts)
        for number, sentence in enumerate(filter(None, sentences)):
            yield Document(BENCHMARK, f"{name}-{number}", sentence)


def _files(
    directory: str | Path, kinds: Sequence[str], groups: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of each file."""
    names = [f"{kind}_{group}_1k.txt" for kind in kinds for group in groups]
    for path in base.find(directory, names, "ToxiGen"):
        yield path.stem, [line.rstrip("\r\n") for _, line in base.rows(path, [SIZE], files.decoded)]
