"""What a ledger holds for one request, for tests."""

from orca_jax.records import Outcome
from orca_jax.teachers.ledger import IN_FLIGHT, Attempt, _reply, _request


def tried(ledger, key):
    """All that was tried for one request and came back, in the order in which it was sent."""
    rows = ledger._rows(
        "SELECT endpoint, latency, sampling, sample, messages, outcome, text, prompt_tokens, "
        "completion_tokens, raw, finished FROM attempts WHERE key = ? AND outcome != ? ORDER BY id",
        key,
        IN_FLIGHT,
    )
    return [
        Attempt(identity, _request(*rest[:3]), _reply(*rest[3:]), latency / 1000, finished / 1000)
        for identity, latency, *rest, finished in rows
    ]


def answer(ledger, key):
    """The stored answer to the request with this id."""
    found = ledger.get_many([key]).get(key)
    return found if found and found.reply.outcome is not Outcome.ERROR else None
