"""Every attempt of one request in a ledger, for tests."""

from orca_jax.teachers.ledger import IN_FLIGHT, PLANNED, Attempt, _reply, _request


def tried(ledger, key):
    """All that was tried for one request and came back, in the order in which it was sent."""
    rows = ledger._rows(
        "SELECT endpoint, latency, sampling, sample, messages, outcome, text, prompt_tokens, "
        "completion_tokens, raw, finished FROM attempts WHERE key = ? AND outcome NOT IN (?, ?) ORDER BY id",
        key,
        PLANNED,
        IN_FLIGHT,
    )
    return [
        Attempt(identity, _request(*rest[:3]), _reply(*rest[3:]), latency / 1000, finished / 1000)
        for identity, latency, *rest, finished in rows
    ]
