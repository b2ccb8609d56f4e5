"""Thin programs, one an arrow of the pipeline; `experiments.run` is all of them in a row."""

import importlib.metadata
import sys

PYTHON, JAX = (3, 11), ((0, 10), (0, 12))  # as setup.py has it: from, and below


def unsupported() -> str:
    """What this environment lacks, and what to do; empty: nothing."""
    if sys.version_info < PYTHON:
        return f"Python 3.11 or newer is needed, and {sys.executable} is {sys.version.split()[0]}"
    try:
        jax = importlib.metadata.version("jax")
    except importlib.metadata.PackageNotFoundError:
        return f"{sys.executable} has no jax; start the Python of your environment, or pip install -e . there"
    if not JAX[0] <= tuple(map(int, jax.split(".")[:2])) < JAX[1]:
        return f"jax {jax} is not supported; pip install 'jax>=0.10,<0.12'"
    return ""


if _lacking := unsupported():
    sys.exit(f"error: {_lacking}")
