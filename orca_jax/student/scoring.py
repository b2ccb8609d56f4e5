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
from orca_jax.student import llama, parameters
from orca_jax.student.engine import bucket, mesh_of, on_mesh
from orca_jax.student.sampling import log_prob

CHUNK = 256  # positions whose logits are held at once
LEAST_SCORED = 8


class Score(NamedTuple):
    """Of a continuation: each token's log-probability, float32 [n], and whether each was the likeliest id."""

    log_probs: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        """The log-likelihood, summed in float64."""
        return float(self.log_probs.sum(dtype=np.float64))


class _Batch(NamedTuple):
    """Tokens int32 [b, t] and their number [b]; the positions [b, c] that say the `targets` [b, c]."""

    tokens: Any
    lengths: Any
    before: Any
    targets: Any


@functools.cache
def _program(config: LlamaConfig, dtype: Any, options: tuple[tuple[str, str], ...]) -> Any:
    return jax.jit(functools.partial(_score, config=config, dtype=dtype), compiler_options=dict(options))


def _score(
    params: llama.Params, batch: _Batch, *, config: LlamaConfig, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities float32 [b, c] of the targets, and whether each is the likeliest id, bool [b, c]."""
    places = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    segment_ids = (places < batch.lengths[:, None]).astype(jnp.int32)
    hidden, _ = llama.hidden(params, batch.tokens, places, segment_ids, config=config, dtype=dtype)
    chosen = jnp.take_along_axis(hidden, batch.before[:, :, None], axis=1)
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
      params, config, dtype, mesh, compiler_options: see `engine.Engine`, whose `params` and `config` do too.
      batch_tokens: positions of a batch, its padding among them, unless a single row has more.
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
        self.params, self.config = parameters.for_decoding(params, config, dtype, self.mesh)
        self.batch_tokens = batch_tokens
        options = tuple(sorted((compiler_options or {}).items()))
        self._program = _program(self.config, jnp.dtype(dtype), options)

    def score(self, prompts: Sequence[np.ndarray], continuations: Sequence[np.ndarray]) -> list[Score]:
        """Scores `continuations` (int32 [n], n >= 1), each behind its prompt (int32 [m], m >= 1), in order.

        Raises:
          ValueError: there are not as many of both, or one is empty.
        """
        pairs = list(zip(prompts, continuations, strict=True))
        for index, (prompt, continuation) in enumerate(pairs):
            if not len(prompt) or not len(continuation):
                raise ValueError(f"prompt {index} or its continuation is empty; each needs a token at least")
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        found: dict[int, Score] = {}
        while order:
            rows = self._rows(len(pairs[order[0]][0]) + len(pairs[order[0]][1]) - 1)
            chosen, order = order[:rows], order[rows:]
            found |= zip(chosen, self._batch([pairs[i] for i in chosen], rows))
        return [found[index] for index in range(len(pairs))]

    def _rows(self, length: int) -> int:
        """Rows of a batch whose longest has `length` positions: a power of two within the budget."""
        return 1 << max(self.batch_tokens // bucket(length), 1).bit_length() - 1

    def _batch(self, pairs: list[tuple[np.ndarray, np.ndarray]], rows: int) -> list[Score]:
        with on_mesh(self.mesh):
            outcome = self._program(self.params, _stacked(pairs, rows))
        log_probs, best = jax.device_get(outcome)
        sizes = [len(continuation) for _, continuation in pairs]
        return [Score(log_probs[i, :n], bool(best[i, :n].all())) for i, n in enumerate(sizes)]


def _stacked(pairs: list[tuple[np.ndarray, np.ndarray]], rows: int) -> _Batch:
    """The last token of a row only is a target, so it is not read; missing rows repeat earlier ones."""
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
        batch.before[row, : len(continuation)] = np.arange(len(prompt) - 1, len(whole) - 1)
        batch.targets[row, : len(continuation)] = continuation
    return batch
