"""What the backends share: the platform that is meant, padding to blocks, and kernels on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from orca_jax.student import attention, sharding
from orca_jax.student.attention_common import in_whole_blocks, platform
from orca_jax.student.sharding import AXES, MeshConfig, make_mesh


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


@pytest.mark.parametrize("length", [1, 7, 8, 9])
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
@pytest.mark.parametrize("backend", ["splash", "pallas_gpu"])
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
