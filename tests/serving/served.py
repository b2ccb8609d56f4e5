"""A small random student behind a real server, in a thread of its own."""

import asyncio
import dataclasses
import json
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi")

from orca_jax.serving.local import LocalStudent
from orca_jax.serving.server import make_app, make_server
from tests.student.students import SMALL, make_params

NAME = "small"
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}]
WARM = {"temperature": 1, "seed": 7, "max_tokens": 24}
LONG = {"temperature": 0, "max_tokens": 100}


def make_student(tokenizer, *, params=None, layout="chatml", rows=4, max_length=128):
    """Served, prompt and reply may have `max_length` tokens; in the engine is room for one more."""
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    params = make_params(config) if params is None else params
    return LocalStudent(
        params, config, tokenizer, layout, checkpoint="c", batch_size=rows, max_length=max_length + 1
    )


def slowed(generator, monkeypatch, pause=lambda: time.sleep(0.1)):
    """The generator, whose engines pause before each step."""
    new_engine = generator.new_engine

    def made():
        engine = new_engine()
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda: (pause(), step())[1])
        return engine

    monkeypatch.setattr(generator, "new_engine", made)
    return generator


class Served:
    """A context manager; `url` is the server's, without /v1."""

    def __init__(self, student, *, token="", grace=5, connections=1024, **limits):
        self.app = make_app(student, name=NAME, token=token, **limits)
        self.worker = self.app.state.worker
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.server = make_server(
            self.app, host="127.0.0.1", port=port, token=token, grace=grace, connections=connections
        )
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[self._listening])), daemon=True
        )

    def __enter__(self):
        self._thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self._thread.join()

    @property
    def idle(self):
        return not self.worker.running and not self.worker.waiting


def until(holds, seconds=60):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def post(client, path, body=None, status=200, **rest):
    answer = client.post(path, json={"model": NAME, **(body or {}), **rest})
    assert answer.status_code == status, answer.text
    return answer.json()


def complete(client, status=200, **body):
    return post(client, "/v1/completions", body, status)


def chat(client, status=200, **body):
    return post(client, "/v1/chat/completions", {"messages": QUESTION, **body}, status)


def events(client, path, **body):
    """The events of a stream, without the last one."""
    with client.stream("POST", path, json={"model": NAME, "stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def numbers(client):
    """The metrics by name with labels."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}
