"""Model folders to shards and back, without torch: only what is needed is read, and nothing is guessed."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from orca_jax.student import huggingface
from orca_jax.student.huggingface import Folder, UnsupportedModelError
from orca_jax.student.huggingface_folder import read_config
from orca_jax.student.parameters import cast, stacked
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
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert not flat


@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied, biases"])
@pytest.mark.parametrize(
    ("axes", "scan"), [((1, 8, 1), False), ((2, 2, 2), True), ((1, 1, 8), True)], ids=str
)
def test_what_is_exported_is_loaded_bit_for_bit_on_any_mesh(folders, config, axes, scan):
    wanted = dataclasses.replace(config, scan_layers=scan)
    loaded = huggingface.load(folders(config), wanted, mesh(*axes))
    expected = stacked(make_params(config), config)[0] if scan else make_params(config)
    assert_trees_equal(loaded, expected, config.vocab_size)
    kernel = jax.tree.leaves(loaded)[3]
    assert len(kernel.sharding.device_set) == 8
    halves = huggingface.load(folders(config), wanted, mesh(*axes), jnp.bfloat16)
    assert_trees_equal(halves, cast(expected, jnp.bfloat16), config.vocab_size)


def test_the_files_are_those_of_a_model_folder(folders):
    folder = folders(TIED)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    sizes = [np.prod(Folder(folder).shape(name)) * 4 for name in index["weight_map"]]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert "lm_head.weight" not in index["weight_map"]  # tied: written once
    assert Folder(folder).shape("model.embed_tokens.weight") == (97, 32)  # the padding is cut off
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.safetensors")} == {0o644}
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


EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "has no tensor 'model.norm.weight'"),
        (lambda t: t.pop(QUERY), f"has no tensor '{QUERY}'"),
        (lambda t: t.pop("lm_head.weight"), "has no tensor 'lm_head.weight'"),
        (lambda t: t.update({"model.norm.weight": np.ones(3, np.float32)}), r"shape \(3,\), not \(32,\)"),
        (lambda t: t.update({"model.extra.weight": np.ones(3)}), "has a tensor 'model.extra.weight' that no"),
        (lambda t: t.update({QUERY.replace("1", "2"): t[QUERY]}), "has a tensor 'model.layers.2.self_attn"),
        (lambda t: t.update({f"{QUERY}.absmax": np.ones(3)}), "has a tensor 'model.layers.1.*absmax'"),
        (lambda t: t.update({"lm_head.weight": np.ones((130, 32))}), r"shape \(130, 32\), not \(97, 32\)"),
        (lambda t: t.update({EMBEDDING: t[EMBEDDING][:10].copy()}), r"shape \(10, 32\), not \(97, 32\)"),
        (lambda t: t.update({QUERY: t[QUERY].astype(np.int8)}), f"'{QUERY}' is of type I8"),
        (lambda t: t[QUERY].__setitem__((0, 0), np.nan), "self_attn.q_proj.weight holds NaN"),
        (lambda t: t[EMBEDDING].__setitem__((96, 31), np.inf), f"{EMBEDDING} holds NaN or infinity"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UnsupportedModelError, match=message):
        huggingface.load(folder, dataclasses.replace(SMALL, vocab_size=120), mesh(1, 8, 1))


def test_computed_buffers_of_old_files_are_passed_over(folder):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}))
    huggingface.load(folder, SMALL, mesh(1, 8, 1))


@pytest.mark.parametrize("own", [True, False])
def test_a_tied_folder_keeps_a_head_of_its_own(folder, own, caplog):
    """As transformers does; `test_parity` compares them. A head that is the embedding is simply tied."""
    if not own:
        rewrite(folder, lambda t: t.update({"lm_head.weight": t[EMBEDDING]}))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
    config = read_config(folder)
    assert config.tie_embeddings is not own
    assert ("a head of their own" in caplog.text) is own
    loaded = huggingface.load(folder, config, mesh(1, 8, 1))
    assert ("unembed" in loaded) is own
    if own:
        with pytest.raises(UnsupportedModelError, match=r"a tensor 'lm_head\.weight' that no student"):
            huggingface.load(folder, dataclasses.replace(config, tie_embeddings=True), mesh(1, 8, 1))


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def place_elsewhere(folder):
    """The index, with every tensor in the first shard but one in each."""
    named = index_of(folder)
    shards = sorted(set(named.values()))
    moved = dict.fromkeys(named, shards[0]) | {f"model.other.{i}": file for i, file in enumerate(shards)}
    huggingface.write_index(folder, moved, {})


def leave_an_index(folder):
    """A whole model in one file, beside the index of another."""
    stale = index_of(folder)
    rewrite(folder, lambda tensors: None)
    huggingface.write_index(folder, stale, {})


@pytest.mark.parametrize("change", [place_elsewhere, leave_an_index])
def test_tensors_are_where_the_files_say(folder, change):
    """As in transformers, which takes from an index no more than the files' names, and one file before it."""
    change(folder)
    assert_trees_equal(huggingface.load(folder, SMALL, mesh(1, 8, 1)), make_params(SMALL), SMALL.vocab_size)


def shard(folder, number):
    return sorted(folder.glob("model-*.safetensors"))[number]


def move_norm(folder, keep):
    """The final norm's file without it, or with it in another file too."""
    norm = "model.norm.weight"
    home = folder / index_of(folder)[norm]
    file = next(path for path in folder.glob("model-*.safetensors") if path != home) if keep else home
    tensors = safetensors.numpy.load_file(file)
    if keep:
        tensors[norm] = np.ones(32, np.float32)
    else:
        tensors.pop(norm)
    safetensors.numpy.save_file(tensors, file)


DAMAGES = {
    "cut": (lambda f: shard(f, 1).write_bytes(shard(f, 1).read_bytes()[:-100]), r"-0*2-of.*cannot be read"),
    "gone": (lambda f: shard(f, 1).unlink(), r"-0*2-of.*cannot be read"),
    "in none": (lambda f: move_norm(f, False), r"has no tensor 'model.norm.weight', though .* names model-"),
    "in two": (lambda f: move_norm(f, True), r"model-.* and model-.* both hold 'model\.norm\.weight'"),
    "index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    "cut index": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "has no weight_map"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapters are not read here"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused_by_file(folder, damage):
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(UnsupportedModelError, match=message):
        huggingface.load(folder, SMALL, mesh(1, 8, 1))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin is a pickle, never read here"):
        Folder(tmp_path)
