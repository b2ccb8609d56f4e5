"""Both sides of the generation benchmark get the same work."""

import numpy as np
import pytest

from benchmarks import generate as benchmark
from benchmarks.racing import student
from orca_jax.student import huggingface, llama

TINY = student(96, 32, 48, 2, 4)
WORK = benchmark.Work(
    [np.arange(3, 3 + size, dtype=np.int32) for size in (9, 5, 12, 7, 20)], [6, 1, 3, 8, 2], 2
)


def test_shapes_are_as_large_as_their_names_say():
    for name, config in benchmark.SHAPES.items():
        assert config.parameter_count == pytest.approx(float(name.removesuffix("M")) * 1e6, rel=0.12)


def test_lengths_are_those_of_an_evaluation():
    work = benchmark.works(100)["mixed lengths"]
    sizes = [len(prompt) for prompt in work.prompts]
    assert 60 <= min(sizes) < 120 < 340 < max(sizes) <= 400
    assert 1 <= min(work.limits) < 40 < 216 < max(work.limits) <= 256
    assert len(work.prompts) % work.rows == 0


def test_prompts_are_padded_on_the_left():
    padded = benchmark.pad_left(WORK.prompts[:3])
    assert padded["input_ids"].shape == (3, 12)
    for ids, mask, prompt in zip(padded["input_ids"], padded["attention_mask"], WORK.prompts):
        np.testing.assert_array_equal(ids[mask == 1], prompt)
        assert mask.tolist() == sorted(mask.tolist())


def test_agreement_is_of_the_first_tokens():
    first = list(range(benchmark.COMPARED))
    assert benchmark.agreement([[*first, 1], first, [1]], [[*first, 2], first[::-1], [1]]) == pytest.approx(
        2 / 3
    )


@pytest.mark.proof
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_ours_generates_what_is_asked(devices):
    contestant = benchmark.ours(llama.init(TINY, 0), TINY, WORK, devices)
    assert [len(reply) for reply in contestant.step()] == WORK.limits
    assert contestant.tokens == sum(WORK.limits)


@pytest.mark.parity
def test_transformers_generates_the_same(tmp_path):
    params = llama.init(TINY, 0)
    huggingface.export(params, TINY, tmp_path)
    theirs = benchmark.theirs("theirs", tmp_path, WORK)
    assert benchmark.ours(params, TINY, WORK, 1).step() == theirs.step()


@pytest.mark.proof
def test_the_program_runs_alone(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(benchmark, "works", lambda *given: {"few": WORK})
    benchmark.main(alone=True, rounds=1)
    said = capsys.readouterr().out
    assert "orca_jax, 1 device(s)" in said
    assert "orca_jax, 4 device(s)" in said
