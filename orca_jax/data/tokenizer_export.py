"""A tokenizer as `tokenizer.json` and a chat template: what transformers and vLLM load, with our ids.

Chat templates begin with a special token, so for tokenizers of SentencePiece's kind they have in writing the
space that those put before a first text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

from orca_jax import artifacts
from orca_jax.data import chat_template, layouts
from orca_jax.data.layouts import PROBE, TEMPLATE, LayoutError
from orca_jax.data.tokenizer import BOS, EOS, Tokenizer
from orca_jax.data.tokenizer_files import CLASS, CONFIG_FILE, SPACE, TEMPLATE_FILE, to_text
from orca_jax.records import Message

# Answers begin with a piece, with a character that is none, and with what pieces seldom go on with. In a
# layout without headers a question is the first text, and may begin with spaces.
PROBES = (
    [Message("user", "Is 2 + 2 = 4?")],
    [Message("user", " two  spaces")],
    [Message("user", "Hello"), Message("assistant", "Hi.")],
    [
        Message("system", "Be kind.\nUse steps."),
        Message("user", " a  b\n"),
        Message("assistant", "é 😀 1984"),
    ],
    [Message("system", "A"), *[Message(role, f"turn of {role}") for role in ("user", "assistant") * 2]],
    [Message(role, "x") for role in ("user", "assistant", "user")],
    [Message("user", "Hello"), Message("assistant", "😀"), Message("user", "4"), Message("assistant", "4")],
)


def files(tokenizer: Tokenizer, layout: str, *, model_max_length: int) -> dict[str, str]:
    """By name tokenizer.json, tokenizer_config.json, chat_template.jinja and what else the tokenizer has.

    Texts get the ids of `tokenizer.encode(text, first=True)` (with `add_special_tokens=False` and, where
    a text may spell a control token, `split_special_tokens=True`); conversations rendered by the template
    get those of `layouts.encode`.

    Raises:
      LayoutError, TokenizerError: no known template gives the layout's ids, or the tokenizer cannot write it.
    """
    layouts.check(layout, tokenizer)
    found = dict(tokenizer.files)
    settings = json.loads(found[CONFIG_FILE]) | {
        "tokenizer_class": CLASS,
        "model_max_length": model_max_length,
    }
    if layout != TEMPLATE:
        found[TEMPLATE_FILE] = settings["chat_template"] = _template_of(layout, tokenizer)
    found[CONFIG_FILE] = to_text(settings)
    return found


def write(
    tokenizer: Tokenizer, layout: str, out_dir: str | os.PathLike[str], *, model_max_length: int
) -> list[Path]:
    """Writes `files` to a folder; returns their paths."""
    found = files(tokenizer, layout, model_max_length=model_max_length)
    paths = [Path(out_dir) / name for name in found]
    for path, text in zip(paths, found.values()):
        with artifacts.atomic_write(path) as file:
            file.write(text)
    return paths


def _template_of(layout: str, tokenizer: Tokenizer) -> str:
    """A chat template with which transformers gives the layout's ids for all `PROBES`."""
    own = template(layout)
    for found in filter(None, (tokenizer.chat_template, own, own.replace(SPACE, ""))):
        if all(
            _ids(probe, found, tokenizer) == layouts.encode(probe, layout, tokenizer).tokens.tolist()
            for probe in PROBES
        ):
            return found
    raise LayoutError(
        f"no chat template gives the ids of layout {layout!r} with this tokenizer; train with another "
        f"layout, or with {TEMPLATE!r} if it has a chat template"
    )


def _ids(messages: list[Message], template: str, tokenizer: Tokenizer) -> list[int]:
    """What transformers gives, where no text is cut at an answer's start; empty: the template is refused."""
    try:
        pieces = chat_template.pieces(messages, template, tokenizer)
    except LayoutError:
        return []
    ids: list[int] = []
    for piece in layouts.joined([dataclasses.replace(piece, loss=None) for piece in pieces]):
        text = piece.text
        ids += [tokenizer.control_id(text)] if piece.control else tokenizer.encode(text, first=piece.leads)
    return ids


# A tokenizer may have no beginning of sequence, or one that is its end too and is not written twice.
TURNS = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{%- for message in turns -%}
{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('turns must be [system], user, assistant, user, ...') -}}
{%- endif -%}
{%- endfor -%}
{%- set begin = bos_token or '' -%}
{%- set begin_again = '' if begin == eos_token else begin -%}
{{- (OPENING + system + AFTER_SYSTEM) if system else WITHOUT_SYSTEM -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- ('' if loop.first else BETWEEN) + message['content'] -}}
{%- else -%}
{{- BEFORE_ANSWER + message['content'] + END -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- PROMPT -}}
{%- elif turns | length % 2 -%}{{- AFTER_USER -}}
{%- endif -%}"""
# What of a prompt ends the user's turn, and is written where no prompt is asked for.
AFTER_USER = {"chatml": layouts.IM_END, "llama2": " [/INST]", "vicuna": " ASSISTANT:"}


def template(layout: str) -> str:
    """A layout as jinja: what it writes around what is said in a conversation of marks.

    The first text begins with SentencePiece's leading space in writing.
    """

    def around(*roles: str) -> list[str]:
        pieces = layouts.LAYOUTS[layout]([Message(role, PROBE) for role in roles])
        first = next(n for n, piece in enumerate(pieces) if not piece.control)
        return "".join(SPACE * (n == first) + piece.text for n, piece in enumerate(pieces)).split(PROBE)

    opening, after_system, before_answer, next_turn, prompt = around("system", "user", "assistant", "user")
    end = around("user", "assistant")[-1]
    written = {
        "OPENING": opening,
        "AFTER_SYSTEM": after_system,
        "WITHOUT_SYSTEM": around("user")[0],
        "BETWEEN": next_turn.removeprefix(end),
        "BEFORE_ANSWER": before_answer,
        "END": end,
        "PROMPT": prompt,
        "AFTER_USER": AFTER_USER.get(layout, ""),
    }
    made = TURNS
    for name, text in written.items():
        names = {BOS: "begin_again" if name == "BETWEEN" else "begin", EOS: "eos_token"}
        parts = [names.get(part, repr(part)) for part in re.split(f"({BOS}|{EOS})", text) if part]
        spelled = " + ".join(parts) or "''"
        made = re.sub(rf"\b{name}\b", spelled.replace("\\", r"\\"), made)
    return made
