"""A chat completions server for tests, which does what it is told: any status, header, body, or none at all.

`python -m tests.teachers.server` runs one in a process of its own: it enforces limits, answers at once
or after a while, and GET /stats tells what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Call:
    """One request that the server got."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    when: float = 0.0

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclasses.dataclass
class Answer:
    """What the server does with it: `cut` closes after so many bytes, `delay` in seconds, None is never."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay: float | None = 0.0
    cut: int | None = None

    def encoded(self) -> bytes:
        json_body = not isinstance(self.body, bytes)
        body = json.dumps(self.body).encode() if json_body else self.body
        headers = {"content-type": "application/json" if json_body else "text/plain"}
        headers |= {"content-length": str(len(body))} | self.headers
        lines = [f"HTTP/1.1 {self.status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(
    text: str | None = "So.", usage: tuple[int, int] | None = (5, 3), **choice: Any
) -> dict[str, Any]:
    """A usual answer's JSON; `choice` changes its choice."""
    message = {"role": "assistant", "content": text}
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "teacher-0613",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
    }
    if usage:
        answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage)) | {
            "total_tokens": sum(usage)
        }
    return answer


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    return Answer(status, {"error": {"message": message, **fields}}, headers or {})


class Connection(asyncio.Protocol):
    """Reads HTTP/1.1 requests with bodies of known length, one after the other."""

    def __init__(self, answer: Callable[[str, str, dict[str, str], bytes], Answer]):
        self.answer = answer
        self.data = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            first, *lines = self.data[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(self.data) < end + 4 + length:
                return
            content, self.data = self.data[end + 4 : end + 4 + length], self.data[end + 4 + length :]
            method, path, _ = first.split(" ")
            self.respond(self.answer(method, path, headers, content))

    def respond(self, answer: Answer) -> None:
        if answer.delay:
            asyncio.get_running_loop().call_later(answer.delay, self.write, answer)
        elif answer.delay is not None:
            self.write(answer)

    def write(self, answer: Answer) -> None:
        encoded = answer.encoded()
        self.transport.write(encoded[: answer.cut])
        if answer.cut is not None:
            self.transport.close()


class Server:
    """A server in a thread. `answer(call)` is called for each request; `calls` keeps them."""

    def __init__(self, answer: Callable[[Call], Answer | dict[str, Any]]):
        self.answer = answer
        self.calls: list[Call] = []
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def azure_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(lambda: Connection(self._answer), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    def _answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        call = Call(len(self.calls), method, path, headers, content, time.monotonic())
        self.calls.append(call)
        answer = self.answer(call)
        return Answer(body=answer) if isinstance(answer, dict) else answer


class Separate:
    """A server in a process of its own, with the options of `main`."""

    def __init__(self, **options: Any):
        arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        self._command = [sys.executable, "-m", "tests.teachers.server", *arguments]

    def __enter__(self) -> Separate:
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(self._command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as answer:
            return json.load(answer)


class Window:
    """What came in within the last minute, counted as it arrives."""

    def __init__(self, limit: float):
        self.limit, self.used, self.most, self.total = limit, 0.0, 0.0, 0.0
        self.entries: collections.deque[tuple[float, float]] = collections.deque()

    def space(self, now: float, amount: float) -> bool:
        while self.entries and self.entries[0][0] <= now - 60:
            self.used -= self.entries.popleft()[1]
        return not self.limit or self.used + amount <= self.limit

    def add(self, now: float, amount: float) -> None:
        self.entries.append((now, amount))
        self.used += amount
        self.total += amount
        self.most = max(self.most, self.used)


class Limited:
    """Enforces requests and tokens a minute, whatever window of sixty seconds is looked at.

    A reply has as many tokens as the question says, or `tokens`; a prompt has one for each word.
    """

    def __init__(self, requests: float, tokens: float, latency: float, words: int, headers: bool):
        self.requests, self.tokens = Window(requests), Window(tokens)
        self.latency, self.words, self.headers = latency, words, headers
        self.random = random.Random(0)
        self.counts: collections.Counter[int] = collections.Counter()
        self.first = self.last = 0.0

    def __call__(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        if path == "/stats":
            return Answer(body=self.stats())
        now = time.monotonic()
        question = json.loads(content)["messages"][-1]["content"]
        prompt, reply = len(question.split()), self.length(question)
        fits = self.requests.space(now, 1) & self.tokens.space(now, prompt + reply)
        self.counts[200 if fits else 429] += 1
        if not fits:
            return error(429, "slow down", self.rates() | {"retry-after": "2"})
        self.first, self.last = self.first or now, now
        self.requests.add(now, 1)
        self.tokens.add(now, prompt + reply)
        delay = self.latency * self.random.uniform(0.5, 1.5)
        return Answer(200, completion("so " * reply, (prompt, reply)), self.rates(), delay)

    def length(self, question: str) -> int:
        """Tokens of the reply: about `words`, the same for a question whenever it is asked."""
        return (
            random.Random(question).randint(self.words // 2, self.words + self.words // 2)
            if self.words
            else 1
        )

    def rates(self) -> dict[str, str]:
        if not self.headers:
            return {}
        return {
            f"x-ratelimit-{what}-{of}": str(int(value))
            for of, window in (("requests", self.requests), ("tokens", self.tokens))
            if window.limit
            for what, value in (("limit", window.limit), ("remaining", window.limit - window.used))
        }

    def stats(self) -> dict[str, Any]:
        return {
            "answered": self.counts[200],
            "refused": self.counts[429],
            "tokens": self.tokens.total,
            "most_requests": self.requests.most,
            "most_tokens": self.tokens.most,
            "seconds": self.last - self.first,
        }


async def _serve(limited: Limited) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(limited), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=float, default=0, help="a minute; 0: no limit")
    parser.add_argument("--tokens", type=float, default=0, help="a minute; 0: no limit")
    parser.add_argument("--latency", type=float, default=0.0, help="mean, in seconds")
    parser.add_argument("--words", type=int, default=0, help="mean length of a reply")
    parser.add_argument("--headers", action="store_true", help="send x-ratelimit headers")
    arguments = parser.parse_args()
    asyncio.run(_serve(Limited(**vars(arguments))))


if __name__ == "__main__":
    main()
