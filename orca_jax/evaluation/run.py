"""Asks a model every question of an evaluation, once, and keeps each reply as it comes.

`replies.jsonl` holds one `RecordedReply` a line. A killed evaluation goes on where it stopped. Questions
are asked in fixed rounds of like length; a round that was not recorded to the end is asked again as a
whole, so that the replies are those of an evaluation never interrupted. A round is best several times as
large as what the model answers at once, which is kept busy until the round's last questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax import files
from orca_jax.artifacts import digest
from orca_jax.evaluation.questions import Question, conversation
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage, to_json

REPLIES = "replies.jsonl"
Conversation = tuple[Message, ...]
Answer = Callable[[Sequence[Conversation], Sampling], Iterable[tuple[int, Reply]]]
Progress = Callable[[int, int], None]


class EvaluationError(RuntimeError):
    """The replies on disk do not belong to this evaluation, or the model answered out of step."""

    explained = True  # cli.checked adds no advice


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedReply:
    """A reply and what it answers; `request` is the hash of all that the reply depends on but the model."""

    request: str
    benchmark: str
    task: str
    id: str
    mode: str
    seed: int
    system_message_id: int | None
    outcome: Outcome
    text: str
    usage: Usage
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def reply(self) -> Reply:
        return Reply(self.outcome, self.text, self.usage, self.raw)


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    question: Question
    messages: Conversation
    hash: str


def collect_replies(
    questions: Sequence[Question],
    answer: Answer,
    directory: str | Path,
    *,
    sampling: Sampling,
    seed: int,
    system_message_id: int | None,
    system_text: str,
    round_size: int,
    progress: Progress | None = None,
) -> list[tuple[Question, Reply]]:
    """Every question with its reply, in the order given; finished when it returns.

    Args:
      answer: replies to a round of conversations, each with its conversation's index, as they come. The
        sampling it is given is `sampling` with a seed of the round's own, drawn from `seed`.
      directory: where `replies.jsonl` is kept; one a (benchmark, mode, system message, seed).
      system_message_id: of one of the 16, or None for another text.
      system_text: the system message; if empty, none is sent.
      progress: called with (replies there are, replies there will be).

    Raises:
      EvaluationError: a question occurs twice, the directory holds replies to other requests, or
        `answer` did not give one to each.
    """
    requests = [_request(question, system_text, sampling, seed) for question in questions]
    if len({question.key for question in questions}) < len(questions):
        raise EvaluationError("two questions have the same benchmark, task and id; ask each once")
    path = Path(directory) / REPLIES

    def report(done: int) -> None:
        if progress:
            progress(min(done, len(requests)), len(requests))

    with files.JsonlAppender(path) as file:
        replies = _recorded(path, requests)
        for number, asked in enumerate(_rounds(requests, round_size)):
            missing = [request for request in asked if request.hash not in replies]
            if missing:
                of_round = dataclasses.replace(sampling, seed=_round_seed(seed, number))
                found = _ask(asked, answer, of_round, lambda count: report(len(replies) + count))
            for request in missing:
                replies[request.hash] = found[request.hash]
                file.append(_record(request, found[request.hash], seed, system_message_id))
            if not missing:
                report(len(replies))
    return [(request.question, replies[request.hash]) for request in requests]


def _request(question: Question, system_text: str, sampling: Sampling, seed: int) -> _Request:
    messages = conversation(question, system_text)
    content = [question.key, question.mode, list(map(to_json, messages)), to_json(sampling), seed]
    return _Request(question, messages, digest(content))


def _rounds(requests: Sequence[_Request], size: int) -> list[list[_Request]]:
    by_length = sorted(requests, key=lambda request: (len(request.question.text), request.hash))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def _round_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0] >> 1)


def _ask(
    asked: Sequence[_Request], answer: Answer, sampling: Sampling, report: Callable[[int], None]
) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    for index, reply in answer([request.messages for request in asked], sampling):
        replies[asked[index].hash] = reply
        report(len(replies))
    if len(replies) != len(asked):
        raise EvaluationError(f"asked {len(asked)} questions at once and got {len(replies)} replies")
    return replies


def _record(request: _Request, reply: Reply, seed: int, system_message_id: int | None) -> RecordedReply:
    question = request.question
    return RecordedReply(
        request=request.hash,
        benchmark=question.benchmark,
        task=question.task,
        id=question.id,
        mode=question.mode,
        seed=seed,
        system_message_id=system_message_id,
        outcome=reply.outcome,
        text=reply.text,
        usage=reply.usage,
        raw=reply.raw,
    )


def _recorded(path: Path, requests: Sequence[_Request]) -> dict[str, Reply]:
    """The replies already on disk, by request hash."""
    found = {recorded.request: recorded.reply for recorded in read_replies(path)}
    foreign = found.keys() - {request.hash for request in requests}
    if foreign:
        raise EvaluationError(
            f"{path} holds {len(foreign)} replies to other questions, messages, sampling or seed; "
            "use another directory, or remove the file to ask again"
        )
    return found


def read_replies(path: str | Path) -> list[RecordedReply]:
    """The rows of a `replies.jsonl`, for scoring again.

    Raises:
      RecordError: a line cannot be read; the message names file, line and field.
    """
    return list(files.read_jsonl(path, RecordedReply))
