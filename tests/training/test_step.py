"""A step: accumulation, meshes, what it updates, what it measures."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from orca_jax.data import loader
from orca_jax.data.rows import Distillation, build_row, stack
from orca_jax.student import llama, sharding
from orca_jax.training import loss as loss_module
from orca_jax.training.step import (
    OptimizerConfig,
    batch_loss,
    gradients,
    make_optimizer,
    make_steps,
    token_losses,
)
from tests.training import synthetic

STUDENT, STEPS = synthetic.STUDENT, 6


@functools.cache
def params():
    return llama.init(STUDENT, 0)


take = jax.jit(gradients, static_argnums=(2, 3, 4))
loss_of = jax.jit(batch_loss, static_argnums=(2, 3))


def uneven(batch):
    """Every row with another share of its weights, one row with none, and some tokens weighted twice."""
    scale = np.linspace(0, 2, len(batch.tokens), dtype=np.float32)[:, None]
    shown = np.arange(batch.tokens.shape[1]) < np.linspace(48, 12, len(batch.tokens))[:, None]
    return batch._replace(loss_weights=batch.loss_weights * scale * shown)


def distance(found, expected):
    difference = jax.tree.map(jnp.subtract, found, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


def test_accumulation_equals_one_step_under_uneven_weights():
    batch = uneven(synthetic.batch())
    loss, gradient = take(params(), batch, STUDENT, jnp.float32, 1)
    accumulated_loss, accumulated = take(params(), batch, STUDENT, jnp.float32, 4)
    assert distance(accumulated, gradient) < 1e-6
    np.testing.assert_allclose(accumulated_loss[:2], loss[:2], rtol=1e-6)


def test_a_mean_of_the_parts_means_is_far_from_the_gradient():
    """So that the test above would notice."""
    batch = uneven(synthetic.batch())
    _, gradient = take(params(), batch, STUDENT, jnp.float32, 1)
    halves = [jax.tree.map(lambda array, i=i: array[i::2], batch) for i in range(2)]
    each = [take(params(), half, STUDENT, jnp.float32, 1)[1] for half in halves]
    assert distance(jax.tree.map(lambda a, b: (a + b) / 2, *each), gradient) > 1e-3


def test_token_losses_add_up_to_the_batch_loss():
    batch = uneven(synthetic.batch())
    losses = token_losses(params(), batch, STUDENT, jnp.float32)
    assert losses.shape == batch.tokens.shape
    assert (np.asarray(losses)[batch.loss_weights == 0] == 0).all()
    np.testing.assert_allclose(losses.sum(), loss_of(params(), batch, STUDENT, jnp.float32).total, rtol=1e-6)


def test_empty_rows_change_neither_loss_nor_gradient():
    batch = synthetic.batch()
    empty = synthetic.row_builder().row("a", 0, 10_000)
    assert not empty.loss_weights.any()
    half = jax.tree.map(lambda array: array[:6], batch)
    filled = jax.tree.map(lambda array, blank: np.concatenate([array, [blank] * 2]), half, empty)
    loss, gradient = take(params(), half, STUDENT, jnp.float32, 1)
    filled_loss, filled_gradient = take(params(), filled, STUDENT, jnp.float32, 1)
    np.testing.assert_allclose(filled_loss[:2], loss[:2], rtol=1e-6)
    assert distance(filled_gradient, gradient) < 1e-6


def test_a_batch_without_weight_changes_nothing_and_is_finite():
    batch = synthetic.batch()
    loss, gradient = take(
        params(), batch._replace(loss_weights=0 * batch.loss_weights), STUDENT, jnp.float32, 1
    )
    assert (loss.total, loss.weight) == (0, 0)
    assert optax.tree.norm(gradient) == 0


@functools.cache
def compiled(mesh, student, kind, logits_budget, **options):
    """The steps, which trace `logits_budget` too."""
    return make_steps(student, make_optimizer(OptimizerConfig(kind=kind)), mesh, **options)


class Run:
    """Steps compiled for a mesh, and their state."""

    def __init__(
        self, mesh, *, student=STUDENT, dtype=jnp.float32, accumulation=1, kind="adamw", limited=False
    ):
        self.mesh = mesh
        with jax.set_mesh(mesh):
            options = {"dtype": dtype, "accumulation": accumulation, "limited": limited}
            self.steps = compiled(mesh, student, kind, loss_module.LOGITS_BUDGET, **options)
            self.state = self.steps.init(llama.init(student, 0))

    def step(self, batch, rate=3e-3, *limit):
        placement = sharding.batch_sharding(self.mesh)
        with jax.set_mesh(self.mesh):
            size = len(batch.tokens)
            rows = loader.on_devices(loader.Batch(0, tuple(range(size)), batch), size, placement)
            scalars = [jnp.float32(scalar) for scalar in (rate, *limit)]
            self.state, metrics = self.steps.update(self.state, rows, *scalars)
        return metrics

    def losses(self, steps=STEPS):
        return [float(self.step(synthetic.batch(i)).loss.mean) for i in range(steps)]


@functools.cache
def single_device_losses():
    return Run(synthetic.mesh()).losses()


LONG_AXES = [pytest.param(axes, marks=pytest.mark.proof) for axes in ((8, 1, 1), (1, 1, 8))]


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 8, 1), *LONG_AXES], ids=str)
def test_losses_on_eight_devices_equal_those_on_one(axes):
    losses = Run(synthetic.mesh(*axes)).losses()
    np.testing.assert_allclose(losses, single_device_losses(), rtol=0, atol=1e-5)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.proof
def test_the_papers_vocabulary_works_on_a_tensor_axis_of_eight():
    """32,001 ids do not divide by eight; the padded table does, and is split."""
    student = dataclasses.replace(STUDENT, vocab_size=32_001, vocab_multiple=128)
    one, eight = Run(synthetic.mesh(), student=student), Run(synthetic.mesh(1, 1, 8), student=student)
    table = eight.state.params["embed"]["embedding"]
    assert table.addressable_shards[0].data.shape == (32_128 // 8, STUDENT.hidden_size)
    np.testing.assert_allclose(eight.losses(3), one.losses(3), rtol=0, atol=1e-5)


@pytest.mark.proof
def test_accumulated_steps_on_eight_devices_equal_plain_ones_on_one():
    losses = Run(synthetic.mesh(2, 2, 2), accumulation=2).losses()
    np.testing.assert_allclose(losses, single_device_losses(), rtol=0, atol=1e-5)


def test_parameters_are_sharded_as_the_rules_say():
    run = Run(synthetic.mesh(2, 2, 2))
    run.step(synthetic.batch())
    kernel = run.state.params["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


COMPILE = """
import os
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from orca_jax.training import loss
from orca_jax.training.step import OptimizerConfig, make_optimizer
from orca_jax.training.step import make_steps
from tests.training import synthetic

mesh = synthetic.mesh(2, 2, 2)
table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P("data", "fsdp")))
turned = NamedSharding(mesh, P(None, ("tensor", "fsdp", "data")))
jax.jit(jnp.sin, out_shardings=turned).lower(table).compile()
os.write(2, b"--- the student ---")
rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), synthetic.batch())
rate = jax.ShapeDtypeStruct((), jnp.float32)
for axes, accumulation in (((2, 2, 2), 1), ((2, 2, 2), 2), ((1, 8, 1), 1)):
    mesh, optimizer = synthetic.mesh(*axes), make_optimizer(OptimizerConfig())
    loss.LOGITS_BUDGET = 1 << 12 if accumulation > 1 else 1 << 30  # one of them in chunks
    steps = make_steps(synthetic.STUDENT, optimizer, mesh, dtype=jnp.float32, accumulation=accumulation)
    with jax.set_mesh(mesh):
        steps.update.lower(steps.abstract, rows, rate).compile()
        steps.token_losses.lower(steps.abstract.params, rows).compile()
"""
REMATERIALIZED = "Involuntary full rematerialization"


@pytest.fixture(scope="module")
def compiler_words(repo):
    """What the compiler says, on file descriptor 2, of a resharding that it does badly, and of the student.

    Without the cache of compiled programs, which would keep it silent.
    """
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=repo, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.split("--- the student ---")


@pytest.mark.proof
def test_compiler_rematerializes_nothing_in_full(compiler_words):
    assert REMATERIALIZED in compiler_words[0], "the compiler no longer says so: find its new words"
    assert REMATERIALIZED not in compiler_words[1]


def test_learning_rate_zero_leaves_the_parameters():
    run = Run(synthetic.mesh())
    before = jax.device_get(run.state.params)
    metrics = run.step(synthetic.batch(), rate=0.0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.params), before)
    assert metrics.gradient_norm > 0


def test_metrics_are_those_of_the_batch():
    batch = synthetic.batch()
    metrics = Run(synthetic.mesh()).step(batch)
    assert int(metrics.tokens) == (batch.segment_ids > 0).sum()
    assert float(metrics.loss.weight) == batch.loss_weights.sum()
    assert abs(float(metrics.loss.mean) - np.log(STUDENT.vocab_size)) < 1  # a fresh student knows nothing


def test_first_step_moves_every_weight_by_at_most_the_rate():
    """Adam's first update is the gradient's sign, of size one where epsilon is small against it."""
    run = Run(synthetic.mesh())
    before = jax.device_get(run.state.params)
    run.step(synthetic.batch(), rate=1e-2)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(run.state.params), before)
    assert max(jax.tree.leaves(moved)) == pytest.approx(1e-2, rel=1e-2)


def test_reset_clears_the_moments_and_keeps_the_parameters():
    run = Run(synthetic.mesh())
    run.step(synthetic.batch())
    trained = jax.device_get(run.state)
    reset = jax.device_get(run.steps.reset(run.state))
    jax.tree.map(np.testing.assert_array_equal, reset.params, trained.params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(trained.optimizer))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(reset.optimizer))


def test_bfloat16_follows_float32_and_keeps_float32_masters():
    run = Run(synthetic.mesh(), dtype=jnp.bfloat16)
    losses = run.losses()
    assert {leaf.dtype for leaf in jax.tree.leaves(run.state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, single_device_losses(), rtol=0.02)
    assert losses != single_device_losses()


@pytest.mark.parametrize("remat", ["full", "products"])
def test_remat_changes_no_loss(remat):
    student = dataclasses.replace(STUDENT, remat=remat)
    losses = Run(synthetic.mesh(), student=student).losses(3)
    np.testing.assert_allclose(losses, single_device_losses()[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_loss_in_chunks_changes_no_loss(monkeypatch, axes):
    monkeypatch.setattr(loss_module, "LOGITS_BUDGET", 4096)
    with jax.set_mesh(synthetic.mesh(*axes)):
        assert loss_module.chunk_size(STUDENT, 8, 48) < 48
    np.testing.assert_allclose(
        Run(synthetic.mesh(*axes)).losses(3), single_device_losses()[:3], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", [pytest.param("adamw_bf16", marks=pytest.mark.proof), "adafactor"])
def test_other_optimizers_learn_too(kind):
    losses = Run(synthetic.mesh(2, 2, 2), kind=kind).losses()
    assert losses[-1] < losses[0] - 0.3
    assert losses[0] == pytest.approx(single_device_losses()[0], abs=1e-5)
    assert losses != single_device_losses()


# --- With a teacher's distributions

DISTILLATION = Distillation(0.5, 2.0)


def test_accumulation_equals_one_step_with_soft_targets():
    batch = uneven(synthetic.batch(distillation=DISTILLATION))
    loss, gradient = take(params(), batch, STUDENT, jnp.float32, 1)
    accumulated_loss, accumulated = take(params(), batch, STUDENT, jnp.float32, 4)
    assert distance(accumulated, gradient) < 1e-6
    np.testing.assert_allclose(accumulated_loss, loss, rtol=1e-6)
    plain = take(params(), batch._replace(soft_targets=None), STUDENT, jnp.float32, 1)
    assert distance(plain[1], gradient) > 1e-2
    assert loss.metrics()["loss"] == pytest.approx(plain[0].metrics()["loss"], rel=1e-6)
    assert loss.metrics()["distillation"] > 0.1


def test_packed_rows_have_the_gradient_of_their_examples_apart():
    store = synthetic.MemoryStore(6, 0, top=4)
    packed = stack([build_row([store[i] for i in range(6)], 240, 60, DISTILLATION, 4)])
    apart = stack([build_row([store[i]], 240, 60, DISTILLATION, 4) for i in range(6)])
    found, expected = (take(params(), rows, STUDENT, jnp.float32, 1) for rows in (packed, apart))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert distance(found[1], expected[1]) < 1e-5


def test_losses_with_soft_targets_on_eight_devices_equal_those_on_one(monkeypatch):
    """In chunks too, whose last one is filled up."""
    batches = [synthetic.batch(i, distillation=DISTILLATION) for i in range(3)]

    def losses(*axes, **options):
        run = Run(synthetic.mesh(*axes), **options)
        return [run.step(batch).loss for batch in batches]

    one = losses(1, 1, 1)
    monkeypatch.setattr(loss_module, "LOGITS_BUDGET", 1 << 13)
    np.testing.assert_allclose(losses(2, 2, 2, accumulation=2), one, rtol=1e-5)
    assert one[-1].mean < one[0].mean


def test_a_step_without_them_is_the_same_program_whatever_the_stores_hold():
    with jax.set_mesh(synthetic.mesh()):
        steps = make_steps(
            STUDENT, make_optimizer(OptimizerConfig()), synthetic.mesh(), dtype=jnp.float32, accumulation=2
        )

        def lowered(rows):
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), rows)
            rate = jax.ShapeDtypeStruct((), jnp.float32)
            return steps.update.lower(steps.abstract, shapes, rate).as_text()

        holding = synthetic.row_builder(top=4)
        plain = lowered(synthetic.batch())
        assert lowered(stack([holding.row("a", 0, i) for i in range(8)])) == plain
        assert len(lowered(synthetic.batch(distillation=DISTILLATION))) > len(plain)


# --- Steps that are skipped


def assert_same(state, before):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)


@pytest.mark.parametrize(("bad", "axes"), [(np.inf, (1, 1, 1)), (np.nan, (2, 2, 2))], ids=str)
def test_a_step_that_is_not_finite_changes_nothing(bad, axes):
    run, batch = Run(synthetic.mesh(*axes)), synthetic.batch()
    run.step(batch)
    before = jax.device_get(run.state)
    weights = batch.loss_weights.copy()
    weights[3, 20] = bad
    assert run.step(batch._replace(loss_weights=weights)).skipped
    assert_same(run.state, before)
    assert not run.step(batch).skipped
    assert np.any(jax.device_get(run.state.params["unembed"]) != before.params["unembed"])


def test_a_step_over_the_limit_changes_nothing_and_one_at_it_is_made():
    run, batch = Run(synthetic.mesh(), limited=True), synthetic.batch()
    before = jax.device_get(run.state)
    high = run.step(batch, 3e-3, 1e-3)
    assert high.skipped
    assert np.isfinite(high.loss.total)
    assert_same(run.state, before)
    assert not run.step(batch, 3e-3, high.gradient_norm).skipped


def test_a_limit_that_is_not_reached_changes_no_loss():
    def losses(limit):
        run = Run(synthetic.mesh(), limited=True)
        return [float(run.step(synthetic.batch(i), 3e-3, limit).loss.mean) for i in range(5)]

    assert losses(1e6) == losses(np.inf)
    assert losses(np.inf) == pytest.approx(single_device_losses()[:5], rel=1e-6)  # another program


# --- Memory


def memory(student, rows=8, **changes):
    """What the compiler says of a step's bytes."""
    mesh = synthetic.mesh()
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(OptimizerConfig(**changes))
        steps = make_steps(student, optimizer, mesh, dtype=jnp.float32, accumulation=1)
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), synthetic.batch(rows=rows))
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        compiled = steps.update.lower(steps.abstract, batch, rate).compile()
    return compiled.memory_analysis(), steps.abstract


def test_the_state_is_donated():
    """Old and new parameters and moments share their memory."""
    analysis, state = memory(STUDENT)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert analysis.alias_size_in_bytes == size
