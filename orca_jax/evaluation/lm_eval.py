"""Our student as a model of lm-eval (lm-evaluation-harness, extra `lm_eval`), which then asks its own tasks.

A context is put to the student as a user's turn in the layout that it was trained in; with lm-eval's
`apply_chat_template` its roles are kept, so that a task's description is the system message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from lm_eval.api.model import LM

from orca_jax.records import Message, Reply, Sampling

MAX_TOKENS = 256  # lm-eval's default where a task says nothing
Conversation = tuple[Message, ...]
Tokens = Sequence[int]


class Score(Protocol):
    """Of a continuation: its log-likelihood, and whether each of its tokens was the likeliest."""

    @property
    def total(self) -> float: ...
    @property
    def greedy(self) -> bool: ...


class Student(Protocol):
    """What is evaluated, `serving.local.LocalStudent` for one."""

    identity: str

    def as_finished(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterable[tuple[int, Reply]]: ...
    def log_likelihoods(self, asked: Sequence[tuple[Conversation, str]]) -> Sequence[Score]: ...


class StudentLM(LM):
    """The adapter.

    Args:
      rolling: the log-likelihood of each of some texts as a whole, without any layout.
      max_tokens: of a reply, where the task says nothing.
    """

    def __init__(
        self,
        student: Student,
        rolling: Callable[[Sequence[str]], Sequence[float]],
        *,
        max_tokens: int = MAX_TOKENS,
    ):
        super().__init__()
        self._student, self._rolling, self._max_tokens = student, rolling, max_tokens
        self._rendered: dict[str, Conversation] = {}

    @property
    def tokenizer_name(self) -> str:
        """What cached requests depend on besides their text."""
        return self._student.identity

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A text that stands for the conversation: control tokens cannot be written as text."""
        text = json.dumps(chat_history, ensure_ascii=False)
        self._rendered[text] = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        return text

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Replies to (context, settings), those of like settings together."""
        by_sampling: dict[Sampling, list[int]] = {}
        for index, request in enumerate(requests):
            by_sampling.setdefault(self._sampling(request.args[1]), []).append(index)
        replies: dict[int, str] = {}
        for sampling, indices in by_sampling.items():
            asked = [self._conversation(requests[index].args[0]) for index in indices]
            for place, reply in self._student.as_finished(asked, sampling):
                replies[indices[place]] = reply.text
        return [replies[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each (context, continuation)."""
        asked = [(self._conversation(request.args[0]), request.args[1]) for request in requests]
        return [(score.total, score.greedy) for score in self._student.log_likelihoods(asked)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts."""
        return list(self._rolling([request.args[0] for request in requests]))

    def _conversation(self, context: str) -> Conversation:
        return self._rendered.get(context) or (Message("user", context),)

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        until = given.get("until") or ()
        sampled = given.get("do_sample", float(given.get("temperature") or 0) > 0)
        return Sampling(
            temperature=float(given.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(given.get("top_p", 1.0)),
            max_tokens=int(given.get("max_gen_toks", self._max_tokens)),
            stop=(until,) if isinstance(until, str) else tuple(until),
        )


def windows(tokens: Tokens, prefix: int, length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """A text's tokens as (context, continuation), each token a continuation once and with all the context
    that `length` positions allow; the first context is `prefix` alone."""
    yield [prefix], tokens[:length]
    for start in range(length, len(tokens), length):
        end = min(start + length, len(tokens))
        yield tokens[end - length - 1 : start], tokens[start:end]
