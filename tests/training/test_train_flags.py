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


def given(*arguments):
    """The options of cli.TRAIN on a command line."""
    program = cli.Program("", *cli.TRAIN)
    program.start(arguments)
    return train.run_options(program.given)


def test_without_options_nothing_is_watched():
    assert given() == train.RunOptions() == train.RunOptions("", 0.0, None)


def test_options_are_read():
    options = given("--hosts=auto", "--peak_tflops=989", "--profile_steps=2:3")
    assert options == train.RunOptions("auto", 989.0, (2, 3))


def test_hosts_are_joined_before_anything_else(tmp_path):
    """A config is not even looked at."""
    with pytest.raises(HostsError, match="hosts='nowhere' is neither"):
        train.run(None, tmp_path, train.RunOptions(hosts="nowhere"))


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
    assert train.peak_flops(train.RunOptions(peak_tflops=given), kind, dtype) == peak
