"""Evaluates the students of an arm set on Big-Bench Hard's own files, of the families they were trained on.

Puzzles are made by programs, so a few of them are word for word a question of the files, short boolean
expressions above all. Such a question is left out for all students of the set.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

from orca_jax.config_arms import ArmConfig, ArmSetConfig, ResultConfig
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.evaluation.run import Evaluator, Options, system_message
from orca_jax.queries import puzzles
from orca_jax.queries.make import training_puzzles

log = logging.getLogger(__name__)
TITLE = "Big-Bench Hard's own files"


def with_bbh(arm_set: ArmSetConfig, source: Path) -> ArmSetConfig:
    """The set with a result more, each arm under its own system message.

    Raises:
      ValueError: the folder has no file of the set's families.
    """
    families = _families(arm_set)
    if not any(file.stem.startswith(families) for file in source.glob("*.json")):
        raise ValueError(f"{source} has no file of {', '.join(families)}; give a folder of BBH's JSON files")

    def named(evaluation: str) -> str:
        return f"bbh-robust-message-{evaluation.rpartition('-')[2]}"  # as `puzzles-message-N`

    outcome = arm_set.results[0]
    arms = tuple(
        dataclasses.replace(arm, evaluations={**arm.evaluations, TITLE: named(arm.evaluation(outcome))})
        for arm in arm_set.arms
    )
    real = ResultConfig(title=TITLE, evaluation=named(outcome.evaluation))
    return dataclasses.replace(arm_set, arms=arms, results=(*arm_set.results, real))


def _families(arm_set: ArmSetConfig) -> tuple[str, ...]:
    return arm_set.config(arm_set.arms[0], arm_set.seeds[0]).puzzles.families


def questions(arm_set: ArmSetConfig, source: Path) -> list[Question]:
    """The questions of the set's families in the folder that no arm was trained on under any seed."""
    configs = [arm_set.config(arm, seed) for arm, seed in arm_set.runs(None, None)]
    distinct = {repr((config.puzzles, config.seed)): config for config in configs}
    made = [training_puzzles(config.puzzles, config.seed)[0] for config in distinct.values()]
    trained_on = {puzzles.question_key(puzzle.question) for puzzle in itertools.chain(*made)}
    texts = {document.id: document.text for document in registry.documents({"bbh": str(source)})}
    every = registry.questions("bbh", str(source), mode="robust")
    found = [question for question in every if question.task.startswith(_families(arm_set))]
    kept = [question for question in found if puzzles.question_key(texts[question.id]) not in trained_on]
    log.info(
        "Big-Bench Hard: %d of %d questions were in training and are left out",
        len(found) - len(kept), len(found),
    )  # fmt: skip
    return kept


def evaluate_arm(arm_set: ArmSetConfig, arm: ArmConfig, seed: int, directory: Path, source: Path) -> None:
    """Evaluates a trained run on the questions, under the message that the evaluation's name ends with."""
    name = arm.evaluations[TITLE]
    system = system_message(name.rpartition("-")[2])
    evaluator = Evaluator(arm_set.config(arm, seed), directory, Options())
    evaluator.evaluate(name, questions(arm_set, source), system)
