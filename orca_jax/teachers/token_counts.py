"""How many tokens a request will use: the most that it can, and what is to be expected."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from orca_jax.records import Message, Sampling, Usage
from orca_jax.teachers.completions import NO_USAGE, ParsedResponse

log = logging.getLogger(__name__)
MESSAGE_BYTES, REQUEST_BYTES = 8, 64  # most tokens that a chat template adds, to each and in all
FIRST_BYTES_A_TOKEN = 3.0  # before anything was measured; English has about four
MEMORY = 50  # requests over which averages are taken


def size(messages: Sequence[Message]) -> int:
    """Bytes of a conversation, with an allowance for what a chat template adds."""
    texts = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
    return texts + MESSAGE_BYTES * len(messages) + REQUEST_BYTES


def bound(messages: Sequence[Message], sampling: Sampling) -> Usage:
    """The most that a request can use: no tokenizer makes more tokens than there are bytes."""
    return Usage(size(messages), sampling.max_tokens)


class Expectation:
    """Learns from answers how many tokens requests use. Completions start at the most that is allowed."""

    def __init__(self) -> None:
        self._bytes_a_token = FIRST_BYTES_A_TOKEN
        self._completion = self._deviation = 0.0
        self._answers = 0
        self._warned = False

    def usage(self, messages: Sequence[Message], sampling: Sampling) -> Usage:
        """What a request is expected to use: a little more than the average, so that most need no more."""
        prompt = round(size(messages) / self._bytes_a_token)
        if not self._answers:
            return Usage(prompt, sampling.max_tokens)
        return Usage(prompt, min(sampling.max_tokens, round(self._completion + self._deviation / 2)))

    def tokens(self, text: str) -> int:
        """About how many tokens a text has."""
        return round(len(text.encode("utf-8", "surrogatepass")) / self._bytes_a_token)

    def used(self, reading: ParsedResponse, messages: Sequence[Message], sampling: Sampling) -> Usage:
        """What a request used: as the server says, else an estimate; where neither is known, the most."""
        if reading.usage_known:
            return reading.reply.usage
        if NO_USAGE in reading.reply.raw and not self._warned:
            self._warned = True
            said = reading.reply.raw[NO_USAGE]
            log.warning("the server says a request used %.200s, which cannot be: counted by its text", said)
        prompt, most = self.usage(messages, sampling).prompt_tokens, sampling.max_tokens
        if reading.fault:
            return Usage(prompt, most) if reading.maybe_paid else Usage()
        return Usage(prompt, min(most, self.tokens(reading.reply.text)))

    def learn(self, messages: Sequence[Message], usage: Usage) -> None:
        """Takes in what an answered request used."""
        self._answers += 1
        rate = 1 / min(self._answers, MEMORY)
        if usage.prompt_tokens:
            measured = size(messages) / usage.prompt_tokens
            self._bytes_a_token += rate * (measured - self._bytes_a_token)
        self._deviation += rate * (abs(usage.completion_tokens - self._completion) - self._deviation)
        self._completion += rate * (usage.completion_tokens - self._completion)
