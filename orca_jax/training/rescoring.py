"""Traces scored by a student on disk: its likeliest tokens in the place of each supervised token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from orca_jax import artifacts, hub
from orca_jax.config import EvaluationConfig, ExperimentConfig, MeshConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.alternatives import Alternatives, Source
from orca_jax.data.layouts import Encoded
from orca_jax.data.prepared import Scored
from orca_jax.data.tokenizer import Tokenizer, TokenizerError
from orca_jax.records import Trace
from orca_jax.student import sharding
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.scoring import Scorer
from orca_jax.training import students
from orca_jax.training.students import SavedStudent

GROUP = 64  # traces that are scored, sorted by length, between two reports of progress
UNKNOWN_IDS = "ids that the scorer lacks"


def scored(config: ExperimentConfig, teacher: TeacherConfig, tokenizer: Tokenizer) -> Scored | None:
    """What scores a teacher's traces, opened when it is needed; None without a `scorer`.

    Raises:
      TokenizerError: the scorer's tokenizer gives other ids than the student's.
    """
    if not teacher.scorer:
        return None
    source = students.open_source(teacher.scorer)
    theirs = tokenizers.load(source.tokenizer)
    if theirs.encode(students.PROBE, first=True) != tokenizer.encode(students.PROBE, first=True):
        raise TokenizerError(
            f"teacher {teacher.name!r}: the tokenizer of scorer={teacher.scorer} gives other ids than the "
            "student's; take a scorer of the student's tokenizer, or set data.tokenizer to the scorer's"
        )
    settings = artifacts.joined({"scorer": hub.unpinned(teacher.scorer)}, students.dtype_setting(config))
    return Scored(
        settings,
        source.fingerprint,
        teacher.scorer,
        lambda report: Rescored(tokenizer, config.data.top_logprobs, config.evaluation, source, report),
    )


@dataclasses.dataclass
class Rescored(Source):
    """Scores traces in batches by a student.

    Args:
      how: its type, and over how many devices each layer is split.
      report: called with the number of traces done so far.
    """

    how: EvaluationConfig
    student: SavedStudent
    report: Callable[[int], None]

    def __post_init__(self) -> None:
        self.done, dtype, tensor = 0, compute_dtype(self.how.dtype), self.how.tensor
        shape = dataclasses.replace(self.student.config, scan_layers=False)
        mesh = sharding.make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.local_devices()[:tensor])
        self.ids = min(self.tokenizer.vocab_size, shape.vocab_size)
        self.scorer = Scorer(self.student.load(shape, mesh, dtype), shape, dtype=dtype, mesh=mesh)

    def __call__(self, traces: Sequence[Trace], encoded: Sequence[Encoded]) -> Iterator[Alternatives | str]:
        """Of the supervised tokens of each trace in the student's layout; see `data.alternatives.Source`."""
        for start in range(0, len(encoded), GROUP):
            group = encoded[start : start + GROUP]
            yield from self._scored(group)
            self.done += len(group)
            self.report(self.done)

    def _scored(self, group: Sequence[Encoded]) -> Iterator[Alternatives | str]:
        supervised = [np.flatnonzero(one.weights[1:]) + 1 for one in group]  # nothing predicts the first
        can = [i for i, one in enumerate(group) if len(supervised[i]) and one.tokens.max() < self.ids]
        starts = {i: int(supervised[i][0]) for i in can}
        scores = self.scorer.score(
            [group[i].tokens[: starts[i]] for i in can],
            [group[i].tokens[starts[i] :] for i in can],
            top=self.top,
        )
        by_trace = dict(zip(can, scores))
        for i, one in enumerate(group):
            if len(supervised[i]) and i not in by_trace:
                yield UNKNOWN_IDS
                continue
            found = Alternatives.unknown(int(np.count_nonzero(one.weights)), self.top)
            if i in by_trace:
                at = supervised[i] - starts[i]
                ids, log_probs = by_trace[i].top_ids[at], by_trace[i].top_log_probs[at]
                # The model may have more ids than the tokenizer gives.
                log_probs = np.where(ids < self.ids, log_probs, -np.inf)
                found.set(slice(len(found.ids) - len(at), None), np.where(ids < self.ids, ids, 0), log_probs)
            yield found
