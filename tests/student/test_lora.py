"""Adapters change nothing until trained, are all that is trained, and merge into the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from orca_jax.config import LoraConfig
from orca_jax.config_check import build
from orca_jax.data.rows import Row
from orca_jax.student import huggingface, llama, lora
from orca_jax.student.parameters import per_layer, stacked
from orca_jax.student.sharding import MeshConfig, make_mesh, path_name
from orca_jax.training.step import make_steps
from tests.student.students import SMALL, logits, make_params, make_tokens

LORA = LoraConfig(rank=3, alpha=12.0)
ADAPTED = dataclasses.replace(SMALL, lora=LORA)
SOME = dataclasses.replace(SMALL, lora=LoraConfig(rank=2, targets=("query", "value", "down")))
BOTH = pytest.mark.parametrize("config", [ADAPTED, SOME], ids=["every layer", "some"])


def with_adapters(config, seed=0, scale=1.0):
    """SMALL's parameters with random adapters, B included unless `scale` is 0."""
    random = np.random.default_rng(seed)

    def leaf(path, drawn):
        if not path_name(path).endswith("lora_b"):
            return drawn
        return jnp.asarray(scale * 0.3 * random.standard_normal(drawn.shape), jnp.float32)

    fresh = lora.split(llama.init(config, seed), config.lora).trained
    return lora.added(make_params(SMALL), jax.tree_util.tree_map_with_path(leaf, fresh))


@BOTH
def test_a_fresh_adapter_changes_nothing(config):
    tokens, params = make_tokens(40), with_adapters(config, scale=0.0)
    plain = logits(make_params(SMALL), tokens, SMALL)  # compiled otherwise, hence other last bits
    np.testing.assert_allclose(logits(params, tokens, config), plain, rtol=0, atol=5e-6)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    spread = {name: float(jnp.std(leaf)) for name, leaf in leaves.items() if name.endswith("lora_a")}
    assert {name.split("/")[-2] for name in spread} == set(config.lora.targets)
    assert len(spread) == SMALL.num_layers * len(config.lora.targets)
    assert min(spread.values()) > 0.05


@BOTH
def test_merged_kernels_compute_the_same(config):
    tokens, params = make_tokens(40), with_adapters(config)
    adapted = logits(params, tokens, config)
    merged = lora.merge(params, config.lora)
    assert jax.tree.structure(merged) == jax.tree.structure(make_params(SMALL))
    np.testing.assert_allclose(logits(merged, tokens, SMALL), adapted, rtol=0, atol=2e-5)
    assert np.abs(adapted - logits(make_params(SMALL), tokens, SMALL)).max() > 0.1


def test_scanned_layers_have_adapters_of_their_own():
    params = with_adapters(ADAPTED)
    scanned, config = stacked(params, ADAPTED)
    tokens = make_tokens(40)
    np.testing.assert_allclose(logits(scanned, tokens, config), logits(params, tokens, ADAPTED), atol=2e-5)
    again, _ = per_layer(scanned, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    fresh = llama.init(config, 0)
    assert fresh["layers"]["attention"]["query"]["lora_a"].shape == (2, 32, 3)
    a = np.asarray(fresh["layers"]["attention"]["query"]["lora_a"])
    assert np.abs(a[0] - a[1]).max() > 0.01


def test_split_and_joined_are_one():
    params = with_adapters(ADAPTED)
    parts = lora.split(params, LORA)
    assert {path_name(path)[-6:] for path, _ in jax.tree_util.tree_leaves_with_path(parts.trained)} == set(
        lora.ADAPTER
    )
    jax.tree.map(np.testing.assert_array_equal, lora.joined(parts), params)
    whole = lora.split(params, LoraConfig())
    assert whole.trained is params
    assert not jax.tree.leaves(whole.frozen)
    assert lora.joined(whole) == params


def a_batch(rows=8, length=24):
    tokens = np.stack([make_tokens(length, seed=i) for i in range(rows)])
    ones, places = np.ones_like(tokens), np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Row(tokens, np.roll(tokens, -1, 1), ones.astype(np.float32), ones, places)


@pytest.mark.parametrize(
    ("axes", "accumulation"), [((1, 8, 1), 1), pytest.param((2, 2, 2), 2, marks=pytest.mark.proof)]
)
def test_only_adapters_are_trained_and_have_moments(axes, accumulation):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), axes))))
    adam = optax.scale_by_adam()
    params, batch = with_adapters(ADAPTED), a_batch(16)
    with jax.set_mesh(mesh):
        steps = make_steps(ADAPTED, adam, mesh, dtype=jnp.float32, accumulation=accumulation)
        state = steps.init(jax.tree.map(jnp.copy, params))
        adapters = sum(leaf.size for leaf in jax.tree.leaves(lora.split(params, LORA).trained))
        assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer.mu)) == adapters
        losses = []
        for _ in range(5):
            state, metrics = steps.update(state, batch, jnp.float32(3e-2))
            losses.append(float(metrics.loss.mean))
    assert losses[-1] < losses[0] - 0.05
    before, after = lora.split(params, LORA), lora.split(state.params, LORA)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.trained, before.trained)
    assert min(jax.tree.leaves(moved)) > 0


def test_frozen_weights_in_bfloat16_train_the_same_in_bfloat16():
    """Products round weights to bfloat16 anyway; norms and adapters stay float32."""
    narrow = dataclasses.replace(ADAPTED, lora=dataclasses.replace(LORA, base_dtype="bfloat16"))
    mesh, batch, found = make_mesh(MeshConfig(fsdp=8)), a_batch(16), []
    for config in (ADAPTED, narrow):
        params = lora.in_base_dtype(with_adapters(ADAPTED), config.lora)
        with jax.set_mesh(mesh):
            steps = make_steps(config, optax.scale_by_adam(), mesh, dtype=jnp.bfloat16, accumulation=2)
            types = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (steps.abstract.params, params)]
            assert types[0] == types[1]
            state = steps.init(jax.tree.map(jnp.copy, params))
            for _ in range(3):
                state, metrics = steps.update(state, batch, jnp.float32(3e-2))
        found.append((state.params, float(metrics.loss.mean)))
    (wide, loss), (params, other) = found
    assert loss == pytest.approx(other, abs=2e-3)
    query = params["layer_0"]["attention"]["query"]
    assert (query["kernel"].dtype, query["lora_a"].dtype) == (jnp.bfloat16, jnp.float32)
    merged = lora.merge(params, narrow.lora)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), lora.merge(wide, LORA), merged)
    assert max(jax.tree.leaves(difference)) < 0.05


def test_adapters_that_cannot_be():
    for changes in (dict(targets=("query", "gates")), dict(targets=()), dict(rank=-1), dict(alpha=0.0)):
        with pytest.raises(ValueError, match="lora"):
            build(LoraConfig, {"rank": 2, **changes}, "lora")
    with pytest.raises(ValueError, match="no adapters"):
        huggingface.export_adapters(make_params(SMALL), SMALL, "unused")


@pytest.mark.parity
@BOTH
def test_peft_computes_the_same_from_the_saved_adapter(config, tmp_path):
    torch = pytest.importorskip("torch")
    their = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    params, tokens = with_adapters(config), make_tokens(60)
    huggingface.export(make_params(SMALL), SMALL, tmp_path / "base")
    count = huggingface.export_adapters(params, config, tmp_path / "adapter")
    assert count == sum(leaf.size for leaf in jax.tree.leaves(lora.split(params, config.lora).trained))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.tensor(tokens[None].astype(np.int64))
    model = their.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        adapted = model(ids).logits[0].numpy()
        merged = model.merge_and_unload()(ids).logits[0].numpy()
    np.testing.assert_allclose(logits(params, tokens, config), adapted, rtol=0, atol=2e-4)
    np.testing.assert_allclose(merged, adapted, rtol=0, atol=2e-4)
    huggingface.export(lora.merge(params, config.lora), SMALL, tmp_path / "merged")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        np.testing.assert_allclose(whole(ids).logits[0].numpy(), adapted, rtol=0, atol=2e-4)
