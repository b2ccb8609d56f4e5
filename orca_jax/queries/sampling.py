"""Draws queries: FLAN-5M and FLAN-1M as the paper draws them (sections 3.1.2 and 3.1.3).

CoT is taken whole, Super-NaturalInstructions up to 300 queries a task, Flan 2021 and T0 by Algorithm 1
(draw a task uniformly, then one of its queries without replacement, until enough are drawn); zero-shot
templates only. FLAN-1M is a uniform draw of the queries so drawn.

Two passes over the files, both streams. The first makes an `Index`: a 64-bit key a query, so 28 million
queries take 0.3 GB. `plan` then decides how many queries each task gives, and a
query is taken if its key, mixed with the seed, is among its task's smallest. What is drawn therefore
depends on seed and queries alone, not on the order of files and rows.

Algorithm 1 draws stored rows; FLAN stores some texts more than once. Equal rows have one id (see
`queries.flan`) and count once here.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orca_jax import files
from orca_jax.config_teachers import FlanConfig
from orca_jax.queries.flan import is_zero_shot
from orca_jax.records import Query, to_json

DRAWS = 1 << 16  # of tasks made at once in Algorithm 1
BUCKETS = 64  # into which drawn queries are parted to be ordered
COLLECTIONS = ("cot", "niv2", "flan2021", "t0")
Keys = NDArray[np.uint64]
_FIRST, _SECOND, _MASK = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 2**64 - 1


class Index(NamedTuple):
    """The queries there are to draw from.

    Attributes:
      keys: (collection, task) to uint64 [queries], distinct and sorted.
      left_out: queries that were not indexed, by reason.
    """

    keys: Mapping[tuple[str, str], Keys]
    left_out: Mapping[str, int]


def key(text: str) -> int:
    """64 bits of a text's hash; a query's key is that of its id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def index(queries: Iterable[Query]) -> Index:
    """The index of a stream of queries: those of zero-shot templates and of known sub-collections.

    `left_out` counts the others ("template_type", "collection") and repeated ids ("duplicate").
    """
    found: dict[tuple[str, str], array.array[int]] = collections.defaultdict(lambda: array.array("Q"))
    left_out = {"template_type": 0, "collection": 0, "duplicate": 0}
    for query in queries:
        if query.collection not in COLLECTIONS:
            left_out["collection"] += 1
        elif not is_zero_shot(query):
            left_out["template_type"] += 1
        else:
            found[query.collection, query.task].append(key(query.id))
    keys: dict[tuple[str, str], Keys] = {}
    for pair in sorted(found):  # np.unique is far slower
        ordered = np.sort(np.array(found.pop(pair), np.uint64))  # gone, so that no key is in memory twice
        keys[pair] = ordered[np.append(True, ordered[1:] != ordered[:-1])]
        left_out["duplicate"] += len(ordered) - len(keys[pair])
    return Index(keys, left_out)


def algorithm_1(sizes: Sequence[int] | NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """How many queries each task gives (paper, Algorithm 1).

    Draws a task uniformly, `count` times; a task that has given all its queries is drawn no more. Which
    of its queries a task gives does not change the counts, so they are drawn first.

    Args:
      sizes: [tasks] queries a task has.
      count: queries wanted; all there are if there are fewer.

    Returns:
      int64 [tasks].
    """
    sizes = np.asarray(sizes, np.int64)
    random = np.random.default_rng(seed)
    given = np.zeros(len(sizes), np.int64)
    left = min(int(count), int(sizes.sum()))
    while left:
        open_tasks = np.flatnonzero(given < sizes)
        drawn = random.integers(len(open_tasks), size=min(left, DRAWS))
        # Up to the draw that takes a task's last query.
        counts, remaining = np.bincount(drawn, minlength=len(open_tasks)), (sizes - given)[open_tasks]
        emptied = np.flatnonzero(counts >= remaining)
        ends = [np.flatnonzero(drawn == task)[remaining[task] - 1] for task in emptied]
        drawn = drawn[: min(ends) + 1] if ends else drawn
        given[open_tasks] += np.bincount(drawn, minlength=len(open_tasks))
        left -= len(drawn)
    return given


class Plan(NamedTuple):
    """Which queries are drawn.

    Attributes:
      seed: what keys are mixed with.
      bounds: (collection, task) to the greatest mixed key that is taken; tasks that give none are absent.
      expert_bound: a drawn query is the second teacher's too if its other mixed key is at most this; -1
        if none is.
      counts: (collection, task) to how many are drawn.
    """

    seed: int
    bounds: Mapping[tuple[str, str], int]
    expert_bound: int
    counts: Mapping[tuple[str, str], int]

    def summary(self) -> dict[str, Any]:
        """Queries and tasks drawn by sub-collection, for a manifest or a card."""
        collections = sorted({collection for collection, _ in self.counts})
        counts = {name: [n for (owner, _), n in self.counts.items() if owner == name] for name in collections}
        return {name: {"queries": sum(drawn), "tasks": len(drawn)} for name, drawn in counts.items()}


@functools.cache
def _salt(seed: int, purpose: str) -> int:
    return key(f"{purpose} {seed}")


def mixed(keys: Any, seed: int, purpose: str) -> Any:
    """A key, or keys uint64 [n], in an order of their own for each seed and purpose: a bijection of 64 bits.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), after adding a hash of seed and purpose. One
    key is an int: an array of one is ten times slower.
    """
    values = (keys + _salt(seed, purpose)) & _MASK
    values = ((values ^ (values >> 30)) * _FIRST) & _MASK
    values = ((values ^ (values >> 27)) * _SECOND) & _MASK
    return values ^ (values >> 31)


def plan(indexed: Index, quotas: FlanConfig, expert: float, seed: int) -> Plan:
    """Decides which queries are drawn; see the module.

    Args:
      quotas: its `scale` shrinks all four sub-collections alike.
      expert: the share of the drawn queries that the second teacher gets.

    Raises:
      ValueError: the index is empty.
    """
    if not indexed.keys:
        raise ValueError("there are no zero-shot queries to draw from; check the files and template types")
    counts, bounds, taken, scale = {}, {}, [], quotas.scale
    for collection in COLLECTIONS:
        tasks = {pair: keys for pair, keys in indexed.keys.items() if pair[0] == collection}
        sizes = np.array([len(keys) for keys in tasks.values()], np.int64)
        if collection == "cot":
            given = np.rint(sizes * min(1.0, quotas.cot * scale)).astype(np.int64)
        elif collection == "niv2":
            most = max(1, round(quotas.niv2_per_task * scale)) if quotas.niv2_per_task else 0
            given = np.minimum(sizes, most)
        else:
            wanted = round((quotas.flan2021 if collection == "flan2021" else quotas.t0) * scale)
            given = algorithm_1(sizes, wanted, key(f"algorithm 1 {collection} {seed}"))
        for (pair, keys), count in zip(tasks.items(), given.tolist()):
            if count:
                ranks = mixed(keys, seed, "queries")
                bound = np.partition(ranks, count - 1)[count - 1]
                counts[pair], bounds[pair] = count, int(bound)
                taken.append(keys[ranks <= bound])
    drawn = mixed(np.concatenate(taken), seed, "expert") if taken else np.empty(0, np.uint64)
    experts = round(len(drawn) * expert)
    expert_bound = int(np.partition(drawn, experts - 1)[experts - 1]) if experts else -1
    return Plan(seed, bounds, expert_bound, counts)


def select(queries: Iterable[Query], drawn: Plan) -> Iterator[Query]:
    """The drawn queries of a stream, each id once, in the stream's order.

    `extra["expert"]` says whether the second teacher gets it too.
    """
    seen: set[int] = set()
    for query in queries:
        bound = drawn.bounds.get((query.collection, query.task))
        if bound is None or not is_zero_shot(query):
            continue
        identity = key(query.id)
        if identity not in seen and mixed(identity, drawn.seed, "queries") <= bound:
            seen.add(identity)
            expert = mixed(identity, drawn.seed, "expert") <= drawn.expert_bound
            yield dataclasses.replace(query, extra={**query.extra, "expert": expert})


def scatter(queries: Iterable[Query], drawn: Plan, folder: Path, *, buckets: int = BUCKETS) -> None:
    """Writes a stream's drawn queries to one file a bucket, for `gathered`, which holds one in memory."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        opened: dict[int, IO[str]] = {}
        for query in select(queries, drawn):
            bucket = mixed(key(query.id), drawn.seed, "order") * buckets >> 64
            if bucket not in opened:
                path = folder / f"{bucket:05d}.jsonl"
                opened[bucket] = stack.enter_context(path.open("w", encoding="utf-8"))
            opened[bucket].write(json.dumps(to_json(query)) + "\n")


def gathered(folder: Path, seed: int) -> Iterator[Query]:
    """The queries that `scatter` left in `folder`, one bucket in memory at a time.

    Their order is a shuffle by seed and id: the same in whatever order the files were read.
    """
    for bucket in sorted(folder.iterdir()):
        queries = list(files.read_jsonl(bucket, Query))
        yield from sorted(queries, key=lambda query: (mixed(key(query.id), seed, "order"), query.id))
