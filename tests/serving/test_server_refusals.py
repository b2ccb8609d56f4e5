"""What the server refuses, and that what fails or leaves costs nobody else anything."""

import asyncio
import concurrent.futures
import json
import logging
import socket
import threading
import time

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from pydantic import ValidationError

from orca_jax.serving.protocol import IGNORED, NEUTRAL, ChatMessage, ChatRequest, CompletionRequest
from orca_jax.serving.server import make_server
from tests.serving.served import LONG, NAME, QUESTION, Served, complete, make_student, numbers, slowed, until

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("chat/completions", {"messages": []}, "messages", "at least 1"),
        ("chat/completions", {"messages": QUESTION[:1]}, "messages", "must be the user's"),
        ("chat/completions", {"messages": QUESTION[1:] * 2}, "messages", "turns must be"),
        ("chat/completions", {"messages": [{"role": "x", "content": ""}]}, "messages.0.role", "should be"),
        ("chat/completions", {"messages": QUESTION, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ("chat/completions", {"messages": QUESTION, "audio": {}}, "audio", "there is no field 'audio'"),
        ("chat/completions", {"messages": QUESTION, "temperature": -1}, "temperature", "greater than"),
        ("chat/completions", {"messages": QUESTION, "max_tokens": 500}, "max_tokens", "128 fit in all"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * 300}]}, "max_tokens", "128 fit"),
        ("completions", {"prompt": []}, "prompt", "valid string"),
        ("completions", {"prompt": [[]]}, "prompt", "valid string"),
        ("completions", {"prompt": [4000]}, "prompt", "no id 4000"),
        ("completions", {"prompt": [-1]}, "prompt", "valid string"),
        ("completions", {"prompt": "a", "n": 13}, "n", "more than 12 sequences"),
        ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens", "needs echo"),
        ("completions", {"prompt": "a", "seed": 0.5}, "seed", "integer"),
        ("completions", {"prompt": "a", "logprobs": 6}, "logprobs", "less than or equal to 5"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "no field"),
        ("completions", {"prompt": "a", "no field": 1}, None, "there is no field 'no field'"),
        ("completions", {"prompt": None}, "prompt", "Field required"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content", "valid string"),
        ("chat/completions", {"messages": [{**QUESTION[1], "foo": 1}]}, "messages.0.foo", "no field"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_an_error_that_names_the_field(client, path, body, param, said):
    content = json.dumps({"model": NAME, **body})
    answer = client.post(f"/v1/{path}", content=content, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [0] * 100_000 + [""]},
        {"prompt": [{}] * 100_000},
        {"prompt": [[1]] * 100_000 + [2]},
        {"prompt": "a", "stop": [1] * 100_000},
        {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(100_000)))},
        {"prompt": "a", **dict.fromkeys(map(str, range(100_000)), 1)},
    ],
    ids=["ids", "objects", "lists", "stops", "biases", "fields"],
)
def test_of_many_faults_the_first_are_named(body):
    """All of two megabytes' faults would take a minute and gigabytes."""
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate({"model": NAME, **body})
    assert error.value.error_count() < 6


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"seed": 1' + b"0" * 5000 + b"}", b"null", b'{"n": NaN}',
        b'{"a": "\xff"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_no_json_is_an_error(client, path, content):
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "change",
    [
        lambda half: {"messages": [{"role": "user", "content": half}]},
        lambda half: {"messages": [{"role": "user", "content": [{"type": "text", "text": half}]}]},
        lambda half: {"messages": [QUESTION[1] | {"name": half}]},
        lambda half: {"messages": [QUESTION[1] | {half: None}]},
        lambda half: {"stop": half},
        lambda half: {"stop": ["a", half]},
        lambda half: {"user": half},
        lambda half: {"model": half},
        lambda half: {"metadata": {half: half}},
        lambda half: {half: None},
    ],
)
def test_half_a_surrogate_pair_is_refused(client, change):
    body = {"model": NAME, "messages": QUESTION, "max_tokens": 2} | change("a\ud800b")
    answer = client.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    assert "the body is not JSON in UTF-8" in answer.json()["error"]["message"]


TURNS = st.sampled_from(sorted({*ChatMessage.model_fields, "refusal", "\ud800"}))
FIELDS = {
    "/v1/chat/completions": [*ChatRequest.model_fields, *NEUTRAL, *IGNORED, "audio", "\ud800"],
    "/v1/completions": [*CompletionRequest.model_fields, *NEUTRAL, "\0"],
}
TEXTS = st.text(st.characters(), max_size=4) | st.sampled_from(["\ud800", "\0", "none", "text", "</s>", NAME])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -(2**63), 2**31, 10**4000, 1e308, True])
DEEP = st.sampled_from([json.loads("[" * depth + "]" * depth) for depth in (150, 500)])
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS | DEEP,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def bodies(draw):
    """A path, and the JSON of a good request for it that has some fields changed, or some bytes."""
    path = draw(st.sampled_from(sorted(FIELDS)))
    turn = {"role": "assistant", "content": "b", **draw(st.dictionaries(TURNS, VALUES, max_size=1))}
    turns = [QUESTION[1], turn, {"role": "user", "content": draw(TEXTS)}]
    good = {"messages": turns, "prompt": draw(TEXTS), "model": NAME, "max_tokens": 2}
    body = {name: value for name, value in good.items() if name in FIELDS[path]}
    body |= draw(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, max_size=1))
    content = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + draw(st.integers(0, 3)) :]
    return path, content


@given(sent=bodies())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_the_server_fail(served, caplog, sent):
    path, content = sent
    caplog.clear()

    async def ask():
        transport = httpx2.ASGITransport(served.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=content, headers=JSON)

    answer = asyncio.run(ask())
    assert answer.status_code in (200, 400, 404, 413), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("chat/completions", "tools", [{"type": "function", "function": {"name": "f"}}]),
        ("chat/completions", "tool_choice", "auto"),
        ("chat/completions", "tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("chat/completions", "functions", [{"name": "f"}]),
        ("chat/completions", "function_call", {"name": "f"}),
        ("chat/completions", "reasoning_effort", "high"),
        ("chat/completions", "modalities", ["text", "audio"]),
        ("chat/completions", "response_format", {"type": "json_object"}),
        ("chat/completions", "verbosity", "low"),
        ("chat/completions", "frequency_penalty", 0.1),
        ("chat/completions", "logit_bias", {"5": 1}),
        ("chat/completions", "web_search_options", {}),
        ("chat/completions", "messages.0.tool_calls", [{"id": "1"}]),
        ("chat/completions", "messages.0.function_call", {"name": "f"}),
        ("chat/completions", "messages.0.refusal", "no"),
        ("completions", "best_of", 2),
        ("completions", "suffix", "b"),
    ],
)
def test_what_the_student_does_not_have_is_refused_by_name(client, path, field, value):
    turn = {"role": "user", "content": "a"}
    body = {"model": NAME, "prompt": "a"} if path == "completions" else {"model": NAME, "messages": [turn]}
    (turn if field.startswith("messages") else body)[field.split(".")[-1 if "messages" in field else 0]] = (
        value
    )
    answer = client.post(f"/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("POST", "/v1/other", 404), ("GET", "/", 404)],
)
def test_other_paths_and_methods(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_another_model_is_not_found(client):
    error = complete(client, 404, prompt="a", model="gpt-4")["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(client, announced):
    content = json.dumps({"model": NAME, "prompt": "a" * 30_000}).encode()
    sent = content if announced else iter([content[:15_000], content[15_000:]])
    answer = client.post("/v1/completions", content=sent, headers=JSON)
    assert answer.status_code == 413
    assert "20000 bytes" in answer.json()["error"]["message"]


def test_a_token_is_asked_for(student):
    token = "a token that is long"
    with Served(student, token=token) as served, httpx2.Client(base_url=served.url) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"}):
            for path in ("/v1/models", "/metrics", "/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["type"] == "authentication_error"
        assert client.get("/health").status_code == 200
        headers = {"authorization": f"Bearer {token}", "host": "student.example"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "[", "127.0.0.1.evil.example:80", ""]
)
def test_without_a_token_other_hosts_names_are_refused(client, host):
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:5"])
def test_this_hosts_own_names_are_served(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "student.example"])
def test_other_hosts_need_a_token(served, host):
    with pytest.raises(ValueError, match=f"host {host} lets other hosts connect; put a token"):
        make_server(served.app, host=host, port=0, token="", grace=1)


@pytest.fixture
def slow(tokenizer, monkeypatch):
    student = make_student(tokenizer)
    slowed(student.generator, monkeypatch)
    return student


def test_overload_is_429_and_passes(tokenizer, monkeypatch):
    """4 rows and a queue of 8 are full with 12 sequences; others are told when to come."""
    student, gate = make_student(tokenizer), threading.Event()
    slowed(student.generator, monkeypatch, gate.wait)
    body = {"model": NAME, "prompt": "the", "n": 12, "max_tokens": 30}
    with (
        Served(student, queue=8) as served,
        httpx2.Client(base_url=served.url, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.post, "/v1/completions", json=body)
        until(lambda: served.worker.waiting == 8 and served.worker.running == 4)
        refused = client.post("/v1/completions", json={**body, "n": 1})
        gate.set()
        assert len(first.result().json()["choices"]) == 12
        assert len(complete(client, **body)["choices"]) == 12
        counted = numbers(client)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert counted['orca_requests_total{path="/v1/completions",status="429"}'] == 1


def test_more_connections_than_may_be_open_are_refused(student):
    with Served(student, connections=2) as served:
        port = int(served.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as one,
            socket.create_connection(one.getpeername()),
        ):
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            with httpx2.Client(base_url=served.url) as client:
                until(lambda: client.get("/health").status_code == 503)
        until(lambda: httpx2.get(f"{served.url}/health").status_code == 200)


def leave(client, body):
    """Asks, and goes before the answer has ended."""
    if body["stream"]:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        return
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/completions", json=body, timeout=httpx2.Timeout(60, read=0.3))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(slow, stream):
    """16 sequences of 7 steps, 4 at a time, would take 2.8 s at least; after the leaving it is a step."""
    body = {"model": NAME, "prompt": "the", "n": 16, "stream": stream, **LONG, "temperature": 1}
    with Served(slow) as served, httpx2.Client(base_url=served.url, timeout=60) as client:
        complete(client, **body | {"stream": False})
        leave(client, body)
        left = time.monotonic()
        until(lambda: served.idle)
        assert time.monotonic() - left < 1.5
        until(lambda: numbers(client)["orca_clients_left_total"] == 1)


def test_a_failing_engine_is_an_error_of_the_server(tokenizer, monkeypatch):
    student = make_student(tokenizer)
    made, new_engine = [], student.generator.new_engine

    def breaking():
        engine = new_engine()
        if len(made) < 2:
            monkeypatch.setattr(engine, "step", lambda: 1 // 0 if engine.busy else [])
        made.append(engine)
        return engine

    monkeypatch.setattr(student.generator, "new_engine", breaking)
    with Served(student) as served, httpx2.Client(base_url=served.url) as client:
        error = complete(client, 500, prompt="a")["error"]
        assert (error["message"], error["type"]) == ("the server failed; its log says how", "server_error")
        body = {"model": NAME, "prompt": "a", "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: ")) == {"error": error}
        assert complete(client, prompt="a")["choices"]
        assert served.idle


def test_a_dead_engine_is_not_healthy(tokenizer, monkeypatch):
    student = make_student(tokenizer)
    monkeypatch.setattr(student.generator, "new_engine", lambda: 1 // 0)
    with Served(student) as served, httpx2.Client(base_url=served.url) as client:
        until(lambda: not served.worker.alive)
        assert client.get("/health").status_code == 503


def test_open_requests_end_before_the_server_does(student):
    body = {"model": NAME, "prompt": "the", "stream": True, **LONG}
    with Served(student) as served, httpx2.Client(base_url=served.url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.server.should_exit = True
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
    assert not served.worker.alive
