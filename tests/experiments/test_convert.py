"""A trained student goes out as a model folder, comes back in, and is trained on from there."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.artifacts import ArtifactError
from orca_jax.config import MeshConfig
from orca_jax.data import layouts, prepared
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokens import TokenStore
from orca_jax.experiments import collect, convert, prepare, train
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import load_student
from orca_jax.student import huggingface
from orca_jax.student.huggingface import UnsupportedModelError
from orca_jax.student.sharding import make_mesh
from orca_jax.training import metrics, students
from orca_jax.training.checkpoints import load_params
from tests.data import hf_folders
from tests.student.students import SMALL, make_params


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The finished workdir's student as a model folder."""
    out = tmp_path_factory.mktemp("exported") / "model"
    convert.export_student(finished, out, dtype="float32", layout="")
    return out


@pytest.fixture(scope="module")
def imported(exported, tmp_path_factory):
    """That model folder, imported."""
    out = tmp_path_factory.mktemp("imported") / "student"
    convert.import_student(exported, out)
    return out


def parameters(path):
    source = students.open_source(path)
    shape = dataclasses.replace(source.config, scan_layers=False)
    return jax.tree.map(np.asarray, source.load(shape, make_mesh(MeshConfig())))


def test_workdir_model_folder_and_import_hold_the_same_student(finished, exported, imported):
    sources = [students.open_source(path) for path in (finished, exported, imported)]
    running = {"scan_layers": True, "vocab_multiple": 128}
    assert len({dataclasses.replace(source.config, **running) for source in sources}) == 1
    assert [source.own_layout for source in sources] == ["orca", "template", "template"]
    ours = parameters(finished)
    jax.tree.map(np.testing.assert_array_equal, parameters(imported), parameters(exported))
    ids = sources[0].config.vocab_size
    for name, leaf in jax.tree_util.tree_leaves_with_path(parameters(exported)):
        expected = np.asarray(dict(jax.tree_util.tree_leaves_with_path(ours))[name])
        rows = slice(ids) if "embed" in str(name[0]) and leaf.shape[0] > ids else slice(None)
        np.testing.assert_array_equal(leaf[rows], expected[rows], err_msg=str(name))


def test_the_exported_folder_knows_the_trained_stop_token(finished, exported):
    tokenizer = tokenizers.load(finished / "tokenizer")
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == layouts.stop_ids("orca", tokenizer)[0]
    assert generation["pad_token_id"] == tokenizer.pad_id


def test_run_again_nothing_is_written(finished, exported, imported):
    def stamps():
        files = [file for folder in (exported, imported) for file in folder.rglob("*") if file.is_file()]
        return {file: file.stat().st_mtime_ns for file in files}

    before = stamps()
    convert.export_student(finished, exported, dtype="float32", layout="")
    convert.import_student(exported, imported)
    assert stamps() == before
    with pytest.raises(ArtifactError, match="dtype: 'float32' there, 'bfloat16' now"):
        convert.export_student(finished, exported, dtype="bfloat16", layout="")


LONG = [pytest.param(kind, marks=pytest.mark.proof) for kind in ("finished", "imported")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exported", *LONG])
def test_training_starts_from_it(kind, mini, request, tmp_path):
    """The first loss is the trained student's, not a fresh one's; its tokenizer is used, and its shape."""
    folder = request.getfixturevalue(kind)
    config = mini(**{"student.init": str(folder), "student.vocab_size": 0, "student.hidden_size": 4})
    for program in (collect, prepare, train):
        program.run(config, tmp_path / "w")
    assert (
        tokenizers.load(tmp_path / "w/tokenizer").vocab_size
        == tokenizers.load(request.getfixturevalue("finished") / "tokenizer").vocab_size
    )
    first = metrics.read(tmp_path / "w/training" / metrics.FILE)[0]
    fresh, *_, last = [
        row for row in metrics.read(request.getfixturevalue("finished") / "training" / metrics.FILE)
        if row["kind"] == "train"
    ]  # fmt: skip
    assert first["loss"] < (fresh["loss"] + last["loss"]) / 2
    manifest = artifacts.read_manifest(tmp_path / "w/training")
    assert manifest["inputs"]["init"] == students.open_source(folder).fingerprint
    assert manifest["provenance"]["student"]["hidden_size"] == 32


@pytest.mark.parametrize(
    ("kind", "layout"), [("exported", "template"), ("finished", "orca"), ("imported", "template")]
)
def test_examples_are_prepared_in_the_layout_of_the_weights_to_start_from(
    kind, layout, mini, finished, request, tmp_path
):
    """Of an exported folder by its template, which gives the same ids."""
    folder = request.getfixturevalue(kind)
    config = mini(**{"student.init": str(folder), "student.vocab_size": 0})
    for part in ("queries", "traces"):
        shutil.copytree(finished / part, tmp_path / "w" / part)
    prepare.run(config, tmp_path / "w")
    store, same = (TokenStore(workdir / "tokens/expert") for workdir in (tmp_path / "w", finished))
    assert store.manifest["provenance"]["layout"] == layout
    assert len(store) == len(same)
    for index in range(len(same)):
        np.testing.assert_array_equal(store[index]["tokens"], same[index]["tokens"])
    assert students.as_made(config, store.manifest).data.layout == layout
    with pytest.raises(ArtifactError, match=f"layout='{layout}', and the config says 'vicuna'"):
        students.as_made(mini(**{"data.layout": "vicuna"}), store.manifest)


@pytest.mark.parametrize("name", hf_folders.RELEASED)
def test_a_released_model_is_asked_in_its_template_and_goes_out_in_any_layout(name, corpus, mini, tmp_path):
    """What is exported in a layout gives the layout's ids, to every program and with no layout named."""
    folder = hf_folders.released(tmp_path / "released", corpus, name)
    shape = dataclasses.replace(SMALL, vocab_size=tokenizers.load(folder).vocab_size)
    huggingface.export(make_params(shape), shape, folder)
    source = students.open_source(folder)
    own = "" if name == "gpt2" else "template"
    assert source.own_layout == own
    assert students.run_settings(mini(), source)["layout"] == (own or "orca")
    assert students.run_settings(mini(**{"data.layout": "vicuna"}), source)["layout"] == "vicuna"
    messages = [Message("system", "Be kind."), Message("user", "Is it red?")]
    for layout in ("orca", "chatml", "vicuna", *filter(None, [own])):
        if (name, layout) == ("smollm2", "chatml"):
            with pytest.raises(LayoutError, match="would stand there twice"):
                convert.export_student(folder, tmp_path / layout, dtype="float32", layout=layout)
            continue
        convert.export_student(folder, tmp_path / layout, dtype="float32", layout=layout)
        ours, theirs = load_student(source, layout), load_student(students.open_source(tmp_path / layout))
        assert theirs.layout == "template"
        assert theirs.prompt(messages).tolist() == ours.prompt(messages).tolist()
        assert theirs.stop_ids[0] == ours.stop_ids[0]


def test_a_larger_vocabulary_starts_at_the_mean(finished):
    source = students.open_source(finished)
    wanted = dataclasses.replace(source.config, vocab_size=source.config.vocab_size + 3)
    grown = source.load(wanted, make_mesh(MeshConfig()))
    old = np.asarray(load_params(finished / "training/checkpoints")[1]["embed"]["embedding"])
    ids = source.config.vocab_size
    mine = np.asarray(grown["embed"]["embedding"])
    np.testing.assert_array_equal(mine[:ids], old[:ids])
    np.testing.assert_allclose(mine[ids : ids + 3], np.broadcast_to(old[:ids].mean(0), (3, 32)), atol=1e-6)


def test_what_is_no_student_is_said(tmp_path, finished):
    with pytest.raises(ArtifactError, match="holds no student: neither"):
        students.open_source(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="adapters are not read here; merge them"):
        students.open_source(tmp_path)
    with pytest.raises(ArtifactError, match="was made by 'prepare'"):
        students.open_source(finished / "tokens/expert")
    with pytest.raises(ValueError, match="give --layout, one of orca"):
        convert.export_student(finished, tmp_path / "out", dtype="float32", layout="alpaca")


@pytest.mark.proof
def test_the_command_line(tmp_path, repo):
    command = [sys.executable, "-m", "experiments.convert"]
    wrong = subprocess.run([*command, "translate"], cwd=repo, capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "known: import, export, adapter, push" in wrong.stdout + wrong.stderr
    missing = subprocess.run(
        [*command, "import", f"--model={tmp_path}", f"--out={tmp_path}/o"],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert "holds no student" in missing.stderr


@pytest.mark.parity
def test_transformers_answers_as_our_student_does(finished, exported):
    """The exported folder alone gives the ids, the words and the end of our own answers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    ours = load_student(students.open_source(finished))
    own = ours.tokenizer
    traces = list(prepared.read(finished, "expert"))[:4]
    asked = [trace.messages[:-1] for trace in traces]
    replies = ours.answer(asked, Sampling(temperature=0.0, max_tokens=24))
    for messages, reply in zip(asked, replies):
        said = [{"role": message.role, "content": message.content} for message in messages]
        inputs = tokenizer.apply_chat_template(
            said, tokenize=True, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        encoded = layouts.encode(messages, "orca", own)
        assert inputs[0].tolist() == encoded.tokens.tolist()
        with torch.no_grad():
            out = model.generate(inputs, max_new_tokens=24)
        new = out[0, inputs.shape[1] :]
        assert own.decode(new.tolist()) == reply.text  # the words of the same ids


@pytest.mark.parity
def test_a_student_that_says_stop_stops_in_transformers(finished, tmp_path):
    """All tokens look alike and blocks add nothing, so the head says the stop token whatever is asked."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source, tokenizer = students.open_source(finished), tokenizers.load(finished / "tokenizer")
    special = convert.special_ids(tokenizer, "orca")
    params = jax.tree.map(lambda leaf: np.zeros_like(leaf), parameters(finished))
    params["embed"]["embedding"] += 1
    params["norm"]["scale"] += 1
    params["unembed"][:, special["eos_token_id"]] = 1
    shape = dataclasses.replace(source.config, scan_layers=False)
    huggingface.export(params, shape, tmp_path, special=special)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out = model.generate(torch.arange(4)[None], max_new_tokens=10)
    assert out[0, 4:].tolist() == [special["eos_token_id"]]


@pytest.mark.proof
def test_adapters_are_trained_evaluated_and_saved(exported, mini, tmp_path):
    config = mini(**{"student.init": str(exported), "student.vocab_size": 0, "student.lora.rank": 2})
    for program in (collect, prepare, train):
        program.run(config, tmp_path / "w")
    _, saved = load_params(tmp_path / "w/training/checkpoints")
    merged = parameters(tmp_path / "w")
    counts = [str(jax.tree.structure(params)).count("lora_a") for params in (saved, merged)]
    assert counts[0] > counts[1] == 0
    convert.export_adapter(tmp_path / "w", tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (written["r"], "q_proj" in written["target_modules"]) == (2, True)
    convert.export_student(tmp_path / "w", tmp_path / "model", dtype="float32", layout="")
    before, after = parameters(exported), parameters(tmp_path / "model")
    np.testing.assert_array_equal(before["embed"]["embedding"], after["embed"]["embedding"])
    kernels = [tree["layer_0"]["attention"]["query"]["kernel"] for tree in (before, after)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
