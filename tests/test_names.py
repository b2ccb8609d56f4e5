"""The names of `orca_jax` itself, which docs/python.md shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import orca_jax

PAGE = Path(__file__).parents[1] / "docs/python.md"


@pytest.mark.parametrize("name", orca_jax.NAMES)
def test_a_name_is_there_and_on_its_page(name):
    assert getattr(orca_jax, name).__doc__
    assert name in dir(orca_jax)
    assert re.search(rf"\b{name}\b", PAGE.read_text(encoding="utf-8"))


def test_other_names_are_not():
    assert not hasattr(orca_jax, "load")


def test_an_import_loads_nothing():
    code = (
        "import sys, orca_jax; print(sorted({'jax', 'flax', 'numpy', 'pandas', 'absl'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
