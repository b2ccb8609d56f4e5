"""The GPU kernel as far as a host without one goes; the rest of its tests are those of every backend."""

import jax
import jax.numpy as jnp
import pytest

from orca_jax.student import attention, attention_gpu
from orca_jax.student.attention import BACKENDS
from orca_jax.student.sharding import AXES

H100 = jax.sharding.AbstractMesh(
    (1, 1, 1),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"),
)


def shapes(length, head_dim):
    heads = [jax.ShapeDtypeStruct((2, length, n, head_dim), jnp.bfloat16) for n in (4, 2, 2)]
    return [*heads, jax.ShapeDtypeStruct((2, length), jnp.int32)]


@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_for_a_gpu_forward_and_backward_are_its_kernels(head_dim, monkeypatch):
    """Lowered to what Triton compiles; no GPU has compiled or run it."""
    monkeypatch.setattr(attention_gpu, "platform", lambda: "gpu")

    def total(query, key, value, segment_ids):
        mixed = attention.attend(query, key, value, segment_ids, backend="pallas_gpu")
        return mixed.astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(H100):  # jax 0.11 asks which GPU
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*shapes(700, head_dim))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("mha_forward", "mha_preprocess_backward", "mha_backward"):
        assert f'"{kernel}"' in text


def test_a_window_is_refused_and_the_others_are_named():
    with pytest.raises(ValueError, match=r"'pallas_gpu' has no sliding window \(got 5\)") as error:
        jax.eval_shape(
            lambda *inputs: attention.attend(*inputs, backend="pallas_gpu", window=5), *shapes(9, 16)
        )
    assert all(name in str(error.value) for name in BACKENDS)
