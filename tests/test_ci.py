"""`.ci/run` runs README's commands, and then what they skipped."""

import os
import re
import subprocess
import sys

TESTS = """
import pytest

@pytest.mark.parametrize("module", ["json", "not_there"])
def test_with_an_extra(module):
    pytest.importorskip(module)

@pytest.mark.skip(reason="needs thing: install the extra `thing`")
def test_that_names_its_extra():
    pass

@pytest.mark.skip(reason="real data absent")
def test_without_data():
    pass
"""
WHOLE_FILE = "import pytest\npytest.importorskip('not_there')\n\ndef test_one():\n    pass\n"


def test_ci_runs_the_readmes_command_unchanged_in_a_new_environment(repo):
    readme = re.search(
        r"## The whole road in minutes.*?```\n(.*?)```", (repo / "README.md").read_text(), re.S
    )[1]
    commands = [line.partition("#")[0].strip() for line in readme.splitlines()]
    assert commands == ["make mini", "make test", "make student", "make findings"]
    script = (repo / ".ci/run").read_text().splitlines()
    made = [line for line in script if re.search(r"\bmake\b|\.venv", line) and not line.startswith("#")]
    assert made[:2] == ["rm -rf .venv", "make test"]
    options = [line for line in script if "PYTEST_ADDOPTS" in line]
    assert options == [
        "export PYTEST_ADDOPTS=--note-skipped=.cache/skipped-for-extras.txt",
        "unset PYTEST_ADDOPTS",
    ]


def test_what_is_skipped_for_want_of_an_extra_is_noted_and_run_alone(repo, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text(WHOLE_FILE)
    noted = tmp_path / "noted/skipped.txt"

    def run(option, *more):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--rootdir={tmp_path}"]
        command += ["--confcutdir=/", f"{option}={noted}", *more, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(repo), "PYTEST_ADDOPTS": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]

    assert "1 passed, 4 skipped" in run("--note-skipped", "-n", "2")
    assert noted.read_text().splitlines() == [
        "test_some.py::test_that_names_its_extra",
        "test_some.py::test_with_an_extra[not_there]",
        "test_whole.py",
    ]
    (tmp_path / "not_there.py").touch()
    assert "2 passed, 1 skipped, 2 deselected" in run("--only-noted")
