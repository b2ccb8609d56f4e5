"""Steps of paper-sized students compiled here for slices of TPUs, in minutes, and small ones for GPUs.

TPUs need the package libtpu, GPUs the plug-in of the extra `gpu-plan`; each is skipped without.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.proof
tpus = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the extra `tpu`")
gpus = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra `gpu-plan`"
)
GIB = 2**30


LAY = """
import json
from orca_jax.planning import chips, compile
from orca_jax.student import sharding

found = {}
for name in ("v4-64", "v5p-64", "v5p-128", "v6e-64", "v5e-32"):
    topology = chips.topology(name)
    devices = compile.devices(topology)
    for tensor in (1, 2, 4, 8):
        for data in (1, 2, 4, 8):
            sizes = (data, len(devices) // data // tensor, tensor)
            if not sizes[1]:
                continue
            try:
                sharding.make_mesh(sharding.MeshConfig(data=data, fsdp=sizes[1], tensor=tensor), devices)
                laid = True
            except NotImplementedError:
                laid = False
            found[f"{name} {sizes}"] = [laid, topology.takes(sizes)]
print(json.dumps(found))
"""


@tpus
def test_jax_takes_the_meshes_that_the_planner_proposes():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LAY], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = [
        mesh for mesh, (laid, taken) in json.loads(done.stdout.splitlines()[-1]).items() if laid != taken
    ]
    assert not wrong


DECODE = """
import dataclasses, json, re, sys
import numpy as np
from jax.sharding import AxisType, Mesh
from orca_jax.config import EvaluationConfig
from orca_jax.planning import chips, compile, evaluate
from orca_jax.student import presets, sharding

rows, length, layers = 64, 1024, 4
for name, tensor in (("v5p:2x2x1", 1), ("v5p:2x2x1", 4), ("v6e:2x2", 4)):
    for preset in ("llama-13b", "llama2-70b"):
        topology = chips.topology(name)
        student = dataclasses.replace(presets.PRESETS[preset], num_layers=layers)
        where = evaluate.setting(student, topology, EvaluationConfig(tensor=tensor))
        placed = np.array(compile.devices(topology)[:tensor]).reshape(1, 1, -1)
        mesh = Mesh(placed, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
        made = evaluate.lower(evaluate.Program("decode", (rows, length)), where, mesh).compile()
        part = f"[{rows},{student.num_kv_heads // tensor},{length},{student.head_dim}]"
        kinds, inside = set(), False
        for line in made.as_text().splitlines():
            inside = "fused" in line if line.endswith("{") and "= " not in line else inside
            found = re.search(r"= \\(?\\w+(\\[[\\d,]*\\])(\\S*) ([\\w-]+)\\(", line)
            # S(1) is memory of the core, into which it is read; in a fusion nothing is written.
            if found and found[1] == part and "S(1)" not in found[2] and not inside:
                kinds.add(found[3])
        aliased, cache = made.memory_analysis().alias_size_in_bytes, rows * length * where.position
        print(json.dumps([f"{name} {tensor} {preset}", aliased, cache, sorted(kinds)]))
"""


@tpus
def test_a_decoding_step_holds_no_copy_of_the_cache():
    """It is donated and updated where it is: nothing of its shape is made but by updating a slice."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DECODE], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    for name, aliased, cache, kinds in map(json.loads, lines):
        assert aliased == cache, name
        assert "dynamic-update-slice" in kinds, name
        assert set(kinds) <= {"parameter", "get-tuple-element", "bitcast", "dynamic-update-slice"}, name


def planned(config, *arguments, tmp_path):
    """The lines of JSON, the seconds and the bytes of this host's memory that a plan takes."""
    name, colon, argument = config.partition(":")
    command = [
        sys.executable,
        "-m",
        "experiments.plan",
        f"--config=configs/{name}.py{colon}{argument}",
        "--json",
        *arguments,
    ]
    out = tmp_path / "out"
    began = time.monotonic()
    with open(out, "wb") as file, open(tmp_path / "errors", "wb") as errors:
        process = subprocess.Popen(command, stdout=file, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "errors").read_text()[-3000:]
    assert "Involuntary full rematerialization" not in (tmp_path / "errors").read_text()
    return [json.loads(line) for line in out.read_text().splitlines()], seconds, used.ru_maxrss * 1024


@tpus
def test_13b_on_32_v5p_chips_within_three_minutes_and_8_gib(tmp_path):
    (values,), seconds, used = planned("orca_13b", "--topology=v5p:2x4x4", tmp_path=tmp_path)
    assert values["compiled"]
    assert values["fits"]
    assert seconds < 180
    assert used < 8 * GIB
    kinds = {one["kind"] for one in values["collectives"]}
    assert "all-gather" in kinds
    assert kinds & {"reduce-scatter", "all-reduce"}


@tpus
def test_70b_on_64_v5p_chips(tmp_path):
    (values,), _, used = planned("orca_70b", "--topology=v5p-128", tmp_path=tmp_path)
    assert values["fits"]
    assert values["chips"] == 64
    assert used < 8 * GIB


@tpus
def test_13b_does_not_fit_16_small_chips(tmp_path):
    (values,), _, _ = planned("orca_13b", "--topology=v5e-16", tmp_path=tmp_path)
    assert not values["fits"]
    assert values["bytes_per_chip"] > values["hbm_bytes"]
    assert values["remedies"]


@pytest.mark.parametrize("topology", ["v4-128", "v6e-64", "v5e-128"])
@tpus
def test_13b_on_other_chips(topology, tmp_path):
    (values,), _, _ = planned("orca_13b", f"--topology={topology}", tmp_path=tmp_path)
    assert values["compiled"]
    assert values["bytes_per_chip"] > 0


@tpus
def test_the_estimate_is_near_what_the_compiler_says(tmp_path):
    (compiled,), _, _ = planned("orca_7b", "--topology=v5p-16", tmp_path=tmp_path)
    (estimated,), _, _ = planned("orca_7b", "--topology=v5p-16", "--analytic", tmp_path=tmp_path)
    assert estimated["bytes_per_chip"] == pytest.approx(compiled["bytes_per_chip"], rel=0.3)
    assert estimated["step_seconds"] == pytest.approx(compiled["roofline_seconds"], rel=0.2)
    assert compiled["step_seconds"] == pytest.approx(compiled["roofline_seconds"], rel=0.5)


def printed(code):
    """The lines of JSON that a program prints."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{"))]


PRODUCT = """
import glob, json, tempfile
import jax, jax.numpy as jnp
from orca_jax.planning import chips, compile, program

for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    topology, size = chips.topology(name), 8192
    place = jax.sharding.SingleDeviceSharding(compile.devices(topology)[0])
    matrix = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=place)
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        jax.jit(jnp.matmul, compiler_options=options).lower(matrix, matrix).compile()
        (path,) = glob.glob(f"{folder}/*.after_codegen.txt")
        seconds = program.work(open(path).read()).cycles / topology.chip.clock_ghz / 1e9
    print(json.dumps([name, 2 * size**3 / seconds / topology.chip.peak]))
"""


@tpus
def test_a_large_product_takes_most_of_the_peak_by_its_cycles():
    """So the clock is right: the share is 0.93, 0.88, 0.90 and 0.70 with libtpu 0.0.52."""
    found = dict(printed(PRODUCT))
    assert len(found) == 4
    assert all(0.65 < share < 1 for share in found.values()), found


STEP = """
import dataclasses, json
from orca_jax.planning import chips, compile, estimate
from tests.planning.workloads import small

topology, shape = chips.topology("v5e:2x2"), estimate.MeshShape(1, 4, 1)
for layers in (2, 4, 6):
    sizes = dict(hidden_size=512, intermediate_size=1024, num_heads=4, num_kv_heads=4, head_dim=128)
    work = small(rows=8, row_length=1024, num_layers=layers, **sizes)
    done = compile.compile_step(work, shape, topology, state_bytes=0).work
    attention = estimate.executed_flops(work).attention / topology.chips
    print(json.dumps([done.cycles, done.attention / attention]))
"""


@tpus
def test_a_layer_more_takes_as_many_cycles_more():
    """A scan's trips count, and attention's kernels are those that the roofline assumes."""
    (two, first), (four, second), (six, third) = printed(STEP)
    assert six - four == pytest.approx(four - two, rel=0.15)
    assert four - two > two / 10
    assert [first, second, third] == pytest.approx([1.0] * 3)


CUDNN = """
import json
import jax, jax.numpy as jnp
from orca_jax.planning import chips, compile, program

for name in ("h200-1", "h100-1", "a100-1"):
    place = jax.sharding.SingleDeviceSharding(compile.devices(chips.topology(name))[0])
    heads = jax.ShapeDtypeStruct((2, 1024, 4, 128), jnp.bfloat16, sharding=place)

    def attend(query, key, value):
        out = jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    made = jax.jit(jax.grad(attend, (0, 1, 2))).lower(heads, heads, heads).compile()
    print(json.dumps([name, dict(program.work(made.as_text()).kernels)]))
"""


@gpus
def test_cudnns_attention_compiles_for_gpus_that_are_not_there():
    for name, kernels in printed(CUDNN):
        assert kernels == {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}, name


@gpus
@pytest.mark.parametrize("topology", ["h200-1", "h100-8", "h100-16", "a100-8"])
def test_a_step_compiles_for_gpus_with_the_attention_that_auto_takes(topology, tmp_path):
    """More layers launch more, and where attention is cuDNN's it is in the program."""
    shape = ["--config.train.batch_rows=16", "--config.student.num_layers=4", "--config.student.head_dim=64"]
    (values,), _, _ = planned("orca_7b:runlocal", f"--topology={topology}", *shape, tmp_path=tmp_path)
    assert values["compiled"]
    assert values["fits"]
    assert values["launches"] > 100
    assert bool(values["collectives"]) == (values["chips"] > 1)
    kinds = {name.partition("fmha")[0] for name in values["kernels"] if "fmha" in name}
    assert kinds <= {"__cudnn$"}
