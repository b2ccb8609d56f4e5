"""The student's sizes: counted rightly, and wrong ones named."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.artifacts import plain
from orca_jax.config import LoraConfig
from orca_jax.config_check import build
from orca_jax.student import llama
from orca_jax.student.presets import LlamaConfig, RopeScaling
from tests.student.students import SMALL


@given(
    config=st.builds(
        LlamaConfig,
        vocab_size=st.integers(1, 300),
        hidden_size=st.integers(1, 40),
        intermediate_size=st.integers(1, 40),
        num_layers=st.integers(1, 3),
        num_heads=st.just(4),
        num_kv_heads=st.sampled_from([1, 2, 4]),
        head_dim=st.sampled_from([2, 8]),
        tie_embeddings=st.booleans(),
        scan_layers=st.booleans(),
        remat=st.sampled_from(["none", "products", "full"]),
        qkv_bias=st.booleans(),
        output_bias=st.booleans(),
        norms=st.sampled_from(["before", "after", "both"]),
        query_key_norm=st.sampled_from(["none", "head", "all"]),
    )
)
@settings(max_examples=12)
def test_parameters_are_counted_as_they_are(config):
    shapes = jax.eval_shape(lambda: llama.init(config, 0))
    assert config.parameter_count == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_llama_13b_has_its_published_size():
    """Touvron et al., table 2: 13.0 billion parameters."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=5120,
        intermediate_size=13_824,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        head_dim=128,
    )
    assert config.parameter_count == 13_015_864_320


@pytest.mark.parametrize("vocab_size", [1, 128, 129, 32_000, 32_001])
def test_the_vocabulary_is_padded_to_the_next_multiple(vocab_size):
    padded = LlamaConfig(vocab_size=vocab_size).padded_vocab_size
    assert padded % 128 == 0
    assert 0 <= padded - vocab_size < 128


WRONG = {
    "vocab_size": 0,
    "hidden_size": 0,
    "intermediate_size": -1,
    "num_layers": 0,
    "num_heads": 0,
    "vocab_multiple": 0,
    "num_kv_heads": 3,
    "head_dim": 15,
    "remat": "half",
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_sizes_are_named(name):
    with pytest.raises(ValueError, match=rf"student\.{name}"):
        build(LlamaConfig, {**plain(SMALL), name: WRONG[name]}, "student")


@pytest.mark.parametrize("head_dim", [0, -2])
def test_a_head_has_at_least_one_pair(head_dim):
    with pytest.raises(ValueError, match=r"student\.head_dim"):
        build(LlamaConfig, {**plain(SMALL), "head_dim": head_dim}, "student")


def test_training_flops_of_a_position():
    """6 a weight that is multiplied with, and 6 x layers x heads x head size x row length."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=16,
    )  # fmt: skip
    layer = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96
    products, attention = 3 * layer + 64 * 1024, 3 * 4 * 16 * 512
    assert config.training_flops(512) == 6 * products + 6 * attention
    tied = dataclasses.replace(config, tie_embeddings=True)
    assert tied.training_flops(512) == config.training_flops(512)
    adapted = dataclasses.replace(config, lora=LoraConfig(rank=4))
    assert adapted.training_flops(512) == 4 * products + 6 * attention


@pytest.mark.parametrize("length", [7, 64, 500])
@pytest.mark.parametrize("window", [1, 50, 64])
def test_a_window_saves_what_it_hides(length, window):
    """Against a count of the pairs that are seen, of which the formula leaves out half of the diagonal."""
    plain = dataclasses.replace(SMALL, num_layers=1)
    windowed = dataclasses.replace(plain, sliding_window=window)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    hidden = (distance >= window).sum() / length
    saved = plain.training_flops(length) - windowed.training_flops(length)
    slack = 12 * SMALL.num_heads * SMALL.head_dim
    assert abs(saved - slack * hidden) <= slack


def test_an_unknown_kind_of_rope_scaling_is_refused_where_no_config_was_checked():
    config = dataclasses.replace(SMALL, rope_scaling=RopeScaling(kind="yarn", factor=2.0))
    with pytest.raises(ValueError, match=r"rope_scaling\.kind='yarn'; known: none, linear, llama3"):
        llama.frequencies(config)
