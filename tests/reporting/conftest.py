"""Less drawing where the figures of a bootstrap do not matter."""

import functools

import pytest

from orca_jax.evaluation import statistics


@pytest.fixture(autouse=True)
def few_draws(request, monkeypatch):
    """The paired bootstrap draws 400 times, in golden files as often as users see it."""
    if request.module.__name__.rpartition(".")[2] != "test_golden":
        few = functools.partial(statistics.paired_bootstrap, resamples=400)
        monkeypatch.setattr(statistics, "paired_bootstrap", few)
