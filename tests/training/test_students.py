"""A checkpoint's parameters are read alone: in the view, the type and to the devices that are wanted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orca_jax.artifacts import Artifact, plain
from orca_jax.config import LoraConfig, MeshConfig
from orca_jax.student import lora, parameters, sharding
from orca_jax.student.sharding import make_mesh
from orca_jax.training import checkpoints, students
from orca_jax.training.step import OptimizerConfig, make_optimizer, make_steps
from tests.training import synthetic

MESHES = {"one device": MeshConfig(fsdp=1), "eight": MeshConfig(data=2, fsdp=2, tensor=2)}


def write(workdir, student):
    """A finished training of random numbers, moments included; returns the parameters."""
    mesh = synthetic.mesh()
    steps = make_steps(student, make_optimizer(OptimizerConfig()), mesh, dtype=jnp.float32, accumulation=1)
    random = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.device_put(random.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding),
        steps.abstract,
    )
    artifact = Artifact(workdir / "training", {"program": "train", "student": plain(student)}, {})
    artifact.begin()
    saved = checkpoints.Checkpoints(workdir / "training/checkpoints", keep=1, note={"fingerprint": "x"})
    saved.save(1, state)
    saved.close()
    artifact.finish({})
    return jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope="module", params=["stacked", "per layer", "adapters"])
def saved(request, tmp_path_factory):
    """A workdir, and the float32 parameters in both views."""
    workdir = tmp_path_factory.mktemp("students") / "workdir"
    rank = 2 if request.param == "adapters" else 0
    student = dataclasses.replace(
        synthetic.STUDENT, scan_layers=request.param != "per layer", lora=LoraConfig(rank=rank)
    )
    params = lora.merge(write(workdir, student), student.lora)
    per_layer, _ = parameters.per_layer(params, student)
    return workdir, {False: per_layer, True: parameters.stacked(per_layer, student)[0]}


def load(workdir, *, mesh="one device", dtype=jnp.float32, **changes):
    source, config = students.open_source(workdir), MESHES[mesh]
    devices = jax.devices()[: 1 if mesh == "one device" else 8]
    wanted = dataclasses.replace(source.config, **changes)
    return source.load(wanted, make_mesh(config, devices), dtype)


@pytest.mark.parametrize(
    ("mesh", "part_bytes", "dtype", "scanned"),
    [
        ("one device", 1 << 28, "float32", True),
        ("eight", 60_000, "bfloat16", False),
    ],
)
def test_every_view_type_and_mesh(saved, mesh, part_bytes, dtype, scanned, monkeypatch):
    """Read in one part, and in several."""
    monkeypatch.setattr(checkpoints, "PART_BYTES", part_bytes)
    workdir, expected = saved
    found = load(workdir, mesh=mesh, dtype=jnp.dtype(dtype), scan_layers=scanned)
    wanted = parameters.cast(expected[scanned], dtype)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, mine), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted)):
        assert mine.dtype == theirs.dtype
        near = {"rtol": float(jnp.finfo(mine.dtype).eps), "atol": 1e-6}  # merged adapters may round otherwise
        np.testing.assert_allclose(np.asarray(mine, float), np.asarray(theirs, float), **near)
        spec = sharding.spec(sharding.path_name(path), mine.shape, mine.sharding.mesh)
        assert mine.sharding.is_equivalent_to(jax.NamedSharding(mine.sharding.mesh, spec), mine.ndim)


@pytest.mark.parametrize("saved", ["stacked"], indirect=True)
def test_moments_are_not_read(saved, monkeypatch):
    asked, real = [], checkpoints.ocp.training.Checkpointer.load

    def spy(self, step, abstract):
        asked.extend(jax.tree_util.tree_leaves_with_path(abstract))
        return real(self, step, abstract)

    monkeypatch.setattr(checkpoints.ocp.training.Checkpointer, "load", spy)
    workdir, _ = saved
    load(workdir)
    names = [sharding.path_name(path) for path, _ in asked]
    assert len(names) == len({*names})
    assert "params/embed/embedding" in names
    assert all(name.startswith("params/") for name in names)


@pytest.mark.parametrize("saved", ["stacked"], indirect=True)
def test_ids_may_be_more_and_not_fewer(saved):
    workdir, expected = saved
    grown, head = (load(workdir, vocab_size=80)[name] for name in ("embed", "unembed"))
    table = np.asarray(grown["embedding"])
    old = expected[False]["embed"]["embedding"][:61]
    assert (table.shape[0], head.shape[1]) == (80, 80)
    np.testing.assert_array_equal(table[:61], old)
    np.testing.assert_allclose(table[61:], np.broadcast_to(old.mean(0), (19, 32)), atol=1e-6)
    np.testing.assert_allclose(head[:, 79], expected[False]["unembed"][:, :61].mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="60 ids are fewer than the 61 of the weights"):
        load(workdir, vocab_size=60)
