"""Published flags, as launch scripts set them."""

import os
import shlex
import subprocess
import sys

import pytest

from orca_jax.planning import flags


def test_every_flag_has_a_source_and_is_named_once():
    rows = flags.rows()
    assert all(row["source"] and row["platform"] in ("tpu", "gpu") for row in rows)
    assert len({(row["platform"], row["flag"]) for row in rows}) == len(rows)


def test_what_the_environment_has_comes_last_and_takes_precedence():
    given = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", flags.MEMORY: "0.8"}
    found = flags.environment("gpu", given)
    assert found["XLA_FLAGS"].startswith("--xla_gpu_enable_latency_hiding_scheduler=true ")
    assert found["XLA_FLAGS"].endswith(given["XLA_FLAGS"])
    assert found[flags.MEMORY] == "0.8"
    assert flags.environment("gpu", {})[flags.MEMORY] == "0.9" == str(flags.memory_fraction())


def test_the_lines_are_a_shells():
    lines = f'eval "$({shlex.quote(sys.executable)} -m orca_jax.planning.flags tpu)"'
    given = {"LIBTPU_INIT_ARGS": "--mine=1"}
    command = ["bash", "-c", f"{lines} && printenv LIBTPU_INIT_ARGS"]
    printed = subprocess.check_output(command, env=os.environ | given, text=True, timeout=60)
    assert printed.strip() == flags.environment("tpu", given)["LIBTPU_INIT_ARGS"]


def test_another_platform_is_refused():
    with pytest.raises(ValueError, match="write tpu or gpu"):
        flags.environment("cpu")


@pytest.mark.parametrize("flag", ["", " --xla_gpu_none_such=1"])
def test_xla_knows_the_flags_for_gpus(flag):
    """It ends the process at one that it does not know, on any platform."""
    given = flags.environment("gpu", {})["XLA_FLAGS"] + flag
    variables = os.environ | {"XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (not flag), done.stderr
