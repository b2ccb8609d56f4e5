"""Importing 1.1B parameters takes little more memory than they do."""

import pytest

pytest.importorskip("torch")

from benchmarks import parity

pytestmark = pytest.mark.proof


def test_peak_less_parameters_is_the_largest_tensor_and_a_gibibyte(tmp_path):
    parity.write_sized(tmp_path)
    ours = parity.measure("ours", tmp_path)
    assert ours["live"] > 4e9
    assert ours["peak"] - ours["live"] <= ours["largest"] + 2**30, ours
