"""Texts that come twice: exactly, found by hash, or nearly, found by MinHash (extra `dedup`)."""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

from orca_jax.queries.contamination import tokens

SHINGLE = 5  # words
PERMUTATIONS = 128


class Exact:
    """Remembers 64 bits of each entry."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def seen(self, *texts: str) -> bool:
        """Whether just these texts were given before; white space at their ends does not count."""
        joined = "\x00".join(text.strip() for text in texts).encode("utf-8", "surrogatepass")
        identity = int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big")
        known = identity in self._seen
        self._seen.add(identity)
        return known


class Near:
    """MinHash with locality-sensitive hashing (Broder, 1997) over runs of five words, as datasketch has it.

    Case and punctuation do not count. Every text that is no near duplicate is kept in memory as a sketch.

    Args:
      similarity: the estimated Jaccard similarity from which two texts are near duplicates.

    Raises:
      ValueError: datasketch is not installed.
    """

    def __init__(self, similarity: float):
        try:
            self._library: Any = importlib.import_module("datasketch")
        except ImportError as error:
            raise ValueError(
                "near duplicates need datasketch: pip install 'orca_jax[dedup]', or look for none"
            ) from error
        self._similarity, self._sketches = similarity, list[Any]()
        self._index = self._library.MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)

    def seen(self, text: str) -> bool:
        """Whether a text given before, and no near duplicate itself, is at least so similar."""
        words = tokens(text)
        runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        sketch = self._library.MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in runs])
        near = (self._sketches[place] for place in self._index.query(sketch))
        if any(sketch.jaccard(other) >= self._similarity for other in near):
            return True
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return False
