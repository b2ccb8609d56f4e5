"""Metrics as JSON lines: a resumed run cuts off what it will make again."""

import json

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
