"""The ids of all requests of a collection, in one file, so that a resume need not read the requests.

Which of two million requests lack an answer is found in seconds: `write` the file once, when the
requests are planned, ask only the `unanswered` ones, and read the answers in their order by `answers`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orca_jax.artifacts import atomic_write
from orca_jax.teachers.endpoint import ID_BYTES, Request, request_id
from orca_jax.teachers.ledger import Answer, Ledger

CHUNK = 500


def write(path: str | os.PathLike[str], identity: str, requests: Iterable[Request]) -> int:
    """Writes the ids of requests to the endpoint `identity`, in order; returns how many there are."""
    with atomic_write(path, "wb") as file:
        count = 0
        for request in requests:
            file.write(request_id(identity, request))
            count += 1
    return count


def missing(path: str | os.PathLike[str], ledger: Ledger) -> npt.NDArray[np.int64]:
    """The places, from 0 and in order, of the requests in the file that the ledger holds no answer to.

    Raises:
      ValueError: the file is no file of ids.
    """
    content = Path(path).read_bytes()
    if len(content) % ID_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes are no whole number of request ids; write it again")
    wanted, answered = _halves(content), _halves(ledger.answered())
    if not len(answered):
        return np.arange(len(wanted))
    # The ledger's ids come in order. Two that share their first half are too rare to matter: the
    # second would be asked for, and found in the ledger then.
    places = np.minimum(np.searchsorted(answered[:, 0], wanted[:, 0]), len(answered) - 1)
    return np.flatnonzero((answered[places] != wanted).any(axis=1))


def unanswered(
    path: str | os.PathLike[str], ledger: Ledger, requests: Iterable[Request]
) -> tuple[int, Iterator[Request]]:
    """How many of the file's requests have no answer, and those of `requests`, which are the file's.

    Raises:
      ValueError: the file is no file of ids.
    """
    places = missing(path, ledger)
    wanted = np.zeros(os.path.getsize(path) // ID_BYTES, dtype=bool)
    wanted[places] = True
    return len(places), itertools.compress(requests, wanted)


def answers(ids: Iterable[bytes], ledger: Ledger) -> Iterator[Answer | None]:
    """What the ledger holds for each id: the answer, else the last failure, else None."""
    ids = iter(ids)
    while some := list(itertools.islice(ids, CHUNK)):
        found = ledger.get_many(some)
        yield from (found.get(key) or ledger.failure(key) for key in some)


def read(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The ids of a file in their order."""
    with open(path, "rb") as file:
        while key := file.read(ID_BYTES):
            yield key


def _halves(ids: bytes) -> npt.NDArray[np.uint64]:
    """[ids, 2]: numbers in the order of the bytes."""
    return np.frombuffer(ids, dtype=">u8").reshape(-1, 2).astype(np.uint64)
