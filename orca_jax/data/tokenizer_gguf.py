"""GGUF files: what a header says, and the tokenizer in it as the files of a Hugging Face folder, both ways.

GGUF is the format of llama.cpp, read and written by the package `gguf` (extra `gguf`). Its tokenizers are of
two kinds: `gpt2` (byte-level BPE, whose way of splitting texts goes by a name, `pre`) and `llama`
(SentencePiece's BPE, with scores). `tokenizer.huggingface.json`, which few files have, is a whole
tokenizer.json, and preferred.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from orca_jax.data.tokenizer_files import (
    BPE,
    BYTE,
    CLASS,
    CONFIG_FILE,
    CONTROL,
    GENERATION_FILE,
    NORMAL,
    TOKENIZER_FILE,
    UNKNOWN,
    TokenizerError,
    chat_template,
    from_pieces,
    merges_by_score,
    steps,
    to_text,
)

SUFFIX = ".gguf"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
PREFIX = "tokenizer.ggml."
TEMPLATE, WHOLE = "tokenizer.chat_template", "tokenizer.huggingface.json"
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
USER_DEFINED, UNUSED = 4, 5  # kinds of tokens, with those of SentencePiece's pieces
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = "|".join(rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{one}{_LOWER}{two}" for one, two in ("*+", "+*"))
DIGITS, GPT2 = "digits", "gpt2"  # each digit by itself; GPT-2's words, which the library knows


class Pre(NamedTuple):
    """A way of splitting texts that goes by a name in GGUF, and whether words that are tokens are kept."""

    steps: tuple[str, ...]
    ignore_merges: bool = False
    normalizer: str = ""


LLAMA3 = (_SHORT + _WORDS + r"|\p{N}{1,3}" + _REST,)
# From the tokenizer.json of the models that are meant; of llama.cpp's names, those of students here.
PRE = {
    "llama-bpe": Pre(LLAMA3, ignore_merges=True),
    "llama3": Pre(LLAMA3, ignore_merges=True),
    "llama-v3": Pre(LLAMA3, ignore_merges=True),
    "dbrx": Pre(LLAMA3),
    "smaug-bpe": Pre(LLAMA3),
    "qwen2": Pre((_SHORT + _WORDS + r"|\p{N}" + _REST,), normalizer="NFC"),
    "tekken": Pre((_TEKKEN + r"|\p{N}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*"),), ignore_merges=True),
    "smollm": Pre((DIGITS, GPT2)),
    "starcoder": Pre((DIGITS, GPT2)),
    "gpt-2": Pre((GPT2,)),
}
BEGINNING = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "tekken",
)  # texts begin with a token, unless the file denies it


class GgufError(ValueError):
    """A GGUF file is torn or cannot be read; names the file."""


class Tensor(NamedTuple):
    """A tensor's type, such as `Q4_K`, its shape as numpy has it, and where in the file its bytes begin."""

    type: str
    shape: tuple[int, ...]
    offset: int


class Header(NamedTuple):
    """What a GGUF file says before its numbers."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def library() -> Any:
    """The package `gguf`; raises GgufError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise GgufError("GGUF files need an extra: pip install -e '.[gguf]'") from error


def find(path: str | os.PathLike[str]) -> Path | None:
    """The GGUF file that a path means: itself, or the one in a folder without other weights; None: none.

    Raises:
      GgufError: the folder has several.
    """
    path = Path(path)
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    found = [] if any(path.glob("*.safetensors*")) else sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise GgufError(f"{path} has {len(found)} GGUF files; name one, such as {found[0]}")
    return found[0] if found else None


def read(path: Path) -> Header:
    """A file's metadata and tensors, without their numbers.

    Raises:
      GgufError: it is not there, torn, no GGUF, or a part of one.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error
    return _read(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # seconds for a large vocabulary
def _read(path: Path, *_: int) -> Header:
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        # Of float32 the shortest decimal, so that 1e-5 is what a config.json has.
        values |= {name: float(str(np.float32(v))) for name, v in values.items() if isinstance(v, float)}
        tensors = {
            one.name: Tensor(one.tensor_type.name, tuple(map(int, one.shape[::-1])), one.data_offset)
            for one in reader.tensors
        }
    except Exception as error:  # of many kinds, by where it is torn
        raise GgufError(f"{path} is torn, or no GGUF file ({error}); fetch it again") from error
    if values.get("split.count", 1) > 1:
        raise GgufError(f"{path} is one part of several; make them one with llama.cpp's llama-gguf-split")
    return Header(values, tensors)


# In


def files(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of a Hugging Face tokenizer's folder for a GGUF file's metadata.

    A beginning of sequence is named where texts are to begin with it, or the chat template writes it.

    Raises:
      TokenizerError: there is no tokenizer, it is of a kind that is not known, or damaged.
    """
    own = {key.removeprefix(PREFIX): value for key, value in values.items() if key.startswith(PREFIX)}
    kind, template = own.get("model"), values.get(TEMPLATE)
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(f"{PREFIX}model is {kind!r}; known: gpt2, llama. Name another tokenizer")
    begins = own.get("add_bos_token", kind == "llama" or own.get("pre") in BEGINNING)
    try:
        names = {name: own["tokens"][own[key]] for name, key in NAMED.items() if key in own}
        if kind == "gpt2" and not begins and "bos_token" not in (template or ""):
            names.pop("bos_token", None)
        if whole := values.get(WHOLE):
            made = tokenizers.Tokenizer.from_str(whole)
        else:
            made = _byte_level(own) if kind == "gpt2" else _sentencepiece(own, names)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise TokenizerError(f"the metadata {PREFIX}* is damaged: {error!r}") from error
    settings = {"tokenizer_class": CLASS, **names, "add_bos_token": begins, "add_eos_token": False}
    ends = [own[key] for key in ("eos_token_id", "eot_token_id") if key in own]
    return {
        TOKENIZER_FILE: whole or made.to_str(),
        CONFIG_FILE: to_text({**settings, "clean_up_tokenization_spaces": False, "chat_template": template}),
        GENERATION_FILE: json.dumps({"eos_token_id": [*dict.fromkeys(ends)]}),
    }


def _byte_level(own: Mapping[str, Any]) -> tokenizers.Tokenizer:
    name, tokens = own.get("pre"), own["tokens"]
    if name not in PRE:
        raise TokenizerError(
            f"{PREFIX}pre is {name!r}, and how it splits texts is not known here; known: {', '.join(PRE)}. "
            "Name the tokenizer of the model that it was made from"
        )
    pre, kinds = PRE[name], own.get("token_type") or [NORMAL] * len(tokens)
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in own["merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges))
    if pre.normalizer:
        made.normalizer = normalizers.NFC()
    named = {DIGITS: pre_tokenizers.Digits(individual_digits=True), GPT2: _byte_letters(words=True)}
    splits = [
        named.get(step) or pre_tokenizers.Split(tokenizers.Regex(step), "isolated") for step in pre.steps
    ]
    letters = [] if GPT2 in pre.steps else [_byte_letters(words=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, *letters])
    made.decoder = decoders.ByteLevel()
    # Special is what no text may spell; user-defined tokens are found in texts before they are split.
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, UNKNOWN):
            made.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        elif kind == USER_DEFINED:
            made.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    return made


def _byte_letters(*, words: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)


def _sentencepiece(own: Mapping[str, Any], names: dict[str, str]) -> tokenizers.Tokenizer:
    """As llama.cpp has it: a space, if any, is put before each text that follows a special token."""
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    tokens, kinds, proto = own["tokens"], own["token_type"], messages.ModelProto()
    count = 1 + max(i for i, kind in enumerate(kinds) if kind not in (CONTROL, UNUSED))
    for piece, score, kind in zip(tokens[:count], own["scores"], kinds):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = BPE, BYTE in kinds
    proto.normalizer_spec.remove_extra_whitespaces = own.get("remove_extra_whitespaces", False)
    proto.normalizer_spec.precompiled_charsmap = bytes(own.get("precompiled_charsmap", ()))
    added = [token for token, kind in zip(tokens[count:], kinds[count:]) if kind == CONTROL]
    return from_pieces(proto, added, names, lead="always" if own.get("add_space_prefix", True) else "never")


# Out


def metadata(made: Mapping[str, str], rows: int) -> dict[str, Any]:
    """A tokenizer's files as GGUF metadata, for an embedding of so many rows.

    Raises:
      TokenizerError: there are more ids than rows, or llama.cpp knows no such tokenizer.
    """
    data, settings = json.loads(made[TOKENIZER_FILE]), json.loads(made[CONFIG_FILE])
    ids = tokenizers.Tokenizer.from_str(made[TOKENIZER_FILE]).get_vocab(with_added_tokens=True)
    names = {name: settings[name] for name in NAMED if settings.get(name)}
    names = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items()}
    beyond = [token for token, i in ids.items() if i >= rows and token != names.get("pad_token")]
    if beyond:
        raise TokenizerError(f"the tokenizer has {max(ids.values()) + 1} ids, and the student {rows} rows")
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in data["added_tokens"]}
    for token, i in ids.items():
        if i < rows:
            tokens[i], kinds[i] = token, added.get(i, NORMAL)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in data["model"].get("merges", ())]
    bytewise = data["model"]["type"] == "BPE" and "ByteLevel" in [
        one["type"] for one in steps(data["decoder"])
    ]
    kind = _gpt2(data, merges) if bytewise else _llama(data, merges, tokens, kinds)
    own = {**kind, "tokens": tokens, "token_type": kinds}
    own |= {key: ids[names[name]] for name, key in NAMED.items() if name in names and ids[names[name]] < rows}
    begin = names.get("bos_token")
    own["add_bos_token"] = bool(begin) and json.dumps(begin) in json.dumps(data["post_processor"])
    found = {f"{PREFIX}{key}": value for key, value in own.items()}
    template = chat_template(made)
    return {**found, **({TEMPLATE: template} if template else {}), WHOLE: made[TOKENIZER_FILE]}


def _gpt2(data: Mapping[str, Any], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    splits = list[str]()
    for step in steps(data["pre_tokenizer"]):
        if step["type"] == "ByteLevel":
            splits += [GPT2] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            splits.append(DIGITS)
        else:
            splits.append(step.get("pattern", {}).get("Regex", f"a step {step['type']}"))
    normalizer = "".join(step["type"] for step in steps(data["normalizer"]))
    wanted = Pre(tuple(splits), bool(data["model"].get("ignore_merges")), normalizer)
    name = next((name for name, pre in PRE.items() if pre == wanted), None)
    if name is None:
        raise TokenizerError(f"llama.cpp has no name for how this tokenizer splits texts: {wanted}")
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges]}


def _llama(
    data: Mapping[str, Any], merges: Sequence[Sequence[str]], tokens: Sequence[str], kinds: list[int]
) -> dict[str, Any]:
    """Scores by which SentencePiece would merge as the library does: what it merges first has the highest."""
    model = data["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        raise TokenizerError(f"llama.cpp knows no {model['type']} tokenizer like this one")
    for i, token in enumerate(tokens):
        if kinds[i] == NORMAL and BYTE_PIECE.fullmatch(token):
            kinds[i] = BYTE
        elif token == model.get("unk_token"):
            kinds[i] = UNKNOWN
    last = {"".join(pair): i for i, pair in enumerate(merges)}
    scores, score, end = {}, 0.0, -1
    for i, pair in enumerate(merges):
        score -= i > end  # pieces whose merges take turns share a score
        end = max(end, last["".join(pair)])
        scores["".join(pair)] = score
    normal = {token: scores.get(token, score - 1) for token, kind in zip(tokens, kinds) if kind == NORMAL}

    def by_score(pairs: Sequence[Sequence[str]]) -> list[list[Any]]:
        groups = itertools.groupby(pairs, lambda pair: normal["".join(pair)])
        return [sorted(map(tuple, group)) for _, group in groups]

    if by_score(merges) != by_score(merges_by_score(normal)):
        raise TokenizerError("llama.cpp merges by scores, and no scores give this tokenizer's merges")
    before = [*steps(data["normalizer"]), *steps(data["pre_tokenizer"])]
    always = any(step["type"] == "Prepend" or step.get("prepend_scheme") == "always" for step in before)
    scored = [normal.get(token, 0.0) for token in tokens]
    return {"model": "llama", "pre": "default", "scores": scored, "add_space_prefix": always}
