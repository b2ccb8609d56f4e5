"""Log-likelihoods of given continuations, batched by length."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax.config import LlamaConfig
from orca_jax.student import llama
from orca_jax.student.decoding import bucket
from orca_jax.student.parameters import for_decoding, mesh_of, on_mesh
from orca_jax.student.sampling import log_prob

CHUNK = 256  # positions whose logits are in memory at a time
LEAST_SCORED = 8


class Score(NamedTuple):
    """Log-probabilities of a continuation's tokens, float32 [n], and whether all are the likeliest ids."""

    log_probs: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        """The log-likelihood, summed in float64."""
        return float(self.log_probs.sum(dtype=np.float64))


class _Batch(NamedTuple):
    """Tokens int32 [b, t], their lengths [b], and the positions [b, c] that predict `targets` [b, c]."""

    tokens: Any
    lengths: Any
    positions: Any
    targets: Any


@functools.cache
def _program(config: LlamaConfig, dtype: Any, options: tuple[tuple[str, str], ...]) -> Any:
    return jax.jit(functools.partial(_score, config=config, dtype=dtype), compiler_options=dict(options))


def _score(
    params: llama.Params, batch: _Batch, *, config: LlamaConfig, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities float32 [b, c] of the targets, and whether each is the likeliest id, bool [b, c]."""
    all_positions = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    segment_ids = (all_positions < batch.lengths[:, None]).astype(jnp.int32)
    hidden, _ = llama.hidden(params, batch.tokens, all_positions, segment_ids, config=config, dtype=dtype)
    chosen = jnp.take_along_axis(hidden, batch.positions[:, :, None], axis=1)
    head = llama.head(params, config)

    def of_one(chosen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = llama.logits(chosen[0], head, config.vocab_size)
        return log_prob(scores, chosen[1]), jnp.argmax(scores, axis=-1) == chosen[1]

    flat = chosen.reshape(-1, chosen.shape[-1]), batch.targets.reshape(-1)
    log_probs, best = jax.lax.map(of_one, flat, batch_size=CHUNK)
    return log_probs.reshape(batch.targets.shape), best.reshape(batch.targets.shape)


class Scorer:
    """Scores continuations by one student.

    Args:
      params, config, dtype, mesh, compiler_options: see `engine.Engine`, whose own may be passed.
      batch_tokens: the most positions of a batch, with padding, unless a single row has more.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        *,
        batch_tokens: int = 4096,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        compiler_options: Mapping[str, str] | None = None,
    ):
        self.mesh = mesh or mesh_of(params)
        self.params, self.config = for_decoding(params, config, dtype, self.mesh)
        self.batch_tokens = batch_tokens
        options = tuple(sorted((compiler_options or {}).items()))
        self._program = _program(self.config, jnp.dtype(dtype), options)

    def score(self, prompts: Sequence[np.ndarray], continuations: Sequence[np.ndarray]) -> list[Score]:
        """Scores `continuations` (int32 [n], n >= 1), each after its prompt (int32 [m], m >= 1), in order.

        Raises:
          ValueError: the numbers of prompts and continuations differ, or one is empty.
        """
        pairs = list(zip(prompts, continuations, strict=True))
        for index, (prompt, continuation) in enumerate(pairs):
            if not len(prompt) or not len(continuation):
                raise ValueError(f"prompt {index} or its continuation is empty; each needs a token at least")
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        found: dict[int, Score] = {}
        while order:
            longest = len(pairs[order[0]][0]) + len(pairs[order[0]][1]) - 1
            # A power of two within the budget.
            rows = 1 << max(self.batch_tokens // bucket(longest), 1).bit_length() - 1
            chosen, order = order[:rows], order[rows:]
            with on_mesh(self.mesh):
                outcome = self._program(self.params, _stacked([pairs[i] for i in chosen], rows))
            log_probs, best = jax.device_get(outcome)
            for row, index in enumerate(chosen):
                n = len(continuations[index])
                found[index] = Score(log_probs[row, :n], bool(best[row, :n].all()))
        return [found[index] for index in range(len(pairs))]


def _stacked(pairs: list[tuple[np.ndarray, np.ndarray]], rows: int) -> _Batch:
    """The pairs as arrays; missing rows repeat earlier ones. A row's last token is a target only."""
    wholes = [np.concatenate(pair).astype(np.int32) for pair in pairs]
    width = bucket(max(map(len, wholes)) - 1)
    scored = bucket(max(len(continuation) for _, continuation in pairs), LEAST_SCORED)
    batch = _Batch(
        np.zeros((rows, width), np.int32),
        np.ones(rows, np.int32),
        np.zeros((rows, scored), np.int32),
        np.zeros((rows, scored), np.int32),
    )
    for row in range(rows):
        whole, (prompt, continuation) = wholes[row % len(pairs)], pairs[row % len(pairs)]
        batch.tokens[row, : len(whole) - 1] = whole[:-1]
        batch.lengths[row] = len(whole) - 1
        batch.positions[row, : len(continuation)] = np.arange(len(prompt) - 1, len(whole) - 1)
        batch.targets[row, : len(continuation)] = continuation
    return batch
