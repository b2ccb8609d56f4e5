"""Splash attention, generation and scoring compile for TPUs, on their meshes; needs the package libtpu only.

The TPU compiler runs ahead of time on a description of the chips, in a process of its own: merely loaded,
libtpu changes how jax starts.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the extra `tpu`"),
]
TOPOLOGIES = ("v5e:2x4", "v5p:2x2x1")
COMPILE = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from orca_jax.student import attention, llama, sharding
from orca_jax.student.presets import LlamaConfig

case = json.loads(sys.argv[1])
described = topologies.get_topology_desc(platform="tpu", topology_name=case["topology"])
mesh = sharding.make_mesh(sharding.MeshConfig(tensor=2), list(described.devices))
rows = sharding.batch_sharding(mesh)
heads = NamedSharding(mesh, PartitionSpec(sharding.BATCH, None, "tensor"))
batch, length = sharding.batch_shards(mesh), case["length"]
tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)


def by_attention():
    def total(query, key, value, segment_ids):
        mixed = attention.attend(query, key, value, segment_ids, window=case["window"])
        return mixed.astype(jnp.float32).sum()

    inputs = [
        jax.ShapeDtypeStruct((batch, length, n, case["head_dim"]), case["dtype"], sharding=heads)
        for n in (8, 4, 4)
    ]
    return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*inputs, tokens)


def by_student():
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, num_layers=3, num_heads=8, num_kv_heads=4,
        head_dim=case["head_dim"], scan_layers=True, remat=case["remat"],
    )

    def total(params, tokens, positions, segment_ids):
        hidden, _ = llama.hidden(
            params, tokens, positions, segment_ids, config=config, dtype=jnp.dtype(case["dtype"]),
            reduce_dtype=jnp.dtype(case["reduce"]),
        )
        return jnp.square(hidden.astype(jnp.float32)).mean()

    shapes = jax.eval_shape(lambda: llama.init(config, 0))
    placed = jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
        shapes, sharding.shardings(shapes, mesh),
    )
    return jax.jit(jax.grad(total)).lower(placed, tokens, tokens, tokens)


def by_program():
    from tests.student import lowering

    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=64,
        scan_layers=False,
    )
    program, arguments = lowering.programs(config, case["dtype"], mesh)[case["program"]]
    return program.lower(*arguments)


with jax.set_mesh(mesh):
    by = by_program if case["program"] else by_student if case["student"] else by_attention
    compiled = by().compile()
text = compiled.as_text()
products = [line for line in text.splitlines() if " convolution(" in line or " dot(" in line]
# Sums over devices, in one operation or passed on in a ring. Those of matrices are kernels': activations,
# which a tensor axis sums in the compute type, have three dimensions.
sums = re.findall(r" = (.*) (all-reduce|reduce-scatter|collective-permute-start)\\(", text)
print(json.dumps({
    "products": len(products),
    "exact": sum("operand_precision={highest,highest}" in line for line in products),
    "calls": text.count("custom_call_target=\\"tpu_custom_call\\""),
    "kernels": [n for n in ("fwd", "dq", "dkv") if f"splash_mha_{n}_segmented" in text],
    "gathers": text.count(" all-gather("),
    "sums": [kind for line in sums for kind in re.findall(r"(\\w+)\\[\\d+,\\d+\\]", line[0])],
}))
"""


def compiled(**case):
    usual = {
        "student": False,
        "remat": "full",
        "reduce": "float32",
        "program": "",
        "window": 0,
        "head_dim": 128,
        "length": 2048,
    }
    case = {**usual, "dtype": "bfloat16", **case}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",  # there is no machine to ask what chips it has
    }
    # The persistent cache holds programs for CPUs; here the compiler itself is what is tested.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(case)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"window": 512},
        {"head_dim": 64, "dtype": "float32"},
        {"head_dim": 64},
        {"length": 8192},
        {"head_dim": 80, "length": 700},
        {"head_dim": 512, "dtype": "float32"},
    ],
    ids=[
        "llama",
        "window",
        "small heads",
        "heads of 64",
        "long rows",
        "odd heads and length",
        "largest heads",
    ],
)
def test_attention_compiles_with_nothing_gathered(topology, case):
    found = compiled(topology=topology, **case)
    kernels = ["fwd", "dkv"] if case.get("length", 2048) <= 4096 else ["fwd", "dq", "dkv"]
    assert (found["calls"], found["kernels"], found["gathers"]) == (len(kernels), kernels, 0)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_scanned_rematerialised_student_compiles_with_the_kernels(topology):
    """Three calls in the two scans: forward, forward again, and backward; two where residuals are saved."""
    full, products = (
        compiled(topology=topology, student=True, remat=remat) for remat in ("full", "products")
    )
    assert (full["calls"], products["calls"]) == (3, 2)
    assert full["kernels"] == products["kernels"] == ["fwd", "dkv"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kernels_gradients_are_summed_over_the_mesh_in_reduce_dtype(topology):
    wide, narrow = (
        compiled(topology=topology, student=True, reduce=kind) for kind in ("float32", "bfloat16")
    )
    assert set(wide["sums"]) == {"f32"}
    assert len(wide["sums"]) >= 8  # query, key, value, output, gate, up, down, and the embedding
    assert narrow["sums"].count("bf16") >= 7


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("program", ["prefill", "decode", "score"])
def test_products_of_float32_are_float32_in_the_compiled_program(program, topology):
    """A weight's product is compiled to a convolution, which by default rounds its operands to bfloat16."""
    exact, rounded = (compiled(topology=topology, program=program, dtype=d) for d in ("float32", "bfloat16"))
    assert exact["products"] == exact["exact"] > 7
    assert rounded["products"] > 7
    assert rounded["exact"] == 0
