"""`experiments.plan` by estimate; compiling is in tests/proofs/test_plan.py."""

import json
import subprocess
import sys

import pytest

from orca_jax.experiments import plan


def program(*arguments):
    command = [sys.executable, "-m", "experiments.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_examples_stand_beside_the_papers():
    assert plan.examples_of(["gpt4=7", "mine=9"]) == {"chatgpt": 5_090_000, "gpt4": 7, "mine": 9}
    with pytest.raises(ValueError, match="'gpt4' is not NAME=COUNT"):
        plan.examples_of(["gpt4"])


def test_the_program_prints_one_line_of_json():
    done = program(
        "--config=configs/orca_13b.py", "--topology=h100-16", "--analytic", "--json", "--batch_rows=64",
        "--config.train.accumulation=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    values = json.loads(line)
    assert (values["chips"], values["batch_rows"], values["accumulation"]) == (16, 64, 2)
    assert values["compiled"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9-8"], "a chip of v4"),
        (["--topology=h100-8", "--analytic", "--prices=none.csv"], "none.csv"),
    ],
)
def test_errors_are_one_line(arguments, words):
    done = program("--config=configs/orca_7b.py", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.rindex("error: ") :]
    assert words in message
    assert len(message.splitlines()) <= 2  # what was wrong, and what to do
