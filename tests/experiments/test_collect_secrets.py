"""After every kind of failure: no secret in anything that is left, and no charge for what was not sent."""

import base64
import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import urllib.parse
import zlib

import pytest

pytest.importorskip("openai")

from orca_jax import cli
from orca_jax.config_teachers import Price
from orca_jax.experiments import collect
from orca_jax.teachers.ledger import Ledger
from tests.experiments.test_collect_api import make, stand
from tests.teachers.server import Answer, Server, completion, error

KEY = "sk-planted/Key+01\"2'3\\456789=="
PASSWORD = "planted-pass/word"
PROXY = f"user:{urllib.parse.quote(PASSWORD, safe='')}"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
FORMS = (
    "planted",
    *(base64.b64encode(f"{user}{secret}".encode()).decode().rstrip("=")[4:-4]
      for user in ("", "user:") for secret in (KEY, PASSWORD)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def asked(url, timeout=30.0):
    """A config that asks little, at a price that shows."""
    config = make(url, teachers=1, retries=0, price=Price(prompt=1.0, completion=1.0))
    config = dataclasses.replace(config, puzzles=dataclasses.replace(config.puzzles, per_family=5))
    (teacher,) = config.teachers
    ends = tuple(dataclasses.replace(one, timeout=timeout) for one in teacher.api.endpoints)
    api = dataclasses.replace(teacher.api, endpoints=ends)
    return dataclasses.replace(config, teachers=(dataclasses.replace(teacher, api=api),))


def ends(config, workdir):
    """Runs the program to its end, whatever that is, with a log."""
    cli.keep_log(workdir / "logs/log.txt")
    try:
        with contextlib.suppress(SystemExit):
            cli.checked(lambda: collect.run(config, workdir))
    finally:
        logging.getLogger().handlers.pop().close()


def left_in(workdir, said):
    """All that is written anywhere."""
    texts = [said.encode(), *(path.read_bytes() for path in workdir.rglob("*") if path.is_file())]
    if (workdir / "ledger.sqlite").exists():
        with Ledger(workdir / "ledger.sqlite") as ledger:
            for column in ("text", "raw"):
                rows = ledger._rows(f"SELECT {column} FROM attempts WHERE {column} IS NOT NULL")
                texts += [zlib.decompress(blob) for (blob,) in rows]
    return b"\n".join(texts).decode("utf-8", "replace")


def echo(status):
    """A server that says the key in every form."""
    forms = (KEY, repr(KEY), json.dumps(KEY), urllib.parse.quote(KEY, safe=""),
             *(base64.b64encode(f"{user}{KEY}".encode()).decode() for user in ("", "user:")))  # fmt: skip
    words = f"no {' '.join(forms)} {json.dumps({'authorization': KEY})}"
    return lambda call: completion(words) if status == 200 else error(status, words)


UNSENT = {
    "proxy that is not there": {"HTTP_PROXY": f"http://{PROXY}@127.0.0.1:9"},
    "proxy without an address": {"HTTP_PROXY": f"http://{PROXY}@[bad"},
    "proxy of no known kind": {"HTTP_PROXY": f"gopher://{PROXY}@127.0.0.1:9"},
    "missing certificates": {"SSL_CERT_FILE": "/no/such/file.pem"},
    "no certificates": {"SSL_CERT_FILE": __file__},
    "bad header": {"OPENAI_ORG_ID": f"org\n{KEY}"},
    "name without an address": {"url": "https://planted.invalid/v1"},
    "nobody listens": {"url": "http://127.0.0.1:9/v1"},
}


@pytest.mark.parametrize("name", UNSENT)
def test_what_was_not_sent_costs_nothing_and_shows_no_secret(name, tmp_path, monkeypatch, capfd):
    changes = dict(UNSENT[name])
    with Server(lambda call: completion()) as server:
        url = changes.pop("url", server.url)
        for variable, value in changes.items():
            monkeypatch.setenv(variable, value)
        ends(asked(url), tmp_path)
        assert not server.calls
    said = "".join(capfd.readouterr())
    assert "error: " in said
    one = stand(tmp_path)
    assert (one.money, one.done, one.status.in_flight) == (0.0, 0, 0)
    assert one.status.usage.total == 0
    left = left_in(tmp_path, said).replace(urllib.parse.urlsplit(url).hostname, "")
    assert [form for form in FORMS if form in left] == []


@pytest.mark.parametrize("answer", [Answer(delay=None), Answer(cut=0), Answer(200, completion(), cut=200)])
def test_what_may_have_been_received_is_charged(answer, tmp_path, capfd):
    with Server(lambda call: answer) as server:
        ends(asked(server.url, timeout=1.0), tmp_path)
        sent = len(server.calls)
    one = stand(tmp_path)
    assert one.status.usage.completion_tokens >= 64 * sent > 0
    assert one.money > 0


@pytest.mark.parametrize("status", [200, 400, 401, 407, 500])
def test_an_echo_in_any_form_is_cleaned(status, tmp_path, capfd):
    with Server(echo(status)) as server:
        ends(asked(server.url), tmp_path)
    left = left_in(tmp_path, "".join(capfd.readouterr()))
    assert "[key]" in left
    assert [form for form in FORMS if form in left] == []


def test_a_proxy_that_says_what_it_was_told(tmp_path, monkeypatch, capfd):
    with Server(lambda call: Answer(407, f"no {BASIC} {PASSWORD} {PROXY}".encode())) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.replace("http://", f"http://{PROXY}@"))
        ends(asked("http://127.0.0.1:9/v1"), tmp_path)
        assert f"Basic {BASIC}" in {call.headers["proxy-authorization"] for call in server.calls}
    left = left_in(tmp_path, "".join(capfd.readouterr()))
    assert "[key]" in left
    assert [form for form in FORMS if form in left] == []


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("sk-planted\nsk-planted-too", "a line end"),
        ("sk-planted\r\nsk-planted-too", "a line end"),
        ("sk-planted sk-planted-too", "a space"),
        ("sk-planted\x1bkey", "a control character"),
        ("sk-plantéd-planted", "a character outside ASCII"),
        ("\ufeffsk-planted", "a character outside ASCII"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_unseen(value, what, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TEACHER_KEY", value)
    with Server(lambda call: completion()) as server:
        ends(asked(server.url), tmp_path)
        assert not server.calls
    said = "".join(capfd.readouterr())
    assert f"variable TEACHER_KEY holds {what} inside" in said
    assert "plant" not in left_in(tmp_path, said)


def test_white_space_around_a_key_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\r\n")
    with Server(lambda call: completion()) as server:
        collect.run(asked(server.url), tmp_path)
        assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}


@pytest.mark.slow
def test_a_traceback_of_the_program(repo, tmp_path):
    with Server(echo(401)) as server:
        command = [
            *(sys.executable, "-m", "experiments.collect", "run", f"--workdir={tmp_path}", "--traceback"),
            f"--config={repo}/configs/api.py:runlocal",
            f"--config.teachers[0].api.endpoints[0].base_url={server.url}",
            "--config.teachers[0].api.endpoints[0].key_variable=TEACHER_KEY",
        ]
        ran = subprocess.run(
            command, cwd=repo, env={**os.environ, "PYTHONPATH": str(repo)}, capture_output=True, text=True
        )
    assert "Traceback" in ran.stderr
    assert "[key]" in ran.stderr
    assert [form for form in FORMS if form in left_in(tmp_path, ran.stdout + ran.stderr)] == []


@pytest.mark.parametrize("status", [403, 500])
def test_an_apis_words_are_not_taken_for_this_machines(status, tmp_path, capfd):
    words = f"RESOURCE_EXHAUSTED: {os.strerror(28)}, {os.strerror(2)}"
    with Server(lambda call: error(status, words)) as server:
        ends(asked(server.url), tmp_path)
    said = "".join(capfd.readouterr())
    assert words in said
    assert "Too little memory" not in said
    assert "free some space" not in said
    assert "Correct the path" not in said
