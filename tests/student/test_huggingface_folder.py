"""config.json: every field is understood, or the model is refused by the field's name."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.student.huggingface_folder import UnsupportedModelError, parse, read_config, unparse
from orca_jax.student.presets import PRESETS, RopeScaling

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 4096}
QWEN = {
    **LLAMA,
    "model_type": "qwen2",
    "use_sliding_window": False,
    "sliding_window": 32_768,
    "max_window_layers": 28,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

LLAMA3 = RopeScaling(kind="llama3", factor=8.0)


def test_what_is_not_said_has_the_familys_default():
    config = parse(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (4, 16, 10_000.0)
    assert not any((config.qkv_bias, config.output_bias, config.sliding_window, config.tie_embeddings))
    assert parse({**LLAMA, "attention_bias": True}).output_bias
    qwen = parse(QWEN)
    assert (qwen.qkv_bias, qwen.output_bias, qwen.sliding_window) == (True, False, 0)
    assert parse(MISTRAL).sliding_window == 4096
    assert parse({**MISTRAL, "sliding_window": None}).sliding_window == 0


def test_names_and_ids_change_no_number():
    said = {"_model_name_or_path": "x", "unk_token_id": 0, "bos_token_id": 1, "architectures": ["A"]}
    assert parse({**LLAMA, **said}) == parse(LLAMA)


def test_both_forms_of_rotary_settings_are_one():
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}}
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}}
    assert parse(new) == parse(old)
    assert parse(new).rope_scaling == RopeScaling(kind="llama3", factor=8.0)
    older = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert parse(older).rope_scaling == RopeScaling(kind="linear", factor=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**LLAMA, "model_type": "gpt2"}, "model_type 'gpt2' is not supported; known: llama, mistral, qwen2"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias=True"),
        ({**LLAMA, "attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({**LLAMA, "pretraining_tp": 2}, "pretraining_tp=2"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "field 'quantization_config'"),
        ({**LLAMA, "qk_norm": True}, r"field 'qk_norm' \(True\) is unknown, and none is ignored"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "scaling field 'beta'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'high_freq_factor' is missing"),
        ({**QWEN, "use_sliding_window": True}, "layers that differ in their sliding window"),
        ({key: value for key, value in LLAMA.items() if key != "hidden_size"}, "'hidden_size' is missing"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(values, message):
    with pytest.raises(UnsupportedModelError, match=message):
        parse(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "'rope_scaling.factor' must be at least 1"),
        ({"num_hidden_layers": 0}, "'num_layers' must be at least 1, got 0"),
        ({"vocab_size": 32000.5}, "'vocab_size' must be int, got 32000.5"),
    ],
)
def test_values_are_checked_as_those_of_a_config(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **values}))
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path}/config\.json: config key {message}"):
        read_config(tmp_path)


@given(
    name=st.sampled_from(sorted(PRESETS)),
    tie=st.booleans(),
    biases=st.sampled_from([(False, False), (True, True), (True, False)]),
    window=st.sampled_from([0, 512]),
    scaling=st.sampled_from([RopeScaling(), RopeScaling(kind="linear", factor=4.0), LLAMA3]),
)  # fmt: skip
def test_a_config_is_read_back_as_it_was_written_or_refused(name, tie, biases, window, scaling):
    config = dataclasses.replace(
        PRESETS[name],
        tie_embeddings=tie,
        qkv_bias=biases[0],
        output_bias=biases[1],
        sliding_window=window,
        rope_scaling=scaling,
        remat="none",
    )
    if window and any(biases):
        with pytest.raises(UnsupportedModelError, match="no Hugging Face family has both"):
            unparse(config)
    else:
        assert parse(json.loads(json.dumps(unparse(config)))) == config


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path} has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "mlp_bias": True}))
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path}/config\.json: mlp_bias=True"):
        read_config(tmp_path)


# Parameters of the released models, in billions, as their papers and model cards give them.
SIZES = {
    "llama-7b": 6.7,
    "llama-13b": 13.0,
    "llama-33b": 32.5,
    "llama-65b": 65.2,
    "llama2-7b": 6.7,
    "llama2-13b": 13.0,
    "llama2-70b": 69.0,
    "llama3-1b": 1.24,
    "llama3-3b": 3.21,
    "llama3-8b": 8.03,
    "llama3-70b": 70.6,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_numbers_of_parameters(name):
    assert PRESETS[name].parameter_count / 1e9 == pytest.approx(SIZES[name], rel=0.01)
