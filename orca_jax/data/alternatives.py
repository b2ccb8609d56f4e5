"""The likeliest tokens of a teacher in the place of each supervised token, and their log-probabilities.

They come with the traces of an API, by their texts, and are matched to the ids of the student's tokenizer
here; or a student on disk scores the traces, see `training.rescoring`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orca_jax.data.layouts import ROLE_NAMES, Encoded
from orca_jax.data.tokenizer import BYTE, Tokenizer
from orca_jax.records import Trace

NONE, OTHER = "no log-probabilities", "log-probabilities of other tokens than the student's"  # of a trace
LEAST = 1e-6  # a rest below this is rounding of a sum of float32 probabilities


class Alternatives(NamedTuple):
    """What a teacher says of each of m tokens.

    Attributes:
      ids: [m, k], of the student's tokenizer; the likeliest first.
      log_probs: [m, k + 1], the last of all other ids together. -inf fills up where fewer ids are known, and
        all of a token of which nothing is known.
    """

    ids: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def unknown(cls, tokens: int, top: int) -> Alternatives:
        return cls(np.zeros((tokens, top), np.int32), np.full((tokens, top + 1), -np.inf, np.float32))

    def set(self, at: Any, ids: np.ndarray, log_probs: np.ndarray) -> None:
        """Writes ids and their log-probabilities [..., j], j <= k, and the rest's, at some tokens."""
        some = ids.shape[-1]
        self.ids[at, :some], self.log_probs[at, :some] = ids, log_probs
        rest = 1 - np.exp(log_probs.astype(np.float64)).sum(axis=-1)
        self.log_probs[at, -1] = np.where(rest < LEAST, -np.inf, np.log(np.maximum(rest, LEAST)))

    @property
    def known(self) -> int:
        """The number of tokens of which something is known."""
        return int(np.isfinite(self.log_probs).any(axis=-1).sum())


@dataclasses.dataclass
class Source(abc.ABC):
    """Gives the `top` likeliest tokens in the place of each supervised one, in ids of `tokenizer`."""

    tokenizer: Tokenizer
    top: int

    @abc.abstractmethod
    def __call__(self, traces: Sequence[Trace], encoded: Sequence[Encoded]) -> Iterator[Alternatives | str]:
        """Of the supervised tokens of each trace; or why there are none."""

    @property
    def id_type(self) -> Any:
        """The type of ids on disk."""
        return np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.int32

    @property
    def bytes_a_token(self) -> int:
        """Of a supervised token's alternatives in a store, before compression."""
        return self.top * np.dtype(self.id_type).itemsize + (self.top + 1) * np.dtype(np.float16).itemsize


@dataclasses.dataclass
class Collected(Source):
    """The alternatives that came with traces: in `extra["logprobs"]`, as OpenAI's API has them.

    The teacher's tokens must cut the answer as the student's do; its first and last token, where a chat
    template and a layout may differ in white space, have alternatives only where they are the same.
    """

    @functools.cached_property
    def _ids(self) -> Mapping[bytes, int]:
        """Ids by the bytes that they stand for: of several a piece's before a byte's, and then the first."""
        ids = range(self.tokenizer.vocab_size - 1, -1, -1)
        ordered = sorted(ids, key=lambda i: not re.fullmatch(BYTE, self.tokenizer.token_text(i)))
        spelled = {self.tokenizer.token_bytes(i): i for i in ordered}
        return spelled | {name.encode(): i for name, i in self.tokenizer.control_ids.items()}

    def __call__(self, traces: Sequence[Trace], encoded: Sequence[Encoded]) -> Iterator[Alternatives | str]:
        return map(self._matched, traces, encoded)

    def _matched(self, trace: Trace, encoded: Encoded) -> Alternatives | str:
        given = trace.extra.get("logprobs")
        entries = given.get("content") if isinstance(given, Mapping) else None
        entries = [one for one in entries or () if isinstance(one, Mapping)]
        if not entries:
            return NONE
        answer = _last_run(encoded.roles == ROLE_NAMES.index("assistant"))
        pairs = self._aligned(encoded.tokens[answer], entries)
        if pairs is None:
            return OTHER
        supervised = np.flatnonzero(encoded.weights)
        found = Alternatives.unknown(len(supervised), self.top)
        for place, entry in pairs.items():
            line = np.searchsorted(supervised, answer.start + place)
            if line < len(supervised) and supervised[line] == answer.start + place:
                ids, log_probs = self._described(entry, int(encoded.tokens[supervised[line]]))
                if len(ids):
                    found.set(line, ids, log_probs)
        return found if found.known else OTHER

    def _aligned(
        self, tokens: np.ndarray, entries: Sequence[Mapping[str, Any]]
    ) -> dict[int, Mapping[str, Any]] | None:
        """The entry of each of an answer's tokens, by index; None where they cut its text otherwise."""
        controls = {name.encode() for name in self.tokenizer.control_ids}
        theirs = [_bytes(entry) for entry in entries]
        ends = theirs[-1] in controls or not theirs[-1]
        pieces = theirs[:-1] if ends else theirs
        said, ours = b"".join(pieces), [self.tokenizer.token_bytes(int(i)) for i in tokens]
        text = said.strip()
        first = b"".join(ours).rfind(text)
        if first < 0 or not text:
            return None
        starts = itertools.accumulate(map(len, pieces), initial=first - (len(said) - len(said.lstrip())))
        spans = {(start, start + len(piece)): i for i, (start, piece) in enumerate(zip(starts, pieces))}
        found, last = dict[int, Mapping[str, Any]](), first + len(text)
        for place, (start, piece) in enumerate(zip(itertools.accumulate(map(len, ours), initial=0), ours)):
            end = start + len(piece)
            if piece and (start, end) in spans:
                found[place] = entries[spans[start, end]]
            elif piece and start > first and end < last:
                return None
            elif not piece and start >= last and ends:  # the token that ends the answer
                found[place] = entries[-1]
                break
        return found

    def _described(self, entry: Mapping[str, Any], target: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest ids of an entry, `target` its own, and their log-probabilities."""
        best: dict[int, float] = {}
        others = entry.get("top_logprobs")
        for one in (entry, *(others if isinstance(others, list) else ())):
            if not isinstance(one, Mapping) or not isinstance(one.get("logprob"), int | float):
                continue
            spelled = _bytes(one)
            # Bytes that several ids stand for are the target's where they are the entry's own.
            found = target if one is entry or spelled == _bytes(entry) else self._ids.get(spelled)
            if found is not None and math.isfinite(one["logprob"]):
                best[found] = max(best.get(found, -math.inf), min(float(one["logprob"]), 0.0))
        likeliest = sorted(best.items(), key=lambda pair: -pair[1])[: self.top]
        ids, log_probs = zip(*likeliest) if likeliest else ((), ())
        return np.array(ids, np.int32), np.array(log_probs, np.float32)


def _last_run(chosen: np.ndarray) -> slice:
    """The last run of True in [n]; an empty slice if there is none."""
    ends = np.flatnonzero(chosen)
    if not len(ends):
        return slice(0, 0)
    gaps = np.flatnonzero(~chosen[: ends[-1]])
    return slice(int(gaps[-1]) + 1 if len(gaps) else 0, int(ends[-1]) + 1)


def _bytes(entry: Mapping[str, Any]) -> bytes:
    """The bytes of a token, by its text where the server does not give them."""
    given, text = entry.get("bytes"), entry.get("token")
    if isinstance(given, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in given):
        return bytes(given)
    if not isinstance(text, str):
        return b""
    byte = re.fullmatch(BYTE, text)
    return bytes([int(byte[1], 16)]) if byte else text.encode("utf-8", "replace")
