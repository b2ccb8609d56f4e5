"""What the training program's options say of a run, which is no part of its config."""

import pytest

from orca_jax import cli
from orca_jax.experiments import train
from orca_jax.training.hosts import HostsError


@pytest.mark.parametrize(("text", "steps"), [("", None), ("3:3", (3, 3)), ("20:22", (20, 22))])
def test_steps_to_profile(text, steps):
    assert train.profiled(text) == steps


@pytest.mark.parametrize("text", ["3", "3-4", "a:b", ":4", "-1:2"])
def test_steps_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"--profile_steps=.* must be FIRST:LAST"):
        train.profiled(text)


def test_hosts_are_joined_before_anything_else(tmp_path):
    """A config is not even looked at."""
    program = cli.Program("", *cli.TRAIN)
    program.start(["--hosts=nowhere"])
    with pytest.raises(HostsError, match="hosts='nowhere' is neither"):
        train.run(None, tmp_path, program.given)


@pytest.mark.parametrize(
    ("given", "kind", "dtype", "peak"),
    [
        (0.0, "TPU v5p", "bfloat16", 459e12),
        (0.0, "TPU v5p", "float32", 0.0),
        (0.0, "cpu", "bfloat16", 0.0),
        (100.0, "TPU v5p", "bfloat16", 100e12),
    ],
)
def test_the_peak_is_the_flags_or_the_tables(given, kind, dtype, peak):
    assert train.peak_flops(given, kind, dtype) == peak
