"""The files that a tokenizer is read from: a Hugging Face folder, or a SentencePiece model turned into one.

tokenizer.json is taken at its word. transformers 5 does not where tokenizer_config.json names a class that
builds its own steps (LlamaTokenizer on files of the older kind); exported files name none.

A SentencePiece BPE model becomes the BPE of the `tokenizers` library. SentencePiece merges whichever pair
makes the piece of the highest score, the leftmost of equals; the library merges by a list of pairs. So every
way of splitting a piece in two is listed, by the score of the piece. The space that SentencePiece puts before
a text, and that our layouts want before the first one only, is one pre-tokenizer.
"""

from __future__ import annotations

import collections
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
MODEL_CONFIG_FILE = "config.json"
CLASS = "PreTrainedTokenizerFast"  # of tokenizer classes the one that adds nothing to tokenizer.json
PAD = "[[PAD]]"
SPACE = "▁"  # SentencePiece's visible space
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class TokenizerError(ValueError):
    """A tokenizer cannot be read or used; the message names the file or the token."""


def to_text(value: Any) -> str:
    """JSON as these files have it."""
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


# A Hugging Face folder


def read_folder(path: Path) -> dict[str, str]:
    """A folder's files by name; ends of sequence are those of its generation config, else of the model's."""

    def text(name: str) -> str:
        return (path / name).read_text(encoding="utf-8") if (path / name).is_file() else ""

    own = (TOKENIZER_FILE, CONFIG_FILE, TOKENS_FILE, TEMPLATE_FILE)
    files = {name: found for name in own if (found := text(name))}
    for name in (GENERATION_FILE, MODEL_CONFIG_FILE):
        eos = json.loads(text(name) or "{}").get("eos_token_id")
        if eos is not None:
            eos = eos if isinstance(eos, list) else [eos]
            files[GENERATION_FILE] = json.dumps({"eos_token_id": [int(i) for i in eos]})
            break
    return files


def completed(files: dict[str, str], control_tokens: Sequence[str]) -> dict[str, str]:
    """A folder's files with the control tokens that it lacks, and `[[PAD]]` if it has no pad token."""
    if "pad_token" not in named_tokens(files):
        settings = json.loads(files.get(CONFIG_FILE, "{}"))
        files[CONFIG_FILE] = json.dumps({**settings, "pad_token": PAD}, ensure_ascii=False, indent=1)
    listed: list[Any] = [*named_tokens(files).values()]
    for file in (TOKENS_FILE, CONFIG_FILE):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            found = json.loads(files.get(file, "{}")).get(key) or []
            listed += found.values() if isinstance(found, dict) else found
    listed += [name for name in control_tokens if name != PAD]
    special = [token["content"] if isinstance(token, dict) else token for token in listed]
    files[TOKENIZER_FILE] = _with_special(files[TOKENIZER_FILE], special)
    return files


def named_tokens(files: Mapping[str, str]) -> dict[str, str]:
    """`bos_token` and so on to the token's text; tokenizer_config.json goes before the older file."""
    names: dict[str, str] = {}
    for file in (TOKENS_FILE, CONFIG_FILE):
        settings = json.loads(files.get(file, "{}"))
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            found = settings.get(key)
            if text := found["content"] if isinstance(found, dict) else found:
                names[key] = text
    return names


def chat_template(files: Mapping[str, str]) -> str | None:
    """The template of a folder, the one named `default` where there are several.

    Raises:
      TokenizerError: there are several, and none is named so.
    """
    found = files.get(TEMPLATE_FILE) or json.loads(files.get(CONFIG_FILE, "{}")).get("chat_template")
    if isinstance(found, list):
        named = {template["name"]: template["template"] for template in found}
        if "default" not in named:
            raise TokenizerError(f"chat templates {', '.join(named)}, but none named default")
        found = named["default"]
    return found or None


def steps(step: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json (normalizer, pre_tokenizer, decoder), nested ones unfolded."""
    if not step:
        return []
    if step["type"] != "Sequence":
        return [dict(step)]
    parts = next(step[name] for name in ("normalizers", "pretokenizers", "decoders") if name in step)
    return [found for part in parts for found in steps(part)]


def _with_special(text: str, names: Sequence[str]) -> str:
    """tokenizer.json with `names` as special tokens, appended after its ids where it has none; else as is."""
    data = json.loads(text)
    added = {token["content"]: token for token in data["added_tokens"]}
    if all(name in added and added[name]["special"] for name in names):
        return text
    ids = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    for name in dict.fromkeys(names):
        new = {"id": ids.setdefault(name, max(ids.values()) + 1), "content": name, **FLAGS}
        added[name] = {**added.get(name, new), "special": True}
    data["added_tokens"] = sorted(added.values(), key=lambda token: int(token["id"]))
    return json.dumps(data, ensure_ascii=False)


# A SentencePiece model

BPE = 2  # kinds of models, and of pieces, in its protocol buffer
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def from_sentencepiece(model: bytes, control_tokens: Sequence[str]) -> dict[str, str]:
    """The files of a model whose ids are followed by those of `control_tokens`.

    Raises:
      TokenizerError: the model's ids cannot be had from the `tokenizers` library; says why.
    """
    if PAD not in control_tokens:
        raise TokenizerError(f"the control tokens {', '.join(control_tokens)} lack the pad token {PAD}")
    proto = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(model)
    spec = proto.trainer_spec
    names = {"bos_token": spec.bos_piece, "eos_token": spec.eos_piece, "pad_token": PAD}
    made = from_pieces(proto, control_tokens, names, lead="first")
    settings = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    return {
        TOKENIZER_FILE: made.to_str(pretty=True),
        CONFIG_FILE: to_text({"tokenizer_class": CLASS, **names, **settings}),
        TOKENS_FILE: to_text(names),
    }


def from_pieces(proto: Any, control_tokens: Sequence[str], names: dict[str, str], *, lead: str) -> Any:
    """The library's tokenizer of a SentencePiece model whose ids are followed by those of `control_tokens`.

    Args:
      names: `bos_token` and `eos_token`; `unk_token` is added.
      lead: where it puts a space: before the `first` text, before `always` each, or `never`.

    Raises:
      TokenizerError: the model's ids cannot be had; says why.
    """
    _check_model(proto)
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    special = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)]
    for name in (names["bos_token"], names["eos_token"]):
        if name not in special:
            raise TokenizerError(f"the SentencePiece model has no {name}; train one with bos and eos ids")
    for number, name in enumerate(control_tokens, len(proto.pieces)):
        if name in vocab:
            raise TokenizerError(
                f"control token {name!r} has id {number}, where the SentencePiece model has {vocab[name]}; a "
                "tokenizer.json knows tokens by name"
            )
    names["unk_token"] = next(p.piece for p in proto.pieces if p.type == UNKNOWN)
    merges = merges_by_score({one.piece: one.score for one in proto.pieces if one.type == NORMAL})
    model = models.BPE(vocab, merges, unk_token=names["unk_token"], fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", SPACE)
    # The normalizer leaves no plain space, and a prefix is withheld from what already begins with it; so the
    # plain space as prefix is put before every first text, one that begins with a space included.
    prefix = pre_tokenizers.Metaspace(" ", prepend_scheme=lead, split=False)
    plain = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([prefix, plain])
    strip = [] if lead == "never" else [decoders.Strip(" ", left=1, right=0)]
    join = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*join, *strip])
    bos = names["bos_token"]  # which `add_special_tokens=True` adds
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
    )
    every = (*special, *control_tokens)
    made.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in every])
    return made


def _check_model(proto: Any) -> None:
    """Raises TokenizerError unless the model is byte-fallback BPE over texts taken as they are."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    pieces = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    odd_kinds = {piece.piece for piece in proto.pieces if piece.type not in (NORMAL, UNKNOWN, CONTROL, BYTE)}
    # LLaMA's runs of spaces share a score; there the leftmost merge is always that of the longer run.
    of_score = collections.defaultdict[float, list[str]](list)
    for piece, score in pieces.items():
        if len(piece) > 1:
            of_score[score].append(piece)
    ambiguous = [same for same in of_score.values() if len(same) > 1 and len(set("".join(same))) > 1]
    faults = {
        "it is no BPE model": trainer.model_type != BPE,
        f"it normalises texts ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "it removes extra white space": normalizer.remove_extra_whitespaces,
        "it leaves spaces unescaped": not normalizer.escape_whitespaces,
        "it adds no space before a text": not normalizer.add_dummy_prefix,
        "it writes a word's space after the word": trainer.treat_whitespace_as_suffix,
        "it has no byte fallback": not trainer.byte_fallback,
        f"it has user-defined or unused pieces ({', '.join(sorted(odd_kinds)[:3])})": bool(odd_kinds),
        "pieces have characters that are no pieces": not set("".join(pieces)) <= pieces.keys(),
        "overlapping pieces have equal scores": bool(ambiguous),
    }
    for fault, found in faults.items():
        if found:
            raise TokenizerError(
                f"it cannot become a tokenizer.json with the same ids: {fault}; if the model comes with a "
                "tokenizer.json, name its folder instead"
            )


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which SentencePiece would merge.

    Of equal scores SentencePiece merges the leftmost in the text. In a run of spaces, whose pieces may
    share a score, that is the pair with the longer left part.
    """
    ranked = [
        (-score, -cut, left, right)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in scores and (right := piece[cut:]) in scores
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]
