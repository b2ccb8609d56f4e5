"""Log-probabilities of whole sequences: of each token, and the likeliest ids in its place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.config import LlamaConfig
from orca_jax.student import llama
from orca_jax.student.decoding import bucket, row_bucket
from orca_jax.student.engine import Generator
from orca_jax.student.parameters import on_mesh
from orca_jax.student.scoring import CHUNK

TOPS = (1, 5, 20)  # as many likeliest ids as a program is compiled for
BATCH_TOKENS = 4096  # positions of a batch, its padding among them, unless a single sequence has more
MOST_ROWS = 16


class LogProbsRequest(NamedTuple):
    """A sequence, int32 [n], and how many likeliest ids of each place are wanted."""

    tokens: np.ndarray
    top: int


class PromptLogProbs(NamedTuple):
    """The log-probabilities that a student gives a sequence of n tokens.

    Attributes:
      log_probs: float32 [n - 1], of each token but the first.
      top_ids, top_log_probs: int32 and float32 [n, k], the likeliest first; row `i` is of what follows
        token `i`. A token that is the likeliest has the very same number in both.
    """

    log_probs: Any
    top_ids: Any
    top_log_probs: Any


class PromptScorer:
    """Scores sequences with a generator's student; for one thread."""

    def __init__(self, generator: Generator):
        self._engine = generator.engine

    def fits(self, batch: Sequence[LogProbsRequest]) -> bool:
        """Whether so many may be scored together; a single one always may."""
        positions = row_bucket(len(batch), MOST_ROWS) * bucket(max(len(one.tokens) for one in batch))
        return len(batch) == 1 or (len(batch) <= MOST_ROWS and positions <= BATCH_TOKENS)

    def score(self, batch: Sequence[LogProbsRequest]) -> list[PromptLogProbs]:
        """Scores each sequence (n >= 1); what else is in the batch changes nothing but rounding."""
        engine = self._engine
        rows = row_bucket(len(batch), MOST_ROWS)
        tokens = np.zeros((rows, bucket(max(len(request.tokens) for request in batch))), np.int32)
        lengths = np.ones(rows, np.int32)
        for row, request in enumerate(batch):
            tokens[row, : len(request.tokens)] = request.tokens
            lengths[row] = len(request.tokens)
        most = min(max(request.top for request in batch), engine.config.vocab_size)
        top = next((top for top in TOPS if top >= most), most)
        program = _program(engine.config, jnp.dtype(engine.dtype), min(top, engine.config.vocab_size))
        with on_mesh(engine.mesh):
            found = jax.device_get(program(engine.params, tokens, lengths))
        scores = []
        for row, request in enumerate(batch):
            size, tops = len(request.tokens), np.s_[row, : len(request.tokens), : request.top]
            log_probs = found.log_probs[row, : size - 1]
            scores.append(PromptLogProbs(log_probs, found.top_ids[tops], found.top_log_probs[tops]))
        return scores


@functools.cache
def _program(config: LlamaConfig, dtype: Any, top: int) -> Any:
    return jax.jit(functools.partial(_score, config=config, dtype=dtype, top=top))


def _score(
    params: llama.Params, tokens: jax.Array, lengths: jax.Array, *, config: LlamaConfig, dtype: Any, top: int
) -> PromptLogProbs:
    """Of int32 tokens [b, t], of which the first `lengths` [b] count; padded, [b, t] and [b, t, k]."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = (places < lengths[:, None]).astype(jnp.int32)
    hidden, _ = llama.hidden(params, tokens, places, segment_ids, config=config, dtype=dtype)
    head = llama.head(params, config)

    def of_one(place: tuple[jax.Array, jax.Array]) -> PromptLogProbs:
        logits = llama.logits(place[0], head, config.vocab_size)
        total = jax.nn.logsumexp(logits)
        best, ids = jax.lax.top_k(logits, top)
        return PromptLogProbs(logits[place[1]] - total, ids, best - total)

    following = jnp.roll(tokens, -1, axis=1)
    flat = hidden.reshape(-1, hidden.shape[-1]), following.reshape(-1)
    scores = jax.lax.map(of_one, flat, batch_size=CHUNK)
    return jax.tree.map(lambda leaf: leaf.reshape(*tokens.shape, *leaf.shape[1:]), scores)
