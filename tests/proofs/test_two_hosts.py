"""README's lines for Orca 13B in small on two processes of four CPU devices each, from weights to tables.

The evaluation is also spread over four processes, and gives the same items. A student that two processes
train is evaluated meanwhile as on one.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from orca_jax.experiments import convert
from orca_jax.files import read_jsonl
from orca_jax.records import Item
from tests.docs import given

pytestmark = pytest.mark.proof


@pytest.fixture
def folder(tmp_path):
    run(tmp_path, "run", "--config=configs/mini.py:runlocal", "--workdir=mini")
    convert.export_student(tmp_path / "mini", tmp_path / "llama-13b", dtype="float32", layout="")
    given.benchmarks(tmp_path)
    given.traces(tmp_path)
    return tmp_path


CONFIG = (
    "--config=configs/orca_13b.py:init=llama-13b,runlocal", "--workdir=orca",
    "--config.teachers[0].path=chatgpt.parquet", "--config.teachers[1].path=gpt4.parquet",
    "--config.benchmarks.bbh=BBH_FOLDER", "--config.benchmarks.agieval=AGIEVAL_FOLDER",
)  # fmt: skip

EVALUATED = (*CONFIG, "--limit=40")


def start(folder, program, *arguments, devices=4):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": "16",
    }
    command = [sys.executable, "-m", f"orca_jax.experiments.{program}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def end(process):
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    return said


def run(folder, program, *arguments, **options):
    return end(start(folder, program, *arguments, **options))


def train_on_two(folder, *arguments):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    both = [start(folder, "train", *arguments, f"--hosts=localhost:{port},2,{host}") for host in range(2)]
    return [end(host) for host in both]


def items(folder, name):
    """The items of a whole evaluation, which then stands aside under `name`."""
    run(folder, "evaluate", *EVALUATED)
    evaluation = folder / "orca" / "evaluation"
    found = {path.parent.name: list(read_jsonl(path, Item)) for path in evaluation.rglob("items.jsonl")}
    evaluation.rename(folder / name)
    return found


def test_training_and_evaluation_on_two_hosts(folder):
    run(folder, "collect", *CONFIG)
    run(folder, "prepare", *CONFIG)
    assert ["of 2" in said for said in train_on_two(folder, *CONFIG)] == [True, True]

    sizes = ("--config.evaluation.tensor=2", "--config.evaluation.copies=2")
    parts = [start(folder, "evaluate", *EVALUATED, *sizes, f"--part={host}/2") for host in (1, 2)]
    evaluation = folder / "orca" / "evaluation"
    deadline = time.monotonic() + 600
    while not any(file.stat().st_size for file in evaluation.rglob("replies-2-of-2.jsonl")):
        assert time.monotonic() < deadline
        assert parts[1].poll() is None
        time.sleep(0.2)
    parts[1].send_signal(signal.SIGKILL)
    parts[1].communicate()
    end(parts[0])
    run(folder, "evaluate", *EVALUATED, *sizes, "--part=2/2")
    assert not list(evaluation.rglob("scores.json"))
    halves = items(folder, "halves")
    parts = [start(folder, "evaluate", *EVALUATED, sizes[0], f"--part={host}/4") for host in range(1, 5)]
    for part in parts:
        end(part)
    quarters = items(folder, "quarters")
    whole = items(folder, "whole")  # one host, one device
    assert halves.keys() == quarters.keys() == whole.keys()
    assert len(whole) >= 3
    total = sum(map(len, whole.values()))
    for name, split in {"halves": halves, "quarters": quarters}.items():
        differing = sum(one != other for task in whole for one, other in zip(split[task], whole[task]))
        print(json.dumps({name: total, "differing": differing}))
        assert differing <= 0.02 * total
    (folder / "whole").rename(evaluation)
    run(folder, "tables", "paper", "--runs=orca", "--out=tables")
    assert "Table" in (folder / "tables" / "README.md").read_text(encoding="utf-8")


def test_evaluation_while_training_on_two_hosts(tmp_path):
    given = (
        "--config=configs/mini.py:runlocal", "--workdir=w", "--config.train.batch_rows=8",
        "--config.curriculum[0].steps=60", "--config.curriculum[1].steps=20",
        "--config.puzzles.per_family=400", "--config.data.validation_fraction=0.1",
        "--config.train.evaluate_every=60", "--config.train.evaluate_per_family=15",
        "--config.evaluation.max_tokens=48",
    )  # fmt: skip
    for program in ("collect", "prepare"):
        run(tmp_path, program, *given)
    run(tmp_path, "train", *given, devices=8)
    training = tmp_path / "w" / "training"
    alone = evaluations(training)
    shutil.rmtree(training)
    said = train_on_two(tmp_path, *given, "--config.evaluation.tensor=2")
    results = [re.findall(r"evaluation after step \d+: accuracy (.* questions)", text) for text in said]
    assert results[0] == results[1]
    both = evaluations(training)
    print(json.dumps({"alone": alone, "both": both}))
    assert [row["step"] for row in both] == [60, 80]
    assert all(row["unparsed"] < 0.9 for row in both)  # it says something
    for one, other in zip(alone, both, strict=True):
        assert one.keys() == other.keys()
        assert one["n"] == other["n"] >= 45
        for name in ("accuracy", "unparsed"):
            assert abs(one[name] - other[name]) <= 2 / one["n"]  # ids of equal score


def evaluations(training):
    rows = map(json.loads, (training / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["kind"] == "evaluation"]
