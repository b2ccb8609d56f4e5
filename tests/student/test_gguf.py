"""GGUF files are read as model folders are, and what is not understood is refused."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")

import gguf

from orca_jax.data.tokenizer_gguf import GgufError
from orca_jax.student import huggingface, presets
from orca_jax.student.gguf import TYPES, Gguf, stretch
from orca_jax.student.huggingface_folder import UnsupportedModelError
from orca_jax.student.parameters import cast
from orca_jax.student.presets import RopeScaling
from orca_jax.student.sharding import MeshConfig, make_mesh
from orca_jax.training import students
from tests.student import gguf_files
from tests.student.students import OLMO2, QWEN3, SMALL, SMOLLM3, make_params
from tests.student.test_huggingface import assert_trees_equal

LLAMA3 = dataclasses.replace(SMALL, rope_theta=5e5, rope_scaling=RopeScaling(kind="llama3", factor=8.0))
GEMMA3 = dataclasses.replace(
    SMALL, **presets.GEMMA3, num_layers=7, query_scalar=16.0, tie_embeddings=True, sliding_window=7,
    layer_types=presets.layer_pattern(7, 6, "window", "full"), rope_theta=1e6, window_rope_theta=1e4,
)  # fmt: skip
STUDENTS = {
    "llama": ("llama", SMALL, {}),
    "llama, biases": ("llama", dataclasses.replace(SMALL, qkv_bias=True, output_bias=True), {}),
    "llama, linear": (
        "llama",
        dataclasses.replace(SMALL, rope_scaling=RopeScaling(kind="linear", factor=4.0)),
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
    ),
    "llama 3": ("llama", LLAMA3, {}),
    "qwen2": ("qwen2", dataclasses.replace(SMALL, hidden_size=64, qkv_bias=True, tie_embeddings=True), {}),
    "qwen3": ("qwen3", QWEN3, {}),
    "smollm3": (
        "smollm3",
        dataclasses.replace(
            SMOLLM3, num_layers=4, layer_types=presets.layer_pattern(4, 4, "full", "no_rope")
        ),
        {},
    ),
    "olmo2": ("olmo2", dataclasses.replace(OLMO2, hidden_size=64), {}),
    "gemma3": ("gemma3", GEMMA3, {"gemma3__attention__sliding_window": 7}),
}


def made(path, architecture, config, header):
    arrays = gguf_files.tensors(config, architecture)
    if config.rope_scaling.kind == "llama3":
        arrays["rope_freqs.weight"] = stretch(config)
    added = {key.replace("__", "."): value for key, value in header.items()}
    return gguf_files.write(path, architecture, arrays, gguf_files.values(config, architecture) | added)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_config_and_parameters_are_read(name, tmp_path):
    architecture, config, header = STUDENTS[name]
    source = students.open_source(made(tmp_path / "m.gguf", architecture, config, header))
    running = {key: getattr(config, key) for key in ("scan_layers", "vocab_multiple")}
    assert dataclasses.replace(source.config, **running) == config
    loaded, expected = source.load(config, make_mesh(MeshConfig(fsdp=8))), make_params(config)
    if name == "gemma3":  # 1 + weight was rounded
        rounded = jax.tree.map(lambda x: (np.asarray(x) + np.float32(1)) - np.float32(1), expected)
        expected = jax.tree_util.tree_map_with_path(
            lambda path, x, r: r if path[-1].key == "scale" else x, expected, rounded
        )
    assert_trees_equal(loaded, expected, config.vocab_size)
    halves = source.load(config, make_mesh(MeshConfig(fsdp=8)), jnp.bfloat16)
    assert_trees_equal(halves, cast(expected, jnp.bfloat16), config.vocab_size)


def test_what_llama3_stretches_is_as_published(tmp_path):
    """Factors of Llama 3.1's config.json, where wavelengths below 2048 and above 8192 positions part them."""
    config = dataclasses.replace(
        presets.PRESETS["llama3-1b"], rope_scaling=RopeScaling(kind="llama3", factor=8.0)
    )
    plain = 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    waves = 2 * np.pi / plain
    between = (8192 / waves - 1) / 3
    expected = np.where(waves < 2048, 1, np.where(waves > 8192, 8, 1 / ((1 - between) / 8 + between)))
    np.testing.assert_allclose(stretch(config), expected, rtol=1e-5)


BLOCK = {"Q4_K": 144, "Q6_K": 210}  # bytes for 256 numbers; the package quantises neither


@pytest.mark.parametrize("kind", TYPES)
def test_types_are_dequantised_as_the_package_does_by_any_slices(kind, tmp_path):
    config = dataclasses.replace(SMALL, hidden_size=256, intermediate_size=256)
    arrays = gguf_files.tensors(config, "llama")
    name, enum = "blk.1.ffn_up.weight", gguf.GGMLQuantizationType[kind]
    if kind in BLOCK:
        raw = np.random.default_rng(0).integers(0, 120, (256, BLOCK[kind]), dtype=np.uint8)
        arrays[name], enum = raw, int(enum)
    else:
        raw = gguf.quantize(arrays[name], enum)
    path = gguf_files.write(
        tmp_path / "m.gguf", "llama", arrays, gguf_files.values(config, "llama"), {name: enum}
    )
    whole, model = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]), Gguf(path)
    assert np.isfinite(whole).all()
    theirs = "model.layers.1.mlp.up_proj.weight"
    for index in ((slice(None), slice(None)), (slice(3, 77), slice(5, 9)), (slice(250, 999), slice(0, 256))):
        np.testing.assert_array_equal(model.read(theirs, *index), whole[index])
    assert model.shape(theirs) == (256, 256)
    huggingface.load(path, config, make_mesh(MeshConfig(fsdp=8)))


def test_other_types_are_refused_by_name(tmp_path):
    arrays = gguf_files.tensors(SMALL, "llama")
    kinds = {"blk.1.ffn_up.weight": gguf.GGMLQuantizationType.Q5_0}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", arrays, gguf_files.values(SMALL, "llama"), kinds)
    with pytest.raises(
        UnsupportedModelError, match=r"'blk\.1\.ffn_up\.weight' is of type Q5_0, not one of F32"
    ):
        huggingface.load(path, SMALL, make_mesh(MeshConfig(fsdp=8)))


@pytest.mark.parametrize("part", [0, 3, 30, 300, 1200, -40, -5000])
def test_a_torn_file_is_refused(part, tmp_path):
    path = gguf_files.write_student(tmp_path / "m.gguf", SMALL)
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(GgufError, match=r"m\.gguf is torn, or no GGUF file .*fetch it again"):
        students.open_source(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"llama__expert_count": 8}, r"llama\.expert_count \(8\) is not supported"),
        ({"llama__rope__dimension_count": 8}, r"llama\.rope\.dimension_count \(8\) is not"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type 'yarn' is not supported; known: none"),
        ({"llama__attention__sliding_window": 8}, r"llama\.attention\.sliding_window \(8\) is not"),
        ({"llama__attention__causal": False}, r"llama\.attention\.causal \(False\) is not"),
        ({"llama__logit_scale": 0.5}, r"llama\.logit_scale \(0\.5\) is not"),
        ({"llama__vocab_size": 96}, r"llama\.vocab_size \(96\) is not"),
        ({"llama__attention__head_count_kv": [2, 1]}, "head_count_kv differs by layer"),
        ({"split__count": 2}, "is one part of several"),
        ({"tokenizer__ggml__tokens": ["a"] * 98}, "its tokenizer has 98 ids, its embedding 97 rows"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(header, message, tmp_path):
    path = gguf_files.write_student(tmp_path / "m.gguf", SMALL, **header)
    with pytest.raises(ValueError, match=f"m\\.gguf.*{message}"):
        students.open_source(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blk.1.attn_q.weight"), "has no tensor 'model.layers.1.self_attn.q_proj.weight'"),
        (
            lambda t: t.update({"blk.1.ffn_gate_inp.weight": t["output_norm.weight"]}),
            "'blk.1.ffn_gate_inp.weight'",
        ),
        (
            lambda t: t.update({"blk.1.ffn_up.weight": t["blk.1.ffn_down.weight"]}),
            r"has shape \(32, 48\), not",
        ),
        (
            lambda t: t.update({"rope_freqs.weight": np.full(8, 3, np.float32)}),
            "stretches otherwise than Llama",
        ),
        (lambda t: t.pop("token_embd.weight"), "token_embd.weight is missing"),
        (lambda t: t["output_norm.weight"].fill(np.nan), "holds NaN or infinity"),
    ],
)
def test_tensors_of_another_model_are_refused(change, message, tmp_path):
    arrays = gguf_files.tensors(SMALL, "llama")
    arrays["output_norm.weight"] = arrays["output_norm.weight"].copy()
    change(arrays)
    path = gguf_files.write(tmp_path / "m.gguf", "llama", arrays, gguf_files.values(SMALL, "llama"))
    with pytest.raises(UnsupportedModelError, match=message):
        students.open_source(path).load(SMALL, make_mesh(MeshConfig(fsdp=8)))


def test_an_unknown_architecture_is_refused(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "rwkv7", {}, {"rwkv7.block_count": 2})
    with pytest.raises(UnsupportedModelError, match="architecture 'rwkv7' is not supported; known: llama"):
        students.open_source(path)


def test_a_folder_means_its_only_file(tmp_path):
    path = gguf_files.write_student(tmp_path / "m.gguf", SMALL)
    assert students.open_source(tmp_path).fingerprint == students.open_source(path).fingerprint
    gguf_files.write_student(tmp_path / "n.gguf", SMALL)
    with pytest.raises(GgufError, match=r"has 2 GGUF files; name one, such as .*m\.gguf"):
        students.open_source(tmp_path)
    with pytest.raises(GgufError, match=r"other\.gguf cannot be read: No such file"):
        students.open_source(tmp_path / "other.gguf")
    huggingface.export(make_params(QWEN3), QWEN3, tmp_path)  # whose weights are those of the folder
    assert students.open_source(tmp_path).config.query_key_norm == "head"


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    path = gguf_files.write_student(tmp_path / "m.gguf", SMALL)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(GgufError, match=r"pip install -e '\.\[gguf\]'"):
        students.open_source(path)
