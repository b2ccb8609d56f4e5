"""Every family computes what transformers computes: logits, generations, loss and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from orca_jax.config import MeshConfig
from orca_jax.data.rows import Row
from orca_jax.student import huggingface, huggingface_folder, llama
from orca_jax.student.sharding import make_mesh, path_name
from orca_jax.training.loss import total_losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
parity = pytest.importorskip("benchmarks.parity")
pytestmark = pytest.mark.parity
EVERY_FAMILY = pytest.mark.parametrize("family", parity.FAMILIES)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """`pairs(family)`: transformers' model, and ours from the folder that it saved."""
    return functools.cache(lambda family: parity.make_pair(family, tmp_path_factory.mktemp("theirs")))


@EVERY_FAMILY
def test_logits(pairs, family):
    assert parity.logit_error(pairs(family)) < 2e-4


def test_the_error_is_one_of_models_that_say_something(pairs):
    """Another model of the same shape differs by far."""
    one, other = pairs("LLaMA"), pairs("LLaMA with biases")
    mixed = parity.Pair(one.theirs, other.params, other.config)
    assert parity.logit_error(mixed, 64) > 1


QUICK = ("Llama 3.x, stretched, tied", "Mistral, window 37", "Qwen2")  # logits are compared in every family
GENERATED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.proof) for name in parity.FAMILIES
]


@pytest.mark.parametrize("family", GENERATED)
def test_greedy_generations(pairs, family):
    theirs, ours = parity.generations(pairs(family))
    assert len(set(theirs)) > 1
    assert ours == theirs


@EVERY_FAMILY
def test_loss_and_gradients(pairs, family):
    theirs, params, config = pairs(family)
    ids = parity.random_ids(129, seed=2)
    inputs = torch.tensor(ids[None].astype(np.int64))
    theirs.zero_grad()
    loss = theirs(inputs, labels=inputs).loss
    loss.backward()

    def mean_loss(params):
        row, positions = jnp.asarray(ids[None, :-1]), jnp.arange(128)[None]
        hidden, _ = llama.hidden(params, row, positions, jnp.ones_like(row), config=config)
        head = llama.head(params, config)
        batch = Row(row, ids[None, 1:], jnp.ones((1, 128)), jnp.ones_like(row), positions)
        return total_losses(hidden, head, batch, config.vocab_size, 128)[0] / 128

    mine, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    assert float(mine) == pytest.approx(loss.item(), rel=1e-4)
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]}
    assert len(flat) == len(expected)
    for path, leaf in flat.items():
        tensor, transposed = huggingface.place(path, config)
        found = np.asarray(leaf).T if transposed else np.asarray(leaf)
        wanted = expected[tensor]
        # Relative to the gradient, and to rounding where that is all there is: a key's bias has none.
        difference = np.linalg.norm(found[: len(wanted)] - wanted)
        assert difference < 1e-4 * np.linalg.norm(wanted) + 1e-6, path


@EVERY_FAMILY
def test_round_trip_is_bit_exact(pairs, family, tmp_path):
    pair = pairs(family)
    assert not parity.round_trip_differences(pair, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert dataclasses.replace(huggingface_folder.read_config(tmp_path), **parity.RUNNING) == pair.config


def own_head(folder, files):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))


def same_head(folder, files):
    own_head(folder, files)
    weights = {name: huggingface.Folder(folder).read(name, slice(None)) for name in files}
    for file in set(files.values()):
        (folder / file).unlink()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def wrong_index(folder, files):
    shards = sorted(set(files.values()))
    turned = {name: shards[shards.index(file) - 1] for name, file in files.items()}
    huggingface.write_index(folder, turned, {})


@pytest.mark.parametrize("change", [own_head, same_head, wrong_index])
def test_odd_folders_are_read_as_transformers_reads_them(change, tmp_path):
    parity.make_model("LLaMA").save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / huggingface.INDEX).read_text())
    change(tmp_path, index["weight_map"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    config = dataclasses.replace(huggingface_folder.read_config(tmp_path), scan_layers=False)
    params = huggingface.load(tmp_path, config, make_mesh(MeshConfig()))
    assert parity.logit_error(parity.Pair(theirs, params, config)) < 2e-4
