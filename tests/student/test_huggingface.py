"""Model folders to shards and back, without torch: only what is needed is read, and nothing is guessed."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from orca_jax.student import huggingface
from orca_jax.student.huggingface import Folder, UnsupportedModelError
from orca_jax.student.huggingface_config import read_config
from orca_jax.student.parameters import stacked
from orca_jax.student.sharding import MeshConfig, make_mesh, path_name
from tests.student.students import SMALL, make_params

TIED = dataclasses.replace(SMALL, tie_embeddings=True, qkv_bias=True)
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 96}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`folders(config)`: the exported folder of `make_params(config)`, in several shards."""
    made = {}

    def make(config):
        if config not in made:
            made[config] = tmp_path_factory.mktemp("model")
            huggingface.export(make_params(config), config, made[config], special=SPECIAL, shard_bytes=9000)
        return made[config]

    return make


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of SMALL's folder, to be damaged."""
    return shutil.copytree(folders(SMALL), tmp_path / "model")


def mesh(*axes):
    return make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), axes))))


def assert_trees_equal(mine, expected, vocab_size):
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]}
    for path, leaf in jax.tree_util.tree_flatten_with_path(mine)[0]:
        name, found, wanted = path_name(path), np.asarray(leaf), np.asarray(flat.pop(path_name(path)))
        if name in huggingface.VOCABULARY:
            rows = (slice(vocab_size),) if name.startswith("embed") else (slice(None), slice(vocab_size))
            found, wanted = found[rows], wanted[rows]
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert not flat


@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied, biases"])
@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2), (1, 1, 8), (8, 1, 1)], ids=str)
@pytest.mark.parametrize("scan", [False, True], ids=["per layer", "stacked"])
def test_what_is_exported_is_loaded_bit_for_bit_on_any_mesh(folders, config, axes, scan):
    wanted = dataclasses.replace(config, scan_layers=scan)
    loaded = huggingface.load(folders(config), wanted, mesh(*axes))
    expected = stacked(make_params(config), config)[0] if scan else make_params(config)
    assert_trees_equal(loaded, expected, config.vocab_size)
    kernel = jax.tree.leaves(loaded)[3]
    assert len(kernel.sharding.device_set) == 8


def test_the_files_are_those_of_a_model_folder(folders):
    folder = folders(TIED)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    sizes = [np.prod(Folder(folder).shape(name)) * 4 for name in index["weight_map"]]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert "lm_head.weight" not in index["weight_map"]  # tied: written once
    assert Folder(folder).shape("model.embed_tokens.weight") == (97, 32)  # the padding is cut off
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    running = {name: getattr(TIED, name) for name in ("scan_layers", "vocab_multiple")}
    assert dataclasses.replace(read_config(folder), **running) == TIED


def test_a_process_reads_the_bytes_of_its_shards_only(folders, monkeypatch):
    """Split over eight, no read is larger than an eighth of its tensor, and each part is read once."""
    read, original = [], Folder.read

    def counting(self, tensor, *index):
        found = original(self, tensor, *index)
        read.append((tensor, found.size, np.prod(self.shape(tensor))))
        return found

    monkeypatch.setattr(Folder, "read", counting)
    huggingface.load(folders(SMALL), SMALL, mesh(1, 8, 1))
    parts = [(tensor, size, whole) for tensor, size, whole in read if tensor.endswith("q_proj.weight")]
    assert {size * 8 for _, size, _ in parts} == {parts[0][2]}
    assert len(parts) == 8 * SMALL.num_layers


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype, tmp_path):
    params = make_params(SMALL)
    huggingface.export(params, SMALL, tmp_path, dtype=dtype)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(huggingface.DTYPES[dtype]).astype(np.float32), params
    )
    loaded = huggingface.load(tmp_path, SMALL, mesh(1, 8, 1))
    assert_trees_equal(loaded, rounded, SMALL.vocab_size)
    with pytest.raises(ValueError, match="dtype 'int8'; known: float32"):
        huggingface.export(params, SMALL, tmp_path, dtype="int8")


@pytest.mark.parametrize("axes", [(1, 8, 1), (1, 1, 8)], ids=str)
def test_new_vocabulary_rows_start_at_the_mean_of_the_others(folders, axes):
    grown = dataclasses.replace(SMALL, vocab_size=120)
    loaded = huggingface.load(folders(SMALL), grown, mesh(*axes))
    params = make_params(SMALL)
    for mine, old in (
        (loaded["embed"]["embedding"], params["embed"]["embedding"]),
        (loaded["unembed"].T, params["unembed"].T),
    ):
        mine, old = np.asarray(mine), np.asarray(old)[: SMALL.vocab_size]
        np.testing.assert_array_equal(mine[: SMALL.vocab_size], old)
        np.testing.assert_allclose(
            mine[SMALL.vocab_size :], np.broadcast_to(old.mean(0), (31, 32)), atol=1e-6
        )


def rewrite(folder, change):
    """Writes the folder's tensors again, in one file, after `change`."""
    tensors = {name: Folder(folder).read(name, slice(None)) for name in Folder(folder).files}
    change(tensors)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "has no tensor 'model.norm.weight'"),
        (lambda t: t.update({"model.norm.weight": np.ones(3, np.float32)}), r"shape \(3,\), not \(32,\)"),
        (lambda t: t.update({"model.extra.weight": np.ones(3)}), "'model.extra.weight' that no student"),
        (lambda t: t.update({"lm_head.weight": np.ones((130, 32))}), r"shape \(130, 32\), not \(97, 32\)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UnsupportedModelError, match=message):
        huggingface.load(folder, SMALL, mesh(1, 8, 1))


def test_computed_buffers_of_old_files_are_passed_over(folder):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}))
    huggingface.load(folder, SMALL, mesh(1, 8, 1))


def test_a_file_cut_short_is_named(folder):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnsupportedModelError, match=f"{file}.* cannot be read"):
        huggingface.load(folder, SMALL, mesh(1, 8, 1))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin is a pickle, never read here"):
        Folder(tmp_path)
