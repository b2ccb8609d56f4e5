"""The engine: scheduling, and replies that no other request, shared prefix or mesh changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.student import decoding, sharding
from orca_jax.student.decoding import STEPS, Decode, bucket, coarse, row_bucket
from orca_jax.student.engine import Engine, Generator, Request
from orca_jax.student.sharding import MeshConfig, make_mesh
from tests.student.students import GEMMA3, OLMO2, SMALL, SMOLLM3, logits, make_params, make_tokens

PROMPTS = [make_tokens(size, seed=size) for size in (7, 1, 30, 12, 64, 5, 2)]
FREE = Request(prompt=PROMPTS[0], max_tokens=40)
START = make_tokens(70, seed=1)


@functools.cache
def make_engine(slots=4, max_length=128, stop_ids=(), config=SMALL):
    return Engine(make_params(config), config, slots=slots, max_length=max_length, stop_ids=stop_ids)


def run(engine, requests):
    """The replies to requests that come together, in their order."""
    tickets, found = [engine.add(request) for request in requests], {}
    while engine.busy:
        found |= {advance.ticket: advance.finished for advance in engine.step() if advance.finished}
    return [found[ticket] for ticket in tickets]


def request(index, **changes):
    return Request(**{"prompt": PROMPTS[index], "max_tokens": 12, "number": index, **changes})


@functools.cache
def alone(index, limit, temperature):
    (reply,) = run(make_engine(1), [request(index, max_tokens=limit, temperature=temperature, seed=5)])
    return reply


def assert_same(reply, expected):
    np.testing.assert_array_equal(reply.tokens, expected.tokens)
    np.testing.assert_allclose(reply.log_probs, expected.log_probs, atol=1e-4)
    assert reply.stopped == expected.stopped


@given(
    chosen=st.lists(
        st.tuples(
            st.integers(0, len(PROMPTS) - 1), st.sampled_from([1, 3, 12, 40]), st.sampled_from([0.0, 1.0])
        ),
        min_size=1,
        max_size=9,
    ),
    slots=st.sampled_from([1, 3, 4]),
)
@settings(max_examples=8)
def test_a_reply_does_not_depend_on_the_other_requests(chosen, slots):
    requests = [request(i, max_tokens=limit, temperature=warm, seed=5) for i, limit, warm in chosen]
    for reply, one in zip(run(make_engine(slots), requests), chosen, strict=True):
        assert_same(reply, alone(*one))


def test_requests_may_come_while_others_run():
    engine, found = make_engine(3), {}
    tickets = {}
    for index in range(len(PROMPTS)):
        tickets[engine.add(request(index, max_tokens=40, temperature=1.0, seed=5))] = index
        found |= {advance.ticket: advance.finished for advance in engine.step() if advance.finished}
    while engine.busy:
        found |= {advance.ticket: advance.finished for advance in engine.step() if advance.finished}
    for ticket, index in tickets.items():
        assert_same(found[ticket], alone(index, 40, 1.0))


def test_what_is_reported_step_by_step_is_the_reply():
    engine, said = make_engine(2), []
    engine.add(FREE)
    while engine.busy:
        (advance,) = engine.step()
        assert len(advance.tokens) <= STEPS
        said += advance.tokens
    assert said == advance.finished.tokens.tolist()
    assert len(said) == 40


def test_a_free_row_is_given_away_at_once():
    engine = make_engine(2)
    short, _, third = (engine.add(request(0, max_tokens=limit)) for limit in (3, 40, 2))
    first = {advance.ticket: advance for advance in engine.step()}
    assert [len(advance.tokens) for advance in first.values()] == [3, 3]
    assert first[short].finished
    assert third in {advance.ticket for advance in engine.step()}
    while engine.busy:
        engine.step()


def test_the_cache_is_as_large_as_what_runs():
    engine = Engine(make_params(SMALL), SMALL, slots=8, max_length=512)
    for index, limit in ((2, 1), (3, 1), (4, 60), (1, 1), (6, 30)):
        engine.add(request(index, max_tokens=limit, temperature=1.0, seed=5))
    sizes, found = [], {}
    while engine.busy:
        found |= {advance.ticket: advance.finished for advance in engine.step() if advance.finished}
        sizes.append((engine._cache[0].keys.shape[0], engine._cache[0].keys.shape[2]))
    assert [rows for rows, _ in sizes] == [8, 4, 1, 1]
    assert [length for _, length in sizes] == [96, 96, 128, 128]
    for ticket, (index, limit) in {2: (4, 60), 4: (6, 30)}.items():
        assert_same(found[ticket], alone(index, limit, 1.0))


def test_without_waiting_requests_all_steps_are_done():
    engine = make_engine(2)
    engine.add(request(0, max_tokens=3))
    engine.add(request(0, max_tokens=40))
    assert sorted(len(advance.tokens) for advance in engine.step()) == [3, STEPS]
    while engine.busy:
        engine.step()


def test_a_cancelled_request_is_not_reported_again():
    engine = make_engine(2)
    running, kept, waiting = (
        engine.add(request(i, max_tokens=40, temperature=1.0, seed=5)) for i in (0, 2, 3)
    )
    engine.step()
    engine.cancel(running)
    engine.cancel(waiting)
    found = {}
    while engine.busy:
        for advance in engine.step():
            assert advance.ticket == kept
            found[advance.ticket] = advance.finished
    assert_same(found[kept], alone(2, 40, 1.0))


@pytest.mark.parametrize("shared", [1, 64, 70])
def test_a_shared_prefix_changes_nothing(shared):
    prompts = [np.concatenate([START[:70], tail]) for tail in PROMPTS[:3]]
    engine = make_engine(4)
    plain = run(engine, [Request(prompt=prompt, max_tokens=20) for prompt in prompts])
    together = run(engine, [Request(prompt=prompt, max_tokens=20, shared=shared) for prompt in prompts])
    for reply, expected in zip(together, plain, strict=True):
        assert_same(reply, expected)


def test_a_shared_prefix_is_computed_once(monkeypatch):
    engine = Engine(make_params(SMALL), SMALL, slots=4, max_length=128)
    prefilled = []
    original = engine._prefill
    monkeypatch.setattr(
        engine,
        "_prefill",
        lambda bodies, *rest: prefilled.append(sum(map(len, bodies))) or original(bodies, *rest),
    )
    prompts = [np.concatenate([START, tail]) for tail in PROMPTS[:4]]
    run(engine, [Request(prompt=prompt, max_tokens=2, shared=70) for prompt in prompts])
    assert sum(prefilled) == 70 + sum(len(tail) - 1 for tail in PROMPTS[:4])


@pytest.mark.parametrize(("shared", "tail"), [(0, 49), (40, 9), (60, 0)])
def test_prompts_as_long_as_the_cache_allows(shared, tail):
    """The last bucket is cut where the cache ends, so that nothing before it is overwritten."""
    prompt = make_tokens(max(shared, 0) + tail + 1, seed=3)[:50]
    engine = make_engine(2, 51)
    (reply,) = run(engine, [Request(prompt=prompt, max_tokens=9, shared=shared)])
    best = logits(make_params(SMALL), prompt, SMALL, length=128)[-1].argmax()
    assert reply.tokens[0] == best
    assert len(reply.tokens) == min(9, 51 - len(prompt))


def test_a_prefix_that_ends_where_the_cache_does():
    """100 shared, 9 more in a bucket of 64, a cache of 128: uncut, the bucket would go 36 positions over."""
    prompt = make_tokens(110, seed=4)
    engine = make_engine(2, 112)
    plain, shared = run(engine, [Request(prompt=prompt, max_tokens=2, shared=size) for size in (0, 100)])
    assert engine.capacity == 128
    assert_same(shared, plain)


def test_a_stop_function_cuts_the_reply():
    engine = make_engine(2)
    (whole,) = run(engine, [FREE])
    (cut,) = run(engine, [dataclasses.replace(FREE, stop=lambda tokens: 5 if len(tokens) >= 5 else None)])
    assert (cut.tokens.tolist(), cut.stopped) == (whole.tokens[:5].tolist(), True)
    assert len(cut.log_probs) == 5


def test_a_stop_id_may_be_the_last_that_the_limit_allows():
    (whole,) = run(make_engine(2), [FREE])
    stop = int(whole.tokens[4])
    first = whole.tokens.tolist().index(stop)
    for limit, size, stopped in ((first, first, False), (first + 1, first, True), (40, first, True)):
        request = dataclasses.replace(FREE, max_tokens=max(limit, 1))
        (reply,) = run(make_engine(2, stop_ids=(stop,)), [request])
        assert (len(reply.tokens), reply.stopped) == (size, stopped)


def test_large_seeds_are_told_apart():
    replies = run(
        make_engine(4), [request(0, temperature=2.0, seed=seed) for seed in (1, 1 + 2**32, 1, 2**63)]
    )
    said = [tuple(reply.tokens.tolist()) for reply in replies]
    assert said[0] == said[2]
    assert len(set(said)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(sliding_window=5),
        dict(qkv_bias=True, output_bias=True),
        dict(num_kv_heads=4),
        dict(num_kv_heads=1),
        GEMMA3,
        OLMO2,
        SMOLLM3,
    ],
    ids=["window", "biases", "all heads", "one head", "gemma", "olmo", "smollm"],
)
def test_greedy_is_the_full_forward_pass_in_every_family(changes):
    config = dataclasses.replace(SMALL, **changes) if isinstance(changes, dict) else changes
    engine = make_engine(2, 128, (), config)
    prompt = np.concatenate([START[:40], PROMPTS[3]])
    for reply in run(engine, [Request(prompt=prompt, max_tokens=20, shared=size) for size in (0, 40)]):
        scores = logits(
            make_params(config), np.concatenate([prompt, reply.tokens]).astype(np.int32), config, length=128
        )
        best = scores[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(best.argmax(-1), reply.tokens)
        np.testing.assert_allclose(jax.nn.log_softmax(best).max(-1), reply.log_probs, atol=1e-4)


LONG_MESHES = [pytest.param(mesh, marks=pytest.mark.proof) for mesh in (MeshConfig(tensor=2), MeshConfig())]


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, tensor=4), *LONG_MESHES], ids=str)
def test_other_meshes_give_the_same(mesh):
    devices = make_mesh(mesh)
    engine = Engine(make_params(SMALL), SMALL, slots=4, max_length=128, mesh=devices)
    requests = [request(i, max_tokens=12, temperature=1.0, seed=5) for i in range(len(PROMPTS))]
    for index, reply in enumerate(run(engine, requests)):
        assert_same(reply, alone(index, 12, 1.0))
    heads = SMALL.num_kv_heads
    tensor = devices.shape["tensor"]
    for layer in engine._cache:
        shard = layer.keys.sharding.shard_shape(layer.keys.shape)
        assert shard[1] == (heads // tensor if heads % tensor == 0 else heads)


def test_without_a_mesh_it_runs_where_the_parameters_are():
    mesh = make_mesh(MeshConfig(tensor=2))
    placed = jax.device_put(make_params(SMALL), sharding.shardings(make_params(SMALL), mesh))
    engine = Engine(placed, SMALL, slots=2, max_length=128)
    assert engine.mesh is mesh
    assert_same(run(engine, [request(2, temperature=1.0, seed=5)])[0], alone(2, 12, 1.0))


def test_bfloat16_is_kept_in_bfloat16():
    engine = Engine(make_params(SMALL), SMALL, slots=2, max_length=128, dtype=jnp.bfloat16)
    (reply,) = run(engine, [FREE])
    assert len(reply.tokens) == 40
    kinds = {
        leaf.dtype.name for leaf in jax.tree.leaves((engine.params["layer_0"]["attention"], engine._cache))
    }
    assert kinds == {"bfloat16"}
    assert engine.params["norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize("size", [0, 128])
def test_a_prompt_without_room_is_refused(size):
    with pytest.raises(ValueError, match=f"the prompt has {size} tokens; 1 to 127 fit"):
        make_engine().add(Request(prompt=make_tokens(size), max_tokens=1))


@pytest.mark.parametrize(
    "wrong", [dict(max_tokens=0), dict(temperature=-1.0), dict(top_k=-1), dict(top_p=-0.1)]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* must be at least"):
        make_engine().add(request(0, **wrong))


@given(size=st.integers(1, 5000))
def test_buckets_hold_what_they_are_for_and_waste_little(size):
    assert size <= bucket(size)
    assert bucket(size) <= max(64, 1.5 * size)
    assert bucket(bucket(size)) == bucket(size)


@given(most=st.integers(1, 64).map(lambda n: 64 * n), size=st.integers(1, 4096))
def test_coarse_sizes_hold_what_they_are_for_and_are_few(most, size):
    if size <= most:
        assert size <= coarse(size, most) <= most
    assert len({coarse(n, most) for n in range(1, most + 1)}) <= 1 + max(0, (most // 128).bit_length() - 1)


def test_the_coarse_shapes_of_chips_give_the_same():
    params, programs = make_params(SMALL), decoding.programs(SMALL, jnp.dtype(jnp.float32))
    chips = dataclasses.replace(programs, fine=False)
    engine = Engine(params, SMALL, slots=4, max_length=256, programs=chips)
    prompt = np.concatenate([START, PROMPTS[3]])
    requests = [request(i, temperature=1.0, seed=5) for i in range(len(PROMPTS))]
    *replies, shared = run(engine, [*requests, Request(prompt=prompt, max_tokens=20, shared=70)])
    for index, reply in enumerate(replies):
        assert_same(reply, alone(index, 12, 1.0))
    assert_same(shared, run(make_engine(4), [Request(prompt=prompt, max_tokens=20)])[0])


@given(count=st.integers(1, 300), slots=st.integers(1, 300))
def test_row_buckets_hold_what_they_are_for(count, slots):
    if count <= slots:
        assert count <= row_bucket(count, slots) <= slots


def test_like_layers_are_traced_once(monkeypatch):
    config = dataclasses.replace(SMALL, num_layers=5, intermediate_size=40)
    engine, traced, attend = make_engine(config=config), [], Decode.attend
    monkeypatch.setattr(Decode, "attend", lambda *given: traced.append(1) or attend(*given))
    run(engine, [request(1)])
    assert len(traced) == 1


def test_a_short_chat_needs_one_program_for_decoding():
    """Its cache is small beside the weights, so it is not cut to the length of each turn."""
    config = dataclasses.replace(SMALL, vocab_size=4000, intermediate_size=1000, num_layers=1)
    engine = make_engine(config=config, max_length=256)
    decode = engine._programs.decode
    for size in (7, 64, 100):
        run(engine, [Request(prompt=make_tokens(size, seed=size), max_tokens=20)])
    assert decode._cache_size() == 1


def test_copies_answer_from_one_queue_as_one_would():
    params, sizes = make_params(SMALL), dict(stop_ids=(), batch_size=2, max_length=128)
    prompts = [make_tokens(5 + 3 * n, seed=n) for n in range(12)]
    settings = dict(max_tokens=[1 + n % 5 for n in range(12)], temperature=0.8, seed=3)
    alone = Generator(params, SMALL, **sizes).generate(prompts, **settings)
    meshes = [make_mesh(MeshConfig(fsdp=1, tensor=2), jax.devices()[i : i + 2]) for i in (2, 4)]
    together = Generator(params, SMALL, copies=meshes, **sizes).generate(prompts, **settings)
    for reply, expected in zip(together, alone, strict=True):
        assert_same(reply, expected)


def test_an_error_in_one_copy_ends_them_all():
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[1:2])
    generator = Generator(make_params(SMALL), SMALL, copies=[mesh], stop_ids=(), batch_size=1, max_length=64)

    def fail(ids):
        raise RuntimeError("in a stop function")

    with pytest.raises(RuntimeError, match="in a stop function"):
        generator.generate([make_tokens(5)] * 9, max_tokens=4, stop=fail)
    assert not generator.engine.busy
    assert len(generator.generate([make_tokens(5)] * 3, max_tokens=4)) == 3
