"""Collecting under load: limits used and kept, requests a second, memory, a ledger of two million requests.

`python -m pytest --proof -s tests/proofs/test_collection_load.py` prints the figures of docs/collection.md.
"""

import concurrent.futures
import itertools
import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("openai")

from orca_jax import conversations
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.teachers import collection
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Attempt, Ledger
from tests.teachers.server import Separate

pytestmark = pytest.mark.proof
COLLECT = """
import json, resource, sys, time
from orca_jax.teachers.collect import collect_each
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.config_teachers import Limits, OpenAIConfig
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import Pool
from orca_jax.records import Message, Sampling

url, path, count, in_flight, requests, tokens = sys.argv[1:3] + [*map(int, sys.argv[3:])]
endpoint = OpenAIEndpoint(OpenAIConfig(model="m", base_url=url, key_variable=""))
pool = Pool("m", [(endpoint, Limits(requests=requests, tokens=tokens))])
done, memory = 0, []


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def note(asked):
    global done
    done += 1
    if done % 5000 == 0:
        memory.append(round(resident(), 1))


asked = (
    Request((Message("user", f"What is {n} plus {n + 1} , please ?"),), Sampling(max_tokens=400))
    for n in range(count)
)
with Ledger(path) as ledger:
    started, worked = time.monotonic(), time.process_time()
    collect_each(pool, asked, ledger, note, concurrency=in_flight)
    seconds, worked = time.monotonic() - started, time.process_time() - worked
    status = ledger.status()["m"]
figures = {"answers": status.answers, "attempts": sum(status.attempts.values())}
print(json.dumps(figures | {"seconds": seconds, "worked": worked, "MiB": memory}))
"""
BARE = """
import asyncio, json, sys, time
import openai

url, count, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


async def main():
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    numbers = iter(range(count))

    async def work():
        for n in numbers:
            messages = [{"role": "user", "content": f"What is {n} plus {n + 1} , please ?"}]
            await client.chat.completions.create(
                model="m", messages=messages, temperature=0, top_p=1, max_tokens=400
            )

    started, worked = time.monotonic(), time.process_time()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    print(json.dumps({"seconds": time.monotonic() - started, "worked": time.process_time() - worked}))


asyncio.run(main())
"""


def run(repo, code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("binding", "count", "tokens"), [("requests", 8000, 700_000), ("tokens", 5000, 400_000)]
)
def test_limits_are_used_and_never_exceeded(repo, tmp_path, binding, count, tokens):
    """6,000 requests and so many tokens in any sixty seconds, without headers and, meanwhile, with them.

    Replies have 100 tokens on average, and 400 are reserved.
    """

    def collect(headers):
        options = {"requests": 6000, "tokens": tokens, "latency": 0.3, "words": 100}
        with Separate(**options, **({"headers": True} if headers else {})) as server:
            run(repo, COLLECT, server.url, tmp_path / f"{headers}.sqlite", count, 128, 6000, tokens)
            return server.stats()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for headers, stats in zip((False, True), pool.map(collect, (False, True)), strict=True):
            minutes = stats["seconds"] / 60
            used = {
                "requests": stats["answered"] / (6000 * minutes),
                "tokens": stats["tokens"] / (tokens * minutes),
            }
            print(f"\nlimit of {binding}, headers {headers}: {used} used, {stats}")
            assert stats["answered"] == count
            assert stats["refused"] < 0.005 * count
            assert used[binding] >= 0.97
            assert stats["most_requests"] <= 6000
            assert stats["most_tokens"] <= tokens


def test_speed_and_memory(repo, tmp_path):
    """64 in flight against a server that answers at once, beside the bare client's loop; wants idle cores."""
    with Separate() as server:
        before = run(repo, BARE, server.url, 6000, 64)
        ours = run(repo, COLLECT, server.url, tmp_path / "ledger.sqlite", 60_000, 64, 0, 0)
        after = run(repo, BARE, server.url, 6000, 64)
    bare = {name: before[name] + after[name] for name in before}
    rate, bare_rate = 60_000 / ours["seconds"], 12_000 / bare["seconds"]
    print(f"\n{rate:.0f} requests/s, bare client {bare_rate:.0f}/s: {rate / bare_rate:.2f}")
    print(f"processor time a request: {ours['worked'] / 60:.2f} ms, bare client {bare['worked'] / 12:.2f} ms")
    print(f"MiB {ours['MiB']}")
    assert ours["answers"] == ours["attempts"] == 60_000
    assert rate >= 300
    assert rate >= 0.65 * bare_rate
    assert max(ours["MiB"]) - ours["MiB"][1] < 8


@pytest.fixture(scope="module")
def texts(shared_data):
    """Questions and answers of real traces."""
    traces = conversations.read_traces(shared_data / "openorca/gpt4_600.jsonl", teacher="gpt-4")
    return [(trace.messages[:-1], trace.answer) for trace in traces]


def attempts(texts, count):
    """Requests with answers; the words of real traces, each text made different from the others."""
    sampling = Sampling(0.7, 0.95, 1000)
    for number, (messages, answer) in zip(range(count), itertools.cycle(texts)):
        *system, user = messages
        asked = (*system, Message("user", f"{number}. {user.content}"))
        raw = {"id": f"chatcmpl-{os.urandom(15).hex()}", "model": "gpt-4-0613", "finish_reason": "stop"}
        reply = Reply(Outcome.OK, f"{number}: {answer}", Usage(200, 90), raw)
        yield Attempt("gpt-4", Request(asked, sampling), reply)


def size(attempt):
    texts = [message.content for message in attempt.request.messages] + [attempt.reply.text]
    return sum(len(text.encode()) for text in texts)


def test_two_million_requests(tmp_path, texts):
    """Status, resume and size of a ledger that lacks one answer in five thousand."""
    count, total, path = 2_000_000, 0, tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        source = attempts(texts, count)
        while some := list(itertools.islice(source, 5000)):
            ledger.record(some[:-1])
            total += sum(map(size, some[:-1]))

    started = time.monotonic()
    with Ledger(path) as ledger:
        status = ledger.status()["gpt-4"]
    status_seconds = time.monotonic() - started

    making = 0.0  # seconds in which the requests are made, which a collection reads

    def asked():
        nonlocal making
        source = attempts(texts, count)
        while True:
            begun = time.monotonic()
            some = [attempt.request for attempt in itertools.islice(source, 5000)]
            making += time.monotonic() - begun
            if not some:
                return
            yield from some

    started = time.monotonic()
    with Ledger(path) as ledger:
        missing = collection.missing("gpt-4", asked(), ledger)
    resume_seconds = time.monotonic() - started - making
    ratio = path.stat().st_size / total
    print(f"\nstatus {status_seconds:.2f} s, resume {resume_seconds:.2f} s")
    print(f"file {ratio:.2f} of its {total / 1e9:.2f} GB of texts")
    assert status.answers == count - 400
    assert [place for place, lacks in enumerate(missing) if lacks] == list(range(4999, count, 5000))
    assert status_seconds < 2
    assert resume_seconds < 10
    assert ratio < 2
