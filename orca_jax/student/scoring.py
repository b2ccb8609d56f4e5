"""Log-probabilities of given tokens: of continuations for evaluation, of whole sequences for the server."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax.student import llama
from orca_jax.student.decoding import bucket, row_bucket
from orca_jax.student.parameters import for_decoding, in_dtype, mesh_of, on_mesh
from orca_jax.student.presets import LlamaConfig

CHUNK = 256  # positions whose logits are in memory at a time
LEAST_SCORED = 8
TOPS = (1, 5, 20)  # numbers of likeliest ids that programs are compiled for
MOST_ROWS = 16  # of `score_batch`


class ScoreRequest(NamedTuple):
    """Tokens int32 [m], and targets int32 [n], n <= m: what follows each of the last n tokens.

    `top` is how many likeliest ids are wanted in each target's place.
    """

    tokens: np.ndarray
    targets: np.ndarray
    top: int = 1


class Score(NamedTuple):
    """Log-probabilities of a request's targets.

    Attributes:
      log_probs: float32 [n].
      greedy: whether each target is the likeliest id.
      top_ids, top_log_probs: int32 and float32 [n, top], the likeliest ids in a target's place, best first.
        A target that is the likeliest id has the very same number here and in `log_probs`.
    """

    log_probs: np.ndarray
    greedy: bool
    top_ids: np.ndarray
    top_log_probs: np.ndarray

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


class _Scored(NamedTuple):
    """Log-probabilities float32 [b, c] of the targets; the likeliest ids and theirs, [b, c, k]."""

    log_probs: Any
    top_ids: Any
    top_log_probs: Any


@functools.cache
def _program(config: LlamaConfig, dtype: Any, top: int, options: tuple[tuple[str, str], ...]) -> Any:
    return jax.jit(in_dtype(_score, dtype, config=config, top=top), compiler_options=dict(options))


def _score(params: llama.Params, batch: _Batch, *, config: LlamaConfig, dtype: Any, top: int) -> _Scored:
    all_positions = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    segment_ids = (all_positions < batch.lengths[:, None]).astype(jnp.int32)
    hidden, _ = llama.hidden(params, batch.tokens, all_positions, segment_ids, config=config, dtype=dtype)
    chosen = jnp.take_along_axis(hidden, batch.positions[:, :, None], axis=1)
    head = llama.head(params, config)

    def of_one(chosen: tuple[jax.Array, jax.Array]) -> _Scored:
        logits = llama.logits(chosen[0], head, config.vocab_size)
        total = jax.nn.logsumexp(logits)
        best, ids = jax.lax.top_k(logits, top)
        return _Scored(logits[chosen[1]] - total, ids, best - total)

    flat = chosen.reshape(-1, chosen.shape[-1]), batch.targets.reshape(-1)
    scored = jax.lax.map(of_one, flat, batch_size=CHUNK)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch.targets.shape, *leaf.shape[1:]), scored)


class Scorer:
    """Scores tokens by one student; what else is in a batch changes nothing but rounding.

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
        self._dtype = jnp.dtype(dtype)
        self._options = tuple(sorted((compiler_options or {}).items()))

    def score(
        self, prompts: Sequence[np.ndarray], continuations: Sequence[np.ndarray], *, top: int = 1
    ) -> list[Score]:
        """Scores `continuations` (int32 [n], n >= 1), each after its prompt (int32 [m], m >= 1), in order.

        `top` is how many likeliest ids are wanted in each place.

        Raises:
          ValueError: the numbers of prompts and continuations differ, or one is empty.
        """
        rows = []
        for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            if not len(prompt) or not len(continuation):
                raise ValueError(f"prompt {index} or its continuation is empty; each needs a token at least")
            rows.append(ScoreRequest(np.concatenate([prompt, continuation[:-1]]), continuation, top))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
        found: dict[int, Score] = {}
        while order:
            # A power of two within the budget.
            size = 1 << max(self.batch_tokens // bucket(len(rows[order[0]].tokens)), 1).bit_length() - 1
            chosen, order = order[:size], order[size:]
            scored = bucket(max(len(rows[i].targets) for i in chosen), LEAST_SCORED)
            found.update(zip(chosen, self._run([rows[i] for i in chosen], size, scored)))
        return [found[index] for index in range(len(rows))]

    def fits(self, batch: Sequence[ScoreRequest]) -> bool:
        """Whether `score_batch` may take so many together; a single one it always may."""
        positions = row_bucket(len(batch), MOST_ROWS) * bucket(max(len(one.tokens) for one in batch))
        return len(batch) == 1 or (len(batch) <= MOST_ROWS and positions <= self.batch_tokens)

    def score_batch(self, batch: Sequence[ScoreRequest]) -> list[Score]:
        """Scores requests in one call of a program; few shapes are compiled, whatever the requests are."""
        width = bucket(max(len(one.tokens) for one in batch))
        return self._run(batch, row_bucket(len(batch), MOST_ROWS), width)

    def _run(self, requests: Sequence[ScoreRequest], size: int, scored: int) -> list[Score]:
        """One call for `size` rows of `scored` targets; missing rows repeat earlier ones."""
        width = bucket(max(len(request.tokens) for request in requests))
        shapes = (size, width), (size,), (size, scored), (size, scored)
        batch = _Batch(*(np.zeros(shape, np.int32) for shape in shapes))
        for row, (tokens, targets, _) in zip(range(size), itertools.cycle(requests)):
            batch.tokens[row, : len(tokens)] = tokens
            batch.lengths[row] = len(tokens)
            batch.positions[row, : len(targets)] = np.arange(len(tokens) - len(targets), len(tokens))
            batch.targets[row, : len(targets)] = targets
        most = max(request.top for request in requests)
        top = min(next((top for top in TOPS if top >= most), most), self.config.vocab_size)
        program = _program(self.config, self._dtype, top, self._options)
        with on_mesh(self.mesh):
            found = jax.device_get(program(self.params, batch))
        scores = []
        for row, (_, targets, top) in enumerate(requests):
            log_probs, ids, top_log_probs = (leaf[row, : len(targets)] for leaf in found)
            greedy = bool((ids[:, 0] == targets).all())
            scores.append(Score(log_probs, greedy, ids[:, :top], top_log_probs[:, :top]))
        return scores
