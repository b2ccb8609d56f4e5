"""Hugging Face tokenizers: a folder with `tokenizer.json`, read by the `tokenizers` library.

They do what `data.tokenizer.Tokenizer` does. The library knows two things that a text must not decide
here: special tokens, which stay text wherever a text spells them, and the space that tokenizers of
SentencePiece's kind put before a text. The second is a step in tokenizer.json, so there are three
variants of it: as it is, without that space, and as it is after a special token.

tokenizer.json is taken at its word. transformers 5 is not in agreement where tokenizer_config.json names a
class that builds its own steps (LlamaTokenizer on files of the older kind); `tokenizer_export` names none.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers

from orca_jax import artifacts
from orca_jax.data.tokenizer import BOS, EOS, PAD, TokenizerError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
MODEL_CONFIG_FILE = "config.json"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# The characters that the library calls white space; Python's own list has four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
STEPS_OF = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
Variant = Literal["first", "continuing", "section"]


class Token(NamedTuple):
    """One id and the characters [start, end) of the text that it stands for."""

    id: int
    start: int
    end: int
    control: bool


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer's files, by name: the very texts that `save` writes. Made by `load`.

    `encode` never yields a special token's id, whatever the text spells. Added tokens that are not special
    are ordinary vocabulary: a text can spell them.
    """

    files: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)

    @functools.cached_property
    def _json(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(dict(self.files)[TOKENIZER_FILE])
        return data

    @functools.cached_property
    def _built(self) -> dict[Variant, tokenizers.Tokenizer]:
        return {}

    def _library(self, variant: Variant) -> tokenizers.Tokenizer:
        """The library's tokenizer of a variant, built when first wanted: a large vocabulary takes time."""
        if variant not in self._built:
            self._built[variant] = _build(self._json, variant)
        return self._built[variant]

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._library("first").get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def special_names(self) -> dict[str, str]:
        """What chat templates know: `bos_token`, `eos_token`, ... as far as the folder names them."""
        return _named_tokens(dict(self.files))

    @functools.cached_property
    def control_ids(self) -> dict[str, int]:
        """Ids of the special tokens; beginning and end of sequence go by `<s>` and `</s>` too."""
        ids = {token["content"]: token["id"] for token in self._json["added_tokens"] if token["special"]}
        return {alias: ids[name] for alias, name in self._aliases.items()} | ids

    @functools.cached_property
    def _aliases(self) -> dict[str, str]:
        """The names that layouts know to those that the folder gives."""
        keys = {BOS: "bos_token", EOS: "eos_token"}
        return {alias: self.special_names[key] for alias, key in keys.items() if key in self.special_names}

    @property
    def bos_id(self) -> int | None:
        """None where the folder names no beginning of sequence."""
        return self.control_id(BOS) if BOS in self._aliases else None

    @property
    def pad_id(self) -> int:
        return self.control_id(self.special_names["pad_token"])

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """What ends a sequence: the folder's own token, then those of its generation config."""
        own = [self.control_id(EOS)] if EOS in self._aliases else []
        text = dict(self.files).get(GENERATION_FILE)
        return tuple(dict.fromkeys(own + (json.loads(text)["eos_token_id"] if text else [])))

    def control_id(self, token: str) -> int:
        """The id of a special token; `<s>` and `</s>` are whatever begins and ends a sequence here.

        Raises:
          TokenizerError: this tokenizer has none of that name.
        """
        name = self._aliases.get(token, token)
        if name not in self.control_ids:
            raise TokenizerError(
                f"tokenizer has no control token {token!r}, only {', '.join(self.control_ids)}"
            )
        return self.control_ids[name]

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text; only the first text of a sequence gets the tokenizer's leading space, if any.

        Raises:
          TokenizerError: the tokenizer's model itself takes a part of the text for a special token.
        """
        return [token.id for token in self._tokens(text, 0, "first" if first else "continuing")]

    def _tokens(self, text: str, offset: int, variant: Variant) -> list[Token]:
        """The tokens of a text that begins `offset` characters into a longer one."""
        found = self._library(variant).encode(text, add_special_tokens=False)
        spelled = self._unspellable.intersection(found.ids)
        if spelled:
            raise TokenizerError(
                f"the tokenizer's model makes special token {self.token_text(min(spelled))!r} of the text "
                f"{text[:60]!r}; it cannot keep texts and control tokens apart"
            )
        return [Token(i, a + offset, b + offset, False) for i, (a, b) in zip(found.ids, found.offsets)]

    @functools.cached_property
    def _unspellable(self) -> set[int]:
        """Ids that no text may have: the unknown token alone is the model's own to give."""
        model = self._json["model"]
        return set(self.control_ids.values()) - {
            model.get("unk_id", self.control_ids.get(model.get("unk_token") or ""))
        }

    def encode_all(self, texts: Sequence[str], *, first: bool) -> list[list[int]]:
        """Ids of each text, as `encode` gives them."""
        return [self.encode(text, first=first) for text in texts]

    def encode_rendered(self, text: str, contents: Sequence[tuple[int, int]]) -> list[Token]:
        """Tokens of a rendered conversation, with the ids that transformers gives.

        `contents` are the characters [start, end) that people said, in order: special tokens are looked
        for outside of them only.
        """
        tokens: list[Token] = []
        start = 0
        for found in self._special_tokens(text, contents):
            tokens += self._section(text, start, found.start)
            tokens.append(found)
            start = found.end
        return tokens + self._section(text, start, len(text))

    def _section(self, text: str, start: int, end: int) -> list[Token]:
        return self._tokens(text[start:end], start, "section" if start else "first") if start < end else []

    def _special_tokens(self, text: str, contents: Sequence[tuple[int, int]]) -> list[Token]:
        """Special tokens outside of `contents`, leftmost and longest first, as the library finds them."""
        found: list[Token] = []
        position = end = 0
        while match := self._special_pattern.search(text, position):
            if any(match.start() < stop and start < match.end() for start, stop in contents):
                position = match.start() + 1
                continue
            flags = self._special_flags[match.group()]
            token = Token(flags["id"], *_widened(match, flags, end), True)
            found.append(token)
            position = end = token.end
        return found

    @functools.cached_property
    def _special_flags(self) -> dict[str, dict[str, Any]]:
        return {token["content"]: token for token in self._json["added_tokens"] if token["special"]}

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._special_flags, key=len, reverse=True))))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that continue a sequence; special tokens are left out."""
        special = set(self.control_ids.values())
        kept = [int(i) for i in ids if 0 <= i < self.vocab_size and int(i) not in special]
        return str(self._library("continuing").decode(kept, skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """How one id is shown to a person: its piece with spaces visible, or the special token's name."""
        piece = self._library("first").id_to_token(int(token_id))
        if piece is None:
            return f"<unused {token_id}>"
        if not self._byte_level or token_id in self.control_ids.values():
            return str(piece)
        text = self.decode([token_id])
        return str(piece) if "\ufffd" in text else text.replace(" ", "▁").replace("\n", "<0x0A>")

    @functools.cached_property
    def _byte_level(self) -> bool:
        """Whether pieces are spelled in stand-ins for bytes, which a person cannot read."""
        return any(step["type"] == "ByteLevel" for step in _steps(self._json, "decoder"))

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The folder's chat template, the one named `default` where there are several.

        Raises:
          TokenizerError: there are several, and none is named so.
        """
        found = _chat_template(dict(self.files))
        if not isinstance(found, list):
            return found
        named = {template["name"]: str(template["template"]) for template in found}
        if "default" not in named:
            raise TokenizerError(f"chat templates {', '.join(named)}, but none named default")
        return named["default"]

    @functools.cached_property
    def fingerprint(self) -> str:
        return artifacts.digest(self.files)

    def save(self, directory: str | os.PathLike[str]) -> None:
        for name, text in self.files:
            with artifacts.atomic_write(Path(directory) / name) as file:
                file.write(text)


def _chat_template(files: Mapping[str, str]) -> Any:
    """The template of a folder, or the list of those that it has; None: there is none."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE]
    return json.loads(files.get(CONFIG_FILE, "{}")).get("chat_template")


def has_chat_template(path: Path) -> bool:
    """Whether a folder has a chat template, seen without building the tokenizer.

    Raises:
      TokenizerError: its configuration cannot be read.
    """
    try:
        return bool(_chat_template(_texts(path, (CONFIG_FILE, TEMPLATE_FILE))))
    except (ValueError, AttributeError) as error:
        raise TokenizerError(f"{path / CONFIG_FILE} cannot be read: {error!r}") from error


def _texts(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The files of a folder, of these names and as far as they are there."""
    return {name: (path / name).read_text(encoding="utf-8") for name in names if (path / name).is_file()}


def _widened(match: re.Match[str], flags: Mapping[str, Any], floor: int) -> tuple[int, int]:
    """A special token's characters, with the white space that its flags let it swallow."""
    start, end = match.span()
    if flags["lstrip"]:
        start = floor + len(match.string[floor:start].rstrip(WHITE_SPACE))
    if flags["rstrip"]:
        end = len(match.string) - len(match.string[end:].lstrip(WHITE_SPACE))
    return start, end


def _steps(data: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json (normalizer, pre_tokenizer, decoder), nested ones unfolded."""
    step = data.get(part)
    if not step:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [found for one in step[STEPS_OF[part]] for found in _steps({part: one}, part)]


def _without_prefix(step: dict[str, Any]) -> dict[str, Any] | None:
    """A step that puts nothing before a text, and takes nothing from before it when decoding."""
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Strip" and "start" in step:  # the decoder; the normalizer of that name has other keys
        return {**step, "start": 0}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never", "add_prefix_space": False}
    return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" else step


def _after_a_token(step: dict[str, Any]) -> dict[str, Any]:
    """A step as it works after a special token: only a prefix for the first text is gone."""
    return _without_prefix(step) or step if step.get("prepend_scheme") == "first" else step


CHANGES: dict[Variant, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "first": lambda step: step,
    "continuing": _without_prefix,
    "section": _after_a_token,
}


def _build(data: Mapping[str, Any], variant: Variant) -> tokenizers.Tokenizer:
    """The library's tokenizer of a variant, which takes no text for a special token and adds none."""
    changed = {**data, "post_processor": None, "truncation": None, "padding": None}
    for part in STEPS_OF:
        steps = [step for each in _steps(data, part) if (step := CHANGES[variant](each)) is not None]
        changed[part] = {"type": "Sequence", STEPS_OF[part]: steps} if steps else None
    changed["model"] = _last_resort(data)
    built = tokenizers.Tokenizer.from_str(json.dumps(changed))
    built.encode_special_tokens = True
    return built


def _last_resort(data: Mapping[str, Any]) -> dict[str, Any]:
    """The model; where special tokens are pieces with scores (Unigram), with scores that no text chooses."""
    model: dict[str, Any] = data["model"]
    if model["type"] != "Unigram":
        return model
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    vocab = [[piece, -1e9 if piece in special else score] for piece, score in model["vocab"]]
    return {**model, "vocab": vocab}


def _named_tokens(files: Mapping[str, str]) -> dict[str, str]:
    """`bos_token` and so on to the token's text; tokenizer_config.json goes before the older file."""
    names: dict[str, str] = {}
    for file in (TOKENS_FILE, CONFIG_FILE):
        settings = json.loads(files.get(file, "{}"))
        for key in NAMED:
            found = settings.get(key)
            text = found["content"] if isinstance(found, dict) else found
            if text:
                names[key] = text
    return names


def _listed_tokens(files: Mapping[str, str]) -> list[str]:
    """The special tokens beside the named ones."""
    found: list[str] = []
    for file in (TOKENS_FILE, CONFIG_FILE):
        settings = json.loads(files.get(file, "{}"))
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = settings.get(key) or []
            listed = listed.values() if isinstance(listed, dict) else listed
            found += [token["content"] if isinstance(token, dict) else token for token in listed]
    return found


def load(path: str | os.PathLike[str], control_tokens: Sequence[str] = ()) -> HuggingFaceTokenizer:
    """Reads a folder. Control tokens that it lacks are appended, `[[PAD]]` if it names no pad token.

    Raises:
      TokenizerError: a file is missing or cannot be used; names it.
    """
    path = Path(path)
    files = _texts(path, (TOKENIZER_FILE, CONFIG_FILE, TOKENS_FILE, TEMPLATE_FILE))
    try:
        if eos := _configured_eos(path):
            files[GENERATION_FILE] = json.dumps({"eos_token_id": eos})
        if "pad_token" not in _named_tokens(files):
            settings = json.loads(files.get(CONFIG_FILE, "{}"))
            files[CONFIG_FILE] = json.dumps({**settings, "pad_token": PAD}, ensure_ascii=False, indent=1)
        special = [*_named_tokens(files).values(), *_listed_tokens(files)]
        special += [name for name in control_tokens if name != PAD]
        files[TOKENIZER_FILE] = _with_special(files[TOKENIZER_FILE], special)
        tokenizer = HuggingFaceTokenizer(tuple(sorted(files.items())))
        _check(tokenizer)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except Exception as error:  # the library raises plain Exceptions
        raise TokenizerError(f"{path} cannot be used as a tokenizer: {error!r}") from error
    return tokenizer


def _configured_eos(path: Path) -> list[int]:
    """The end-of-sequence ids of the generation config, else of the model's."""
    for name in (GENERATION_FILE, MODEL_CONFIG_FILE):
        if (path / name).is_file():
            found = json.loads((path / name).read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return [int(i) for i in found] if isinstance(found, list) else [int(found)]
    return []


def _with_special(text: str, names: Sequence[str]) -> str:
    """tokenizer.json with `names` as special tokens, appended after its ids where it has none; else as is."""
    data = json.loads(text)
    added = {token["content"]: token for token in data["added_tokens"]}
    if all(name in added and added[name]["special"] for name in names):
        return text
    ids = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for name in dict.fromkeys(names):
        new = {"id": ids.setdefault(name, max(ids.values()) + 1), "content": name, **flags}
        added[name] = {**added.get(name, new), "special": True}
    data["added_tokens"] = sorted(added.values(), key=lambda token: int(token["id"]))
    return json.dumps(data, ensure_ascii=False)


def _check(tokenizer: HuggingFaceTokenizer) -> None:
    """Raises TokenizerError where the library gives a special token another id than tokenizer.json."""
    library = tokenizer._library("first")
    for name, token_id in tokenizer.control_ids.items():
        known = library.token_to_id(name)
        if known is not None and known != token_id:
            raise TokenizerError(
                f"{TOKENIZER_FILE} gives {name!r} the id {token_id}, the library reads {known}"
            )
