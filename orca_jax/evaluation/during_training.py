"""Evaluates a student while it is trained, on puzzles that its training holds out and no table reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from orca_jax.config import ExperimentConfig, LoraConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.prepared import held_out
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import puzzles as puzzle_benchmark
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.base import conversation
from orca_jax.evaluation.run import EMPTY_MESSAGE, system_message
from orca_jax.queries import puzzles
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Reply, Sampling
from orca_jax.serving.local import LocalStudent
from orca_jax.student import llama, lora, parameters, sharding
from orca_jax.student.presets import LlamaConfig


def validation_puzzles(config: ExperimentConfig) -> list[Puzzle]:
    """Puzzles that `data.validation_fraction` holds out of training, without any benchmark's questions.

    Their contents are none of the test split's, whatever the seeds.

    Raises:
      ValueError: a family has fewer of them.
    """
    made = [
        puzzle
        for family in config.puzzles.families
        for puzzle in puzzles.make_puzzles(
            family,
            difficulties=config.evaluation.difficulties,
            count=config.train.evaluate_per_family,
            seed=config.evaluation.seed,
            split="train",
            keep=lambda puzzle: held_out(puzzle.id, config),
        )
    ]
    texts = (document.text for document in registry.documents(config.given_benchmarks))
    return puzzles.drop_known(made, texts)[0]


class StudentEvaluation:
    """Asks all validation puzzles under the first of `evaluation.messages`, greedily.

    Args:
      config: with the layout that the data were prepared in.
      student: the shape of the parameters that are given, adapters included.
      mesh: where they are.
      workdir: holds the tokenizer.

    Raises:
      ValueError: there are too few validation puzzles.
    """

    def __init__(self, config: ExperimentConfig, student: LlamaConfig, mesh: Mesh, workdir: Path):
        own = config.evaluation
        self.config = config
        self.tokenizer = tokenizers.load(workdir / "tokenizer")
        self.questions = puzzle_benchmark.questions(validation_puzzles(config))
        self.system = system_message(str([*own.messages, EMPTY_MESSAGE][0]))
        self.sampling = Sampling(max_tokens=own.max_tokens)
        self.dtype = parameters.compute_dtype(own.dtype)
        self.decoded = dataclasses.replace(student, lora=LoraConfig(), scan_layers=False)

        def convert(params: Any) -> Any:
            merged, _ = parameters.per_layer(lora.merge(params, student.lora), student)
            return parameters.cast(merged, self.dtype)

        shapes = jax.eval_shape(lambda: convert(llama.init(student, 0)))
        self.convert = jax.jit(convert, out_shardings=sharding.shardings(shapes, mesh))

    def __call__(self, params: Any) -> dict[str, float]:
        """Accuracy, its standard error, chance and unparsed as fractions, and `n` questions.

        `accuracy/family=NAME` is that of one family.
        """
        replies, mode = self.replies(params), self.questions[0].mode
        items = scoring.score(self.questions, replies, seed=0, mode=mode, system_message_id=self.system.id)
        scores = scoring.summarise(items, self.questions)
        total = scores["groups"]["micro"]
        values = {name: total[name] for name in ("accuracy", "stderr", "n", "chance", "unparsed")}
        return values | {f"accuracy/family={name}": of["accuracy"] for name, of in scores["tasks"].items()}

    def replies(self, params: Any) -> list[Reply]:
        """The replies to all questions by parameters as the training step has them, which do not change."""
        student = LocalStudent(
            self.convert(params),
            self.decoded,
            self.tokenizer,
            self.config.data.layout,
            checkpoint="being trained",
            dtype=self.dtype.name,
            batch_size=self.config.evaluation.batch_size,
            max_length=self.config.evaluation.max_length,
        )
        asked = [conversation(question, self.system.text) for question in self.questions]
        return student.answer(asked, self.sampling)
