"""From a teacher's log-probabilities to steps with the second term: an API's own, and a student's scores."""

import dataclasses
import logging
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("openai")

from orca_jax.artifacts import plain, read_manifest
from orca_jax.config import load
from orca_jax.config_check import ConfigError
from orca_jax.configs import api as api_file
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.data.tokens import TokenStore
from orca_jax.experiments import collect, prepare, train
from orca_jax.student import llama
from orca_jax.student.sharding import MeshConfig, make_mesh
from orca_jax.training import metrics, students
from tests.data.test_alternatives import said
from tests.teachers.server import Server, completion

ANSWER = "The red cat takes {} steps."


def make(url, folder, tokenizer, **data):
    """configs/api.py:runlocal with one teacher at `url`, the student's tokenizer in `folder`."""
    values = plain(load(api_file.get_config("runlocal")))
    (teacher, _), (stage, _) = values["teachers"], values["curriculum"]
    teacher["api"]["endpoints"][0]["base_url"] = url
    teacher["api"]["top_logprobs"] = 3
    stage |= {"steps": 2, "epochs": 0, "distill_weight": 0.5, "distill_temperature": 2.0}
    values["data"] |= {"tokenizer": str(folder / "tokenizer"), "top_logprobs": 3, **data}
    values["student"] |= {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_layers": 1}
    values["train"] |= {"batch_rows": 8, "log_every": 1}
    return load({**values, "teachers": [teacher], "curriculum": [stage]})


@pytest.fixture(scope="module")
def taught(tokenizer, tmp_path_factory):
    """A config, and the workdir of a student that an API's log-probabilities taught; half of them are odd."""
    folder = tmp_path_factory.mktemp("taught")
    tokenizer.save(folder / "tokenizer")

    def answer(call):
        text = ANSWER.format(call.number)
        entries = said(tokenizer, text, end="</s>" if call.number % 2 else None)
        return completion(text, logprobs={"content": entries} if call.number % 4 else None)

    with Server(answer) as server:
        config = make(server.url, folder, tokenizer)
        for program in (collect, prepare, train):
            program.run(config, folder / "w")
        assert {call.body["top_logprobs"] for call in server.calls} == {3}
    return config, folder


def test_an_apis_log_probabilities_reach_the_step(taught, tokenizer):
    _, folder = taught
    counts = read_manifest(folder / "w/tokens/chatgpt")["counts"]
    found, store = counts["alternatives"], TokenStore(folder / "w/tokens/chatgpt")
    assert found["left_out"] == {"no log-probabilities": counts["examples"] - found["examples"]}
    assert 0.6 < found["examples"] / counts["examples"] < 0.9
    kept = [len(store[i]["teacher_ids"]) > 0 for i in range(len(store))]
    assert sum(kept) == found["examples"]
    first = store[kept.index(True)]
    supervised = first["tokens"][first["weights"] > 0]
    assert first["teacher_ids"][:-1, 0].tolist() == supervised[:-1].tolist()
    rows = metrics.read(folder / "w/training" / metrics.FILE)
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == 2
    assert all(row["distillation"] > 0.1 for row in steps)
    assert "alternatives" not in read_manifest(folder / "w/tokens/validation")["counts"]


def test_a_student_on_disk_scores_traces_that_came_without(taught, tokenizer, caplog, tmp_path):
    """Its numbers are those of its logits, in the place of each supervised token."""
    config, folder = taught
    workdir = tmp_path / "w"
    shutil.copytree(folder / "w", workdir, ignore=shutil.ignore_patterns("training"))
    teacher = dataclasses.replace(config.teachers[0], scorer=str(folder / "w"))
    config = dataclasses.replace(config, teachers=(teacher,))
    prepare.run(config, workdir)
    assert "scorer: absent there" in caplog.text
    counts, store = (
        read_manifest(workdir / "tokens/chatgpt")["counts"],
        TokenStore(workdir / "tokens/chatgpt"),
    )
    assert counts["alternatives"]["left_out"] == {}
    assert counts["alternatives"]["examples"] == counts["examples"] == len(store)
    student = students.open_source(folder / "w")
    params = student.load(student.config, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
    for index in (0, 5):
        example = store[index]
        ids, places = jnp.asarray(example["tokens"])[None], jnp.arange(len(example["tokens"]))[None]
        hidden, _ = llama.hidden(params, ids, places, jnp.ones_like(places), config=student.config)
        scores = llama.logits(hidden, llama.head(params, student.config), student.config.vocab_size)[0]
        targets = np.flatnonzero(example["weights"])
        expected = np.asarray(jax.nn.log_softmax(scores[targets - 1]))
        found = np.take_along_axis(expected, example["teacher_ids"].astype(int), -1)
        np.testing.assert_allclose(example["teacher_log_probs"][:, :-1], found, atol=4e-3)
        assert (example["teacher_ids"][:, 0] == expected.argmax(-1)).all()
        np.testing.assert_allclose(np.exp(np.float32(example["teacher_log_probs"])).sum(-1), 1, atol=4e-3)
    train.run(config, workdir)
    (row, *_) = metrics.read(workdir / "training" / metrics.FILE)
    assert row["distillation"] > 0.1


def test_a_scorer_of_another_tokenizer_is_refused(taught, corpus, tmp_path):
    config, folder = taught
    shutil.copytree(folder / "w", tmp_path / "other", ignore=shutil.ignore_patterns("tokens", "traces"))
    tokenizers.train(corpus, 350).save(tmp_path / "other/tokenizer")
    teacher = dataclasses.replace(config.teachers[0], scorer=str(tmp_path / "other"))
    with pytest.raises(TokenizerError, match=r"'chatgpt': the tokenizer of scorer=.* gives other ids"):
        prepare.run(dataclasses.replace(config, teachers=(teacher,)), folder / "w")


def test_a_stage_cannot_distil_what_nobody_kept(taught, tokenizer, caplog, tmp_path):
    config, folder = taught
    with pytest.raises(ConfigError, match=r"set data\.top_logprobs"):
        make("http://localhost:1/v1", folder, tokenizer, top_logprobs=0)
    workdir = tmp_path / "w"
    shutil.copytree(folder / "w", workdir, ignore=shutil.ignore_patterns("training"))
    traces = workdir / "traces/chatgpt/traces.jsonl"
    traces.write_text(re.sub(r'"logprobs"', '"nothings"', traces.read_text()))
    shutil.rmtree(workdir / "tokens")
    caplog.set_level(logging.WARNING)
    prepare.run(config, workdir)
    assert "examples without alternatives: " in caplog.text
    with pytest.raises(ValueError, match=r"hold no alternatives \(chatgpt: .*no log-probabilities"):
        train.run(config, workdir)
