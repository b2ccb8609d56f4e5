"""The programs of generation and scoring with the shapes of their arguments, to be lowered and read."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from orca_jax.student import decoding, llama, scoring, sharding
from orca_jax.student.parameters import cast
from orca_jax.student.sampling import SamplingParams


def programs(config, dtype, mesh=None):
    """By name a compiled function and its arguments: 4 rows, 256 positions, on the devices of a mesh."""
    dtype = jnp.dtype(dtype)

    def shaped(*shape, kind=jnp.int32, axes=()):
        place = NamedSharding(mesh, PartitionSpec(*axes)) if mesh else None
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    def parameter(path, leaf):
        axes = sharding.spec(sharding.path_name(path), leaf.shape, mesh) if mesh else ()
        return shaped(*leaf.shape, kind=leaf.dtype, axes=axes)

    shapes = jax.eval_shape(lambda: cast(llama.init(config, 0), dtype))
    params = jax.tree_util.tree_map_with_path(parameter, shapes)
    kv = shaped(4, config.num_kv_heads, 256, config.head_dim, kind=dtype, axes=(None, "tensor"))
    floats = shaped(4, kind=jnp.float32)
    rows = decoding.Rows(
        *(shaped(4) for _ in range(4)),
        key=shaped(4, 2, kind=jnp.uint32),
        number=shaped(4, kind=jnp.uint32),
        sampling=SamplingParams(floats, shaped(4), floats),
    )
    cache = (decoding.KV(kv, kv),) * config.num_layers
    compiled = decoding.programs(config, dtype)
    batch = scoring._Batch(shaped(4, 256), shaped(4), shaped(4, 16), shaped(4, 16))
    return {
        "prefill": (compiled.prefill, (params, shaped(4, 256), shaped(4), None, shaped())),
        "decode": (compiled.decode, (params, cache, rows, shaped(1), shaped(kind=jnp.bool_))),
        "score": (scoring._program(config, dtype, 1, ()), (params, batch)),
    }
