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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orca_jax.records import Query

LONG, SHORT = 13, 8  # tokens
MIN_SENTENCE = 4  # tokens of a benchmark's text that is looked for as a sentence of a query
BATCH = 512  # queries
Ids = NDArray[np.uint64]
KINDS = ("exact", "13-gram", "8-gram")  # the strongest first
Kind = Literal["exact", "13-gram", "8-gram"]

# An option's label, which is no token, or a token.
_TOKEN = re.compile(r"(?:^|(?<=\s))\([a-r]\)|^[a-r][.)](?=\s)|(\w+|[\[\]{}()<>+*/=^]|-(?=\d))", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{2}")
NUMBER = "0"  # what stands for every number in a run
_PIECES = re.compile(r"\n|(?<=[.?!])\s")
_MULTIPLIERS = np.random.default_rng(20230602).integers(2**63, size=LONG, dtype=np.uint64) * np.uint64(2) + (
    np.uint64(1)
)


class ContaminationError(ValueError):
    """The settings are not possible, or there is no benchmark text to check against."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What counts as a hit, and what is done with it.

    Attributes:
      coverage: part of a benchmark's text that shared 8-grams must cover.
      max_documents: a run in more of the benchmarks' texts than this is phrasing.
      action: whether queries that meet a benchmark are dropped or kept; they are counted in both cases.
    """

    coverage: float = 0.4
    max_documents: int = 5
    action: str = "drop"

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise ContaminationError(f"coverage is a share above 0 and up to 1, not {self.coverage}")
        if self.max_documents < 1:
            raise ContaminationError(f"max_documents must be at least 1, not {self.max_documents}")
        if self.action not in ("drop", "keep"):
            raise ContaminationError(f"action must be 'drop' or 'keep', not {self.action!r}")


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
    kind: Kind
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

    Raises:
      ContaminationError: there is no text with a token.
    """

    def __init__(self, documents: Iterable[tuple[str, str, str]], settings: Settings | None = None):
        self.settings = settings if settings is not None else Settings()
        grouped: dict[tuple[str, ...], tuple[str, list[tuple[str, str]]]] = {}  # those that read the same
        for benchmark, document_id, text in documents:
            if words := tuple(tokens(text)):
                grouped.setdefault(words, (text, []))[1].append((benchmark, document_id))
        self._texts = [
            _Text(tuple(names), text, words, tuple(masked(words))) for words, (text, names) in grouped.items()
        ]
        if not self._texts:
            raise ContaminationError(
                "there is no benchmark text to check against; name the benchmarks' files"
            )
        known = dict.fromkeys(itertools.chain.from_iterable(text.masked for text in self._texts))
        self._vocabulary = {word: number for number, word in enumerate(known, 1)}
        ids = [self._ids(text.masked) for text in self._texts]
        wordy = np.array([False, *(_WORD.search(word) is not None for word in self._vocabulary)])
        self._runs = {
            length: _runs(ids, wordy, length, self.settings.max_documents) for length in (SHORT, LONG)
        }
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
            words = [list(itertools.chain.from_iterable(pieces)) for pieces in split]
            kinds: list[dict[int, Kind]] = [{} for _ in batch]
            runs = [masked(query) for query in words]
            covered = self._find(runs, SHORT)
            for (number, text), places in covered.items():
                if self._coverage(text, places) >= self.settings.coverage:
                    kinds[number][text] = "8-gram"
            for number, text in self._find(runs, LONG):
                kinds[number][text] = "13-gram"
            for number, query in enumerate(batch):
                met = kinds[number]
                for text in self._exact(split[number], tuple(words[number])):
                    met[text] = "exact"
                order = sorted(met, key=lambda text: (KINDS.index(met[text]), text))
                hits = [self._hit(query, text, met[text], covered.get((number, text), [])) for text in order]
                yield query, hits

    def _exact(self, pieces: Iterable[list[str]], words: tuple[str, ...]) -> Iterator[int]:
        """The texts that stand whole in a query, from the beginning of a sentence or its second word."""
        place = 0
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

    def _find(self, words: Sequence[list[str]], length: int) -> dict[tuple[int, int], list[int]]:
        """By (query, text), the places in the text of the runs that they share."""
        ends = np.cumsum([len(query) + 1 for query in words])
        ids = self._ids(itertools.chain.from_iterable([*query, ""] for query in words))
        hashes = _hashes(ids, length)
        runs = self._runs[length]
        first = np.searchsorted(runs.hashes, hashes)
        known = first < len(runs.hashes)
        known[known] = runs.hashes[first[known]] == hashes[known]
        shared: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for start in np.flatnonzero(known):
            query = int(np.searchsorted(ends, start, side="right"))
            offset = int(start) - (int(ends[query - 1]) if query else 0)
            run = tuple(words[query][offset : offset + length])
            for entry in range(int(first[start]), len(runs.hashes)):
                if runs.hashes[entry] != hashes[start]:
                    break
                text, place = int(runs.text[entry]), int(runs.place[entry])
                if self._texts[text].masked[place : place + length] == run:
                    shared[query, text].append(place)
        return shared

    def _coverage(self, text: int, places: Sequence[int]) -> float:
        """Part of a text's tokens in runs of 8 that begin at `places`."""
        size = len(self._texts[text].tokens)
        return sum(end - start for start, end in _merged(places)) / size

    def _hit(self, query: Query, number: int, kind: Kind, places: Sequence[int]) -> Hit:
        text = self._texts[number]
        spans = [(0, len(text.tokens))] if kind == "exact" else _merged(places)
        start, end = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
        benchmark, document_id = text.names[0]
        return Hit(
            query_id=query.id,
            benchmark=benchmark,
            document_id=document_id,
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
    hashes[~known] = 0
    return hashes


def _runs(ids: Sequence[Ids], wordy: NDArray[np.bool_], length: int, max_documents: int) -> _Runs:
    """The runs of all texts, without those in more than `max_documents` of them and those of few words.

    Args:
      wordy: bool [vocabulary + 1], which of its entries are words.
    """
    parts = [_hashes(text, length) for text in ids]
    hashes = np.concatenate(parts)
    text = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    place = np.concatenate([np.arange(len(part), dtype=np.int32) for part in parts])
    sums = [np.concatenate([[0], np.cumsum(wordy[text.astype(np.int64)])]) for text in ids]
    words = np.concatenate([sum[length:] - sum[: max(len(sum) - length, 0)] for sum in sums])
    said = words * 2 > length
    hashes, text, place = hashes[said], text[said], place[said]
    order = np.lexsort((place, text, hashes))
    hashes, text, place = hashes[order], text[order], place[order]
    if not len(hashes):
        return _Runs(hashes, text, place)
    new_hash = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    new_text = new_hash | np.concatenate([[True], text[1:] != text[:-1]])
    run = np.cumsum(new_hash) - 1
    kept = np.bincount(run, weights=new_text)[run] <= max_documents
    return _Runs(hashes[kept], text[kept], place[kept])


def _merged(places: Iterable[int]) -> list[tuple[int, int]]:
    """The spans that runs of 8 tokens from these places cover, overlapping ones joined."""
    spans: list[tuple[int, int]] = []
    for place in sorted(set(places)):
        if spans and place <= spans[-1][1]:
            spans[-1] = (spans[-1][0], place + SHORT)
        else:
            spans.append((place, place + SHORT))
    return spans


@dataclasses.dataclass
class Report:
    """Counts of a check, for a manifest or a card."""

    queries: int = 0
    hit: int = 0
    dropped: int = 0
    by_benchmark: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_kind: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_task: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def count(self, query: Query, hits: Sequence[Hit], action: str) -> None:
        """A query counts once a benchmark that it meets, and once for its strongest kind of hit."""
        self.queries += 1
        if hits:
            self.hit += 1
            self.dropped += action == "drop"
            self.by_benchmark.update({hit.benchmark for hit in hits})
            self.by_kind[hits[0].kind] += 1
            self.by_task[query.task] += 1

    def summary(self) -> dict[str, object]:
        counted = {"by_benchmark": self.by_benchmark, "by_kind": self.by_kind, "by_task": self.by_task}
        counts = {name: dict(sorted(counter.items())) for name, counter in counted.items()}
        return {"queries": self.queries, "hit": self.hit, "dropped": self.dropped, **counts}


def screen(
    queries: Iterable[Query],
    index: Index,
    report: Report,
    *,
    on_hit: Callable[[Hit], object] = lambda hit: None,
) -> Iterator[Query]:
    """The queries to go on with: without those that meet a benchmark, unless the settings keep them.

    Args:
      report: filled while the queries are taken.
      on_hit: called for every hit, to list it.
    """
    for query, hits in index.check(queries):
        report.count(query, hits, index.settings.action)
        for hit in hits:
            on_hit(hit)
        if not hits or index.settings.action == "keep":
            yield query
