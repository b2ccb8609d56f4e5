"""Students go out as GGUF files as llama.cpp's converter writes them, and come back bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("gguf")

import gguf

from orca_jax.data.tokenizer_files import TokenizerError
from orca_jax.student import gguf_export
from orca_jax.student.huggingface_folder import UnsupportedModelError
from orca_jax.student.presets import RopeScaling
from orca_jax.student.sharding import MeshConfig, make_mesh
from orca_jax.training import students
from tests.data import hf_folders
from tests.data.test_tokenizer_gguf import byte_level
from tests.student import gguf_files
from tests.student.students import GEMMA3, OLMO2, SMALL, SMOLLM3, make_params
from tests.student.test_gguf import STUDENTS
from tests.student.test_huggingface import assert_trees_equal


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    """The files of a tokenizer, whose ids `sized` makes room for."""
    folder = tmp_path_factory.mktemp("tokenizer")
    hf_folders.write_folder(folder, byte_level(corpus, "smollm"), hf_folders.CHATML, eos="<|im_end|>")
    return {path.name: path.read_text() for path in folder.iterdir()}


def sized(config):
    return dataclasses.replace(config, vocab_size=500)


def read(path):
    reader = gguf.GGUFReader(path)
    return (
        {name: field.contents() for name, field in reader.fields.items()},
        {one.name: (one.tensor_type.name, np.array(one.data)) for one in reader.tensors},
    )


@pytest.mark.parametrize("name", STUDENTS)
def test_a_file_is_as_the_converter_writes_it_and_comes_back(name, files, tmp_path):
    architecture, config, header = STUDENTS[name]
    config = sized(config)
    params, path = make_params(config), tmp_path / "m.gguf"
    count = gguf_export.export(params, config, path, tokenizer=files, stop=[7])
    assert [*tmp_path.iterdir()] == [path]
    values, tensors = read(path)
    expected = gguf_files.tensors(config, architecture)
    assert {*tensors} - {"rope_freqs.weight"} == {*expected}
    assert count == sum(value.size for value in expected.values())
    for tensor, value in expected.items():
        np.testing.assert_array_equal(tensors[tensor][1], value, err_msg=tensor)
    named = {key.replace("__", "."): value for key, value in header.items()}
    for key, value in (gguf_files.values(config, architecture) | named).items():
        assert values[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert len(values["tokenizer.ggml.tokens"]) == 500
    assert values["tokenizer.ggml.eot_token_id"] == 7
    source = students.open_source(path)
    running = {key: getattr(config, key) for key in ("scan_layers", "vocab_multiple")}
    assert dataclasses.replace(source.config, **running) == config
    loaded = source.load(config, make_mesh(MeshConfig(fsdp=8)))
    if name == "gemma3":  # whose 1 + weight is rounded
        assert_near(loaded, params)
    else:
        assert_trees_equal(loaded, params, config.vocab_size)


def assert_near(found, expected):
    for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]:
        mine = found
        for key in path:
            mine = mine[key.key]
        np.testing.assert_allclose(mine[:500], leaf[:500], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("q8_0", "Q8_0")]
)
def test_matrices_are_of_the_type_and_norms_float32(dtype, kind, files, tmp_path):
    config = sized(SMALL)
    gguf_export.export(make_params(config), config, tmp_path / "m.gguf", tokenizer=files, dtype=dtype)
    _, tensors = read(tmp_path / "m.gguf")
    for name, value in gguf_files.tensors(config, "llama").items():
        # 48 columns are no blocks of 32: llama.cpp's converter writes float16 there.
        wanted = "F32" if value.ndim == 1 else "F16" if kind == "Q8_0" and "ffn_down" in name else kind
        assert tensors[name][0] == wanted, name
        found = np.asarray(tensors[name][1])
        np.testing.assert_array_equal(found, gguf.quantize(value, gguf.GGMLQuantizationType[wanted]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(SMALL, sliding_window=8), "no way to say this student's sliding_window=8"),
        (OLMO2, r"olmo2\.attention\.key_length \(16\) times heads is no hidden size"),
        (GEMMA3, "no way to say this student's query_scalar"),
        (SMOLLM3, r"no way to say this student's layer_types=\('full', 'no_rope'\)"),
        (
            dataclasses.replace(
                SMALL, rope_scaling=RopeScaling(kind="llama3", factor=8.0, high_frequency_factor=5.0)
            ),
            "no way to say this student's rope_scaling=",
        ),
        (
            dataclasses.replace(
                SMALL, hidden_size=64, qkv_bias=True, rope_scaling=RopeScaling(kind="llama3", factor=8.0)
            ),
            "no way to say this student's rope_scaling=",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config, message, files, tmp_path):
    config = sized(config)
    with pytest.raises(UnsupportedModelError, match=message):
        gguf_export.export(make_params(config), config, tmp_path / "m.gguf", tokenizer=files)
    assert not [*tmp_path.iterdir()]


def test_more_ids_than_rows_are_refused(files, tmp_path):
    with pytest.raises(TokenizerError, match=r"the tokenizer has \d+ ids, and the student 97 rows"):
        gguf_export.export(make_params(SMALL), SMALL, tmp_path / "m.gguf", tokenizer=files)


def test_an_interrupted_export_leaves_nothing(files, tmp_path, monkeypatch):
    def full(self, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    config = sized(SMALL)
    with pytest.raises(OSError, match="No space"):
        gguf_export.export(make_params(config), config, tmp_path / "m.gguf", tokenizer=files)
    assert not [*tmp_path.iterdir()]
