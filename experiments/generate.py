"""Talks with a student, or answers a file of questions.

python -m experiments.generate chat --model=runs/mini --system=7
python -m experiments.generate batch --model=runs/mini --input=questions.jsonl --out=replies.jsonl

A student is a workdir whose training is finished, an imported student, or a Hugging Face model: a folder, or
hf://OWNER/NAME of the hub.
`chat` streams replies and keeps the history; `/help` lists its commands. `batch` reads JSON lines with `id`
and either `messages` [{role, content}] or `question` (and `system_prompt`), and appends each reply as it is
finished; run again, it continues.
"""

from __future__ import annotations

from orca_jax import cli

OPTIONS = (
    cli.MODEL,
    cli.LAYOUT,
    cli.DTYPE,
    cli.Option("system", "", "The system message: an id of the 16, or a text; empty: none."),
    cli.Option("temperature", 0.0, "0 is greedy.", lower_bound=0),
    cli.Option("top_p", 1.0, "Nucleus sampling; 1: off.", lower_bound=0, upper_bound=1),
    cli.Option("top_k", 0, "Sampling from the likeliest ids; 0: off.", lower_bound=0),
    cli.Option("max_tokens", 256, "Of a reply.", lower_bound=1),
    cli.Option("max_length", 2048, "Prompt and reply together, in tokens.", lower_bound=2),
    cli.Option("stop", (), "A text that ends a reply; may be given more than once."),
    cli.Option("seed", 0, "Of sampled replies."),
    cli.Option("tensor", 1, "Devices over which each layer is split.", lower_bound=1),
)
PROGRAM = cli.Program(
    __doc__,
    commands={
        "chat": cli.Command("A conversation in the terminal.", *OPTIONS),
        "batch": cli.Command(
            "Answers a file of questions.",
            cli.Option("input", "", "JSON lines of questions.", required=True),
            cli.Option("out", "", "The file to write: JSON lines of replies.", required=True),
            *OPTIONS,
            cli.Option("batch_size", 32, "Replies decoded together, at most.", lower_bound=1),
            made=("{out}",),
        ),
    },
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orca_jax import artifacts, files
from orca_jax.artifacts import ArtifactError
from orca_jax.data.layouts import LayoutError
from orca_jax.progress import progress
from orca_jax.queries import system_messages
from orca_jax.records import Message, Outcome, RecordError, Sampling, Usage, half_pair, to_json
from orca_jax.serving.local import LocalStudent, load_student
from orca_jax.training import students

HELP = "/reset forgets what was said, /system ID or TEXT changes the system message and resets, /quit ends"


def student_of(given: cli.Options, batch_size: int = 1) -> LocalStudent:
    source = students.open_source(given.model)
    sizes = {"tensor": given.tensor, "batch_size": batch_size, "max_length": given.max_length}
    return load_student(source, given.layout, dtype=given.dtype, **sizes)


def system_text(given: str) -> str:
    """The text of a system message: one of the 16 by its id, or the text itself."""
    return system_messages.get(int(given)).text if given.isdigit() else given


def sampling_of(given: cli.Options) -> Sampling:
    return Sampling(given.temperature, given.top_p, given.max_tokens, tuple(given.stop), seed=given.seed)


# Chat


class Chat:
    """A conversation in the terminal."""

    def __init__(self, student: LocalStudent, sampling: Sampling, *, system: str = "", top_k: int = 0):
        self.student, self.sampling, self.top_k = student, sampling, top_k
        self.reset(system)

    def reset(self, system: str) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def reply(self, text: str) -> Iterator[str]:
        """The reply's text in parts; after an error the history is as before, and the text is its message."""
        messages = [*self.messages, Message("user", text)]
        stream = self.student.stream(messages, self.sampling, number=len(messages), top_k=self.top_k)
        with contextlib.closing(stream) as deltas:  # an interrupted reply leaves the engine free
            for delta in deltas:
                yield delta.text
                if delta.reply is None:
                    continue
                if delta.reply.outcome is Outcome.ERROR:
                    yield f"[{delta.reply.raw['error']}; /reset forgets what was said]"
                    continue
                self.messages = [*messages, Message("assistant", delta.reply.text)]
                if delta.reply.outcome is Outcome.LENGTH:
                    yield " [cut off by --max_tokens]"

    def command(self, line: str) -> str | None:
        """Runs a line that begins with `/` and returns what to print; None ends the conversation."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return None
        if name not in ("/reset", "/system"):
            return HELP
        self.reset(self.system if name == "/reset" else system_text(rest))
        return f"[system message: {self.system or 'none'}]"

    def run(self, lines: Iterable[str], write: Callable[[str], Any]) -> None:
        """Answers line after line until `/quit` or their end; Ctrl-C ends a reply only."""
        for line in filter(str.strip, lines):
            try:
                if line.startswith("/"):
                    printed = self.command(line.strip())
                    if printed is None:
                        return
                    write(printed)
                else:
                    for text in self.reply(line.rstrip("\n")):
                        write(text)
            except ValueError as error:
                write(f"[{error}]")
            except KeyboardInterrupt:
                write(" [interrupted]")
            write("\n")


def typed() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return


def chat(given: cli.Options) -> None:
    talk = Chat(student_of(given), sampling_of(given), system=system_text(given.system), top_k=given.top_k)
    print(f"{HELP}\n[system message: {talk.system or 'none'}]")
    talk.run(typed(), lambda text: print(text, end="", flush=True))


# Files of questions


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
class BatchReply:
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
    conversations = [question.conversation(system) for question in questions]
    for question, messages in zip(questions, conversations):
        where = f"{source}: id {question.id!r}"
        if any(half_pair(message.content) for message in messages):
            raise RecordError(f"{where} has half a surrogate pair, which is no character")
        if messages[-1].role != "user" or not messages[-1].content:
            raise RecordError(f"{where} asks nothing: the last message must be the user's, and not empty")
        try:
            student.prompt(messages)
        except LayoutError as error:
            raise RecordError(f"{where}: {error}") from error
    hashes = {
        question.id: artifacts.digest(
            [student.identity, list(map(to_json, messages)), to_json(sampling), top_k, number]
        )
        for number, (question, messages) in enumerate(zip(questions, conversations))
    }
    if len(hashes) < len(questions):
        raise RecordError(f"{source}: two lines have the same id; give each its own")
    with files.JsonlAppender(out) as file:
        done = set()
        for row in files.read_jsonl(out, BatchReply):
            if hashes.get(row.id) != row.request:
                raise ArtifactError(
                    f"{out} answers id {row.id!r} of another input, student, system message or sampling; "
                    "give another --out"
                )
            done.add(row.id)
        left = [i for i, question in enumerate(questions) if question.id not in done]
        with progress("answering", len(questions), len(done)) as report:
            asked = [conversations[i] for i in left]
            replies = student.as_finished(asked, sampling, numbers=left, top_k=top_k)
            for count, (place, reply) in enumerate(replies, len(done) + 1):
                key = questions[left[place]].id
                file.append(BatchReply(key, hashes[key], reply.outcome, reply.text, reply.usage, reply.raw))
                report(count)
    return len(questions)


def batch(given: cli.Options) -> None:
    student, system = student_of(given, given.batch_size), system_text(given.system)
    source, out = Path(given.input), Path(given.out)
    answer_file(student, source, out, sampling_of(given), system=system, top_k=given.top_k)


def main() -> None:
    PROGRAM.main(chat=chat, batch=batch)


if __name__ == "__main__":
    main()
