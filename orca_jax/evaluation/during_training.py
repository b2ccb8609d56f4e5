"""Evaluates a student while it is trained, on puzzles that its training holds out and no table reports.

On several hosts each has a copy of the student over its own devices and answers its part of the questions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from orca_jax.config import ExperimentConfig, MeshConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.prepared import held_out
from orca_jax.evaluation import parts, scoring
from orca_jax.evaluation.benchmarks import puzzles as puzzle_benchmark
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.base import conversation
from orca_jax.evaluation.run import EMPTY_MESSAGE, system_message
from orca_jax.queries import puzzles
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Item, Reply, Sampling, from_json, to_json
from orca_jax.serving.local import InTraining
from orca_jax.student import sharding
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.presets import LlamaConfig
from orca_jax.training import hosts

SECONDS = 1800.0  # that hosts wait for the slowest


def validation_puzzles(config: ExperimentConfig) -> list[Puzzle]:
    """Puzzles that `data.validation_fraction` holds out of training, without any benchmark's questions.

    Their contents are none of the test split's, whatever the seeds.

    Raises:
      ValueError: a family has fewer of them.
    """
    own = config.evaluation

    def held(puzzle: Puzzle) -> bool:
        return held_out(puzzle.id, config)

    wanted: dict[str, Any] = {"difficulties": own.difficulties, "count": config.train.evaluate_per_family}
    try:
        made = [
            puzzle
            for family in config.puzzles.families
            for puzzle in puzzles.make_puzzles(family, **wanted, seed=own.seed, split="train", keep=held)
        ]
    except ValueError as error:
        raise ValueError(
            f"lower train.evaluate_per_family or raise data.validation_fraction: {error}"
        ) from error
    texts = (document.text for document in registry.documents(config.given_benchmarks))
    return puzzles.without(made, texts)


class StudentEvaluation:
    """Asks all validation puzzles under the first of `evaluation.messages`, greedily. All hosts call it.

    Args:
      config: with the layout that the data were prepared in.
      student: the shape of the parameters that are given, adapters included.
      mesh: where they are.
      workdir: holds the tokenizer.

    Raises:
      ValueError: there are too few validation puzzles, or `evaluation.tensor` does not divide the devices of
        one of several hosts.
    """

    def __init__(self, config: ExperimentConfig, student: LlamaConfig, mesh: Mesh, workdir: Path):
        own = config.evaluation
        self.config = config
        self.tokenizer = tokenizers.load(workdir / "tokenizer")
        self.questions = puzzle_benchmark.questions(validation_puzzles(config))
        self.system = system_message(str([*own.messages, EMPTY_MESSAGE][0]))
        self.sampling = Sampling(max_tokens=own.max_tokens)
        self.part, self.mesh = (jax.process_index() + 1, jax.process_count()), mesh
        if self.part != parts.WHOLE:
            self.mesh = sharding.make_mesh(MeshConfig(tensor=own.tensor), jax.local_devices())
        self.own = [self.questions[number] for number in parts.numbers(len(self.questions), self.part)]
        self.student = InTraining(student, mesh, compute_dtype(own.dtype), self.mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """Accuracy, its standard error, chance and unparsed as fractions, and `n` questions.

        `accuracy/family=NAME` is that of one family. All hosts get the same.

        Raises:
          HostsError: a host's items are missing.
        """
        replies, mode = self.replies(params), self.questions[0].mode
        items = scoring.score(self.own, replies, seed=0, mode=mode, system_message_id=self.system.id)
        rows: list[Any] = list(self.questions)
        for host, (_, theirs) in enumerate(hosts.gather("evaluation", [*map(to_json, items)], SECONDS)):
            rows[host :: self.part[1]] = theirs
        scores = scoring.summarise([from_json(Item, row) for row in rows], self.questions)
        total = scores["groups"]["micro"]
        values = {name: total[name] for name in ("accuracy", "stderr", "n", "chance", "unparsed")}
        return values | {f"accuracy/family={name}": of["accuracy"] for name, of in scores["tasks"].items()}

    def replies(self, params: Any) -> list[Reply]:
        """The replies to `own` questions by parameters as the training step has them, which do not change."""
        own = self.config.evaluation
        sizes = dict(batch_size=own.batch_size, max_length=own.max_length, mesh=self.mesh)
        with jax.set_mesh(self.mesh):
            student = self.student(params, self.tokenizer, self.config.data.layout, **sizes)
            asked = [conversation(question, self.system.text) for question in self.own]
            return student.answer(asked, self.sampling)
