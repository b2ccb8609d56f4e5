"""Answers that the data sets hold themselves, as an endpoint: no language model is asked.

`targets` answers a query with its target; `rationales` gives the reasons first that people wrote down for
it, where a set has them (FLAN's CoT files do). They stand in for the two teachers where there is no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from orca_jax.records import Message, Outcome, Query, Reply, Sampling, Usage


class RecordedTeacher:
    """An endpoint over the queries it was given; empty for one without a target, refused for any other.

    Args:
      kind: `targets` or `rationales`.
      queries: `extra["explanation"]` holds a query's reasons.
    """

    KINDS = ("targets", "rationales")

    def __init__(self, kind: str, queries: Iterable[Query]):
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of recorded teacher {kind!r}; known: {', '.join(self.KINDS)}")
        self._answers = {query.text: _answer(kind, query) for query in queries}
        digest = hashlib.sha256("\x00".join(self._answers.values()).encode("utf-8", "surrogatepass"))
        self.identity = f"{kind}-{digest.hexdigest()[:16]}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers the last user message; usage counts words."""
        question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        answer = self._answers.get(question)
        if answer is None:
            return Reply(Outcome.REFUSED, "")
        words = sum(len(message.content.split()) for message in messages)
        return Reply(Outcome.OK if answer else Outcome.EMPTY, answer, Usage(words, len(answer.split())))


def _answer(kind: str, query: Query) -> str:
    target = query.target or ""
    reasons = query.extra.get("explanation") if kind == "rationales" else None
    return f"{reasons}\nSo the answer is {target}." if reasons and target else target
