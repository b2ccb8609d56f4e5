"""A run's tables are of what is finished; what is not says what to run."""

import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.experiments import tables


def test_a_workdir_that_only_evaluated_has_its_tables(mini, copied):
    text = tables.run(mini(), copied("training"))
    assert "Mean of" in text
    assert "Held-out traces" not in text


def test_what_is_not_evaluated_says_what_to_run(mini, copied):
    workdir = copied("evaluation/puzzles-message-7")
    with pytest.raises(
        ArtifactError, match=r"finished beside it: puzzles-message-1.*experiments\.evaluate run"
    ):
        tables.run(mini(), workdir)
