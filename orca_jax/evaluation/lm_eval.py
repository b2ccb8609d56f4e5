"""The student as a model of lm-eval (lm-evaluation-harness, extra `lm-eval`), which runs its own tasks on it.

A context is a user's turn in the layout that the student was trained in; with lm-eval's `apply_chat_template`
its roles are kept, so that a task's description is the system message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from orca_jax.artifacts import atomic_write
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import LocalStudent

RESULTS = "results.json"
MAX_TOKENS = 256  # lm-eval's default for tasks without a limit
Tokens = Sequence[int]


class StudentLM(LM):
    """The adapter."""

    def __init__(self, student: LocalStudent):
        super().__init__()
        self._student = student
        self._rendered: dict[str, tuple[Message, ...]] = {}

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

    def _conversation(self, context: str) -> tuple[Message, ...]:
        return self._rendered.get(context) or (Message("user", context),)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Replies to (context, settings), those of like settings together."""
        by_sampling: dict[Sampling, list[int]] = {}
        for index, request in enumerate(requests):
            given = request.args[1]
            until = given.get("until") or ()
            sampled = given.get("do_sample", float(given.get("temperature") or 0) > 0)
            sampling = Sampling(
                temperature=float(given.get("temperature", 1.0)) if sampled else 0.0,
                top_p=float(given.get("top_p", 1.0)),
                max_tokens=int(given.get("max_gen_toks", MAX_TOKENS)),
                stop=(until,) if isinstance(until, str) else tuple(until),
            )
            by_sampling.setdefault(sampling, []).append(index)
        replies: dict[int, str] = {}
        for sampling, indices in by_sampling.items():
            conversations = [self._conversation(requests[index].args[0]) for index in indices]
            found = self._student.answer(conversations, sampling)
            replies |= {index: reply.text for index, reply in zip(indices, found)}
        return [replies[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each (context, continuation)."""
        conversations = [(self._conversation(request.args[0]), request.args[1]) for request in requests]
        return [(score.total, score.greedy) for score in self._student.log_likelihoods(conversations)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, without any layout, in windows behind the first id of a prompt."""
        student, totals = self._student, []
        prefix = int(student.prompt([Message("user", "?")])[0])
        for request in requests:
            tokens = student.tokenizer.encode(request.args[0], first=True)
            pairs = windows(tokens, prefix, student.generator.max_length)
            contexts, continuations = zip(*((np.array(c, np.int32), np.array(t, np.int32)) for c, t in pairs))
            totals.append(sum(one.total for one in student.generator.scorer.score(contexts, continuations)))
        return totals


def windows(tokens: Tokens, prefix: int, length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """A text's tokens as (context, continuation), each token a continuation once and with all the context
    that `length` positions allow; the first context is `prefix` alone."""
    yield [prefix], tokens[:length]
    for start in range(length, len(tokens), length):
        end = min(start + length, len(tokens))
        yield tokens[end - length - 1 : start], tokens[start:end]


def evaluate(
    student: LocalStudent, tasks: Sequence[str], out: Path, *, include_path: str | None = None, **options: Any
) -> str:
    """Writes results.json and samples_TASK.jsonl, lm-eval's results of a student, and returns its table.

    Args:
      include_path: a folder with further tasks.
      options: of `lm_eval.simple_evaluate`.
    """
    tasks_known = TaskManager(include_path=include_path)
    found = lm_eval.simple_evaluate(
        model=StudentLM(student), tasks=list(tasks), log_samples=True, task_manager=tasks_known, **options
    )
    found["config"]["model_dtype"] = student.dtype
    for task, samples in found.pop("samples").items():
        with atomic_write(out / f"samples_{task}.jsonl") as file:
            for sample in samples:
                file.write(json.dumps(sample, default=str, ensure_ascii=False) + "\n")
    with atomic_write(out / RESULTS) as file:
        json.dump(found, file, indent=1, default=str, ensure_ascii=False)
    return f"lm-eval {getattr(lm_eval, '__version__', '')}\n{make_table(found)}"
