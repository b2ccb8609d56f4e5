"""The ids of all requests of a collection, in one file, so that a resume need not read the requests.

Which of two million requests lack an answer is found in seconds: `write` the file once, when the
requests are planned, and ask only those whose places `missing` returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orca_jax.artifacts import atomic_write
from orca_jax.asking.endpoint import ID_BYTES, Request, request_id
from orca_jax.asking.ledger import Ledger


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


def _halves(ids: bytes) -> npt.NDArray[np.uint64]:
    """[ids, 2]: numbers in the order of the bytes."""
    return np.frombuffer(ids, dtype=">u8").reshape(-1, 2).astype(np.uint64)
