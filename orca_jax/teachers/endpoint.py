"""Endpoints, and the requests to them.

Teachers, judges, judged baselines and our own students are all endpoints.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from orca_jax.records import Message, Reply, Sampling


class Endpoint(Protocol):
    """Anything that chats."""

    @property
    def identity(self) -> str:
        """What answers: a model's name, or a hash of a student's checkpoint, tokenizer and layout."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers a conversation; what a server answers is an outcome, never an exception.

        `Reply.raw` holds JSON values and does not repeat the text. Where the outcome is an error,
        `raw["fault"]` may hold a `Fault`.

        Raises:
          CollectionStopped: the endpoint refuses every request.
        """


class CollectionStopped(RuntimeError):
    """No further request may be sent; the message says why and what to do.

    `reply` is what the request that met this came back with, if it was sent.
    """

    explained = True  # what an API says is not about this machine: cli.checked adds no advice

    def __init__(self, message: str, reply: Reply | None = None):
        super().__init__(message)
        self.reply = reply


class EndpointRefused(CollectionStopped):
    """A server refuses every request: the key is wrong, the model unknown or the quota exhausted."""


class Fault(enum.StrEnum):
    """Why a request got no answer."""

    RATE_LIMIT = "rate_limit"  # too many requests; sent again as often as it takes
    REFUSED = "refused"  # wrong key, unknown model, exhausted quota; sent again only elsewhere
    REQUEST = "request"  # the server never answers this request; not sent again in this run
    TOO_LONG = "too_long"  # the same, for its length
    SERVER = "server"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One question to an endpoint; `sample` tells repeated draws of the same question apart."""

    messages: tuple[Message, ...]
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    sample: int = 0

    @property
    def drawn(self) -> Sampling:
        """How it is drawn: a fixed seed must not make all samples of a question the same."""
        seed = self.sampling.seed
        return self.sampling if seed is None else dataclasses.replace(self.sampling, seed=seed + self.sample)


_quoted = json.encoder.encode_basestring_ascii
_SYSTEM = _quoted("system")


@functools.lru_cache(256)
def _hashed(identity: str, system: str | None) -> hashlib.blake2b:
    """The hash of what many requests begin with, to be copied."""
    form = f"[{_quoted(identity)}, [" + ("" if system is None else f"[{_SYSTEM}, {_quoted(system)}]")
    return hashlib.blake2b(form.encode(), digest_size=16)


@functools.lru_cache(1024)
def _drawn_as(sampling: Sampling, sample: int) -> str:
    drawn = [float(sampling.temperature), float(sampling.top_p), sampling.max_tokens, sampling.stop]
    form = [*drawn, sampling.seed, sample, *([sampling.top_logprobs] if sampling.top_logprobs else [])]
    return json.dumps(form)[1:]


def request_id(identity: str, request: Request) -> bytes:
    """The ledger's key of a request to the endpoint called `identity`: 16 bytes.

    Every ledger depends on this form, the JSON of identity, messages and sampling. A field added to
    `Sampling` must enter it, and only where it differs from its default, so that older ids stand.
    """
    system, messages = None, request.messages
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    rest = "".join([f", [{_quoted(one.role)}, {_quoted(one.content)}]" for one in messages])
    rest = rest if system is not None else rest[2:]
    hashed = _hashed(identity, system).copy()
    hashed.update(f"{rest}], {_drawn_as(request.sampling, request.sample)}".encode())
    return hashed.digest()
