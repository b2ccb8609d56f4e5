"""A benchmark: sums in a file of JSON lines {"question", "answer"}, with a mode of its own."""

import re
from collections.abc import Iterator
from pathlib import Path

from orca_jax import plugins
from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.base import Document, Question
from orca_jax.records import Reply


def questions(path: str | Path, *, mode: str = "last_number") -> list[Question]:
    """One for each row; `base.rows` and `base.text_field` name file and line of what is wrong."""
    return [
        Question(
            "sums",
            "sums",
            f"sums-{number}",
            base.text_field(row, ["question"], where),
            base.text_field(row, ["answer"], where),
            mode=mode,
        )
        for number, (where, row) in enumerate(base.rows(path))
    ]


def documents(path: str | Path) -> Iterator[Document]:
    """What no training query may contain."""
    for question in questions(path):
        yield Document("sums", question.id, question.text)


def last_number(question: Question, reply: Reply) -> str | None:
    """The last number of the reply."""
    numbers = re.findall(r"-?\d+", reply.text)
    return numbers[-1] if numbers else None


plugins.benchmark(
    "sums", questions, documents, modes=("last_number", "robust"), parsers={"last_number": last_number}
)
