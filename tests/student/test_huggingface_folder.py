"""config.json: every field is understood, or the model is refused by the field's name."""

import dataclasses
import json
from pathlib import Path

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
MISTRAL = {**LLAMA, "num_key_value_heads": None, "model_type": "mistral", "sliding_window": 4096}
QWEN = {
    **LLAMA,
    "num_key_value_heads": 4,
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
    assert parse({**QWEN, "use_sliding_window": True, "max_window_layers": 1}).types == ("full", "window")


PUBLISHED = json.loads(Path(__file__).with_name("published_configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_understood_or_refused_by_name(name):
    published, expected = PUBLISHED[name]["config"], PUBLISHED[name]["expected"]
    if "refused" in expected:
        with pytest.raises(UnsupportedModelError, match=expected["refused"]):
            parse(published)
    else:
        config = parse(published)
        assert {key: getattr(config, key) for key in expected} == expected
        assert parse(unparse(config)) == config


MUTATIONS = [
    {"attn_logit_softcapping": 50.0},
    {"embedding_multiplier": 12.0},
    {"partial_rotary_factor": 0.5},
    {"is_causal": False},
    {"mlp_bias": True},
    {"qk_layernorm": True},
    {"hidden_act": "relu2"},
    {"num_experts": 8},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None},
    {"layer_types": ["full_attention", "linear_attention"]},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"text_model_type": "bert"},
]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "refused" not in PUBLISHED[name]["expected"]])
def test_what_would_change_a_published_model_is_refused_by_name(name):
    for mutation in MUTATIONS:
        with pytest.raises(UnsupportedModelError, match=next(iter(mutation)).replace("rope_scaling", "rope")):
            parse({**PUBLISHED[name]["config"], **mutation})


# Presets and the published configs of the same shape; the longest position is not the shape's.
@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B"),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B"),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B"),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B"),
        ("qwen3-4b", "Qwen/Qwen3-4B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("gemma3-270m", "google/gemma-3-270m"),
        ("gemma3-1b", "google/gemma-3-1b-it"),
        ("olmo2-1b", "allenai/OLMo-2-0425-1B"),
        ("olmo2-7b", "allenai/OLMo-2-1124-7B"),
        ("llama3-1b", "meta-llama/Llama-3.2-1B"),
        ("llama3-3b", "meta-llama/Llama-3.2-3B"),
    ],
)
def test_presets_are_the_published_shapes(preset, name):
    published = dataclasses.replace(parse(PUBLISHED[name]["config"]), max_positions=1, remat="full")
    assert dataclasses.replace(PRESETS[preset], max_positions=1) == published


def test_names_and_ids_change_no_number():
    said = {
        "_model_name_or_path": "x", "unk_token_id": 0, "bos_token_id": 1, "architectures": ["AForCausalLM"],
        "transformers.js_config": {"dtype": "q4"}, "unsloth_fixed": True, "use_mrope": False, "bias": None,
        "quantization_config": None, "pretraining_tp": 2, "attention_dropout": 0.1,
    }  # fmt: skip
    assert parse({**LLAMA, **said}) == parse(LLAMA)


def test_fields_passed_over_are_logged_in_one_line(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "use_cache": True, "use_mrope": False}))
    with caplog.at_level("INFO"):
        read_config(tmp_path)
    [record] = caplog.records
    assert "passed over, since they change no logit: use_cache, use_mrope" in record.getMessage()


GEMMA = {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 256}


def test_layers_have_the_windows_and_positions_of_their_family():
    gemma = parse(GEMMA)
    assert gemma.types == ("window",) * 5 + ("full", "window")
    assert (gemma.sliding_window, gemma.rope_theta, gemma.window_rope_theta) == (4096, 1e6, 1e4)
    assert parse({**GEMMA, "_sliding_window_pattern": 2}).types[:3] == ("window", "full", "window")
    assert parse({**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}).rope_scaling.factor == 8
    smollm = {**LLAMA, "model_type": "smollm3", "num_hidden_layers": 4}
    assert parse(smollm).layer_types == ("full", "full", "full", "no_rope")
    assert parse({**smollm, "no_rope_layers": [0, 1, 1, 1]}).layer_types[0] == "no_rope"


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
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' or 'swish'"),
        ({**GEMMA, "hidden_activation": "silu"}, "hidden_activation='silu' is not supported, only 'gelu_pyt"),
        ({**LLAMA, "mlp_bias": True}, r"field 'mlp_bias' \(True\) is not supported, and could change what"),
        ({**LLAMA, "quantization_config": {"quant_method": "awq"}}, "quantised by awq, which"),
        ({**LLAMA, "is_causal": False}, "'is_causal'"),
        ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "predicts no next token"),
        ({**LLAMA, "layer_types": ["chunked_attention"] * 2}, "layer_types: 'chunked_attention' is"),
        ({**GEMMA, "rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
         "sliding_attention: only rope_type default"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "scaling field 'beta'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'high_freq_factor' is missing"),
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
        ({"num_key_value_heads": 3}, "student.num_kv_heads=3 must divide"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for num_layers=2"),
        ({"num_hidden_layers": 0}, "'num_layers' must be at least 1, got 0"),
        ({"vocab_size": 32000.5}, "'vocab_size' must be int, got 32000.5"),
    ],
)
def test_values_are_checked_as_those_of_a_config(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **values}))
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path}/config\.json: config(:| key) {message}"):
        read_config(tmp_path)


@given(
    name=st.sampled_from(sorted(name for name in PRESETS if "gemma" not in name)),
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
    try:
        written = unparse(config)
    except UnsupportedModelError:
        assert window or any(biases)
    else:
        assert parse(json.loads(json.dumps(written))) == config


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path} has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "mlp_bias": True}))
    with pytest.raises(UnsupportedModelError, match=rf"{tmp_path}/config\.json: field 'mlp_bias'"):
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
    "smollm2-135m": 0.135,
    "smollm2-360m": 0.362,
    "smollm2-1.7b": 1.71,
    "smollm3-3b": 3.08,
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.61,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "gemma3-270m": 0.268,
    "gemma3-1b": 1.0,
    "olmo2-1b": 1.48,
    "olmo2-7b": 7.3,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_numbers_of_parameters(name):
    assert PRESETS[name].parameter_count / 1e9 == pytest.approx(SIZES[name], rel=0.01)
