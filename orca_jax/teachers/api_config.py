"""What a config says of a teacher behind an API: addresses, limits, sampling, prices and caps.

Knows no client, so that reading a config imports none. Keys are named, never held.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from orca_jax.records import Sampling
from orca_jax.scrubbing import guard
from orca_jax.teachers.budget import Price
from orca_jax.teachers.limiter import Limits

OPENAI = "https://api.openai.com/v1"
LENGTHS = ("chatgpt", "gpt-4")
# What replies depend on, besides the queries, `name` and `max_tokens`.
DRAWN = ("temperature", "top_p", "stop", "top_logprobs", "samples")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointError(ValueError):
    """The endpoint's settings cannot work; the message names the setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """One endpoint.

    Attributes:
      model: what the server calls the model; on Azure the deployment's name.
      base_url: up to and with `/v1`; on Azure `https://NAME.openai.azure.com`.
      api_version: Azure's, for example `2024-06-01`; empty for all others.
      key_variable: the environment variable that holds the key; empty for a server without keys.
      limits: of requests and tokens a minute, as far as they are known.
      timeout: seconds for one request, to the last byte of its answer.
      limit_name: `max_completion_tokens` for models that do not know `max_tokens`.
      parameters: more of the request's JSON; None removes what would be sent.
      largest: bytes of an answer beyond which it is not read.
    """

    model: str
    base_url: str = OPENAI
    api_version: str = ""
    key_variable: str = "OPENAI_API_KEY"
    limits: Limits = dataclasses.field(default_factory=Limits)
    timeout: float = 600.0
    limit_name: str = "max_tokens"
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
    largest: int = 8 * 2**20

    def __post_init__(self) -> None:
        if not self.model:
            raise EndpointError("an endpoint needs a model (on Azure the deployment's name)")
        if self.key_variable and not _NAME.fullmatch(self.key_variable):
            # The text itself may be a key, so it is not shown.
            raise EndpointError(
                f"key_variable of {self.model!r} is no variable's name; put the key into the environment, "
                "and the variable's name, for example OPENAI_API_KEY, here"
            )
        _check_url(self.base_url, bool(self.key_variable))
        if self.timeout <= 0 or self.largest <= 0:
            raise EndpointError(f"{self.model!r}: timeout and largest must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """A model behind an API: who answers, how replies are drawn, and what that may cost.

    Attributes:
      endpoints: addresses, deployments and keys of the one model; they share the work.
      identity: the model's name in the ledger; empty: the first endpoint's `model`. Give one where endpoints
        call the model differently, or where `parameters` make it answer otherwise.
      temperature, top_p, stop: of a reply (the paper drew its replies at 0.7 and 0.95).
      top_logprobs: alternatives a token whose log-probabilities are kept with the trace; 0: none.
      samples: replies a query.
      price: US dollars a thousand tokens.
      budget_money, budget_tokens: the most that this model may use, in US dollars and in tokens, all that
        the ledger counts for it together; 0: no cap.
      concurrency: requests in flight.
      retries: how often a failed request is asked again.
      batch: through the Batch API of the one endpoint, at half the price.
      batch_requests: requests a file; the budget must hold the most that a whole file can cost.
      batch_tokens: prompt tokens that its queue of batches takes, for the estimate; 0: not known.
      lengths: the paper's teacher (chatgpt or gpt-4) whose reply lengths the estimate takes.
      ledger: a ledger that several workdirs share; empty: the workdir's own.
    """

    endpoints: tuple[OpenAIConfig, ...]
    identity: str = ""
    temperature: float = 0.7
    top_p: float = 0.95
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    samples: int = 1
    price: Price = dataclasses.field(default_factory=Price)
    budget_money: float = 0.0
    budget_tokens: int = 0
    concurrency: int = 64
    retries: int = 6
    batch: bool = False
    batch_requests: int = 50_000
    batch_tokens: int = 0
    lengths: str = "chatgpt"
    ledger: str = ""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise EndpointError("api.endpoints is empty; a teacher behind an API needs one at least")
        if self.batch and len(self.endpoints) > 1:
            raise EndpointError("api.batch goes to one endpoint; leave one in api.endpoints")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and 0 <= self.top_logprobs <= 20):
            raise EndpointError("api.temperature must be 0 or more, top_p in (0, 1], top_logprobs in 0 to 20")
        if min(self.samples, self.concurrency, self.batch_requests) < 1 or self.retries < 0:
            raise EndpointError(
                "api.samples, concurrency and batch_requests must be at least 1, retries 0 or more"
            )
        if not (self.budget_money >= 0 and self.budget_tokens >= 0):
            raise EndpointError("api.budget_money and budget_tokens must be 0 or more; 0 is no cap")
        if self.lengths not in LENGTHS:
            raise EndpointError(f"api.lengths={self.lengths!r}; known: {', '.join(LENGTHS)}")

    @property
    def name(self) -> str:
        """What answers, as the ledger calls it."""
        return self.identity or self.endpoints[0].model

    @property
    def limits(self) -> Limits:
        """Of all endpoints together, a minute; 0 where one of them is not known."""
        every = [one.limits for one in self.endpoints]
        return Limits.together([one.requests for one in every], [one.tokens for one in every])

    def sampling(self, max_tokens: int) -> Sampling:
        """How a reply of at most so many tokens is drawn."""
        return Sampling(
            self.temperature, self.top_p, max_tokens, tuple(self.stop), top_logprobs=self.top_logprobs
        )


def read_key(model: str, variable: str) -> str:
    """The key that the environment holds, without white space around it; made known to `scrubbing`.

    Raises:
      EndpointError: there is none, or its value is no key; names the variable and never shows the value.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(
            f"{model!r}: the environment variable {variable} is not set; put the "
            "key into it, or set key_variable to '' for a server that needs none"
        )
    if wrong := re.search(r"[^\x21-\x7e]", key):
        at = wrong.start() + 1
        kind = "a character outside ASCII" if wrong[0] > "\x7f" else "a control character"
        if wrong[0].isspace():
            kind = "a line end" if wrong[0].splitlines() == [""] else "a space"
        raise EndpointError(
            f"{model!r}: the environment variable {variable} holds {kind} inside (character {at} of "
            f"{len(key)}), which no key holds; put one key, on one line, into it (its value is not shown)"
        )
    guard(key)
    return key


def _check_url(url: str, with_key: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError("base_url must be http://HOST... or https://HOST...")
    if parts.username or parts.password or parts.query:
        raise EndpointError(
            f"base_url of host {parts.hostname} holds a user, password or query; leave only the address"
        )
    if with_key and parts.scheme == "http" and not _is_local(parts.hostname):
        raise EndpointError(
            f"base_url of host {parts.hostname} is not https, and a key would go over the network "
            "readable; use https, a tunnel to localhost, or key_variable '' if the server needs no key"
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
