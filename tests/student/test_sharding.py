"""The mesh: a rule for every parameter, errors that name sizes, and the same numbers on eight devices."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from orca_jax.student import llama, sharding
from orca_jax.student.parameters import stacked
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import MeshConfig, make_mesh
from tests.student.students import SMALL, make_params, make_tokens

CUBE = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def cube():
    return make_mesh(CUBE)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_every_parameter_has_a_rule(cube, scan, tie):
    """Matrices are split over fsdp and tensor, vectors stay whole; so do layer axes."""
    config = dataclasses.replace(SMALL, scan_layers=scan, tie_embeddings=tie)
    shapes = jax.eval_shape(lambda: llama.init(config, 0))
    for path, placed in jax.tree_util.tree_leaves_with_path(sharding.shardings(shapes, cube)):
        name = sharding.path_name(path)
        expected = set() if name.endswith("scale") else {"fsdp", "tensor"}
        assert {axis for axis in placed.spec if axis} == expected, name
        if name.startswith("layers/"):
            assert placed.spec[0] is None


def test_optimizer_moments_are_placed_like_their_parameters(cube):
    params = jax.eval_shape(lambda: llama.init(SMALL, 0))
    state = sharding.shardings(jax.eval_shape(optax.adam(1e-3).init, params), cube)
    expected = sharding.shardings(params, cube)
    assert state[0].mu == expected
    assert state[0].nu == expected
    assert state[0].count.spec == PartitionSpec()


def test_a_parameter_without_a_rule_is_named(cube):
    with pytest.raises(ValueError, match="'layer_0/router/kernel'; add one to RULES"):
        sharding.shardings({"layer_0": {"router": {"kernel": np.zeros((4, 4))}}}, cube)


def test_an_axis_that_does_not_divide_a_dimension_is_left_out(cube):
    assert sharding.spec("query/kernel", (7, 8), cube) == PartitionSpec(None, "tensor")
    assert sharding.spec("layers/query/kernel", (3, 8, 7), cube) == PartitionSpec(None, "fsdp", None)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_the_vocabulary_of_the_paper_divides_over_a_tensor_axis(tensor):
    config = LlamaConfig(vocab_size=32_001)
    mesh = make_mesh(MeshConfig(tensor=tensor))
    assert config.padded_vocab_size % tensor == 0
    assert sharding.spec("unembed", (128, config.padded_vocab_size), mesh) == PartitionSpec("fsdp", "tensor")
    if tensor > 1:
        assert sharding.spec("unembed", (128, config.vocab_size), mesh) == PartitionSpec("fsdp", None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (1, 8, 1)),
        (CUBE, (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1)),
        (MeshConfig(fsdp=2, tensor=-1), (1, 2, 4)),
    ],
    ids=str,
)
def test_a_mesh_takes_all_devices(config, expected):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == expected
    assert sharding.batch_shards(mesh) == expected[0] * expected[1]


def test_a_mesh_may_take_given_devices():
    devices = jax.devices()[2:4]
    assert make_mesh(MeshConfig(), devices).devices.flatten().tolist() == devices


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=3),
        MeshConfig(fsdp=4),
        MeshConfig(data=-1),
        MeshConfig(data=-2, fsdp=-4),
        MeshConfig(data=0),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_named(config):
    with pytest.raises(
        ValueError, match=f"data={config.data}, fsdp={config.fsdp}, .* does not divide 8 devices"
    ):
        make_mesh(config)


class Chip:
    """A device as far as laying out a mesh looks at it."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def chips(*sizes):
    """Devices of slices of such sizes, in no order."""
    slices = np.repeat(np.arange(len(sizes)), sizes)
    devices = [Chip(number, int(index)) for number, index in enumerate(slices)]
    return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


@pytest.mark.parametrize(
    ("sizes", "slices", "outer"),
    [
        ((2, 4, 1), 2, (2, 1)),
        ((1, 8, 1), 2, (1, 2)),
        ((1, 4, 2), 4, (1, 4)),
        ((2, 4, 2), 4, (2, 2)),
        ((4, 2, 2), 4, (4, 1)),
    ],
)
def test_the_tensor_axis_stays_within_a_slice_and_data_crosses_first(sizes, slices, outer):
    devices = chips(*[int(np.prod(sizes)) // slices] * slices)
    laid = sharding.over_slices(sizes, devices)
    assert laid.shape == sizes
    assert {chip.id for chip in laid.flat} == set(range(len(devices)))
    where = np.vectorize(sharding.slice_of)(laid)
    crossed = [len(np.unique(where[:, 0, 0])), len(np.unique(where[0, :, 0])), len(np.unique(where[0, 0]))]
    assert crossed == [*outer, 1]


@pytest.mark.parametrize(
    ("sizes", "slices"), [((1, 1, 8), (4, 4)), ((1, 2, 4), (2, 2, 2, 2)), ((2, 3, 1), (2, 4))], ids=str
)
def test_sizes_that_slices_cannot_hold_are_named(sizes, slices):
    with pytest.raises(
        ValueError, match=rf"data={sizes[0]}, .* laid over {len(slices)} slices of {slices[0]}"
    ):
        sharding.over_slices(sizes, chips(*slices))


def test_shards_are_those_that_constrain_makes(cube):
    assert sharding.shards((4, 6), "batch", "tensor") == 1
    with jax.set_mesh(cube):
        assert sharding.shards((4, 6), "batch", "tensor") == 8
        assert sharding.shards((6, 6), "batch", "tensor") == 2  # rows that do not divide stay whole
        assert sharding.shards((4, 6), None, "tensor") == 2


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, "batch", "tensor") is x


def test_constrain_splits_rows_over_data_and_fsdp(cube):
    with jax.set_mesh(cube):
        split = jax.jit(lambda x: sharding.constrain(x, "batch", None, "tensor"))(jnp.ones((4, 3, 6)))
        whole = jax.jit(lambda x: sharding.constrain(x, "batch", None))(jnp.ones((3, 3)))
    assert split.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert whole.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("mesh_config", "scan"),
    [(CUBE, False), (CUBE, True), (MeshConfig(), True), (MeshConfig(fsdp=1, tensor=8), False)],
    ids=str,
)
def test_eight_devices_compute_what_one_does(mesh_config, scan):
    params, config = stacked(make_params(SMALL), SMALL) if scan else (make_params(SMALL), SMALL)
    tokens, segments = make_tokens((8, 40)), np.repeat([[1, 2]], 20, axis=1) * np.ones((8, 1), np.int32)
    row = (tokens, np.tile(np.arange(20), (8, 2)), segments)
    expected = forward(params, *row, config)
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        found = forward(placed, *jax.device_put(row, sharding.batch_sharding(mesh)), config)
    assert len(found.sharding.device_set) == 8
    assert np.abs(found - expected)[..., :97].max() <= 1e-5 * np.abs(expected[..., :97]).max()


@jax.jit(static_argnames="config")
def forward(params, tokens, positions, segment_ids, config):
    return llama.apply(params, tokens, positions, segment_ids, config=config)[0]


def many_of_one_id():
    """Ids int32 [8, 2048] of which id 0 is half, and gradients bfloat16 [8, 2048, 16] that do not cancel."""
    random = np.random.default_rng(0)
    ids = np.where(random.random((8, 2048)) < 0.5, 0, random.integers(0, 64, (8, 2048))).astype(np.int32)
    gradients = jnp.asarray(random.random((8, 2048, 16)), jnp.bfloat16)
    exact = np.zeros((64, 16))
    np.add.at(exact, ids.ravel(), np.asarray(gradients, np.float64).reshape(-1, 16))
    return ids, gradients, exact


def relative(found, exact):
    return np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("mesh_config", [MeshConfig(data=8, fsdp=1), CUBE], ids=str)
def test_an_embeddings_gradient_in_bfloat16_is_summed_in_float32(mesh_config):
    ids, gradients, exact = many_of_one_id()

    @jax.jit
    def backward(table):
        rows, gradient = jax.vjp(
            lambda table: sharding.lookup(table, ids, "embed/embedding", jnp.bfloat16), table
        )
        assert rows.dtype == jnp.bfloat16
        return gradient(gradients)[0]

    table = jnp.ones((64, 16), jnp.float32)
    _, naive = jax.vjp(lambda table: jnp.take(table.astype(jnp.bfloat16), ids, axis=0), table)
    assert relative(naive(gradients)[0], exact) > 0.1
    assert relative(backward(table), exact) < 1e-5
    with jax.set_mesh(make_mesh(mesh_config)):
        assert relative(backward(table), exact) < 1e-5


@pytest.mark.parametrize(
    "mesh_config", [MeshConfig(), CUBE, MeshConfig(data=8, fsdp=1)], ids=["fsdp", "cube", "data"]
)
def test_a_kernels_gradient_is_summed_over_the_mesh_in_the_type_that_is_asked_for(mesh_config):
    random = np.random.default_rng(0)
    x, gradient = (jnp.asarray(random.random((8, 100, 16)), jnp.bfloat16) for _ in range(2))
    exact = np.einsum("bti,bto->io", *(np.asarray(array, np.float64) for array in (x, gradient)))

    def backward(kernel, reduce_dtype):
        out, gradients = jax.vjp(
            lambda kernel: sharding.product(x, kernel, "query/kernel", reduce_dtype), kernel
        )
        return gradients(gradient.astype(out.dtype))[0]

    kernel = jnp.ones((16, 16), jnp.float32)
    with jax.set_mesh(make_mesh(mesh_config)):
        wide, narrow = (
            jax.jit(backward, static_argnums=1)(kernel, kind) for kind in (jnp.float32, jnp.bfloat16)
        )
    assert wide.dtype == narrow.dtype == jnp.float32
    assert relative(wide, exact) < 1e-5
    assert relative(narrow, exact) > 1e-4


SUMS = r"""
import pathlib, re, sys
import jax, jax.numpy as jnp
from orca_jax.student import sharding

def backward(kernel, x, gradient, reduce_dtype):
    product = lambda kernel: sharding.product(x, kernel, "query/kernel", reduce_dtype)
    return jax.vjp(product, kernel)[1](gradient)[0]

mesh = sharding.make_mesh(sharding.MeshConfig(data=2))
rows = jax.ShapeDtypeStruct((8, 16, 32), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))
kernel = jax.ShapeDtypeStruct((32, 32), jnp.float32)
for kind in ("float32", "bfloat16"):
    folder = pathlib.Path(sys.argv[1], kind)
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "spmd.*"}
    with jax.set_mesh(mesh):
        lowered = jax.jit(backward, static_argnums=3).lower(kernel, rows, rows, jnp.dtype(kind))
        lowered.compile(compiler_options=options)
    (path,) = folder.glob("*after_spmd-partitioning*")
    print(*re.findall(r"= (\w+)\[.* all-reduce\(", path.read_text()))
"""


@pytest.mark.proof
def test_in_the_partitioned_program_kernels_gradients_are_summed_in_that_type(tmp_path):
    """As it leaves the partitioner: the CPU's compiler then widens every bfloat16 to float32."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", SUMS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wide, narrow = (set(line.split()) for line in done.stdout.splitlines())
    assert (wide, narrow) == ({"f32"}, {"bf16"})
