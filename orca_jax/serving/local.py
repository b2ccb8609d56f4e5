"""Our student as something that answers conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orca_jax import artifacts
from orca_jax.data import layouts
from orca_jax.data.tokenizer import TokenizerLike
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.student.config import LlamaConfig
from orca_jax.student.generation import Generated, Generator


class LocalStudent:
    """Answers batches of conversations in this process, in the layout that the student was trained in."""

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        tokenizer: TokenizerLike,
        layout: str,
        *,
        checkpoint: str,
        batch_size: int = 32,
        max_length: int = 2048,
    ):
        self.tokenizer = tokenizer
        self.layout = layout
        self.identity = "student-" + artifacts.digest([checkpoint, tokenizer.fingerprint, layout])[:16]
        self.generator = Generator(
            params,
            config,
            stop_ids=layouts.stop_ids(layout, tokenizer),
            batch_size=batch_size,
            max_length=max_length,
        )

    def answer(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Reply]:
        """A reply to each conversation; one whose prompt leaves no room is an error reply, and said so."""
        prompts = [layouts.encode(c, self.layout, self.tokenizer).tokens for c in conversations]
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) < self.generator.max_length]
        generated = self.generator.generate(
            [prompts[i] for i in fits],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed or 0,
            numbers=fits,
        )
        replies = {i: self._reply(len(prompts[i]), g, sampling) for i, g in zip(fits, generated)}
        too_long = Reply(
            Outcome.ERROR, "", raw={"error": f"prompt exceeds {self.generator.max_length} tokens"}
        )
        return [replies.get(i, too_long) for i in range(len(prompts))]

    def _reply(self, prompt_tokens: int, generated: Generated, sampling: Sampling) -> Reply:
        decoded = self.tokenizer.decode(generated.tokens.tolist())
        text = layouts.answer_text(decoded, self.layout, self.tokenizer)
        found = [text.find(stop) for stop in sampling.stop if stop in text]
        stopped = generated.stopped or bool(found)
        text = text[: min(found)] if found else text
        outcome = Outcome.LENGTH if not stopped else Outcome.OK if text.strip() else Outcome.EMPTY
        return Reply(outcome, text, Usage(prompt_tokens, len(generated.tokens)))
