"""Splash attention as far as a host without TPUs goes; the rest of its tests are those of every backend."""

import jax
import jax.numpy as jnp
import pytest

from orca_jax.student import attention, attention_splash


def shapes(length, head_dim):
    heads = [jax.ShapeDtypeStruct((2, length, n, head_dim), jnp.bfloat16) for n in (4, 2, 2)]
    return [*heads, jax.ShapeDtypeStruct((2, length), jnp.int32)]


@pytest.mark.parametrize(("length", "block"), [(128, 128), (384, 128), (768, 256), (2048, 512), (4096, 512)])
def test_blocks_divide_the_row(length, block):
    sizes = attention_splash._block_sizes(length)
    assert sizes.block_q == sizes.block_kv_dq == block
    assert sizes.has_backward_blocks


@pytest.mark.parametrize("window", [0, 100])
def test_for_a_tpu_forward_and_backward_are_its_kernels(window, monkeypatch):
    """Lowered, not compiled: the proof tests/proofs/test_tpu_compile.py does that."""
    monkeypatch.setattr(attention_splash, "platform", lambda: "tpu")

    def total(query, key, value, segment_ids):
        mixed = attention.attend(query, key, value, segment_ids, backend="splash", window=window)
        return mixed.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*shapes(700, 64))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 3  # forward, dq, dk with dv
    for kernel in ("splash_mha_fwd_segmented", "splash_mha_dq_segmented", "splash_mha_dkv_segmented"):
        assert kernel in text


def test_larger_heads_than_were_compiled_are_refused():
    with pytest.raises(ValueError, match=r"student\.head_dim up to 512, got 1024; use auto or blockwise"):
        jax.eval_shape(
            lambda *inputs: attention.attend(*inputs, backend="splash"), *shapes(length=8, head_dim=1024)
        )
