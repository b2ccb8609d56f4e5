"""Endpoints over HTTP: what goes out, what becomes of every failure, and that no key ever leaves."""

import asyncio
import contextlib
import io
import json
import logging
import shutil
import socket
import ssl
import subprocess
import traceback

import pytest

pytest.importorskip("openai")

from orca_jax.config_check import ConfigError, build
from orca_jax.config_teachers import ApiConfig, Limits, OpenAIConfig
from orca_jax.records import Message, Outcome, Sampling, Usage
from orca_jax.scrubbing import EndpointError
from orca_jax.teachers.collect import collect, collect_all
from orca_jax.teachers.endpoint import CollectionStopped, EndpointRefused, Fault, Request, request_id
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.limits import Budget
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import Pool
from tests.teachers.server import Answer, Server, completion, error
from tests.teachers.tried import tried

KEY = "sk-planted/Key+0123456789=="
MESSAGES = (Message("system", ""), Message("user", "Why?"))
STREAMED = completion("So.")
STREAMED["choices"][0]["delta"] = STREAMED["choices"][0].pop("message")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url, **settings):
    return OpenAIEndpoint(
        OpenAIConfig(**{"model": "gpt-4", "base_url": url, "key_variable": "TEACHER_KEY"} | settings)
    )


def send(one, messages=MESSAGES, sampling=Sampling()):  # noqa: B008
    async def run():
        try:
            return await one.send(messages, sampling)
        finally:
            await one.close()

    return asyncio.run(run())


class TestRequests:
    def test_openai(self):
        with Server(lambda call: completion("So.")) as server:
            sent = send(endpoint(server.url), sampling=Sampling(0.7, 0.95, 99))
            (call,) = server.calls
        assert (sent.reply.outcome, sent.reply.text) == (Outcome.OK, "So.")
        assert sent.reply.usage == Usage(5, 3)
        assert (call.method, call.path) == ("POST", "/v1/chat/completions")
        assert call.headers["authorization"] == f"Bearer {KEY}"
        assert call.headers["accept-encoding"] == "identity"
        assert call.body == {
            "model": "gpt-4",
            "messages": [{"role": "user", "content": "Why?"}],
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 99,
        }

    def test_azure(self):
        with Server(lambda call: completion("So.")) as server:
            one = endpoint(server.azure_url, model="my-deployment", api_version="2024-06-01")
            assert send(one).reply.text == "So."
            (call,) = server.calls
        assert call.path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-06-01"
        assert call.headers["api-key"] == KEY

    def test_a_server_without_keys(self):
        with Server(lambda call: completion("So.")) as server:
            assert send(endpoint(server.url, key_variable="")).reply.text == "So."
            assert KEY not in str(server.calls[0].headers)

    def test_a_stream(self):
        events = Answer(
            200, f"data: {json.dumps(STREAMED)}\n\n".encode(), {"content-type": "text/event-stream"}
        )
        with Server(lambda call: events) as server:
            sent = send(endpoint(server.url, stream=True))
            assert (sent.reply.outcome, sent.reply.text, sent.reply.usage) == (Outcome.OK, "So.", Usage(5, 3))
            (call,) = server.calls
        assert call.body["stream"] is True
        assert call.body["stream_options"] == {"include_usage": True}
        assert call.headers["connection"] == "close"

    def test_the_headers_come_back(self):
        with Server(lambda call: Answer(200, completion(), {"X-RateLimit-Limit-Requests": "60"})) as server:
            assert send(endpoint(server.url)).headers["x-ratelimit-limit-requests"] == "60"

    def test_unusual_text(self):
        text = "é \ud83d \x00 </s> 🐳"
        with Server(lambda call: completion(call.question)) as server:
            reply = send(endpoint(server.url), (Message("user", "é </s> 🐳"),)).reply
        assert reply.text == "é </s> 🐳"
        with Server(lambda call: completion(text)) as server:
            assert send(endpoint(server.url)).reply.text == text

    def test_one_endpoint_serves_several_loops(self):
        with Server(lambda call: completion("So.")) as server:
            one = endpoint(server.url)
            assert [send(one).reply.text for _ in range(3)] == ["So."] * 3


FAILURES = {
    # Collected again as often as it takes.
    "429": (
        lambda call: completion(KEY) if call.number else error(429, f"{KEY}: try again in 1ms"),
        Fault.RATE_LIMIT,
    ),
    "500": (lambda call: error(500, f"broken at {KEY}"), Fault.SERVER),
    "html 502": (lambda call: Answer(502, b"<html>" + KEY.encode() + b"</html>"), Fault.SERVER),
    "200 with an error": (lambda call: Answer(200, {"error": {"message": KEY, "code": 500}}), Fault.SERVER),
    "error as text": (lambda call: Answer(500, {"error": KEY * 90}), Fault.SERVER),
    "torn body": (lambda call: Answer(200, completion(KEY), cut=200), Fault.CONNECTION),
    "torn head": (lambda call: Answer(200, completion(KEY), cut=9), Fault.CONNECTION),
    "truncated json": (lambda call: Answer(200, json.dumps(completion(KEY)).encode()[:-9]), Fault.MALFORMED),
    "hang": (lambda call: Answer(delay=None), Fault.TIMEOUT),
    "disconnect": (lambda call: Answer(cut=0), Fault.CONNECTION),
    "wrong type": (
        lambda call: Answer(200, f"<html>{KEY}</html>".encode(), {"content-type": "text/html"}),
        Fault.MALFORMED,
    ),
    "no http": (lambda call: Answer(200, b"", {"content-length": "no"}), Fault.CONNECTION),
    "too large": (lambda call: Answer(200, completion(KEY * 10_000)), Fault.TOO_LARGE),
    "too large an error": (lambda call: error(500, KEY * 10_000), Fault.TOO_LARGE),
    "compressed": (lambda call: Answer(200, b"\x1f\x8b\x08", {"content-encoding": "gzip"}), Fault.TOO_LARGE),
    "unauthorised": (lambda call: error(401, f"Incorrect API key provided: {KEY}"), Fault.REFUSED),
    "unknown model": (lambda call: error(404, f"no model for {KEY}", code="model_not_found"), Fault.REFUSED),
    "exhausted": (lambda call: error(429, KEY, code="insufficient_quota"), Fault.REFUSED),
    "redirect": (
        lambda call: Answer(307, b"", {"location": "https://elsewhere.invalid/" + KEY}),
        Fault.REFUSED,
    ),
    "bad request": (lambda call: error(400, f"bad {KEY}"), Fault.REQUEST),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name, tmp_path, caplog):
    """The key is looked for in replies, ledger, logs of every level, tracebacks with all locals."""
    caplog.set_level(logging.DEBUG)
    (answer, fault), streams = FAILURES[name], io.StringIO()
    azure = len(name) % 2 > 0
    with Server(answer) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        one = endpoint(
            server.azure_url if azure else server.url,
            timeout=0.5 if name == "hang" else 20.0,
            largest=100_000,
            api_version="2024-06-01" if azure else "",
        )
        sent = send(one)
        pool = Pool("teacher", [(one, Limits())], budget=Budget(money=1.0))
        try:
            print(collect_all(pool, [Request(MESSAGES)], ledger, retries=0), file=streams)
        except CollectionStopped as stopped:
            print(stopped, repr(stopped), repr(stopped.reply), file=streams)
            shown = traceback.TracebackException.from_exception(stopped, capture_locals=True)
            print("".join(shown.format()), file=streams)
        print(repr(one), repr(pool), one.config, pool.note, ledger.status(), sent, file=streams)
        recorded = tried(ledger, request_id("teacher", Request(MESSAGES)))
    assert (sent.reply.outcome, sent.fault) == (Outcome.ERROR, fault), sent
    assert sent.maybe_paid == (fault in (Fault.TIMEOUT, Fault.CONNECTION, Fault.MALFORMED, Fault.TOO_LARGE))
    assert recorded[0].reply.raw.get("fault") in (fault, None)
    left = streams.getvalue() + caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "planted" not in left + repr(recorded)
    for file in tmp_path.iterdir():
        assert b"planted" not in file.read_bytes()


def test_a_reply_that_says_the_key_is_cleaned():
    with Server(lambda call: completion(f"Your key is {KEY}.", logprobs={KEY: [KEY]})) as server:
        reply = send(endpoint(server.url)).reply
    assert reply.text == "Your key is [key]."
    assert reply.raw["logprobs"] == {"[key]": ["[key]"]}


@pytest.mark.parametrize(
    ("name", "advice"),
    [("unauthorised", "key is wrong"), ("unknown model", "unknown"), ("exhausted", "quota")],
)
def test_a_refusal_says_what_to_do(name, advice):
    with (
        Server(FAILURES[name][0]) as server,
        pytest.raises(EndpointRefused, match=rf"127\.0\.0\.1/gpt-4: .*{advice}.*\[key\]"),
    ):
        asyncio.run(Pool("gpt-4", [(endpoint(server.url), Limits())]).reply(MESSAGES, Sampling()))


def test_a_slow_drip_is_a_hang():
    """Each byte comes in time, but the whole does not."""

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def run():
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        one = endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout=0.5)
        sent = await one.send(MESSAGES, Sampling())
        await one.close()
        server.close()
        return sent

    assert asyncio.run(run()).fault is Fault.TIMEOUT


def test_nobody_listens():
    with Server(lambda call: completion()) as server:
        url = server.url
    sent = send(endpoint(url))
    assert sent.fault is Fault.CONNECTION
    assert not sent.maybe_paid


@pytest.mark.parametrize("with_tls", [True, False])
def test_an_interrupt_costs_what_was_sent(tmp_path, with_tls):
    """A server that takes connections and says nothing: with TLS no request gets out."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Ledger(tmp_path / "ledger.sqlite") as ledger:
        one = endpoint(f"{'https' if with_tls else 'http'}://127.0.0.1:{silent.getsockname()[1]}/v1")
        budget = Budget(tokens=100_000)
        replies = collect(Pool("teacher", [(one, Limits())], budget=budget), [Request(MESSAGES)], ledger)

        async def interrupted():
            async with asyncio.timeout(0.5), contextlib.aclosing(replies):
                await anext(replies)

        with pytest.raises(TimeoutError):
            asyncio.run(interrupted())
        status = ledger.status()["teacher"]
    assert (status.in_flight, status.usage.total, budget.tokens_spent > 0) == (not with_tls, 0, not with_tls)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_an_unknown_certificate_is_refused(tmp_path):
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run(
        [*made, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    seen = []

    async def run():
        server = await asyncio.start_server(
            lambda reader, writer: seen.append(1), "127.0.0.1", 0, ssl=context
        )
        one = endpoint(f"https://localhost:{server.sockets[0].getsockname()[1]}/v1", timeout=10)
        sent = await one.send(MESSAGES, Sampling())
        await one.close()
        server.close()
        return sent

    sent = asyncio.run(run())
    assert sent.fault is Fault.CONNECTION
    assert "certificate" in sent.message.lower()
    assert not sent.maybe_paid
    assert not seen


class TestSettings:
    def test_a_batch_is_no_stream(self):
        with pytest.raises(ValueError, match="batch takes no stream"):
            ApiConfig(endpoints=(OpenAIConfig(model="gpt-4", stream=True),), batch=True)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model": ""}, "'model' must be not empty"),
            ({"base_url": "api.openai.com"}, "must be http"),
            ({"base_url": "ftp://host/v1"}, "must be http"),
            ({"base_url": "https://user:secret-word@host/v1"}, "holds a user, password or query"),
            ({"base_url": "https://host/v1?key=secret-word"}, "holds a user, password or query"),
            ({"base_url": "http://gpu7:8000/v1"}, "not https"),
            ({"key_variable": "sk-secret-word"}, "is no variable's name"),
            ({"timeout": 0}, "'timeout' must be above 0"),
            ({"largest": 0}, "'largest' must be at least 1"),
        ],
    )
    def test_errors(self, settings, message):
        with pytest.raises(ConfigError, match=message) as raised:
            build(OpenAIConfig, {"model": "gpt-4"} | settings)
        assert "secret-word" not in str(raised.value)

    @pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:1/v1"])
    def test_local_servers_need_no_https(self, url):
        assert OpenAIConfig(model="x", base_url=url).base_url == url

    def test_others_need_none_without_a_key(self):
        assert OpenAIConfig(model="x", base_url="http://gpu7:8000/v1", key_variable="").model == "x"

    @pytest.mark.parametrize("value", [None, "", "  "])
    def test_no_key(self, monkeypatch, value):
        monkeypatch.delenv("TEACHER_KEY")
        if value is not None:
            monkeypatch.setenv("TEACHER_KEY", value)
        with pytest.raises(EndpointError, match=r"variable TEACHER_KEY is not set; put the key into it"):
            endpoint("https://host/v1")
