"""What the programs say on the command line of what a user can mend: one message, no traceback, status 1."""

import os
import subprocess
import sys

import pytest

from experiments import launch
from orca_jax.artifacts import ArtifactError

MINI = "configs/mini.py:runlocal"
# name: (arguments, what the message says)
CASES = {
    "unknown key": ((f"--config={MINI}", "--config.train.batch_row=4"), ("train.batch_row", "batch_rows")),
    "unknown key without a neighbour": ((f"--config={MINI}", "--config.optimizer.zzz=4"), ("optimizer.zzz",)),
    "ill-typed key": ((f"--config={MINI}", "--config.seed=one"), ("config.seed", "'one'")),
    "unknown variant": (("--config=configs/mini.py:variant=huge",), ("variant=huge", "default|full")),
    "unknown argument": (("--config=configs/mini.py:runlocl",), ("runlocl", "runlocal")),
    "unknown key in the file": (("--config={tmp}/own.py",), ("'student.hiden_size'", "'hidden_size'")),
    "missing config file": (("--config=configs/none.py",), ("configs/none.py",)),
    "missing trace file": (("--config=configs/openorca.py:runlocal",), ("gpt4.jsonl",)),
    "no workdir": ((f"--config={MINI}", "--workdir="), ("workdir",)),
}
OWN = """
from configs.mini import get_config as mini


def get_config():
    config = mini("runlocal")
    config.student.hiden_size = 4
    return config
"""


@pytest.fixture(scope="module")
def said(repo, tmp_path_factory):
    """What `experiments.run` says in every case, and its status; all are started at once."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "own.py").write_text(OWN)
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    started = {}
    for name, (arguments, _) in CASES.items():
        given = [argument.format(tmp=folder) for argument in arguments]
        command = [sys.executable, "-m", "experiments.run", f"--workdir={folder / 'w'}", *given]
        started[name] = subprocess.Popen(command, cwd=repo, env=environment, stderr=subprocess.PIPE, text=True)
    return {name: (process.communicate()[1], process.returncode) for name, process in started.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_errors_of_the_user(said, name):
    text, status = said[name]
    assert status == 1, text
    assert "Traceback" not in text
    for word in CASES[name][1]:
        assert word in text


def test_an_error_to_mend_ends_with_its_message_and_status_1(capsys):
    def fail():
        raise ArtifactError("that directory is another's")

    with pytest.raises(SystemExit) as left:
        launch.checked(fail)
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: that directory is another's\n"
    with pytest.raises(ArtifactError):
        launch.checked(fail, traceback=True)


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        launch.checked(lambda: 1 / 0)


def test_ctrl_c_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        launch.checked(interrupted)
    assert left.value.code == 130
    assert "run the same command again" in capsys.readouterr().err
