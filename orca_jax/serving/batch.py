"""Answers a file of questions; an interrupted run continues with those that are left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.artifacts import ArtifactError
from orca_jax.data.layouts import LayoutError
from orca_jax.progress import progress
from orca_jax.records import Message, Outcome, RecordError, Sampling, Usage, half_pair, to_json
from orca_jax.serving.local import LocalStudent


@dataclasses.dataclass(frozen=True)
class Question:
    """A line of the input; columns that are not known are left alone."""

    id: str
    messages: tuple[Message, ...] = ()
    question: str = ""
    system_prompt: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def conversation(self, system: str) -> tuple[Message, ...]:
        """Its own messages, or its question behind its own system prompt or else `system`."""
        if self.messages:
            return self.messages
        system = system if self.system_prompt is None else self.system_prompt
        return (*([Message("system", system)] if system else []), Message("user", self.question))


@dataclasses.dataclass(frozen=True)
class Answered:
    """A line of the output; `request` is the hash of all that the reply depends on."""

    id: str
    request: str
    outcome: Outcome
    text: str
    usage: Usage = dataclasses.field(default_factory=Usage)
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def answer_file(
    student: LocalStudent, source: Path, out: Path, sampling: Sampling, *, system: str = "", top_k: int = 0
) -> int:
    """Appends a reply to each question that `out` does not answer yet; returns how many there are now.

    Raises:
      RecordError: a line cannot be read or its turns do not alternate, or two have one id.
      ArtifactError: `out` holds an answer of other settings, another student or another question.
    """
    questions = list(files.read_jsonl(source, Question))
    if len({question.id for question in questions}) < len(questions):
        raise RecordError(f"{source}: two lines have the same id; give each its own")
    conversations = [question.conversation(system) for question in questions]
    for question, messages in zip(questions, conversations):
        _check(student, f"{source}: id {question.id!r}", messages)
    requests = [
        artifacts.digest([student.identity, list(map(to_json, messages)), to_json(sampling), top_k, number])
        for number, messages in enumerate(conversations)
    ]
    with files.JsonlAppender(out) as file:
        wanted, done = {q.id: request for q, request in zip(questions, requests)}, set()
        for row in files.read_jsonl(out, Answered):
            if wanted.get(row.id) != row.request:
                raise ArtifactError(
                    f"{out} answers id {row.id!r} of another input, student, system message or sampling; "
                    "give another --out"
                )
            done.add(row.id)
        left = [i for i, question in enumerate(questions) if question.id not in done]
        with progress("answering", len(questions), len(done)) as report:
            replies = student.as_finished(
                [conversations[i] for i in left], sampling, numbers=left, top_k=top_k
            )
            for count, (place, reply) in enumerate(replies, len(done) + 1):
                index = left[place]
                row = Answered(
                    questions[index].id, requests[index], reply.outcome, reply.text, reply.usage, reply.raw
                )
                file.append(row)
                report(count)
    return len(questions)


def _check(student: LocalStudent, where: str, messages: Sequence[Message]) -> None:
    if any(half_pair(message.content) for message in messages):
        raise RecordError(f"{where} has half a surrogate pair, which is no character")
    if messages[-1].role != "user" or not messages[-1].content:
        raise RecordError(f"{where} asks nothing: the last message must be the user's, and not empty")
    try:
        student.prompt(messages)
    except LayoutError as error:
        raise RecordError(f"{where}: {error}") from error
