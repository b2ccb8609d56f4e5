"""A trained student goes out as a GGUF file, which is a student like any other."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("gguf")

from orca_jax.config import MeshConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import collect, convert, prepare, train
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import load_student
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students

MESSAGES = [
    [Message("system", "Be kind."), Message("user", "Is it red?")],
    [Message("user", " 2 + 2"), Message("assistant", " 4"), Message("user", "So?\n")],
]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    convert.export_student(finished, out, form="gguf")
    return out


def parameters(path):
    source = students.open_source(path)
    shape = dataclasses.replace(source.config, scan_layers=False)
    return jax.tree.map(np.asarray, source.load(shape, make_mesh(MeshConfig())))


def test_the_file_is_the_same_student(finished, exported, tmp_path):
    convert.import_student(exported / "model.gguf", tmp_path / "imported")
    ours = load_student(students.open_source(finished))
    prompts = [ours.prompt(messages).tolist() for messages in MESSAGES]
    replies = [one.text for one in ours.answer(MESSAGES, Sampling(temperature=0.0, max_tokens=12))]
    for path in (exported, exported / "model.gguf", tmp_path / "imported"):
        theirs = load_student(students.open_source(path))
        assert theirs.layout == "template"
        assert [theirs.prompt(messages).tolist() for messages in MESSAGES] == prompts
        assert theirs.stop_ids == ours.stop_ids
        assert [
            one.text for one in theirs.answer(MESSAGES, Sampling(temperature=0.0, max_tokens=12))
        ] == replies
    assert tokenizers.load(exported).encode("the cat", first=True) == ours.tokenizer.encode(
        "the cat", first=True
    )
    flat = jax.tree_util.tree_leaves_with_path(parameters(exported))
    expected = dict(jax.tree_util.tree_leaves_with_path(parameters(finished)))
    ids = students.open_source(finished).config.vocab_size
    for name, leaf in flat:
        rows = slice(ids) if "embed" in str(name[0]) and leaf.shape[0] > ids else slice(None)
        np.testing.assert_array_equal(leaf[rows], expected[name][rows], err_msg=str(name))


def test_it_may_be_trained_on_from_there(exported, mini):
    config = mini(**{"student.init": str(exported), "student.vocab_size": 0, "data.layout": ""})
    assert students.tokenizer_path(config) == str(exported / "model.gguf")
    assert students.to_prepare(config).data.layout == "template"


@pytest.mark.proof
def test_adapters_are_trained_from_there(exported, mini, tmp_path):
    config = mini(**{"student.init": str(exported), "student.vocab_size": 0, "student.lora.rank": 2})
    for program in (collect, prepare, train):
        program.run(config, tmp_path / "w")
    convert.export_student(tmp_path / "w", tmp_path / "out", form="gguf")
    before, after = parameters(exported), parameters(tmp_path / "out")
    np.testing.assert_array_equal(before["embed"]["embedding"], after["embed"]["embedding"])
    kernels = [tree["layer_0"]["attention"]["query"]["kernel"] for tree in (before, after)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_run_again_nothing_is_written_and_a_folder_has_one_form(finished, exported, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    convert.export_student(finished, exported, form="gguf")
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    with pytest.raises(
        ValueError, match="--dtype=q8_0 of --form=huggingface; known: float32, bfloat16, float16"
    ):
        convert.export_student(finished, tmp_path / "out", dtype="q8_0")
    assert not (tmp_path / "out").exists()


def test_eight_bits_are_near(finished, exported, tmp_path):
    convert.export_student(finished, tmp_path / "small", form="gguf", dtype="q8_0")
    sizes = [(path / "model.gguf").stat().st_size for path in (tmp_path / "small", exported)]
    assert sizes[0] < sizes[1]
    for rounded, exact in zip(
        jax.tree.leaves(parameters(tmp_path / "small")), jax.tree.leaves(parameters(exported))
    ):
        np.testing.assert_allclose(rounded, exact, atol=np.abs(exact).max() / 127)
