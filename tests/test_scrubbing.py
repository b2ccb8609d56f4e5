"""Secrets in every form that text may take, and nothing else."""

import base64
import html
import json
import urllib.parse

import pytest

from orca_jax.scrubbing import REPLACEMENT, guard, scrub

SECRETS = [
    "sk-scrubbed/Key+0123456789==",
    "scrubbed \"double\" 'single' \\back\\",
    "scrubbed\nline\ttab%25&<html>",
    "scrubbéd-🐳-unicode",
    "eight888",
]


def basic(user, text):
    return base64.b64encode(f"{user}:{text}".encode()).decode()


FORMS = {
    "raw": str,
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda text: repr(text.encode()),
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps({"key": text})),
    "json of repr": lambda text: json.dumps(repr([text])),
    "json as it is": lambda text: json.dumps(text, ensure_ascii=False),
    "json of php": lambda text: json.dumps(text).replace("/", "\\/"),
    "url": urllib.parse.quote,
    "whole url": lambda text: urllib.parse.quote(text, safe=""),
    "lower-case url": lambda text: urllib.parse.quote(text, safe="").replace("%2F", "%2f"),
    "form": urllib.parse.quote_plus,
    "url twice": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    "html": html.escape,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    **{
        f"basic auth of {user!r}": lambda text, user=user: basic(user, text)
        for user in ("", "u", "me", "you")
    },
    "basic auth for urls": lambda text: base64.urlsafe_b64encode(f"user:{text}@host".encode()).decode(),
    "base64 in a url": lambda text: urllib.parse.quote(base64.b64encode(text.encode()).decode(), safe=""),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_form_is_left(secret, form):
    guard(secret)
    written = FORMS[form](secret)
    (cleaned,) = scrub([{"error": f"see <{written}> here"}])[0].values()
    assert written not in cleaned
    assert REPLACEMENT in cleaned
    assert "scrubb" not in cleaned
    assert cleaned.startswith("see <")
    assert cleaned.endswith("> here")


def test_names_too_and_what_is_no_secret_stays():
    guard(SECRETS[0], "short", "")
    value = {"text": "a short word", "number": 3, "none": None, "list": ["\\n", "%2F", "c2stc2NydWI="]}
    assert scrub(value) == value
    assert scrub({SECRETS[0]: 1}) == {REPLACEMENT: 1}
