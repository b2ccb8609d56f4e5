"""The kernels: padding to blocks, partitioning over a mesh, and lowering for chips not present."""

import dataclasses
import functools
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from orca_jax.student import attention, attention_kernels, llama, sharding
from orca_jax.student.attention_kernels import in_whole_blocks, platform
from orca_jax.student.sharding import AXES, MeshConfig, make_mesh
from tests.student.students import SMALL

H100 = jax.sharding.AbstractMesh(
    (1, 1, 1),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"),
)


@pytest.fixture(scope="module")
def cube():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_the_platform_is_that_of_the_mesh_before_that_of_the_host(cube):
    chip = AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
    assert platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=chip)):
        assert platform() == "tpu"
    with jax.set_mesh(cube):
        assert platform() == "cpu"


@pytest.mark.parametrize("length", [7, 8, 9])
def test_a_kernel_gets_whole_blocks_and_its_padding_comes_out_as_zeros(length):
    lengths = []

    def kernel(query, key, value, segment_ids):
        lengths.append({x.shape[1] for x in (query, key, value, segment_ids)})
        assert not np.asarray(segment_ids[:, length:]).any()
        return query + 1

    ones = jnp.ones((2, length, 3, 4))
    segments = jnp.asarray(np.arange(length) != 0, jnp.int32)[None].repeat(2, axis=0)
    mixed = in_whole_blocks(kernel, ones, ones, ones, segments, multiple=8)
    assert lengths == [{8 if length <= 8 else 16}]
    np.testing.assert_array_equal(mixed, np.where(np.asarray(segments)[:, :, None, None] > 0, 2, 0) * ones)


def total(query, key, value, segment_ids, backend):
    return jnp.square(attention.attend(query, key, value, segment_ids, backend=backend)).mean()


value_and_gradients = jax.value_and_grad(total, argnums=(0, 1, 2))


def make_inputs(rows, query_heads, kv_heads):
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((rows, 140, n, 8)) for n in (query_heads, kv_heads, kv_heads)]
    segments = np.repeat([[1, 2, 3, 0]], rows, axis=0).repeat([60, 30, 40, 10], axis=1)
    return [*(jnp.asarray(x, jnp.float32) for x in inputs), jnp.asarray(segments, jnp.int32)]


@pytest.mark.parametrize(
    ("rows", "query_heads", "kv_heads", "split"),
    [
        (4, 4, 2, PartitionSpec(("data", "fsdp"), None, "tensor")),
        (4, 3, 1, PartitionSpec(("data", "fsdp"))),  # one key-value head cannot be split in two
        (3, 4, 2, PartitionSpec(None, None, "tensor")),  # nor three rows in four
    ],
)
@pytest.mark.parametrize("backend", ["splash", "cudnn"])
def test_kernels_are_split_over_the_mesh_and_give_the_same(cube, backend, rows, query_heads, kv_heads, split):
    inputs = make_inputs(rows, query_heads, kv_heads)
    expected, gradients = jax.jit(value_and_gradients, static_argnames="backend")(
        *inputs, backend="reference"
    )
    with jax.set_mesh(cube):
        if rows == 4:
            inputs = [jax.device_put(x, sharding.batch_sharding(cube)) for x in inputs]
        lowered = jax.jit(value_and_gradients, static_argnames="backend").lower(*inputs, backend=backend)
        compiled = lowered.compile()
        found, parts = compiled(*inputs)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for part, gradient in zip(parts, gradients, strict=True):
        assert part.sharding.is_equivalent_to(jax.NamedSharding(cube, split), ndim=4)
        np.testing.assert_allclose(part, gradient, atol=1e-5 * np.abs(gradient).max())
    assert "all-gather" not in compiled.as_text()


def shapes(length, head_dim):
    heads = [jax.ShapeDtypeStruct((2, length, n, head_dim), jnp.bfloat16) for n in (4, 2, 2)]
    return [*heads, jax.ShapeDtypeStruct((2, length), jnp.int32)]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU to lower for, with what JAX asks of one while it traces answered."""
    private = "jax._src.cudnn.fused_attention_stablehlo."
    monkeypatch.setattr(attention_kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(private + "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(private + "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(private + "is_cuda_compute_capability_equal", lambda capability: False)
    attention_kernels.say.cache_clear()
    with jax.sharding.use_abstract_mesh(H100):
        yield


def lowered(function, inputs, platform):
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def summed(query, key, value, segment_ids, **options):
    return attention.attend(query, key, value, segment_ids, **options).astype(jnp.float32).sum()


@pytest.mark.parametrize(("window", "head_dim"), [(0, 64), (100, 128)])
def test_for_a_gpu_forward_and_backward_are_cudnns(head_dim, window, gpu):
    """Lowered, not compiled, and run on no GPU yet."""
    total = functools.partial(summed, backend="cudnn", window=window)
    text = lowered(jax.grad(total, argnums=(0, 1, 2)), shapes(700, head_dim), "cuda")
    for kernel in ("__cudnn$fmhaScaleBiasSoftmax(", "__cudnn$fmhaScaleBiasSoftmaxBackward("):
        assert text.count(f"@{kernel}") == 1


@pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists()
    or not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="needs a GPU and the extra `cuda`",
)
def test_on_a_gpu_cudnn_is_the_reference_and_packed_is_unpacked(repo):
    command = [sys.executable, "-m", "pytest", "tests/student/test_attention.py", "-k", "16_bits"]
    environment = {**os.environ, "TEST_PLATFORM": "cuda"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    ("head_dim", "dtype", "why"),
    [(80, jnp.bfloat16, "heads of 80 are not among (64, 128)"), (64, jnp.float32, "attention in float32")],
)
def test_what_cudnn_lacks_is_blockwise_and_said_once(head_dim, dtype, why, gpu, caplog):
    inputs = [*(jax.ShapeDtypeStruct(x.shape, dtype) for x in shapes(700, head_dim)[:3]), shapes(700, 8)[3]]
    found = functools.partial(summed, backend="cudnn")
    with caplog.at_level(logging.INFO, "orca_jax.student.attention_kernels"):
        text = lowered(found, inputs, "cuda")
        lowered(found, [*inputs], "cuda")
    assert "cudnn" not in text
    assert "while" in text
    said = [message for message in caplog.messages if "in place of cudnn" in message]
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.parametrize(
    ("length", "head_bytes", "block", "fused"),
    [
        (128, 256, 128, True),
        (384, 256, 128, True),
        (640, 256, 128, False),
        (2048, 256, 1024, True),
        (2048, 2048, 512, True),
        (4096, 256, 1024, True),
        (8192, 256, 1024, False),
    ],
)
def test_blocks_divide_the_row(length, head_bytes, block, fused):
    """Few blocks of keys have one backward kernel; many would need much memory for its results."""
    sizes = attention_kernels._block_sizes(length, head_bytes)
    assert sizes.block_q == sizes.block_kv == block
    assert sizes.use_fused_bwd_kernel == fused
    assert sizes.block_kv_dkv == (block if fused else min(block, 512))
    assert sizes.has_backward_blocks


@pytest.mark.parametrize("window", [0, 100])
def test_a_row_of_many_blocks_is_the_reference_too(window):
    """Five blocks of keys, so two backward kernels; the other tests have one."""
    random = np.random.default_rng(0)
    inputs = [jnp.asarray(random.standard_normal((1, 640, n, 8)), jnp.float32) for n in (4, 2, 2)]
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], [300, 1, 320, 19], axis=1), jnp.int32)

    def gradients(backend):
        def total(*inputs):
            return jnp.sin(attention.attend(*inputs, segments, backend=backend, window=window)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)

    for found, expected in zip(gradients("splash"), gradients("reference"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("window", [0, 100])
def test_for_a_tpu_forward_and_backward_are_its_kernels(window, monkeypatch):
    """Lowered, not compiled: the proof tests/proofs/test_tpu_compile.py does that."""
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")

    def total(query, key, value, segment_ids):
        mixed = attention.attend(query, key, value, segment_ids, backend="splash", window=window)
        return mixed.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*shapes(700, 64))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 2  # forward; backward in one
    for kernel in ("splash_mha_fwd_segmented", "splash_mha_dkv_segmented"):
        assert kernel in text


CALLS = {
    # A kernel's forward call, its backward one, and how the program lowered for the platform counts them.
    "splash": ("tpu", "splash_mha_fwd_segmented", "splash_mha_dkv_segmented"),
    "cudnn": ("cuda", "@__cudnn$fmhaScaleBiasSoftmax(", "@__cudnn$fmhaScaleBiasSoftmaxBackward("),
}


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("products", 1), ("full", 2)])
@pytest.mark.parametrize("backend", CALLS)
def test_only_full_remat_runs_attentions_forward_pass_again(backend, remat, forwards, gpu, monkeypatch):
    """Calls of the kernels in the program of a scanned student: one a pass over the layers."""
    on, forward, backward = CALLS[backend]
    if backend == "splash":
        monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    config = dataclasses.replace(SMALL, attention=backend, head_dim=64, scan_layers=True, remat=remat)

    def total(params, row):
        hidden, _ = llama.hidden(params, row, row, row, config=config, dtype=jnp.bfloat16)
        return hidden.astype(jnp.float32).sum()

    inputs = jax.eval_shape(lambda: llama.init(config, 0)), jax.ShapeDtypeStruct((2, 256), jnp.int32)
    text = lowered(jax.grad(total), inputs, on)
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert sum(forward in line for line in calls) == forwards
    assert sum(backward in line for line in calls) == 1


def test_blockwise_scans_forward_again_under_full_remat_alone():
    """Counted in unrolled layers, whose only loops are those over blocks."""

    def loops(remat):
        config = dataclasses.replace(SMALL, attention="blockwise", num_layers=1, remat=remat)

        def total(params, row):
            return llama.hidden(params, row, row, row, config=config)[0].sum()

        inputs = jax.eval_shape(lambda: llama.init(config, 0)), jax.ShapeDtypeStruct((2, 600), jnp.int32)
        return lowered(jax.grad(total), inputs, "cpu").count("stablehlo.while")

    assert [loops(remat) for remat in ("none", "products", "full")] == [2, 2, 3]


def test_larger_heads_than_were_compiled_are_refused():
    with pytest.raises(ValueError, match=r"student\.head_dim up to 512, got 1024; use auto or blockwise"):
        jax.eval_shape(
            lambda *inputs: attention.attend(*inputs, backend="splash"), *shapes(length=8, head_dim=1024)
        )
