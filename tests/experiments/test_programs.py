"""What the programs say on the command line of what a user can mend: one message, no traceback, status 1."""

import importlib
import os
import subprocess
import sys

import pytest

from tests import forks

MINI = "{repo}/configs/mini.py:runlocal"
WORKDIR = "--workdir={tmp}/w"
# name: (arguments, what the message says)
CASES = {
    "unknown key with no neighbour": ((MINI, WORKDIR, "--config.optimizer.zzz=4"), ("optimizer.zzz",)),
    "ill-typed key": ((MINI, WORKDIR, "--config.seed=one"), ("'seed' must be int", "'one'")),
    "unknown argument": (("{repo}/configs/mini.py:runlocl", WORKDIR), ("runlocl", "runlocal")),
    "unknown key in the file": (("{tmp}/own.py", WORKDIR), ("'student.hiden_size'", "'hidden_size'")),
    "unknown key of an entry of a list": (
        (MINI, WORKDIR, "--config.curriculum[0].lr=1"),
        ("'curriculum[0].lr'", "learning_rate", "warmup_steps"),
    ),
    "entry that a list does not have": (
        (MINI, WORKDIR, "--config.curriculum[9].steps=1"),
        ("'curriculum' has 2 entries", "no [9]"),
    ),
    "key of a number": ((MINI, WORKDIR, "--config.data.row_length.x=1"), ("'data.row_length' is", "no 'x'")),
    "missing sections": (
        ("{tmp}/empty.py", WORKDIR),
        ("'puzzles', 'teachers', 'data', 'student', 'curriculum'", "are missing"),
    ),
    "no workdir": ((MINI,), ("--workdir",)),
    "unknown flag": ((MINI, WORKDIR, "--wrkdir=x"), ("wrkdir", "workdir")),
    "a word too many": ((MINI, WORKDIR, "again"), ("'again'", "--")),
}
OWN = """
from orca_jax.configs.mini import get_config as mini


def get_config():
    config = mini("runlocal")
    config.student.hiden_size = 4
    return config
"""
EMPTY = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({"name": "empty"})
"""
FORMER = {"student", "checkpoint", "source", "judge", "prompt_layout", "output", "replies"}
# program: options that its help names
HELPS = {
    "run": ("--config", "--workdir", "--hosts"),
    "collect": ("plan", "--config"),
    "collect export": ("--schema", "--kept"),
    "prepare": ("--workers",),
    "train": ("--profile_steps",),
    "evaluate": ("score", "--model"),
    "evaluate score": ("--input",),
    "evaluate compare": ("--names",),
    "tables": ("paper", "--workdir"),
    "tables paper": ("--runs",),
    "ablate": ("--arms", "--seeds"),
    "report": ("--out",),
    "plan": ("--topology", "evaluate"),
    "plan evaluate": ("--asked",),
    "convert": ("import", "adapter", "push"),
    "convert export": ("--model", "--dtype"),
    "convert push": ("--to", "--public", "HF_TOKEN"),
    "generate": ("chat",),
    "generate batch": ("--model", "--top_p"),
    "inspect": ("--find",),
    "serve": ("--model", "--max_queue"),
}


@pytest.mark.parametrize("program", HELPS)
def test_help_names_the_options_and_needs_no_jax(repo, program):
    name, *words = program.split()
    command = [sys.executable, "-X", "importtime", "-m", f"orca_jax.experiments.{name}", *words, "--help"]
    wide = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, env=wide)
    assert done.returncode == 0, done.stderr
    for option in HELPS[program]:
        assert option in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "flax", "scipy", "orbax", "starlette"}
    assert len(done.stdout.splitlines()) <= 40
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_an_option_has_one_name_and_one_type_in_all_programs():
    pytest.importorskip("fastapi")  # which experiments.serve needs
    types = {}
    for name in {program.partition(" ")[0] for program in HELPS}:
        program = importlib.import_module(f"orca_jax.experiments.{name}").PROGRAM
        for option in (option for command in program.commands.values() for option in command.options):
            assert option.name not in FORMER, f"{name} --{option.name}"
            default = option.default
            types.setdefault(option.name, set()).add(default if isinstance(default, type) else type(default))
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


@pytest.fixture(scope="module")
def said(repo, tmp_path_factory):
    """The status of `experiments.run` in every case, and what it says."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "own.py").write_text(OWN)
    (folder / "empty.py").write_text(EMPTY)
    cases = {}
    for name, (arguments, _) in CASES.items():
        config, *rest = (argument.format(tmp=folder, repo=repo) for argument in arguments)
        cases[name] = ("run", [f"--config={config}", *rest], "")
    return forks.mains(cases, folder)


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m orca_jax.experiments.inspect --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_errors_of_the_user(said, name):
    status, text = said[name]
    assert status == 1, text
    assert "Traceback" not in text
    for word in CASES[name][1]:
        assert word in text
