"""BIG-Bench Extra Hard (arXiv 2502.19187): reader of its 23 tasks, and of its mini version.

Mode `bbeh` reads and compares answers as the published evaluator does (google-deepmind/bbeh,
bbeh/evaluate.py). The prompt asks for the form that it looks for, in words of our own, shorter than the
paper's. Over tasks the paper takes the harmonic mean of the accuracies in per cent, 1 added to each (and
left in) so that none is 0; of the mini, whose file does not say the tasks, the share of right answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Document, Group, Question

BENCHMARK = MODE = "bbeh"
MINI = "mini"
CUE = 'Think step by step. End with "The answer is: " and the answer alone; of a choice, its letter.'
TASKS = (
    "boardgame_qa", "boolean_expressions", "buggy_tables", "causal_understanding", "disambiguation_qa",
    "dyck_languages", "geometric_shapes", "hyperbaton", "linguini", "movie_recommendation",
    "multistep_arithmetic", "nycc", "object_counting", "object_properties", "sarc_triples",
    "shuffled_objects", "spatial_reasoning", "sportqa", "temporal_sequence", "time_arithmetic", "web_of_lies",
    "word_sorting", "zebra_puzzles",
)  # fmt: skip
SIZES: Mapping[str, int] = {**dict.fromkeys(TASKS, 200), "disambiguation_qa": 120, MINI: 460}
GROUPS = (Group("all23", TASKS, "harmonic"),)


def questions(path: str | Path, *, mode: str) -> list[Question]:
    """The questions of a folder of bbeh_TASK/task.json, or of the mini's one file."""
    made = [
        Question(BENCHMARK, task, id, f"{text}\n\n{CUE}", target, chance=None, mode=mode)
        for task, id, text, target in _rows(Path(path))
    ]
    return base.with_majority(made)


def documents(path: str | Path) -> Iterator[Document]:
    """The inputs of the files."""
    for _, id, text, _ in _rows(Path(path)):
        yield Document(BENCHMARK, id, text)


def _rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Task, id, input and target."""
    files = {MINI: path}
    if path.is_dir():
        found = base.find(path, [f"bbeh_{task}/task.json" for task in TASKS], "BBEH")
        files = {file.parent.name.removeprefix("bbeh_"): file for file in found}
    for task, file in files.items():
        for row, (text, target) in enumerate(base.examples(file, SIZES[task])):
            yield task, f"{task}-{row}", text, target
