"""A student to replies, items and scores: the puzzles under each system message, BBH in each mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import launch, students
from experiments.config import ExperimentConfig, plain
from orca_jax import artifacts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.evaluation import examination, scoring
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.evaluation.benchmarks import puzzles as puzzle_benchmark
from orca_jax.evaluation.questions import Question
from orca_jax.progress import progress
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Reply, Sampling
from orca_jax.serving.local import LocalStudent

log = logging.getLogger(__name__)
EMPTY_MESSAGE = 1
ROUND = 4  # times as many questions as are answered at once


def test_puzzles(config: ExperimentConfig) -> list[Puzzle]:
    """The examined puzzles: of the test split, which no training query comes from."""
    return [
        puzzle
        for family in config.puzzles.families
        for puzzle in puzzles.make_puzzles(
            family,
            difficulties=config.evaluation.difficulties,
            count=config.evaluation.per_family,
            seed=config.seed,
            split="test",
        )
    ]


def load_student(config: ExperimentConfig, workdir: Path) -> LocalStudent:
    step, params, shape = students.trained(workdir)
    fingerprint = artifacts.read_manifest(workdir / "training")["fingerprint"]
    log.info("examining the student of step %d", step)
    return LocalStudent(
        params,
        shape,
        tokenizers.load(workdir / "tokenizer"),
        config.data.layout,
        checkpoint=f"{fingerprint}-{step}",
        batch_size=config.evaluation.batch_size,
        max_length=config.evaluation.max_length,
    )


class Examiner:
    """Examines one student; each (benchmark, mode, system message) is an artifact of its own."""

    def __init__(self, config: ExperimentConfig, workdir: Path):
        self.config = config
        self.workdir = workdir
        self.inputs = {"training": artifacts.read_manifest(workdir / "training")["fingerprint"]}
        self._student: LocalStudent | None = None

    @property
    def student(self) -> LocalStudent:
        """Loaded at its first use: a finished evaluation needs none."""
        if self._student is None:
            self._student = load_student(self.config, self.workdir)
        return self._student

    def examine(
        self,
        name: str,
        questions: Sequence[Question],
        message_id: int,
        *,
        details: Callable[[Question, Reply], dict[str, Any]] | None = None,
        groups: Sequence[scoring.Group] = (),
    ) -> None:
        """Writes evaluation/NAME with replies, items and scores, or goes on with it."""
        directory, settings = self.workdir / "evaluation" / name, self.config.evaluation
        made_by = {
            "program": "evaluate",
            "name": name,
            "evaluation": plain(settings),
            "questions": artifacts.digest([[*q.key, q.text, q.target] for q in questions]),
        }
        if artifacts.is_finished(directory, made_by, self.inputs):
            return
        artifacts.begin(directory, made_by, self.inputs)
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens)
        with progress(f"examining {name}", len(questions)) as report:
            replies = examination.examine(
                questions,
                self.student.as_finished,
                directory,
                sampling=sampling,
                seed=settings.seed,
                system_message_id=message_id,
                system_text=system_messages.get(message_id).text,
                round_size=ROUND * settings.batch_size,
                progress=lambda done, total: report(done),
            )
        items = scoring.score(
            questions,
            [reply for _, reply in replies],
            seed=settings.seed,
            mode=questions[0].mode,
            system_message_id=message_id,
            details=details,
        )
        scoring.write(directory, items, scoring.summarise(items, questions, groups=groups))
        artifacts.finish(directory, made_by, self.inputs, {"items": len(items)})


def run(config: ExperimentConfig, workdir: Path) -> None:
    examiner, examined = Examiner(config, workdir), test_puzzles(config)
    if examined:
        questions, details = puzzle_benchmark.questions(examined), puzzle_benchmark.details(examined)
        for message_id in config.evaluation.messages:
            examiner.examine(f"puzzles-message-{message_id}", questions, message_id, details=details)
    if config.bbh_folder:
        for mode in config.evaluation.bbh_modes:
            questions = bbh.questions(config.bbh_folder, mode=mode)
            examiner.examine(f"bbh-{mode}", questions, EMPTY_MESSAGE, groups=bbh.GROUPS)


if __name__ == "__main__":
    launch.main(run)
