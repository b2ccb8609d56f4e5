"""A conversation with a student in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from orca_jax.queries import system_messages
from orca_jax.records import Message, Outcome, Sampling
from orca_jax.serving.local import LocalStudent

HELP = "/reset forgets what was said, /system ID or TEXT changes the system message and resets, /quit ends"


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
                printed = chat.command(line.strip())
                if printed is None:
                    return
                write(printed)
            else:
                for text in chat.say(line.rstrip("\n")):
                    write(text)
        except ValueError as error:
            write(f"[{error}]")
        except KeyboardInterrupt:
            write(" [interrupted]")
        write("\n")
