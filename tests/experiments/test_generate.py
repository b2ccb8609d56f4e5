"""The program generates from a workdir, or a model folder, in the layout that it was trained in."""

import json
import subprocess
import sys
import types

import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.data.layouts import LayoutError
from orca_jax.experiments import convert, generate
from tests.data import hf_folders


def load(model, layout=""):
    return generate.student_of(
        types.SimpleNamespace(model=str(model), layout=layout, dtype="auto", tensor=1, max_length=256)
    )


def test_the_layout_is_the_one_trained_in_unless_given(finished):
    assert load(finished).layout == "orca"
    assert load(finished, "vicuna").layout == "vicuna"


def test_what_holds_no_student_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no student"):
        load(tmp_path)


def test_a_system_message_by_id_or_by_text():
    def text(system):
        return generate.system_text(system)

    assert text("") == ""
    assert text("Be brief.") == "Be brief."
    assert "justify" in text("7")
    with pytest.raises(ValueError, match="no system message 99"):
        text("99")


def test_an_exported_folder_has_the_trained_layout_and_one_without_a_template_none(finished, tmp_path):
    folder = tmp_path / "model"
    convert.export_student(finished, folder)
    theirs, ours = load(folder), load(finished)
    assert theirs.layout == "template"
    assert theirs.stop_ids == ours.stop_ids
    hf_folders.without_template(folder)
    with pytest.raises(LayoutError, match=f"{folder} does not say its prompt layout; give --layout"):
        load(folder)


@pytest.mark.proof
def test_the_program(finished, tmp_path, repo):
    questions = tmp_path / "questions.jsonl"
    rows = [{"id": str(number), "question": f"What is {number}?"} for number in range(5)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments, typed=""):
        command = [sys.executable, "-m", "experiments.generate", *arguments, f"--model={finished}"]
        return subprocess.run(command, cwd=repo, input=typed, capture_output=True, text=True, check=False)

    files = (f"--input={questions}", f"--out={tmp_path / 'out.jsonl'}")
    ended = run("batch", *files, "--max_tokens=4", "--max_length=256")
    assert ended.returncode == 0, ended.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    talk = run("chat", "--max_tokens=4", "--system=1", typed="Hello\n/quit\n")
    assert talk.returncode == 0, talk.stderr
    assert "[system message: none]" in talk.stdout
    wrong = run("batch", "--max_tokens=4")
    assert (wrong.returncode, "give --input, --out" in wrong.stderr) == (1, True)
