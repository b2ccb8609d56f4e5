"""Our tokenizer as `tokenizer.json` and a chat template: what transformers and vLLM load, with our ids.

A SentencePiece BPE model becomes the BPE of the `tokenizers` library. SentencePiece merges whichever
pair makes the piece of the highest score, the leftmost of equals; the library merges by a list of pairs.
So every way of splitting a piece in two is listed, by the score of the piece (`_merges`). The space that
SentencePiece puts before a text, and that our layouts want before the first one only, is one
pre-tokenizer; since chat templates begin with a special token, their first text begins with it in writing.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

from orca_jax import artifacts
from orca_jax.data import chat_template
from orca_jax.data.hf_tokenizer import (
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    TOKENS_FILE,
    HuggingFaceTokenizer,
)
from orca_jax.data.layouts import IM_END, IM_START, TEMPLATE, VICUNA_SYSTEM, LayoutError, check, encode
from orca_jax.data.tokenizer import BOS, EOS, PAD, Tokenizer
from orca_jax.records import Message

SPACE = "▁"  # SentencePiece's visible space
CLASS = "PreTrainedTokenizerFast"


class ExportError(ValueError):
    """A tokenizer cannot be expressed in the other form without changing ids; the message says why."""


def write(
    tokenizer: Tokenizer | HuggingFaceTokenizer,
    layout: str,
    out_dir: str | os.PathLike[str],
    *,
    model_max_length: int,
) -> list[Path]:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    Texts get the ids of `tokenizer.encode(text, first=True)` (with `add_special_tokens=False` and, where
    a text may spell a control token, `split_special_tokens=True`); conversations rendered by the template
    get those of `layouts.encode`. A Hugging Face tokenizer's own files are written, with the layout's
    template where that gives the layout's ids. Returns the files' paths.

    Raises:
      ExportError: the model or the layout cannot be expressed with the same ids.
      LayoutError, TokenizerError: a Hugging Face tokenizer cannot write the layout.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        check(layout, tokenizer)
        if layout != TEMPLATE:
            tokenizer = _templated(tokenizer, layout)
        return write_files(_files(tokenizer, model_max_length), out_dir)
    proto = _proto(tokenizer)
    _check_model(proto)
    _check_names(proto, tokenizer)
    _check_layout(proto, layout, tokenizer)
    template = CHAT_TEMPLATES[layout]
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": _unk(proto), "pad_token": PAD}
    contents = {
        TOKENIZER_FILE: _json(tokenizer_json(tokenizer)),
        CONFIG_FILE: _json(_config(names, template, model_max_length)),
        TOKENS_FILE: _json(names),
        TEMPLATE_FILE: template,
    }
    return write_files(contents, out_dir)


CONTROL_FLAGS = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True
}  # fmt: skip
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
)


def _templated(tokenizer: HuggingFaceTokenizer, layout: str) -> HuggingFaceTokenizer:
    """The tokenizer with a chat template that gives the layout's ids for all `PROBES`.

    Raises:
      ExportError: no known template does.
    """
    plain = CHAT_TEMPLATES.get(layout, "")
    for template in (tokenizer.chat_template, plain, plain.replace(SPACE, "")):
        if not template:
            continue
        files = dict(tokenizer.files)
        settings = {**json.loads(files.get(CONFIG_FILE, "{}")), "chat_template": template}
        files |= {CONFIG_FILE: _json(settings), TEMPLATE_FILE: template}
        candidate = HuggingFaceTokenizer(tuple(sorted(files.items())))
        with contextlib.suppress(LayoutError):
            written = [chat_template.encode(probe, candidate).ids for probe in PROBES]
            if written == [encode(probe, layout, candidate).tokens.tolist() for probe in PROBES]:
                return candidate
    raise ExportError(
        f"no chat template gives the ids of layout {layout!r} with this Hugging Face tokenizer; "
        f"train with layout {TEMPLATE!r}"
    )


def _files(tokenizer: HuggingFaceTokenizer, model_max_length: int) -> dict[str, str]:
    """Its own files; of tokenizer classes the one that adds nothing to what tokenizer.json says."""
    files = dict(tokenizer.files)
    settings = json.loads(files[CONFIG_FILE])
    settings |= {"tokenizer_class": CLASS, "model_max_length": model_max_length}
    return {**files, CONFIG_FILE: _json(settings)}


def write_files(contents: dict[str, str], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Writes texts under their names, each file whole or not at all."""
    paths = [Path(out_dir) / name for name in contents]
    for path, text in zip(paths, contents.values()):
        with artifacts.atomic_write(path) as file:
            file.write(text)
    return paths


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _proto(tokenizer: Tokenizer) -> Any:
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    return messages.ModelProto.FromString(tokenizer.model)


# Kinds of pieces in a SentencePiece model's protocol buffer.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BPE = 2


def _unk(proto: Any) -> str:
    return next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)


def _check_model(proto: Any) -> None:
    """Raises ExportError unless the model is byte-fallback BPE over texts taken as they are."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    pieces = [piece.piece for piece in proto.pieces if piece.type == NORMAL]
    letters = {piece for piece in pieces if len(piece) == 1}
    odd_kinds = {piece.piece for piece in proto.pieces if piece.type not in (NORMAL, UNKNOWN, CONTROL, BYTE)}
    faults = {
        "it is no BPE model": trainer.model_type != BPE,
        f"it normalises texts ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "it removes extra white space": normalizer.remove_extra_whitespaces,
        "it leaves spaces unescaped": not normalizer.escape_whitespaces,
        "it adds no space before a text": not normalizer.add_dummy_prefix,
        "it writes a word's space after the word": trainer.treat_whitespace_as_suffix,
        "it has no byte fallback": not trainer.byte_fallback,
        f"it has user-defined or unused pieces ({', '.join(sorted(odd_kinds)[:3])})": bool(odd_kinds),
        "pieces have characters that are no pieces": any(set(piece) - letters for piece in pieces),
        "overlapping pieces have equal scores": _ambiguous(proto),
    }
    for fault, found in faults.items():
        if found:
            raise ExportError(f"the SentencePiece model cannot become a tokenizer.json: {fault}")


def _check_names(proto: Any, tokenizer: Tokenizer) -> None:
    """Raises ExportError where a control token's name is another id's piece."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    for name, token_id in tokenizer.control_ids.items():
        if ids.get(name, token_id) != token_id or (name in (BOS, EOS) and name not in ids):
            raise ExportError(
                f"control token {name!r} has id {token_id}, where the SentencePiece model has "
                f"{ids.get(name, 'no such piece')}; a tokenizer.json knows tokens by name"
            )


def _ambiguous(proto: Any) -> bool:
    """Whether different pieces have one score and are not all runs of one character.

    LLaMA's runs of spaces share a score; there the leftmost merge is always that of the longer run.
    """
    letters: dict[float, set[str]] = collections.defaultdict(set)
    sizes: collections.Counter[float] = collections.Counter()
    for piece in proto.pieces:
        if piece.type == NORMAL and len(piece.piece) > 1:
            letters[piece.score] |= set(piece.piece)
            sizes[piece.score] += 1
    return any(sizes[score] > 1 and len(letters[score]) > 1 for score in sizes)


def _merges(proto: Any) -> list[list[str]]:
    """Every pair of pieces that makes a piece, in the order in which SentencePiece would merge.

    Of equal scores SentencePiece merges the leftmost in the text. In a run of spaces, whose pieces may
    share a score, that is the pair with the longer left part.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    ranked = [
        (-score, -cut, left, right)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in scores and (right := piece[cut:]) in scores
    ]
    return [[left, right] for *_, left, right in sorted(ranked)]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json; ids are the SentencePiece model's, control tokens after them."""
    proto = _proto(tokenizer)
    controls = {p.piece: i for i, p in enumerate(proto.pieces) if p.type in (UNKNOWN, CONTROL)}
    controls |= tokenizer.control_ids
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unk(proto),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece.piece: i for i, piece in enumerate(proto.pieces)},
        "merges": _merges(proto),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **CONTROL_FLAGS}
            for name, i in sorted(controls.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_metaspace(" ", "first"), _metaspace(SPACE)]},
        "post_processor": _begins_with_bos(tokenizer.control_id(BOS)),
        "decoder": _decoder(),
        "model": model,
    }


def _metaspace(space: str, prepend: str = "never") -> dict[str, Any]:
    """Puts a space before the first text ("first"), or none, and writes spaces as `space`.

    The normalizer leaves no plain space, and a prefix is withheld from what already begins with it; so the
    plain space as prefix is put before every first text, one that begins with a space included.
    """
    return {"type": "Metaspace", "replacement": space, "prepend_scheme": prepend, "split": False}


def _begins_with_bos(bos_id: int) -> dict[str, Any]:
    """What `add_special_tokens=True` adds: the beginning of sequence."""
    bos, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [{"SpecialToken": {"id": BOS, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}}
    single = [bos, text]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *pair],
        "special_tokens": tokens,
    }


def _decoder() -> dict[str, Any]:
    """Bytes to characters, visible spaces to spaces, and the space before the text taken away again."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": steps}


def _config(names: dict[str, str], template: str, model_max_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": CLASS,
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": template,
    }


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
# Where supervised text meets the text before it: layouts tokenise both apart, a template as one.
_SEAMS = {"orca": "\n.", "chatml": "\n.", "llama2": rf"\]{SPACE}", "vicuna": f":{SPACE}"}


def _check_layout(proto: Any, layout: str, tokenizer: Tokenizer) -> None:
    """Raises ExportError where a template could not give the layout's ids."""
    if layout not in CHAT_TEMPLATES:
        raise ExportError(f"no chat template for layout {layout!r}; known: {', '.join(CHAT_TEMPLATES)}")
    seam = re.compile(_SEAMS[layout], re.DOTALL)
    across = [p.piece for p in proto.pieces if p.type == NORMAL and seam.search(p.piece)]
    if across:
        raise ExportError(
            f"layout {layout!r} cuts text where the tokenizer has pieces that would span the cut "
            f"({', '.join(map(repr, across[:3]))}); a chat template cannot give its ids"
        )
    if layout == "chatml":
        for name in (IM_START, IM_END):
            tokenizer.control_id(name)
