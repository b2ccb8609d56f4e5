"""Metrics as JSON lines: a resumed run cuts off what it will make again."""

import json
import subprocess
import sys
import time
import types

import pytest

from orca_jax.training import metrics


def write(directory, start, *steps):
    writer = metrics.Metrics(directory, start)
    for step in steps:
        writer.write("train", step, {"loss": step / 10, "stage": "one"})
    writer.close()


def steps(directory):
    return [row["step"] for row in metrics.read(directory / metrics.FILE)]


def test_records_come_back(tmp_path):
    write(tmp_path, 0, 1, 2)
    rows = metrics.read(tmp_path / metrics.FILE)
    assert rows[1] == {"kind": "train", "step": 2, "loss": 0.2, "stage": "one"}


def test_a_record_is_on_disk_at_once(tmp_path):
    writer = metrics.Metrics(tmp_path, 0)
    writer.write("train", 1, {"loss": 1.0})
    assert steps(tmp_path) == [1]
    writer.close()


def test_resumed_run_cuts_off_later_steps(tmp_path):
    write(tmp_path, 0, 1, 2, 3, 4)
    write(tmp_path, 2, 3, 4, 5)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_torn_last_line_is_left_out_and_mended(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    path = tmp_path / metrics.FILE
    path.write_bytes(path.read_bytes()[:-9])
    assert steps(tmp_path) == [1, 2]
    write(tmp_path, 2, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_numbers_go_to_tensorboard_too(tmp_path):
    write(tmp_path, 0, 1)
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events.out.tfevents.*"))
    assert b"train/loss" in events
    assert b"train/stage" not in events


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_rates_since_the_last_reading(clock):
    speed = metrics.Speed(flops_per_token=6e3, peak_flops=1e6)
    for _ in range(4):
        speed.add(steps=1, tokens=100, supervised=25.0, data_wait=0.25)
    speed.add(save_wait=2.0)
    clock.now += 10
    assert speed.read() == {
        "tokens_per_second": 40.0,
        "supervised_tokens_per_second": 10.0,
        "step_seconds": 2.5,
        "data_wait": 0.1,
        "save_wait": 0.2,
        "mfu": 0.24,
    }
    clock.now += 1
    assert speed.read()["tokens_per_second"] == 0


def test_without_a_known_peak_there_is_no_mfu(clock):
    speed = metrics.Speed(flops_per_token=6e3)
    clock.now += 1
    values = speed.read()
    assert "mfu" not in values
    assert values.keys() < set(metrics.TIMED)


def device(stats):
    return types.SimpleNamespace(memory_stats=lambda: stats)


def test_memory_is_that_of_the_fullest_device():
    devices = [device({"peak_bytes_in_use": 5}), device({"peak_bytes_in_use": 7}), device(None)]
    assert metrics.device_bytes(devices) == {"device_bytes": 7}
    assert metrics.device_bytes([device(None), device({"other": 1})]) == {}


def test_metrics_start_without_torch(tmp_path):
    """It takes a second to import, and each of many small students would pay it."""
    program = f"""
import sys
from orca_jax.training.metrics import Metrics
Metrics({str(tmp_path)!r}, 0).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# Weights & Biases


def leveldb_log(block):
    """The records of one block: each a checksum of 4 bytes, a length of 2, a type of 1 and the record."""
    while len(block) > 7:
        length, whole = int.from_bytes(block[4:6], "little"), block[6] == 1
        assert whole
        assert length
        yield block[7 : 7 + length]
        block = block[7 + length :]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"train.wandb needs an extra: pip install -e '.\[wandb\]'"):
        metrics.Metrics(tmp_path, 0, "project")


def test_a_run_that_goes_on_has_its_id_and_all_numbers_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    ids, logged = set(), []
    for start in (0, 2):
        writer = metrics.Metrics(tmp_path / "run/training", start, "project")
        writer.write("train", start + 1, {"loss": start / 10, "stage": "one"})
        writer.close()
    for path in sorted(tmp_path.glob("run/training/wandb/offline-run-*/*.wandb")):
        for data in leveldb_log(path.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.HasField("history"):
                found = {(one.key or ".".join(one.nested_key)): one.value_json for one in record.history.item}
                logged.append((int(found["step"]), float(found["train/loss"]), "train/stage" in found))
    assert ids == {((tmp_path / "run/training/wandb_run_id").read_text(), "project", "run")}
    assert sorted(logged) == [(1, 0.0, False), (3, 0.2, False)]
