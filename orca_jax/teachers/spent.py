"""What a model was paid so far, from the ledger and the states of its batches."""

from __future__ import annotations

from pathlib import Path

from orca_jax.config import ApiConfig
from orca_jax.records import Usage
from orca_jax.teachers.budget import Budget
from orca_jax.teachers.estimate import BATCH_PRICE
from orca_jax.teachers.ledger import Status


def count(budget: Budget, api: ApiConfig, status: Status, batches: Path) -> Budget:
    """Counts in `budget` what was used before; returns it.

    Requests whose program was killed count as much as they could have used; those in open batches do not
    count: they are reserved when the batches are taken up again. `batches` is the folder of the batches.
    """
    batched, waiting = _batches(batches)
    budget.spend(_less(status.usage, batched), api.price)
    budget.spend(batched, api.price.times(BATCH_PRICE))
    budget.spend(_less(status.in_flight_usage, waiting), api.price)
    return budget


def _batches(folder: Path) -> tuple[Usage, Usage]:
    """What the results of batches used, and the most that those under way can."""
    if not folder.exists():
        return Usage(), Usage()
    from orca_jax.teachers.batch import read_state  # brings the client with it

    found = read_state(folder)
    used = sum((batch.used for batch in found if batch.collected), Usage())
    return used, sum((batch.file.bound for batch in found if batch.is_open), Usage())


def _less(whole: Usage, part: Usage) -> Usage:
    return Usage(
        max(0, whole.prompt_tokens - part.prompt_tokens),
        max(0, whole.completion_tokens - part.completion_tokens),
    )
