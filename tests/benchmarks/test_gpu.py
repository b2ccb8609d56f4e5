"""The GPU benchmark counts FLOPs right, runs with few packages, and its peer computes the same step."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu as benchmark
from orca_jax.student import huggingface, llama
from orca_jax.training.step import batch_loss

ABSENT = ("grain", "tensorflow_datasets", "tensorflow", "ml_collections", "sentencepiece", "torch",
          "transformers", "scipy", "pandas", "safetensors")  # fmt: skip
TINY = benchmark.Case("tiny", "orca_jax", "blockwise", "full", 2, 64)


def test_shapes_are_as_large_as_their_names_say():
    for name, size in (("1B", 1.26e9), ("7B", 6.74e9)):
        assert benchmark.SHAPES[name].parameter_count == pytest.approx(size, rel=0.01)


def test_rows_are_packed_as_the_papers():
    rows = benchmark.packed(benchmark.CASES[0]._replace(rows=32))
    assert rows.tokens.shape == (32, 2048)
    assert np.mean(rows.segment_ids.max(axis=1)) == pytest.approx(benchmark.EXAMPLES_A_ROW, rel=0.25)
    assert np.mean(rows.segment_ids > 0) > 0.9


def test_flops_of_one_segment_are_the_students_own():
    config, batch = benchmark.SHAPES["1B"], benchmark.packed(TINY)
    whole = batch._replace(segment_ids=np.ones((1, 512), np.int32))
    assert benchmark.model_flops(config, whole) == pytest.approx(512 * config.training_flops(512))


def test_segments_need_fewer_flops_and_padding_none():
    config, batch = benchmark.SHAPES["1B"], benchmark.packed(TINY)
    halves = np.repeat([[1, 2, 0]], 256, axis=-1)
    assert benchmark.model_flops(config, batch._replace(segment_ids=halves)) == pytest.approx(
        512 * config.training_flops(256)
    )


@pytest.mark.parametrize(
    ("errors", "why"),
    [
        ("XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory", "out of memory"),
        ("Traceback\n  File x\ntorch.cuda.OutOfMemoryError: CUDA", "out of memory"),
        ("Traceback\nValueError: bad\n--------------------\nFor simplicity, JAX", "ValueError: bad"),
        ("", "no error message"),
    ],
)
def test_why_a_case_ended(errors, why):
    assert benchmark.reason(errors) == why


@pytest.mark.proof
def test_a_case_runs_where_few_packages_are(repo):
    code = f"""import sys
for name in {ABSENT}: sys.modules[name] = None
from benchmarks.gpu import main
main(child={json.dumps(TINY)!r})"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tokens_per_second"] > 0
    assert result["losses"][1] < result["losses"][0]


def test_a_case_that_fails_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "CASES", (TINY._replace(attention="none such"),))
    benchmark.main(out=str(tmp_path / "out.jsonl"))
    (written,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert "none such" in written["outcome"]
    assert "none such" in capsys.readouterr().out


@pytest.mark.parity
def test_transformers_computes_the_same_loss(tmp_path):
    """Of packed rows: its positions that begin anew keep segments apart as our segment ids do."""
    import torch
    import transformers

    config = dataclasses.replace(TINY.config, scan_layers=False, num_kv_heads=2)
    params, batch = llama.init(config, 0), benchmark.packed(TINY)
    ours = batch_loss(params, jax.tree.map(jnp.asarray, batch), config, jnp.dtype("float32"))
    huggingface.export(params, config, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    given = {name: torch.from_numpy(array) for name, array in benchmark.arguments(batch).items()}
    with torch.no_grad():
        theirs = model(**given, use_cache=False).loss
    assert theirs.item() == pytest.approx(float(ours.total / ours.weight), rel=1e-5)


@pytest.mark.parity
def test_a_torch_case_runs():
    result = benchmark.measure(TINY._replace(software="torch", attention="sdpa", remat="none"))
    assert result["losses"][1] < result["losses"][0]
