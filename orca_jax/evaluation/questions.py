"""`Question`: one thing a model is asked in an evaluation, with what is needed to score the reply."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orca_jax.records import Message

Conversation = tuple[Message, ...]


class EvaluationError(RuntimeError):
    """The replies on disk do not belong to this evaluation, or the model did not answer every question."""

    explained = True  # cli.checked adds no advice


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One scored question of a benchmark; (benchmark, task, id) is unique.

    Attributes:
      text: the whole user prompt.
      target: the right answer; one of `choices` where there are any.
      choices: the labels a reply may choose from ("A", "B", ... or "Yes", "No"); empty for free answers.
      chance: probability that a blind guess is right; 0 for free answers, None where it is not known.
      majority: accuracy, over the task, of always giving its most frequent target.
      mode: names the prompt form and the way its reply is parsed (`orca_jax.evaluation.modes.MODES`).
      extra: what a mode's extractor needs besides, and keys to group by; JSON values.
    """

    benchmark: str
    task: str
    id: str
    text: str
    target: str
    choices: tuple[str, ...] = ()
    chance: float | None = 0.0
    majority: float | None = None
    mode: str = "robust"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.choices and self.target not in self.choices:
            raise ValueError(
                f"{self.benchmark}/{self.task}, question {self.id}: target {self.target!r} is not "
                f"one of its choices {', '.join(self.choices)}"
            )

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.task, self.id


def conversation(question: Question, system_text: str) -> Conversation:
    """What is sent to the model. An empty `system_text` (message 1) means no system message at all."""
    user = Message("user", question.text)
    return (Message("system", system_text), user) if system_text else (user,)
