"""Prompts in, replies out: the engine and the scorer of one student, for whole batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax.config import LlamaConfig
from orca_jax.student.engine import Engine, Generated, Request, StopFunction
from orca_jax.student.scoring import Scorer

__all__ = ["Generated", "Generator"]
WORTH_SHARING = 32  # tokens; a shorter common start is read again for each prompt


class Generator:
    """Generates from one student.

    Args:
      params, config: either view; decoding uses the per-layer one.
      stop_ids: ids that end a reply and are not part of it.
      batch_size: replies decoded together, at most.
      max_length: prompt and reply together, in tokens.
      dtype, mesh, compiler_options: see `engine.Engine`.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        *,
        stop_ids: Sequence[int],
        batch_size: int = 32,
        max_length: int = 2048,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        compiler_options: Mapping[str, str] | None = None,
    ):
        self.max_length = max_length
        self._running: dict[str, Any] = dict(dtype=dtype, mesh=mesh, compiler_options=compiler_options)
        self._sizes: dict[str, Any] = dict(stop_ids=stop_ids, slots=batch_size, max_length=max_length)
        self.engine = Engine(params, config, **self._sizes, **self._running)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Of the same student; made when first wanted."""
        return Scorer(self.engine.params, self.engine.config, **self._running)

    def new_engine(self) -> Engine:
        """Another engine over the same parameters, with a cache of its own."""
        return Engine(self.engine.params, self.engine.config, **self._sizes, **self._running)

    def generate(self, prompts: Sequence[np.ndarray], **settings: Any) -> list[Generated]:
        """Replies to prompts (int32 [n] each), in their order; see `as_finished` for settings and errors."""
        found = dict(self.as_finished(prompts, **settings))
        return [found[index] for index in range(len(prompts))]

    def as_finished(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int | Sequence[int],
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        ends: StopFunction | None = None,
    ) -> Iterator[tuple[int, Generated]]:
        """Replies as they finish, each with its prompt's index; a common start is read once.

        Prompt `i` draws from (seed, numbers[i]), or from (seed, i); its company does not matter. A reply
        has at most `max_tokens` tokens (one number for all, or one each), its stop token among them.

        Raises:
          ValueError: a prompt is empty or leaves no room for a reply, or a setting is out of range.
        """
        self._check(prompts)
        limits = list(max_tokens) if isinstance(max_tokens, Sequence) else [max_tokens] * len(prompts)
        shared = common_start(prompts)
        # Neighbours attend to like numbers of columns; the longest start first, so that none is left over.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        tickets = {}
        try:
            for index in order:
                request = Request(
                    prompt=prompts[index],
                    max_tokens=limits[index],
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    seed=seed,
                    number=index if numbers is None else numbers[index],
                    shared=shared,
                    ends=ends,
                )
                tickets[self.engine.add(request)] = index
            while tickets:
                for advance in self.engine.step():
                    if advance.finished is not None:
                        yield tickets.pop(advance.ticket), advance.finished
        finally:
            for ticket in tickets:
                self.engine.cancel(ticket)

    def _check(self, prompts: Sequence[np.ndarray]) -> None:
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.max_length:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {self.max_length - 1} fit")


def common_start(prompts: Sequence[np.ndarray]) -> int:
    """How many first tokens all of two or more prompts share, if these are worth keeping; else 0."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts))
    first = np.asarray(prompts[0][:shortest])
    same = np.logical_and.reduce([np.asarray(prompt[:shortest]) == first for prompt in prompts])
    size = shortest if same.all() else int(same.argmin())
    return size if size >= WORTH_SHARING else 0
