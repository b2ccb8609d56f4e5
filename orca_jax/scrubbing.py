"""Takes secrets out of whatever leaves the program: replies, ledger, log, tracebacks, messages.

Libraries print a key not only as it is. `guard` makes a secret known to the process, and `scrub` replaces it
in all the forms that text may take: raw, or with any of its characters escaped as Python's repr, JSON, URLs
or HTML do; and base64, wherever the secret stands in what was encoded (basic auth encodes `USER:SECRET`).
Imports nothing that takes time.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping
from typing import Any

SHORTEST = 8  # characters; a shorter secret could be a common word, and replies would be garbled
REPLACEMENT = "[key]"
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]")  # never escaped by anything
_LETTERS = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v"}
_secrets: set[str] = set()
_pattern: re.Pattern[str] | None = None


class EndpointError(ValueError):
    """An endpoint cannot be used as it is set up; the message names the setting."""


def guard(*secrets: str) -> None:
    """Makes secrets known. Those shorter than `SHORTEST` are left as they are."""
    global _pattern
    new = {secret for secret in secrets if len(secret) >= SHORTEST} - _secrets
    if new:
        _secrets.update(new)
        longest_first = sorted(_secrets, key=len, reverse=True)
        forms = [form for secret in longest_first for form in (_escaped(secret), *_base64(secret))]
        _pattern = re.compile("|".join(forms))


def scrub(value: Any) -> Any:
    """A JSON value without the secrets, which a server or a library may repeat in what it says."""
    if isinstance(value, str):
        return _pattern.sub(REPLACEMENT, value) if _pattern else value
    if isinstance(value, Mapping):
        return {scrub(name): scrub(entry) for name, entry in value.items()}
    return [scrub(entry) for entry in value] if isinstance(value, list) else value


def _escaped(secret: str) -> str:
    """A pattern of the secret with each of its characters in any escape."""
    return "".join(char if _PLAIN.match(char) else _any_escape(char) for char in secret)


def _any_escape(char: str) -> str:
    code, octets = ord(char), char.encode("utf-8", "surrogatepass")
    wide = char.encode("utf-16-be", "surrogatepass").hex()
    forms = [rf"\\*{re.escape(char)}", re.escape(html.escape(char))]
    forms += [rf"\\+{_LETTERS[char]}"] if char in _LETTERS else []
    forms += [r"\+"] if char == " " else []
    in_hex = [
        rf"&#(?:0*{code}|x0*{code:x});",
        "".join(f"%(?:25)*{octet:02x}" for octet in octets),
        "".join(rf"\\+x{octet:02x}" for octet in octets),
        "".join(rf"\\+u{wide[i : i + 4]}" for i in range(0, len(wide), 4)),
        rf"\\+(?:x{code:02x}|U{code:08x})",
    ]
    return f"(?:{'|'.join(forms)}|(?i:{'|'.join(in_hex)}))"


def _base64(secret: str) -> list[str]:
    """Patterns of what base64 makes of the secret after 0, 1 and 2 other bytes, modulo 3.

    The characters at either end that depend on what stands beside the secret are left out of them.
    """
    octets = secret.encode("utf-8", "surrogatepass")
    found = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + octets).decode()
        inner = encoded[-(-8 * before // 6) : 8 * (before + len(octets)) // 6]
        found += [_escaped(inner), _escaped(inner.translate(str.maketrans("+/", "-_")))]
    return list(dict.fromkeys(found))


def read_key(model: str, variable: str) -> str:
    """The key that the environment holds, without white space around it; made known to `scrubbing`.

    Raises:
      EndpointError: there is none, or its value is no key; names the variable and never shows the value.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(
            f"{model!r}: the environment variable {variable} is not set; put the "
            "key into it, or set key_variable to '' for a server that needs none"
        )
    if wrong := re.search(r"[^\x21-\x7e]", key):
        at = wrong.start() + 1
        kind = "a character outside ASCII" if wrong[0] > "\x7f" else "a control character"
        if wrong[0].isspace():
            kind = "a line end" if wrong[0].splitlines() == [""] else "a space"
        raise EndpointError(
            f"{model!r}: the environment variable {variable} holds {kind} inside (character {at} of "
            f"{len(key)}), which no key holds; put one key, on one line, into it (its value is not shown)"
        )
    guard(key)
    return key
