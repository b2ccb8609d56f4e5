"""Talks with a student, or answers a file of questions.

python -m experiments.generate chat --student=runs/mini --system_id=7
python -m experiments.generate batch --student=runs/mini --input=questions.jsonl --output=replies.jsonl

A student is a workdir whose training is finished, an imported student, or a Hugging Face model folder.
`chat` streams replies and keeps the history; `/help` lists its commands. `batch` reads JSON lines with `id`
and either `messages` [{role, content}] or `question` (and `system_prompt`), and appends each reply as it is
finished; run again, it goes on.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("generate")  # before the imports below, which take seconds

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from orca_jax import artifacts, files
from orca_jax.artifacts import ArtifactError
from orca_jax.data.layouts import LayoutError
from orca_jax.experiments import options
from orca_jax.progress import progress
from orca_jax.queries import system_messages
from orca_jax.records import Message, Outcome, RecordError, Reply, Sampling, Usage, half_pair, to_json
from orca_jax.serving.local import LocalStudent, load_student
from orca_jax.training import students

options.define("generate")

HELP = "/reset forgets what was said, /system ID or TEXT changes the system message and resets, /quit ends"


def load(
    path: str, layout: str, *, tensor: int = 1, batch_size: int = 1, max_length: int = 2048
) -> LocalStudent:
    """The student at `path`, on so many devices.

    Raises:
      ArtifactError: there is none.
      LayoutError: it does not say in which layout it was trained, and none is given.
    """
    source = students.open_source(path)
    if not (layout or source.own_layout):
        raise LayoutError(f"{path} does not say its prompt layout; give --prompt_layout")
    return load_student(source, layout, tensor=tensor, batch_size=batch_size, max_length=max_length)


def system_text(message_id: int, text: str) -> str:
    """The system message's words; empty: none.

    Raises:
      ValueError: both are given, or the id is unknown.
    """
    if message_id and text:
        raise ValueError("give --system_id or --system, not both")
    return system_messages.get(message_id).text if message_id else text


# Chat


class Chat:
    """A conversation that goes on."""

    def __init__(self, student: LocalStudent, sampling: Sampling, *, system: str = "", top_k: int = 0):
        self.student = student
        self.sampling = sampling
        self.top_k = top_k
        self.reset(system)

    def reset(self, system: str) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def say(self, text: str) -> Iterator[str]:
        """The reply's words as they come. A reply that fails leaves the history as it was, and says why."""
        asked = [*self.messages, Message("user", text)]
        stream = self.student.stream(asked, self.sampling, number=len(asked), top_k=self.top_k)
        with contextlib.closing(stream) as deltas:  # an interrupted reply leaves the engine free
            for delta in deltas:
                yield delta.text
                if delta.reply is not None:
                    yield self._note(asked, delta.reply)

    def _note(self, asked: list[Message], reply: Reply) -> str:
        if reply.outcome is Outcome.ERROR:
            return f"[{reply.raw['error']}; /reset forgets what was said]"
        self.messages = [*asked, Message("assistant", reply.text)]
        return " [cut off by --max_tokens]" if reply.outcome is Outcome.LENGTH else ""

    def command(self, line: str) -> str | None:
        """What a line that begins with `/` does, in words; None ends the conversation."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return None
        if name == "/reset":
            self.reset(self.system)
        elif name == "/system":
            self.reset(system_messages.get(int(rest)).text if rest.isdigit() else rest)
        else:
            return HELP
        return f"[system message: {self.system or 'none'}]"


def converse(chat: Chat, lines: Iterable[str], write: Callable[[str], Any]) -> None:
    """Answers line after line until `/quit` or their end; Ctrl-C ends a reply only."""
    for line in filter(str.strip, lines):
        try:
            if line.startswith("/"):
                said = chat.command(line.strip())
                if said is None:
                    return
                write(said)
            else:
                for words in chat.say(line.rstrip("\n")):
                    write(words)
        except ValueError as error:
            write(f"[{error}]")
        except KeyboardInterrupt:
            write(" [interrupted]")
        write("\n")


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return


# Batch


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
    for question, conversation in zip(questions, conversations):
        _check(student, source, question, conversation)
    requests = [
        artifacts.digest([student.identity, list(map(to_json, messages)), to_json(sampling), top_k, number])
        for number, messages in enumerate(conversations)
    ]
    with files.JsonlAppender(out) as file:
        done = _answered(out, {q.id: request for q, request in zip(questions, requests)})
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


def _check(student: LocalStudent, source: Path, question: Question, messages: tuple[Message, ...]) -> None:
    if any(half_pair(message.content) for message in messages):
        raise RecordError(f"{source}: id {question.id!r} has half a surrogate pair, which is no character")
    if messages[-1].role != "user" or not messages[-1].content:
        raise RecordError(f"{source}: id {question.id!r} asks nothing: its last words must be the user's")
    try:
        student.prompt(messages)
    except LayoutError as error:
        raise RecordError(f"{source}: id {question.id!r}: {error}") from error


def _answered(out: Path, requests: Mapping[str, str]) -> set[str]:
    """Ids that `out` answers already."""
    rows = list(files.read_jsonl(out, Answered))
    for row in rows:
        if requests.get(row.id) != row.request:
            raise ArtifactError(
                f"{out} answers id {row.id!r} of another input, student, system message or sampling; "
                "give another --output"
            )
    return {row.id for row in rows}


# The program


def _sampling() -> Sampling:
    given = flags.FLAGS
    return Sampling(given.temperature, given.top_p, given.max_tokens, tuple(given.stop), seed=given.seed)


def chat() -> None:
    given = flags.FLAGS
    student = load(given.student, given.prompt_layout, tensor=given.tensor, max_length=given.max_length)
    system = system_text(given.system_id, given.system)
    print(f"{HELP}\n[system message: {system or 'none'}]")
    talk = Chat(student, _sampling(), system=system, top_k=given.top_k)
    converse(talk, _typed(), lambda text: print(text, end="", flush=True))


def batch() -> None:
    given = flags.FLAGS
    if not given.input or not given.output:
        raise ValueError("batch needs --input and --output")
    student = load(
        given.student,
        given.prompt_layout,
        tensor=given.tensor,
        batch_size=given.batch_size,
        max_length=given.max_length,
    )
    system = system_text(given.system_id, given.system)
    answer_file(student, Path(given.input), Path(given.output), _sampling(), system=system, top_k=given.top_k)


PROGRAMS: dict[str, Callable[[], None]] = {"chat": chat, "batch": batch}


def main() -> None:
    launch.set_up_logging()
    launch.checked(PROGRAMS[sys.argv[1]])


if __name__ == "__main__":
    main()
