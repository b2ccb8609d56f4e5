"""Rates are over whole steps; memory is the fullest device's."""

import time
import types

import pytest

from orca_jax.training import meters


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_rates_since_the_last_reading(clock):
    speed = meters.Speed(flops_per_token=6e3, peak_flops=1e6)
    for _ in range(4):
        speed.add(tokens=100, supervised=25.0, data_seconds=0.25)
    clock.now += 8
    with speed.saving():
        clock.now += 2
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
    speed = meters.Speed(flops_per_token=6e3)
    clock.now += 1
    values = speed.read()
    assert "mfu" not in values
    assert values.keys() < set(meters.TIMED)


def device(stats):
    return types.SimpleNamespace(memory_stats=lambda: stats)


def test_memory_is_that_of_the_fullest_device():
    devices = [device({"peak_bytes_in_use": 5}), device({"peak_bytes_in_use": 7}), device(None)]
    assert meters.device_bytes(devices) == {"device_bytes": 7}
    assert meters.device_bytes([device(None), device({"other": 1})]) == {}


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_steps_that_cannot_be_profiled(tmp_path, steps):
    with pytest.raises(ValueError, match=f"steps {steps[0]} to {steps[1]}; steps count from 1"):
        meters.Profile(tmp_path, steps)
