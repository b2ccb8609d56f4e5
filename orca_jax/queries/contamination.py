"""Queries that meet a benchmark's text are found before any teacher is paid.

Texts are compared as tokens: words in lower case, brackets and arithmetic signs; other punctuation, white
space, Unicode forms and the labels of options do not count. A query meets a benchmark's text if
  exact    one of its sentences or lines, or all of it, is the whole text (with or without a word like
           "Question:" before it),
  13-gram  they share a run of 13 tokens,
  8-gram   shared runs of at least 8 tokens cover a given part of the benchmark's text.
In runs every number stands for any number, so that a question asked anew with other numbers is found.
Runs of which half or more are no words say little, and those that occur in many texts of the benchmarks
("Which one of the following, if true, ...") are their phrasing and not their content: neither counts.

An inverted index of the benchmarks' runs is kept, as sorted 64-bit hashes; queries stream past it in
batches. Found places are compared token by token, so a collision of hashes is no hit.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orca_jax.records import Query

LONG, SHORT = 13, 8  # tokens
MIN_SENTENCE = 4  # tokens of a benchmark's text that is looked for as a sentence of a query
BATCH = 512  # queries
Ids = NDArray[np.uint64]
KINDS = ("exact", "13-gram", "8-gram")  # the strongest first

# An option's label, which is no token, or a token.
_TOKEN = re.compile(r"(?:^|(?<=\s))\([a-r]\)|^[a-r][.)](?=\s)|(\w+|[\[\]{}()<>+*/=^]|-(?=\d))", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{2}")
NUMBER = "0"  # what stands for every number in a run
_PIECES = re.compile(r"\n|(?<=[.?!])\s")
_MULTIPLIERS = np.random.default_rng(20230602).integers(2**63, size=LONG, dtype=np.uint64) * 2 + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """One query that meets one text of a benchmark, with both texts.

    Attributes:
      kind: the strongest of the kinds that apply.
      coverage: part of the benchmark's tokens in shared runs of at least 8.
      shared: the longest shared run, as tokens between spaces.
      also: other texts of the benchmarks that read the same, as "benchmark/id".
    """

    query_id: str
    benchmark: str
    document_id: str
    kind: str
    coverage: float
    shared: str
    query_text: str
    document_text: str
    also: tuple[str, ...] = ()


def tokens(text: str) -> list[str]:
    """What two spellings of a text share: lower-case words (NFKC), brackets and arithmetic signs."""
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    return [token for token in _TOKEN.findall(plain) if token]


def masked(words: Iterable[str]) -> list[str]:
    """The tokens with one number for all."""
    return [NUMBER if word.isdecimal() else word for word in words]


class _Text(NamedTuple):
    """One benchmark text, or several that read the same: `names` are (benchmark, id)."""

    names: tuple[tuple[str, str], ...]
    text: str
    tokens: tuple[str, ...]
    masked: tuple[str, ...]


class _Runs(NamedTuple):
    """All runs of one length that are no phrasing: sorted `hashes` [runs], and where each run occurs."""

    hashes: Ids
    text: NDArray[np.int32]
    place: NDArray[np.int32]


class Index:
    """The benchmarks' texts, to check queries against.

    Args:
      documents: (benchmark, id, text) triples.
      coverage: part of a benchmark's text that shared 8-grams must cover, above 0 and up to 1.
      max_documents: a run in more of the benchmarks' texts than this is phrasing.

    Raises:
      ValueError: there is no text with a token.
    """

    def __init__(
        self, documents: Iterable[tuple[str, str, str]], *, coverage: float = 0.4, max_documents: int = 5
    ):
        self._least = coverage
        grouped: dict[tuple[str, ...], tuple[str, list[tuple[str, str]]]] = {}  # those that read the same
        for benchmark, document_id, text in documents:
            if words := tuple(tokens(text)):
                grouped.setdefault(words, (text, []))[1].append((benchmark, document_id))
        if not grouped:
            raise ValueError("there is no benchmark text to check against; name the benchmarks' files")
        self._texts = [
            _Text(tuple(names), text, words, tuple(masked(words))) for words, (text, names) in grouped.items()
        ]
        known = dict.fromkeys(itertools.chain.from_iterable(text.masked for text in self._texts))
        self._vocabulary = {word: number for number, word in enumerate(known, 1)}
        ids = [self._ids(text.masked) for text in self._texts]
        wordy = np.array([False, *(_WORD.search(word) is not None for word in self._vocabulary)])
        self._runs = {length: _runs(ids, wordy, length, max_documents) for length in (SHORT, LONG)}
        # The numbers of the texts by the tokens of their first sentence or line.
        self._starts: dict[tuple[str, ...], list[int]] = {}
        for number, entry in enumerate(self._texts):
            pieces = map(tokens, _PIECES.split(entry.text))
            self._starts.setdefault(tuple(next(filter(None, pieces))), []).append(number)

    def check(self, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Hit]]]:
        """Every query with its hits, the strongest first."""
        source = iter(queries)
        while batch := tuple(itertools.islice(source, BATCH)):
            split = [[tokens(piece) for piece in _PIECES.split(query.text)] for query in batch]
            runs = [masked(itertools.chain.from_iterable(pieces)) for pieces in split]
            shared = zip(self._find(runs, SHORT), self._find(runs, LONG))
            for query, pieces, (short, long) in zip(batch, split, shared):
                covering = [text for text, at in short.items() if self._coverage(text, at) >= self._least]
                kinds = dict.fromkeys(covering, "8-gram") | dict.fromkeys(long, "13-gram")
                kinds |= dict.fromkeys(self._exact(pieces), "exact")
                order = sorted(kinds, key=lambda text: (KINDS.index(kinds[text]), text))
                yield query, [self._hit(query, text, kinds[text], short.get(text, [])) for text in order]

    def _exact(self, pieces: Sequence[list[str]]) -> Iterator[int]:
        """The texts that stand whole in a query, from the beginning of a sentence or its second word."""
        place, words = 0, tuple(itertools.chain.from_iterable(pieces))
        for piece in pieces:
            for skipped in (0, 1):  # "Question: ..." has a word before the sentence
                for number in self._starts.get(tuple(piece[skipped:]), ()):
                    text = self._texts[number].tokens
                    start, end = place + skipped, place + skipped + len(text)
                    ends = end == len(words) or (end < len(words) and _WORD.search(words[end]) is not None)
                    alone = len(words) == len(text) or (len(text) >= MIN_SENTENCE and ends)
                    if alone and words[start:end] == text:
                        yield number
            place += len(piece)

    def _ids(self, words: Iterable[str]) -> Ids:
        """uint64 [words]: the vocabulary's numbers; 0 for a word that no benchmark has."""
        return np.array([self._vocabulary.get(word, 0) for word in words], np.uint64)

    def _find(self, words: Sequence[list[str]], length: int) -> list[dict[int, list[int]]]:
        """By query, the texts that share runs with it, and the places of those in the text."""
        runs, shared = self._runs[length], [collections.defaultdict[int, list[int]](list) for _ in words]
        starts = np.cumsum([0, *(len(query) + 1 for query in words)])
        hashes = _hashes(self._ids(itertools.chain.from_iterable([*query, ""] for query in words)), length)
        first = np.searchsorted(runs.hashes, hashes)
        known = first < len(runs.hashes)
        known[known] = runs.hashes[first[known]] == hashes[known]
        for start in np.flatnonzero(known):
            query = int(np.searchsorted(starts, start, side="right")) - 1
            offset = int(start - starts[query])
            run = tuple(words[query][offset : offset + length])
            for entry in range(int(first[start]), len(runs.hashes)):
                if runs.hashes[entry] != hashes[start]:
                    break
                text, place = int(runs.text[entry]), int(runs.place[entry])
                if self._texts[text].masked[place : place + length] == run:
                    shared[query][text].append(place)
        return list(shared)

    def _coverage(self, text: int, places: Sequence[int]) -> float:
        """Part of a text's tokens in runs of 8 that begin at `places`."""
        return sum(end - start for start, end in _merged(places)) / len(self._texts[text].tokens)

    def _hit(self, query: Query, number: int, kind: str, places: Sequence[int]) -> Hit:
        text = self._texts[number]
        spans = [(0, len(text.tokens))] if kind == "exact" else _merged(places)
        start, end = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
        return Hit(
            query.id,
            *text.names[0],
            kind=kind,
            coverage=1.0 if kind == "exact" else round(self._coverage(number, places), 4),
            shared=" ".join(text.tokens[start:end]),
            query_text=query.text,
            document_text=text.text,
            also=tuple("/".join(name) for name in text.names[1:]),
        )


def _hashes(ids: Ids, length: int) -> Ids:
    """uint64 [max(ids - length + 1, 0)]: a hash of every run; 0 for one with an unknown word."""
    count = max(len(ids) - length + 1, 0)
    hashes, known = np.zeros(count, np.uint64), np.ones(count, bool)
    for offset in range(length):
        part = ids[offset : offset + count]
        hashes += part * _MULTIPLIERS[offset]
        known &= part != 0
    return hashes * known


def _runs(ids: Sequence[Ids], wordy: NDArray[np.bool_], length: int, max_documents: int) -> _Runs:
    """The runs of all texts that are no phrasing; `wordy`, bool [vocabulary + 1]: which entries are words."""
    parts = [_hashes(text, length) for text in ids]
    hashes = np.concatenate(parts)
    text = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    place = np.concatenate([np.arange(len(part), dtype=np.int32) for part in parts])
    sums = [np.cumsum([0, *wordy[text.astype(np.int64)]]) for text in ids]
    words = np.concatenate([sum[length:] - sum[: max(len(sum) - length, 0)] for sum in sums])
    _, run = np.unique(hashes, return_inverse=True)
    pairs = np.sort(run * len(ids) + text)
    documents = np.bincount(pairs[np.diff(pairs, prepend=-1) > 0] // len(ids))
    kept = np.flatnonzero((words * 2 > length) & (documents[run] <= max_documents))
    kept = kept[np.argsort(hashes[kept], kind="stable")]
    return _Runs(hashes[kept], text[kept], place[kept])


def _merged(places: Iterable[int]) -> list[tuple[int, int]]:
    """The spans that runs of 8 tokens from these places cover, overlapping ones joined."""
    spans: list[tuple[int, int]] = []
    for place in sorted(places):
        start = spans.pop()[0] if spans and place <= spans[-1][1] else place
        spans.append((start, place + SHORT))
    return spans
