"""What a new user meets in the first hour: rows of their own, keys on the command line, help, messages."""

import json
import subprocess
import sys

import pytest

from orca_jax import cli, conversations
from orca_jax.artifacts import differences
from orca_jax.config import load
from orca_jax.configs import openorca
from orca_jax.records import RecordError


def said(row):
    return [message.content for message in conversations.read(row).messages]


def test_a_prompt_and_its_response_are_a_conversation_where_no_other_pair_is():
    assert said({"prompt": "Q", "response": "A", "system": "S"}) == ["S", "Q", "A"]
    other = {"system_prompt": "", "question": "Q", "response": "A", "prompt": "rendered"}
    assert said(other) == ["Q", "A"]
    assert said({"prompt": "Q", "completion": "A", "response": "raw"}) == ["Q", "A"]


def test_an_error_of_rows_has_their_columns_and_once_what_to_do(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"query": "Q", "output": "A"}) + "\n" + json.dumps({"output": "A"}) + "\n")
    with pytest.raises(RecordError) as error:
        list(conversations.read_traces(path))
    text = str(error.value)
    assert "own.jsonl:1: column 'instruction' is missing, among query, output; accepted: " in text
    assert text.endswith("own.jsonl:2: column 'instruction' is missing, among output")
    assert text.count("--config.teachers[0].columns.answer=COLUMN") == 1


def loaded(*keys):
    program = cli.Program("Does one thing.", cli.CONFIG)
    program.start(["--config=openorca:data=rows.jsonl", *(f"--config.{key}" for key in keys)])
    return program.given.config


def test_the_columns_that_the_error_names_can_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = loaded("teachers[0].columns.question=query", "teachers[0].columns.answer=output")
    assert (config.teachers[0].columns.question, config.teachers[0].columns.answer) == ("query", "output")
    with pytest.raises(SystemExit):
        loaded("teachers[0].columns.answer=output", "teachers[0].columns.score.x=1")
    assert "'teachers[0].columns.score' must be str" in capsys.readouterr().err


def test_a_released_student_is_tuned_in_a_laptops_memory():
    train = load(openorca.get_config("data=rows.jsonl,init=owner/name")).train
    assert train.batch_rows == train.accumulation


def test_changed_contents_are_named_by_the_beginning_of_their_digests():
    there, now = {"limit": 2, "questions": "0" * 64}, {"limit": 3, "questions": "1" * 64}
    assert list(differences(there, now)) == [
        "limit: 2 there, 3 now",
        "questions: contents 00000000 there, 11111111 now",
    ]


def test_help_names_programs_as_an_installed_package_has_them(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(SystemExit):
        cli.Program("Runs.\n\npython -m experiments.run --workdir=W", cli.OUT).start(["--help"])
    assert "python -m orca_jax.experiments.run --workdir=W" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        cli.Program("Runs.\n\npython -m experiments.run --workdir=WORKDIR --seeds=0").start(["--help"])
    assert "--workdir=WORKDIR \\\n        --seeds=0\n" in capsys.readouterr().out


def test_the_programs_are_listed(repo):
    command = [sys.executable, "-m", "orca_jax.experiments"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=repo, check=True).stdout
    names = {path.stem for path in (repo / "experiments").glob("[a-z]*.py")}
    assert {line.split()[0] for line in listed.splitlines() if line and ":" not in line.split()[0]} >= names
    assert "serve     Serves a student as OpenAI's API" in listed
