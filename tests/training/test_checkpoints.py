"""Checkpoints come back bit for bit, on any mesh; damage is found and the step before is used."""

import functools
import logging
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from orca_jax.student import llama, sharding
from orca_jax.training.checkpoints import CheckpointError, Checkpoints, checksum, checksums, load_params
from orca_jax.training.step import OptimizerConfig, make_optimizer, make_steps
from tests.training import synthetic

NOTE = {"fingerprint": "a run", "versions": {"jax": "x"}}


@functools.cache
def steps_on(mesh):
    return make_steps(
        synthetic.STUDENT, make_optimizer(OptimizerConfig()), mesh, dtype=jnp.float32, accumulation=1
    )


@functools.cache
def state(seed, mesh=None):
    """A state of random numbers everywhere, moments included."""
    steps = steps_on(mesh or synthetic.mesh())
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.device_put(
            np.asarray(random.normal(size=leaf.shape) * 9, leaf.dtype), leaf.sharding
        ),
        steps.abstract,
    )


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def save(directory, *steps, keep=5):
    checkpoints = Checkpoints(directory, keep=keep, note=NOTE)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def restore(directory, mesh=None):
    checkpoints = Checkpoints(directory, keep=5, note=NOTE)
    try:
        return checkpoints.restore(steps_on(mesh or synthetic.mesh()).abstract)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2; copy it to damage it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "saved"
    save(directory, 1, 2)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


# --- Saving and restoring


def test_restored_state_is_the_saved_one_bit_for_bit(saved):
    restored = restore(saved)
    assert restored.step == 2
    assert restored.note == NOTE
    assert_equal(restored.state, state(2))


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 1, 2)], ids=str)
def test_restored_on_another_mesh(saved, axes):
    mesh = synthetic.mesh(*axes)
    restored = restore(saved, mesh)
    assert_equal(restored.state, state(2))
    placed = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding.mesh == mesh, restored.state))
    assert placed
    assert all(placed)


def test_saved_on_eight_devices_restored_on_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, note=NOTE)
    checkpoints.save(7, state(3, synthetic.mesh(2, 2, 2)))
    checkpoints.close()
    assert_equal(restore(tmp_path).state, state(3))


def test_nothing_there_is_none(tmp_path):
    assert restore(tmp_path / "new") is None


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, keep=2)
    checkpoints = Checkpoints(tmp_path, keep=2, note=NOTE)
    assert sorted(checkpoints.steps()) == [2, 3]
    checkpoints.close()


def test_load_params_of_nothing_says_to_train(tmp_path):
    with pytest.raises(CheckpointError, match="train first"):
        load_params(tmp_path / "none")


# --- Damage


def data_files(step_directory):
    """The files that hold the arrays' bytes, largest first."""
    files = [path for path in step_directory.rglob("*") if path.is_file() and path.parent.name == "d"]
    return sorted(files, key=lambda path: (-path.stat().st_size, path.name))


def every_file(step_directory):
    return sorted(path for path in step_directory.rglob("*") if path.is_file())


def flip(path, place, mask=1):
    """Changes bits of the byte that lies at the share `place` of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= mask
    path.write_bytes(data)


def assert_step_before(directory, caplog):
    """Step 2 was set aside with a warning, and step 1 is restored whole."""
    with caplog.at_level(logging.WARNING, logger="orca_jax"):
        restored = restore(directory)
    assert restored.step == 1
    assert_equal(restored.state, state(1))
    assert (directory / "damaged-2").is_dir()
    assert not (directory / "2").exists()
    assert any("step 2" in record.getMessage() for record in caplog.records)


def test_flipped_byte_of_the_arrays_is_found(copy, caplog):
    flip(data_files(copy / "2")[0], 0.5)
    assert_step_before(copy, caplog)


@settings(max_examples=6)
@given(data=st.data())
def test_any_flipped_byte_is_found_or_harmless(saved, tmp_path_factory, data):
    """Whatever file it is in, what is restored is exactly what was saved at the step it claims."""
    directory = shutil.copytree(saved, tmp_path_factory.mktemp("flipped") / "copy")
    path = data.draw(st.sampled_from([f for f in every_file(directory / "2") if f.stat().st_size]))
    flip(path, data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.sampled_from([1, 16, 128, 255])))
    restored = restore(directory)
    assert_equal(restored.state, state(restored.step))


def test_arrays_swapped_between_two_checkpoints_are_found(copy, caplog):
    """Every byte is valid, but not of this step: only the checksums can tell."""
    shutil.rmtree(copy / "2" / "state")
    shutil.copytree(copy / "1" / "state", copy / "2" / "state")
    assert_step_before(copy, caplog)
    assert "checksum differs" in caplog.text


def test_no_whole_checkpoint_is_an_error_that_says_why(copy):
    for step in ("1", "2"):
        data_files(copy / step)[0].unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*step 2: .*step 1: "):
        restore(copy)


def test_a_run_goes_on_after_damage(copy, caplog):
    data_files(copy / "2")[0].unlink()
    checkpoints = Checkpoints(copy, keep=5, note=NOTE)
    assert checkpoints.restore(steps_on(synthetic.mesh()).abstract).step == 1
    checkpoints.save(2, state(22))
    checkpoints.close()
    restored = restore(copy)
    assert restored.step == 2
    assert_equal(restored.state, state(22))


def test_load_params_sees_damage_of_parameters_alone(copy):
    """The step before is taken, and the damaged one stays: it is another run's. Moments are not read."""
    file, found = data_files(copy / "2")[0], []
    for place in (0.05, 0.35, 0.65, 0.95):
        flip(file, place)
        step, params = load_params(copy)
        assert_equal(params, jax.tree.map(np.asarray, state(step).params))
        found.append(step)
        flip(file, place)
    assert {*found} == {1, 2}
    assert (copy / "2").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        PermissionError(13, "denied"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no space"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_checkpoints_fault_sets_none_aside(copy, monkeypatch, error):
    def fail(self, step, abstract):
        raise RuntimeError("loading failed") from error

    monkeypatch.setattr(Checkpoints, "_load", fail)
    with pytest.raises(RuntimeError, match="loading failed"):
        restore(copy)
    assert (copy / "2").is_dir()


def test_damage_without_a_word_is_damage_too(copy, monkeypatch):
    whole = Checkpoints._load

    def fail(self, step, abstract):
        if step == 2:
            raise AssertionError
        return whole(self, step, abstract)

    monkeypatch.setattr(Checkpoints, "_load", fail)
    assert restore(copy).step == 1
    assert (copy / "damaged-2").is_dir()


# --- Checksums

DTYPES = ("float32", "uint8", "bfloat16")


@settings(max_examples=20)
@given(data=st.data())
def test_any_change_of_one_word_changes_the_checksum(data):
    dtype = jnp.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(st.sampled_from([(), (13,), (2, 3, 4)]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    words = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.itemsize]
    bits = random.integers(0, np.iinfo(words).max, shape, words, endpoint=True)
    changed = np.array(bits)
    place = data.draw(st.integers(0, bits.size - 1))
    mask = data.draw(st.integers(1, int(np.iinfo(words).max)))
    changed.reshape(-1)[place] ^= words(mask)
    before, after = (int(checksum(jnp.asarray(b.view(dtype)))) for b in (np.array(bits), changed))
    assert before != after


def test_checksum_knows_the_order_of_words():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    swapped = values.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    sums = {
        int(checksum(jnp.asarray(array))) for array in (values, swapped, values.T.copy(), values[:, ::-1])
    }
    assert len(sums) == 4


@pytest.mark.parametrize("bit", [0, 15, 31])
def test_the_same_bit_changed_in_two_words_changes_the_checksum(bit):
    """Above all the sign bit: negated weights are as wrong as any."""
    words = np.random.default_rng(2).integers(0, 2**32, 64, np.uint32, endpoint=False)
    changed = words.copy()
    changed[[5, 40]] ^= np.uint32(1 << bit)
    before, after = (int(checksum(jnp.asarray(array))) for array in (words, changed))
    assert before != after


@pytest.mark.parametrize(
    "axes", [("data", None), (None, ("fsdp", "tensor")), (("data", "fsdp"), "tensor")], ids=str
)
def test_checksum_is_the_same_for_every_sharding(axes):
    values = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
    mesh = synthetic.mesh(2, 2, 2)
    placed = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*axes)))
    assert int(jax.jit(checksum)(placed)) == int(checksum(jnp.asarray(values)))


def test_checksums_of_a_tree_go_by_path_and_not_by_mesh():
    params = llama.init(synthetic.STUDENT, 0)
    found = checksums(params)
    assert found["unembed"] == int(checksum(params["unembed"]))
    assert "layers/attention/query/kernel" in found
    placed = jax.device_put(params, sharding.shardings(params, synthetic.mesh(2, 2, 2)))
    assert checksums(placed) == found


ONE_DEVICE = """
import sys
import jax
import numpy as np
from orca_jax.training.checkpoints import load_params

assert len(jax.devices()) == 1
step, params = load_params(sys.argv[1])
np.save(sys.argv[2], params["unembed"])
"""


@pytest.mark.slow
def test_what_eight_devices_saved_loads_where_there_is_one(repo, tmp_path):
    """Moments in bfloat16 too. Its devices are gone, which is no damage: nothing is set aside."""
    optimizer = make_optimizer(OptimizerConfig(kind="adamw_bf16"))
    mesh = synthetic.mesh(2, 2, 2)
    steps = make_steps(synthetic.STUDENT, optimizer, mesh, dtype=jnp.float32, accumulation=1)
    saved = steps.init(llama.init(synthetic.STUDENT, 0))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=5, note=NOTE)
    checkpoints.save(3, saved)
    checkpoints.close()
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(repo)}
    arguments = [str(tmp_path / "checkpoints"), str(tmp_path / "unembed.npy")]
    done = subprocess.run(
        [sys.executable, "-c", ONE_DEVICE, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "unembed.npy"), saved.params["unembed"])
    assert not list((tmp_path / "checkpoints").glob("damaged-*"))


def test_parameters_are_loaded_whatever_mesh_is_in_force(saved):
    """As a run does that starts from another's; the checkpoints stay where they are."""
    with jax.set_mesh(synthetic.mesh()):
        step, params = load_params(saved)
    assert step == 2
    assert_equal(params, jax.tree.map(np.asarray, state(2).params))
    assert not list(saved.glob("damaged-*"))


@pytest.mark.parametrize("name", ["a[", "a*", "a?b", "a\\b", "\udc80"])
def test_a_path_whose_checkpoints_could_not_be_read_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="checkpoints cannot be read under a path with"):
        Checkpoints(tmp_path / name / "checkpoints", keep=1, note=NOTE)


def test_checkpoints_under_any_other_path_come_back(tmp_path):
    name = "a ]b%20{b,c}\n~ Bläh 😀'\"#&;$!`|"
    save(tmp_path / name, 1)
    assert load_params(tmp_path / name)[0] == 1


@pytest.mark.parametrize("lost", ["state/manifest.ocdbt", "_CHECKPOINT_METADATA", "."])
def test_a_save_that_cannot_be_read_is_an_error_once_it_is_done(tmp_path, lost):
    checkpoints = Checkpoints(tmp_path, keep=2, note=NOTE)
    checkpoints.save(1, state(1))
    while not (tmp_path / "1").exists():  # it appears whole
        time.sleep(0.01)
    (shutil.rmtree if lost == "." else os.unlink)(tmp_path / "1" / lost)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 1 was written .* and cannot be read"):
        checkpoints.wait()
    checkpoints.close()
