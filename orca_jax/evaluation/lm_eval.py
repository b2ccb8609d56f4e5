"""The student as a model of lm-eval (lm-evaluation-harness, extra `lm-eval`), which runs its own tasks on it.

A context is a user's turn in the layout that the student was trained in; with lm-eval's `apply_chat_template`
its roles are kept, so that a task's description is the system message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from orca_jax.artifacts import atomic_write
from orca_jax.evaluation import parts
from orca_jax.evaluation.parts import Part
from orca_jax.progress import progress
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import LocalStudent

RESULTS, ANSWERS = "results.json", "answers.jsonl"
CHUNK = 256  # likelihoods computed before they are recorded
MAX_TOKENS = 256  # lm-eval's default for tasks without a limit
Tokens = Sequence[int]


class StudentLM(LM):
    """The adapter.

    Args:
      file: keeps every answer as it comes; what is in it is not computed again.
      part: which requests are answered, and of how many parts; see `parts.answered`.
    """

    def __init__(self, student: LocalStudent, file: Path, part: Part = parts.WHOLE):
        super().__init__()
        self._student, self._file, self._part = student, file, part
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

        def replies(wanted: Sequence[int]) -> Iterator[tuple[int, str]]:
            for sampling, every in by_sampling.items():
                # Draws are numbered among the requests of like settings, whichever of them are asked.
                places = [place for place, index in enumerate(every) if index in set(wanted)]
                asked = [self._conversation(requests[every[place]].args[0]) for place in places]
                for found, reply in self._student.as_finished(asked, sampling, numbers=places):
                    yield every[places[found]], reply.text

        return self._answers(requests, replies, "")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each (context, continuation)."""

        def scores(wanted: Sequence[int]) -> Iterator[tuple[int, tuple[float, bool]]]:
            by_length = sorted(wanted, key=lambda index: sum(map(len, requests[index].args)))
            for start in range(0, len(by_length), CHUNK):
                some = by_length[start : start + CHUNK]
                pairs = [(self._conversation(requests[i].args[0]), requests[i].args[1]) for i in some]
                for index, score in zip(some, self._student.log_likelihoods(pairs)):
                    yield index, (score.total, bool(score.greedy))

        return [(total, greedy) for total, greedy in self._answers(requests, scores, (0.0, False))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, without any layout, in windows behind the first id of a prompt."""
        student = self._student
        prefix = int(student.prompt([Message("user", "?")])[0])

        def totals(wanted: Sequence[int]) -> Iterator[tuple[int, float]]:
            for index in wanted:
                tokens = student.tokenizer.encode(requests[index].args[0], first=True)
                pairs = windows(tokens, prefix, student.generator.max_length)
                arrays = ((np.array(c, np.int32), np.array(t, np.int32)) for c, t in pairs)
                yield index, sum(one.total for one in student.generator.scorer.score(*zip(*arrays)))

        return self._answers(requests, totals, 0.0)

    def _answers(
        self,
        requests: Sequence[Any],
        answer: Callable[[Sequence[int]], Iterator[tuple[int, Any]]],
        unknown: Any,
    ) -> list[Any]:
        """The answers to all requests, recorded as they come; `unknown` for those of other parts."""
        identity = [self._student.identity, self._student.generator.max_length]
        asked = [[*identity, request.request_type, *request.args] for request in requests]
        kind = requests[0].request_type
        with progress(f"lm-eval's {kind}", len(parts.numbers(len(asked), self._part))) as report:
            found = parts.answered(asked, self._file, self._part, answer, report)
        return [found.get(index, unknown) for index in range(len(requests))]


def windows(tokens: Tokens, prefix: int, length: int) -> Iterator[tuple[Tokens, Tokens]]:
    """A text's tokens as (context, continuation), each token a continuation once and with all the context
    that `length` positions allow; the first context is `prefix` alone."""
    yield [prefix], tokens[:length]
    for start in range(length, len(tokens), length):
        end = min(start + length, len(tokens))
        yield tokens[end - length - 1 : start], tokens[start:end]


def evaluate(
    student: LocalStudent,
    tasks: Sequence[str],
    out: Path,
    *,
    include_path: str | None = None,
    part: Part = parts.WHOLE,
    **options: Any,
) -> str:
    """Writes results.json and samples_TASK.jsonl, lm-eval's results of a student, and returns its table.

    Answers are kept in answers.jsonl. A part only answers its requests, in a file of its own, which the whole
    reads.

    Args:
      include_path: a folder with further tasks.
      options: of `lm_eval.simple_evaluate`.
    """
    found = lm_eval.simple_evaluate(
        model=StudentLM(student, out / ANSWERS, part),
        tasks=list(tasks),
        log_samples=True,
        task_manager=TaskManager(include_path=include_path),
        predict_only=part != parts.WHOLE,  # there are no metrics of a part
        **options,
    )
    if part != parts.WHOLE:
        return "part {} of {} is answered; run without --part for the results".format(*part)
    found["config"]["model_dtype"] = student.dtype
    for task, samples in found.pop("samples").items():
        with atomic_write(out / f"samples_{task}.jsonl") as file:
            for sample in samples:
                file.write(json.dumps(sample, default=str, ensure_ascii=False) + "\n")
    with atomic_write(out / RESULTS) as file:
        json.dump(found, file, indent=1, default=str, ensure_ascii=False)
    return f"lm-eval {getattr(lm_eval, '__version__', '')}\n{make_table(found)}"
