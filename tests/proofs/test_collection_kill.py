"""A collection over HTTP, killed by kill -9 at fifty random moments: nothing is lost, nothing stored twice.

`python -m pytest --proof -s tests/proofs/test_collection_kill.py` prints the figures of docs/collection.md.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("openai")

from orca_jax.records import Message, Outcome, Sampling
from orca_jax.teachers.endpoint import Request, request_id
from orca_jax.teachers.ledger import Ledger
from tests.teachers.server import Separate

pytestmark = pytest.mark.proof
KILLS, REQUESTS, IN_FLIGHT = 50, 4000, 16
COLLECT = """
import sys
from orca_jax.teachers.collect import collect_each
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.config_teachers import Limits, OpenAIConfig
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import Pool
from orca_jax.records import Message, Sampling

url, path, count, in_flight = sys.argv[1:3] + [*map(int, sys.argv[3:])]
pool = Pool("m", [(OpenAIEndpoint(OpenAIConfig(model="m", base_url=url, key_variable="")), Limits())])
asked = (Request((Message("user", f"question {n}"),), Sampling(max_tokens=9)) for n in range(count))
with Ledger(path) as ledger:
    print("ready", flush=True)
    collect_each(pool, asked, ledger, lambda asked: None, concurrency=in_flight)
"""


def start(repo, url, path):
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", COLLECT, url, str(path), str(REQUESTS), str(IN_FLIGHT)]
    process = subprocess.Popen(command, cwd=repo, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def stored(path):
    ids = [
        request_id("m", Request((Message("user", f"question {n}"),), Sampling(max_tokens=9)))
        for n in range(REQUESTS)
    ]
    with Ledger(path) as ledger:
        return ledger.get_many(ids), ledger.status().get("m")


def test_fifty_kills(repo, tmp_path):
    path, moments, killed = tmp_path / "ledger.sqlite", random.Random(0), 0
    with Separate(latency=0.05) as server:
        answers, _ = stored(path)
        for _ in range(KILLS):
            process = start(repo, server.url, path)
            time.sleep(moments.uniform(0, 0.5))
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            before, (answers, status) = answers, stored(path)
            assert before.items() <= answers.items(), "a stored reply was lost or changed"
            paid, recorded = server.stats()["answered"], sum(status.attempts.values()) if status else 0
            assert recorded <= paid <= recorded + (status.in_flight if status else 0)
            assert paid - recorded <= IN_FLIGHT * killed
        assert start(repo, server.url, path).wait() == 0
        answers, status = stored(path)
        paid = server.stats()["answered"]
    print(
        f"\n{killed} kills: {REQUESTS} requests, {paid} paid, {paid - REQUESTS} twice,"
        f" {status.in_flight} noted"
    )
    assert killed > KILLS / 2
    assert len(answers) == REQUESTS
    assert status.attempts == {Outcome.OK: REQUESTS}
    assert 0 < paid - REQUESTS <= status.in_flight <= IN_FLIGHT * killed
