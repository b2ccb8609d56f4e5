"""The estimate beside published runs."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import scale
from orca_jax.planning import chips

PAGE = Path(__file__).parents[2] / "docs/scale.md"


@pytest.mark.parametrize("run", scale.RUNS, ids=lambda run: run.topology)
def test_a_run_is_stated_whole(run):
    assert math.prod(run.mesh) == chips.topology(run.topology).chips
    assert run.source.startswith("https://")
    billions = float(re.search(r"([\d.]+)B,", run.name)[1])
    assert run.workload.student.parameter_count == pytest.approx(billions * 1e9, rel=0.05)


@pytest.mark.parametrize("run", scale.RUNS, ids=lambda run: run.topology)
def test_the_estimate_is_near(run):
    """Within 15 points of utilisation; the page states each error."""
    assert abs(scale.estimated(run) - run.mfu) < 0.15


def test_what_is_compiled_is_kept(tmp_path):
    """A row of the file is taken as it is; without a compiler nothing is added to it."""
    kept = {"file": "orca_7b", "slice": "v5e-64", "fits": True, "chips": 64}
    (tmp_path / "rows").write_text(json.dumps(kept) + "\n")
    assert scale.planned("orca_7b", "v5e-64", tmp_path / "rows") == kept


def test_the_page_states_the_errors_of_today():
    assert scale.published_table() in PAGE.read_text(encoding="utf-8")
