"""What can be asked, and what one request is.

Teachers, judges, judged baselines and our own students are all endpoints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from orca_jax.records import Message, Reply, Sampling

ID_BYTES = 16


class Endpoint(Protocol):
    """Anything that chats."""

    @property
    def identity(self) -> str:
        """What answers: a model's name, or a hash of a student's checkpoint, tokenizer and layout."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers a conversation; what a server answers is an outcome, never an exception.

        `Reply.raw` holds JSON values and does not repeat the text.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One question to an endpoint; `sample` tells repeated draws of the same question apart."""

    messages: tuple[Message, ...]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    sample: int = 0


def request_id(identity: str, request: Request) -> bytes:
    """The ledger's key of a request to the endpoint called `identity`, `ID_BYTES` long.

    Every ledger depends on this form. A field added to `Sampling` must enter it, and only where it
    differs from its default, so that the ids of older requests stand.
    """
    sampling = request.sampling
    form = (
        identity,
        [(message.role, message.content) for message in request.messages],
        float(sampling.temperature),
        float(sampling.top_p),
        sampling.max_tokens,
        sampling.stop,
        sampling.seed,
        request.sample,
    )
    return hashlib.blake2b(json.dumps(form).encode(), digest_size=ID_BYTES).digest()
