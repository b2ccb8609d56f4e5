"""A tokenizer as `tokenizer.json` and a chat template: what transformers and vLLM load, with our ids.

Chat templates begin with a special token, so for tokenizers of SentencePiece's kind they have in writing the
space that those put before a first text.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from orca_jax import artifacts
from orca_jax.data import chat_template, layouts
from orca_jax.data.layouts import IM_END, IM_START, TEMPLATE, VICUNA_SYSTEM, LayoutError
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.data.tokenizer_files import CLASS, CONFIG_FILE, SPACE, TEMPLATE_FILE, to_text
from orca_jax.records import Message

# Answers begin with a piece, with a character that is none, and with what pieces seldom go on with.
PROBES = (
    [Message("user", "Is 2 + 2 = 4?")],
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


def write(
    tokenizer: Tokenizer, layout: str, out_dir: str | os.PathLike[str], *, model_max_length: int
) -> list[Path]:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, with what else the tokenizer has.

    Texts get the ids of `tokenizer.encode(text, first=True)` (with `add_special_tokens=False` and, where
    a text may spell a control token, `split_special_tokens=True`); conversations rendered by the template
    get those of `layouts.encode`. Returns the files' paths.

    Raises:
      LayoutError, TokenizerError: no known template gives the layout's ids, or the tokenizer cannot write it.
    """
    layouts.check(layout, tokenizer)
    files = dict(tokenizer.files)
    settings = json.loads(files[CONFIG_FILE]) | {
        "tokenizer_class": CLASS,
        "model_max_length": model_max_length,
    }
    if layout != TEMPLATE:
        files[TEMPLATE_FILE] = settings["chat_template"] = _template_of(layout, tokenizer)
    files[CONFIG_FILE] = to_text(settings)
    paths = [Path(out_dir) / name for name in files]
    for path, text in zip(paths, files.values()):
        with artifacts.atomic_write(path) as file:
            file.write(text)
    return paths


def _template_of(layout: str, tokenizer: Tokenizer) -> str:
    """A chat template with which transformers gives the layout's ids for all `PROBES`.

    Raises:
      LayoutError: no known template does.
    """
    plain = CHAT_TEMPLATES[layout]
    for template in filter(None, (tokenizer.chat_template, plain, plain.replace(SPACE, ""))):
        if all(
            _ids(probe, template, tokenizer) == layouts.encode(probe, layout, tokenizer).tokens.tolist()
            for probe in PROBES
        ):
            return template
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


_TURNS = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}\n"
    "{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}\n"
    "{%- for message in turns -%}\n"
    "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}\n"
    "{{- raise_exception('turns must be [system], user, assistant, user, ...') -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    # A tokenizer may have no beginning of sequence, or one that is its end too and is not written twice.
    "{%- set begin = bos_token or '' -%}\n"
    "{%- set begin_again = '' if begin == eos_token else begin -%}\n"
    "{{- begin -}}\n"
)


def _template(opening: str, user: str, assistant: str, prompt: str) -> str:
    """A jinja template of four expressions: what the start, a user's turn, an answer and a prompt add."""
    return (
        f"{_TURNS}{{{{- {opening} -}}}}\n"
        "{%- for message in turns -%}\n"
        "{%- if message['role'] == 'user' -%}\n"
        f"{{{{- {user} -}}}}\n"
        "{%- else -%}\n"
        f"{{{{- {assistant} -}}}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
        f"{{%- if add_generation_prompt -%}}{{{{- {prompt} -}}}}{{%- endif -%}}"
    )


_TURN = rf"'\n{IM_START}' + message['role'] + '\n' + message['content'] + '{IM_END}'"
# The layouts of `layouts.LAYOUTS`. Their first text begins with SentencePiece's leading space in writing.
CHAT_TEMPLATES = {
    "orca": _template(
        opening=rf"'{SPACE}### System:\n' + (system + '\n\n' if system else '')",
        user=r"('' if loop.first else '\n\n') + '### Human:\n' + message['content']",
        assistant=r"'\n\n### Assistant:\n' + message['content'] + eos_token",
        prompt=r"'\n\n### Assistant:\n'",
    ),
    "chatml": _template(
        opening=rf"'{IM_START}{SPACE}system\n' + system + '{IM_END}'",
        user=_TURN,
        assistant=_TURN,
        prompt=rf"'\n{IM_START}assistant\n'",
    ),
    "llama2": _template(
        opening=rf"'{SPACE}[INST] ' + ('<<SYS>>\n' + system + '\n<</SYS>>\n\n' if system else '')",
        user="('' if loop.first else begin_again + ' [INST] ') + message['content'] + ' [/INST]'",
        assistant="' ' + message['content'] + ' ' + eos_token",
        prompt="''",
    ),
    "vicuna": _template(
        opening=f"'{SPACE}' + (system or {json.dumps(VICUNA_SYSTEM)}) + ' '",
        user="'USER: ' + message['content'] + ' ASSISTANT:'",
        assistant="' ' + message['content'] + eos_token",
        prompt="''",
    ),
}
