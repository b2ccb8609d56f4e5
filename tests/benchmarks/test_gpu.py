"""The GPU benchmark counts FLOPs right, gates backends, goes on where it ended, runs with few packages."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_cases
from benchmarks.gpu_cases import Case
from orca_jax.student import attention, huggingface, llama
from orca_jax.training.step import batch_loss

ABSENT = ("grain", "tensorflow_datasets", "tensorflow", "ml_collections", "sentencepiece", "torch",
          "transformers", "scipy", "pandas", "safetensors")  # fmt: skip
TINY = Case("step", "blockwise", "tiny", 2, 64, "full")


def test_shapes_are_as_large_as_their_names_say():
    for name, size in (("1B", 1.26e9), ("7B", 6.74e9)):
        assert gpu_cases.SHAPES[name].parameter_count == pytest.approx(size, rel=0.01)


def test_rows_are_packed_as_the_papers():
    rows = gpu_cases.packed(Case("step", "blockwise", "1B", 32, 2048))
    assert rows.tokens.shape == (32, 2048)
    assert np.mean(rows.segment_ids.max(axis=1)) == pytest.approx(gpu_cases.EXAMPLES_A_ROW, rel=0.25)
    assert np.mean(rows.segment_ids > 0) > 0.9


def test_flops_of_one_segment_are_the_students_own():
    config, batch = gpu_cases.SHAPES["1B"], gpu_cases.packed(TINY)
    whole = batch._replace(segment_ids=np.ones((1, 512), np.int32))
    assert gpu_cases.model_flops(config, whole) == pytest.approx(512 * config.training_flops(512))


def test_segments_need_fewer_flops_and_padding_none():
    config, batch = gpu_cases.SHAPES["1B"], gpu_cases.packed(TINY)
    halves = np.repeat([[1, 2, 0]], 256, axis=-1)
    assert gpu_cases.model_flops(config, batch._replace(segment_ids=halves)) == pytest.approx(
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
    assert gpu.reason(errors) == why


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


def test_a_case_that_fails_says_why(tmp_path):
    found = gpu.run(Case("gate", "none such", rows=1, row_length=64), tmp_path / "out", 100)
    assert "none such" in found["outcome"]


def fake(monkeypatch, failing=(), over=()):
    """Cases are not measured; returns the names of those that would be."""
    ran = []

    def run(case, out, seconds):
        ran.append(case.name)
        if case.name in over or seconds <= 0:
            raise subprocess.TimeoutExpired("", seconds)
        if (case.kind, case.attention) in failing:
            return {"outcome": "ValueError: apart"}
        return {"outcome": "ok", "platform": "cpu", "ms": 2.0 if case.attention == "blockwise" else 1.0}

    monkeypatch.setattr(gpu, "run", run)
    return ran


def test_a_backend_that_fails_the_gate_is_timed_nowhere(monkeypatch, tmp_path):
    ran = fake(monkeypatch, failing=[("gate", "causal_blocks")])
    for part in gpu.PARTS:
        gpu.main(part, "cpu", str(tmp_path / "out.jsonl"))
    assert [name for name in ran if "causal_blocks" in name] == [
        name for name in ran if "gate causal" in name
    ]
    assert {name.split()[0] for name in ran} == {kind.split()[0] for kind in gpu_cases.KINDS}
    assert not any(backend in name for name in ran for backend in gpu.ONLY)


def test_results_stand_as_they_come_and_are_not_made_twice(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    ran = fake(monkeypatch, over=["gate blockwise 2 64 none bfloat16"])
    gpu.main("truth", "cpu", str(out), seconds=100, limit=180)  # the time of the call is over there
    assert "the same command goes on" in capsys.readouterr().out
    assert [json.loads(line)["case"] for line in out.read_text().splitlines()] == ran[:-1]
    again = fake(monkeypatch, over=["gate blockwise 2 64 none bfloat16"])
    gpu.main("truth", "cpu", str(out), limit=180)  # here it is the case's
    assert again[0] == ran[-1]
    assert not set(again) & set(ran[:-1])
    outcomes = {one["case"]: one["outcome"] for one in map(json.loads, out.read_text().splitlines())}
    assert outcomes["gate blockwise 2 64 none bfloat16"] == "over 180 s"
    assert len(outcomes) == len(out.read_text().splitlines())


def test_the_gate_sees_segments_that_meet_and_rounding(monkeypatch):
    case = Case("gate", "wrong", rows=1, row_length=32)

    def leaking(query, key, value, segment_ids, window):
        return attention.reference(query, key, value, (segment_ids > 0).astype(jnp.int32), window)

    def rough(*given):
        return attention.reference(*given) * 1.05

    for wrong, message in ((leaking, "error is|other segments"), (rough, "the error is 0.0")):
        monkeypatch.setitem(attention.BACKENDS, "wrong", wrong)
        with pytest.raises(ValueError, match=message):
            gpu_cases.gate(case)


def test_a_profile_counts_the_streams_of_gpus_where_there_are_some():
    names = [
        ("process_name", 1, 0, "/device:GPU:0"),
        ("thread_name", 1, 7, "Stream #7"),
        ("thread_name", 1, 8, "Steps"),
    ]
    events = [
        {"name": name, "pid": pid, "tid": tid, "args": {"name": text}} for name, pid, tid, text in names
    ]
    kernels = [
        {"name": str(place), "pid": place[0], "tid": place[1], "dur": 3} for place in ((1, 7), (1, 8), (2, 7))
    ]
    assert list(gpu_cases.on_device(events + kernels)) == kernels[:1]
    assert list(gpu_cases.on_device(kernels)) == kernels


@pytest.mark.proof
def test_all_of_it_runs_on_a_cpu(repo, tmp_path):
    out = tmp_path / "out.jsonl"
    for part in gpu.PARTS:
        command = [sys.executable, "-m", "benchmarks.gpu", f"--part={part}", "--shapes=cpu", f"--out={out}"]
        subprocess.run([*command, "--seconds=3000"], cwd=repo, check=True)
    outcomes = {one["case"]: one["outcome"] for one in map(json.loads, out.read_text().splitlines())}
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    wrong = {
        case: why for case, why in outcomes.items() if why != "ok" and (installed or "torch" not in case)
    }
    assert not wrong


@pytest.mark.parity
def test_transformers_computes_the_same_loss(tmp_path):
    """Of packed rows: its positions that begin anew keep segments apart as our segment ids do."""
    import torch
    import transformers

    config = dataclasses.replace(TINY.config, scan_layers=False, num_kv_heads=2)
    params, batch = llama.init(config, 0), gpu_cases.packed(TINY)
    ours = batch_loss(params, jax.tree.map(jnp.asarray, batch), config, jnp.dtype("float32"))
    huggingface.export(params, config, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    given = {name: torch.from_numpy(array) for name, array in gpu_cases.arguments(batch).items()}
    with torch.no_grad():
        theirs = model(**given, use_cache=False).loss
    assert theirs.item() == pytest.approx(float(ours.total / ours.weight), rel=1e-5)


@pytest.mark.parity
def test_a_torch_case_runs():
    result = gpu_cases.step(TINY._replace(kind="torch", attention="sdpa", remat="none"))
    assert result["losses"][1] < result["losses"][0]
