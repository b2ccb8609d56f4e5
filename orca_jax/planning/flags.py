"""Compiler flags that others publish for training, by platform: the rows of `flags.csv`, with their sources.

Launch scripts set them in the environment (`python -m orca_jax.planning.flags gpu` prints the lines), where
manifests record them. What the environment has already comes last, and so takes precedence.
"""

from __future__ import annotations

import csv
import importlib.resources
import os
import shlex
import sys
from collections.abc import Mapping

MEMORY = "XLA_CLIENT_MEM_FRACTION"


def rows() -> list[dict[str, str]]:
    """The table: platform, variable ("" where the flag is a variable itself), flag, value and source."""
    text = importlib.resources.files("orca_jax.planning").joinpath("flags.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def memory_fraction() -> float:
    """The share of a GPU's memory that launch scripts let XLA take."""
    return next(float(row["value"]) for row in rows() if row["flag"] == MEMORY)


def environment(platform: str, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to set for `tpu` or `gpu`, with what is given already at the end.

    Raises:
      ValueError: the platform is neither.
    """
    chosen = [row for row in rows() if row["platform"] == platform]
    if not chosen:
        raise ValueError(f"{platform!r} is no platform with flags; write tpu or gpu")
    found: dict[str, str] = {}
    for row in chosen:
        flag, variable = row["flag"], row["variable"]
        if variable:
            found[variable] = f"{found.get(variable, '')} --{flag}={row['value']}".strip()
        else:
            found[flag] = given.get(flag, row["value"])
    listed = {row["variable"] for row in chosen if row["variable"]}
    return found | {name: f"{found[name]} {given.get(name, '')}".strip() for name in listed}


if __name__ == "__main__":
    for name, value in environment("".join(sys.argv[1:])).items():
        print(f"export {name}={shlex.quote(value)}")
