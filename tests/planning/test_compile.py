"""What is said where a step cannot be compiled; tests/proofs/test_plan.py compiles."""

import importlib.util

import pytest

from orca_jax.planning import chips, compile
from orca_jax.planning.estimate import MeshShape
from tests.planning.workloads import small

TOO_LARGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 26.91G of 15.48G hbm. Exceeded hbm capacity by 11.43G.

Total hbm usage >= 27.43G:
"""

TEMPORARIES = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory \
required for HLO temporaries (23.40G) exceeds available HBM (15.75G). HLO module: jit_update.
"""


@pytest.mark.parametrize(("name", "extra"), [("v5p:2x4x4", "tpu"), ("h100-32", "gpu-plan")])
def test_a_missing_compiler_is_named_with_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(compile.PlanError, match=rf"pip install -e '\.\[{extra}\]', or add --analytic"):
        compile.compile_step(small(rows=32), MeshShape(1, 32, 1), chips.topology(name), state_bytes=0)


def test_rows_are_checked_before_anything_is_compiled():
    with pytest.raises(ValueError, match="does not divide"):
        compile.compile_step(small(rows=3), MeshShape(1, 32, 1), chips.topology("v5p:2x4x4"), state_bytes=0)


def test_the_compilers_refusal_is_read():
    found = compile.too_large(TOO_LARGE, 7, 1.0)
    assert (found.fits, found.total) == (False, int(26.91 * 2**30))
    beside = compile.too_large(TEMPORARIES, 7, 1.0)
    assert (beside.fits, beside.total) == (False, int(23.40 * 2**30) + 7)


def test_another_refusal_is_passed_on():
    with pytest.raises(compile.PlanError, match="does not compile: INTERNAL: something else"):
        compile.too_large("INTERNAL: something else\nmore", 7, 1.0)
