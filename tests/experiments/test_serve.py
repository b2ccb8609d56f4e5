"""The program: a workdir or a model folder is served until it is told to stop; nothing unsafe starts."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys

import httpx2
import pytest

pytest.importorskip("fastapi")

from orca_jax.experiments import convert, serve
from orca_jax.serving import server
from orca_jax.student.huggingface_folder import CONFIG_FILE
from tests.data import hf_folders


@pytest.mark.parametrize("token", ["short", "of fourteen ch", "é" * 20])
def test_a_weak_token_is_refused(monkeypatch, token):
    monkeypatch.setenv("ORCA_JAX_TOKEN", token)
    with pytest.raises(ValueError, match="16 ASCII characters"):
        server.read_token("ORCA_JAX_TOKEN")


def run(*arguments):
    serve.PROGRAM.start(arguments)
    serve.main()


def failure(capsys, *arguments):
    with pytest.raises(SystemExit):
        run(*arguments)
    return capsys.readouterr().err


def test_limits_come_from_the_command_line_and_must_be_possible(finished, capsys, monkeypatch):
    monkeypatch.delenv("ORCA_JAX_TOKEN", raising=False)
    assert "--max_queue=0: 0 is not a positive integer" in failure(
        capsys, f"--model={finished}", "--max_queue=0"
    )


def test_other_hosts_need_a_token(finished, capsys, monkeypatch):
    monkeypatch.delenv("ORCA_JAX_TOKEN", raising=False)
    said = failure(capsys, f"--model={finished}", "--host=0.0.0.0", "--port=0")
    assert "put a token into the environment" in said


def test_what_holds_no_student_is_refused(tmp_path, capsys):
    assert "holds no student" in failure(capsys, f"--model={tmp_path}", "--port=0")


@pytest.fixture(scope="module")
def model_folder(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "mini"
    convert.export_student(finished, folder, dtype="float32", layout="")
    return folder


class Trap:
    def __reduce__(self):
        return os._exit, (77,)


def test_pickles_are_never_read(model_folder, tmp_path, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "pickled")
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()
    for name in ("pytorch_model.bin", "model.pkl", "pytorch_model-00001-of-00001.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    said = failure(capsys, f"--model={folder}", "--port=0", "--layout=orca")
    assert "safetensors" in said


def test_a_model_folder_without_a_chat_template_needs_a_layout(model_folder, tmp_path, capsys):
    folder = hf_folders.without_template(shutil.copytree(model_folder, tmp_path / "bare"))
    assert "give --layout" in failure(capsys, f"--model={folder}", "--port=0")


def test_more_than_the_model_has_is_refused(finished, capsys, monkeypatch):
    monkeypatch.delenv("ORCA_JAX_TOKEN", raising=False)
    said = failure(capsys, f"--model={finished}", "--host=0.0.0.0", "--port=0", "--max_length=2049")
    assert "--max_length=2049: this model has 2048 positions" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "length"),
    [
        ("workdir", (), 2048),
        pytest.param("model folder", ("--max_length=128",), 128, marks=pytest.mark.proof),
    ],
)
def test_the_program(finished, model_folder, repo, kind, more, length):
    folder = finished if kind == "workdir" else model_folder
    command = [sys.executable, "-m", "experiments.serve", f"--model={folder}", "--port=0", *more]
    token = "a token that is long"
    process = subprocess.Popen(
        [*command, "--host=0.0.0.0"], cwd=repo, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"ORCA_JAX_TOKEN": token},
    )  # fmt: skip
    try:
        said = ""
        while not (found := re.search(r"at http://0\.0\.0\.0:(\d+)/v1", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        headers = {"authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{found[1]}", headers=headers, timeout=120) as client:
            (model,) = client.get("/v1/models").json()["data"]
            assert (model["id"], model["max_model_len"]) == (folder.name, length)
            body = {"model": folder.name, "messages": [{"role": "user", "content": "Is it red?"}]}
            asked = client.stream(
                "POST", "/v1/chat/completions", json={**body, "max_tokens": 60, "stream": True}
            )
            with asked as answer:
                lines = answer.iter_lines()
                assert json.loads(next(lines).removeprefix("data: "))["choices"]
                process.send_signal(signal.SIGTERM)
                assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
    assert (model_folder / CONFIG_FILE).is_file()
