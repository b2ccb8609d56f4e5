"""Five million queries drawn over an index of 28 million within 4 GiB; prints the time."""

import json
import subprocess
import sys

import pytest

QUERIES, LIMIT_GIB = 28_000_000, 4.0
PROGRAM = """
import json, resource, sys, time
import numpy as np
from orca_jax.queries import sampling
from orca_jax.config_teachers import FlanConfig

count = int(sys.argv[1])
random = np.random.default_rng(0)
tasks = {"cot": 18, "niv2": 1560, "flan2021": 142, "t0": 193}
shares = {"cot": 0.0055, "niv2": 0.18, "flan2021": 0.45, "t0": 0.3645}
names, sizes = [], []
for collection, number in tasks.items():
    weights = random.lognormal(sigma=1.5, size=number)
    sizes += np.ceil(weights / weights.sum() * shares[collection] * count).astype(int).tolist()
    names += [(collection, f"task{task}") for task in range(number)]
keys = random.integers(2**64 - 1, size=count, dtype=np.uint64, endpoint=True)
seconds = {}

start = time.perf_counter()
parts = np.split(keys, np.cumsum(sizes)[:-1])
indexed = sampling.Index({name: np.sort(part) for name, part in zip(names, parts)}, {})
del keys, parts
seconds["sort"] = time.perf_counter() - start

start = time.perf_counter()
drawn = sampling.plan(indexed, FlanConfig(sources={}), 0.2, 0)
seconds["plan"] = time.perf_counter() - start

peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"queries": sum(map(len, indexed.keys.values())), "drawn": sum(drawn.counts.values()),
                  "summary": drawn.summary(), "seconds": seconds, "peak_gib": peak}))
"""


@pytest.mark.proof
def test_five_million_of_twenty_eight_within_four_gib(capsys):
    run = [sys.executable, "-c", PROGRAM, str(QUERIES)]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    with capsys.disabled():
        print(f"\n{json.dumps(found, indent=1)}")
    assert found["queries"] == QUERIES
    assert found["summary"]["flan2021"]["queries"] == 2_500_000
    assert found["summary"]["t0"]["queries"] == 2_000_000
    assert found["drawn"] > 4_900_000
    assert found["peak_gib"] < LIMIT_GIB


@pytest.mark.proof
def test_indexing_and_selecting_stream(capsys):
    """Queries a second through both passes, with records as the readers give them."""
    program = """
import json, resource, time
from orca_jax.queries import sampling
from orca_jax.config_teachers import FlanConfig
from orca_jax.records import Query

def stream(count):
    for number in range(count):
        yield Query(f"t0.{number:020x}", "text", "t0", f"task{number % 193}", "zs_opt")

count, seconds = 1_000_000, {}
start = time.perf_counter()
for _ in stream(count): pass
seconds["making the records"] = time.perf_counter() - start
start = time.perf_counter()
indexed = sampling.index(stream(count))
seconds["index"] = time.perf_counter() - start
drawn = sampling.plan(indexed, FlanConfig(sources={}, t0=180_000), 0.2, 0)
start = time.perf_counter()
selected = sum(1 for _ in sampling.select(stream(count), drawn))
seconds["select"] = time.perf_counter() - start
print(json.dumps({"rows": count, "selected": selected, "seconds": seconds,
                  "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""
    run = [sys.executable, "-c", program]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    with capsys.disabled():
        print(f"\n{json.dumps(found, indent=1)}")
    assert found["selected"] == 180_000
    assert found["peak_gib"] < 0.5
