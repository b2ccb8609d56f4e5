"""Against a server that nobody here wrote: LiteLLM's proxy with mock replies and limits for each key.

In an environment of its own, `pip install 'litellm[proxy]==1.106.2'`; then
`LITELLM=THAT_ENVIRONMENT/bin/litellm python -m pytest --proof -s tests/teachers/test_litellm.py`.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

pytest.importorskip("openai")

from orca_jax.config_teachers import Limits, OpenAIConfig
from orca_jax.records import Message, Outcome, Sampling
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import EndpointRefused, Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import Pool

COMMAND = os.environ.get("LITELLM", "")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not shutil.which(COMMAND), reason="needs LiteLLM's proxy: see the head of this file"),
]
CONFIG = """
model_list:
  - model_name: teacher
    litellm_params: {model: openai/teacher, api_key: none, mock_response: "Because it is so."}
  - model_name: broken
    litellm_params: {model: openai/broken, api_key: none, mock_response: "litellm.InternalServerError"}
  - model_name: busy
    litellm_params: {model: openai/busy, api_key: none, mock_response: "litellm.RateLimitError"}
  - model_name: long
    litellm_params: {model: openai/long, api_key: none, mock_response: "litellm.ContextWindowExceededError"}
general_settings: {custom_auth: keys.check}
router_settings: {num_retries: 0, disable_cooldowns: true}
"""
# A key says its own limits: sk-REQUESTS-TOKENS-ANYTHING.
KEYS = """
from fastapi import HTTPException
from litellm.proxy._types import UserAPIKeyAuth


async def check(request, api_key):
    start, _, rest = api_key.removeprefix("Bearer ").partition("-")
    if start != "sk":
        raise HTTPException(401, "this key is not known: " + api_key)
    requests, tokens, _ = rest.split("-")
    return UserAPIKeyAuth(api_key=api_key, rpm_limit=int(requests) or None, tpm_limit=int(tokens) or None)
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "keys.py").write_text(KEYS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [COMMAND, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}"}  # it insists on one
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        await_answer(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def await_answer(url, process, log):
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def pool(proxy, monkeypatch, *keys, model="teacher", **limits):
    members = []
    for number, key in enumerate(keys):
        monkeypatch.setenv(f"KEY_{number}", key)
        config = OpenAIConfig(model=model, base_url=proxy, key_variable=f"KEY_{number}")
        members.append((OpenAIEndpoint(config), Limits(**limits)))
    return Pool("teacher", members)


def requests(count):
    return [
        Request((Message("user", f"Why is {number}?"),), Sampling(0.7, 0.95, 100)) for number in range(count)
    ]


def test_a_limit_of_requests_is_used_and_kept(proxy, ledger, monkeypatch):
    started = time.monotonic()
    replies = collect_all(pool(proxy, monkeypatch, "sk-300-0-a", requests=300), requests(700), ledger)
    seconds = time.monotonic() - started
    attempts = ledger.status()["teacher"].attempts
    print(f"\n300 requests a minute: 700 in {seconds:.1f} s, attempts {attempts}")
    assert {reply.text for reply in replies} == {"Because it is so."}
    assert attempts == {Outcome.OK: 700}
    assert 700 / (seconds / 60) > 0.97 * 300


def test_two_keys_share_the_work(proxy, ledger, monkeypatch):
    started = time.monotonic()
    collect_all(pool(proxy, monkeypatch, "sk-300-0-b", "sk-300-0-c", requests=300), requests(300), ledger)
    assert ledger.status()["teacher"].attempts == {Outcome.OK: 300}
    assert time.monotonic() - started < 45


def test_a_limit_of_tokens_that_nobody_told(proxy, ledger, monkeypatch):
    """The proxy counts tokens when a reply is done; the headers and its 429s are all there is to go by."""
    replies = collect_all(pool(proxy, monkeypatch, "sk-0-1500-d"), requests(80), ledger, concurrency=8)
    attempts = ledger.status()["teacher"].attempts
    print(f"\n1,500 tokens a minute, not told: attempts {attempts}")
    assert {reply.outcome for reply in replies} == {Outcome.OK}
    assert attempts[Outcome.OK] == 80


def test_a_limit_of_tokens_that_is_told(proxy, ledger, monkeypatch):
    proxied = pool(proxy, monkeypatch, "sk-0-2000-e", tokens=2000)
    replies = collect_all(proxied, requests(100), ledger, concurrency=8)
    attempts = ledger.status()["teacher"].attempts
    print(f"\n2,000 tokens a minute: attempts {attempts}, usage {ledger.status()['teacher'].usage}")
    assert {reply.outcome for reply in replies} == {Outcome.OK}
    assert attempts.get(Outcome.ERROR, 0) <= 0.1 * 100


def test_a_wrong_key(proxy, ledger, monkeypatch):
    with pytest.raises(EndpointRefused, match=r"key is wrong.*\[key\]") as raised:
        collect_all(pool(proxy, monkeypatch, "wrong-planted-key"), requests(5), ledger)
    assert "planted" not in str(raised.value)


def test_an_unknown_model(proxy, ledger, monkeypatch):
    with pytest.raises(EndpointRefused, match="model, deployment or address is unknown"):
        collect_all(pool(proxy, monkeypatch, "sk-0-0-f", model="nobody"), requests(50), ledger)


@pytest.mark.parametrize(("model", "fault"), [("broken", "server"), ("long", "too_long")])
def test_failures(proxy, ledger, monkeypatch, model, fault):
    (reply,) = collect_all(
        pool(proxy, monkeypatch, "sk-0-0-g", model=model), requests(1), ledger, retries=1, backoff=0.01
    )
    assert reply.raw["fault"] == fault, reply
