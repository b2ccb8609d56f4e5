"""Tokenizers, with control tokens that no text can spell.

A tokenizer is a folder: `tokenizer.model` (SentencePiece) and `control_tokens.json`, the names of the ids
that follow its pieces, or a Hugging Face one with `tokenizer.json`. The paper adds one pad token, which makes
LLaMA's 32,000 ids 32,001 (section 3.2).

Both are read by the `tokenizers` library. It knows two things that a text must not decide here: special
tokens, which stay text wherever a text spells them, and the space that tokenizers of SentencePiece's kind put
before a text. The second is a step in tokenizer.json, so each tokenizer is built with it, and without.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from orca_jax import artifacts, hub, storage
from orca_jax.data import tokenizer_files, tokenizer_gguf
from orca_jax.data.tokenizer_files import PAD, TOKENIZER_FILE, TokenizerError, steps

WORDS = "words"  # in the place of a tokenizer's path: one of the traces' whole words
BOS = "<s>"
EOS = "</s>"
MODEL_FILE = "tokenizer.model"
CONTROL_FILE = "control_tokens.json"
TORN = "\ufffd"  # what bytes decode to that are no whole character
# The characters that the library calls white space; Python's own list has four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
BYTE = "<0x([0-9A-F]{2})>"  # a piece of SentencePiece's kind that stands for one byte
WORD = re.compile("[ ▁]*[^ ▁]+|[ ▁]+")
KNOWN_WORDS, KNOWN_IDS = 1 << 16, 1 << 19  # of a text without spaces, all is one word
# The letters that byte-level BPE writes bytes in: printable ones themselves, then those from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
STAND_INS = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))
}
STEPS_OF = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
# Where several cores are to encode, `prepare` has a process for each.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Special(NamedTuple):
    """A special token in a text, and the characters [start, end) that it takes."""

    name: str
    start: int
    end: int


@dataclasses.dataclass(unsafe_hash=True)
class Tokenizer:
    """The texts of a Hugging Face folder by name. Made by `load`, `from_sentencepiece` and `train`.

    `encode` never yields a control token's id, whatever the text spells. Added tokens that are not special
    are ordinary vocabulary: a text can spell them.

    Attributes:
      model: the SentencePiece model that the files are made of, which is what `save` writes; empty: none.
      control_tokens: the names of the ids after the model's.
      vocab_size: one more than the highest id.
      special_names: what chat templates know: `bos_token`, `eos_token`, ... as far as the folder names them.
      special_pattern: a regular expression of the special tokens' names.
      control_ids: ids of the special tokens; beginning and end of sequence go by `<s>` and `</s>` too.
      bos_id: None where the folder names no beginning of sequence.
      eos_ids: what ends a sequence: the folder's own token, then those of its generation config.
      leads_sections: whether transformers puts the leading space after special tokens too.
    """

    files: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)
    model: bytes = dataclasses.field(default=b"", repr=False)
    control_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        files = dict(self.files)
        data: dict[str, Any] = json.loads(files[TOKENIZER_FILE])
        self._first, self._continuing = (_build(data, prefix=prefix) for prefix in (True, False))
        vocab = self._first.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self._special = {token["content"]: token for token in data["added_tokens"] if token["special"]}
        longest_first = sorted(self._special, key=len, reverse=True)
        self.special_pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        names = self.special_names = tokenizer_files.named_tokens(files)
        ids: dict[str, int] = {name: token["id"] for name, token in self._special.items()}
        aliases = {BOS: "bos_token", EOS: "eos_token"}
        self._own = {alias: ids[names[key]] for alias, key in aliases.items() if key in names}
        self.control_ids = self._own | ids
        self._controls = frozenset(self.control_ids.values())
        self.bos_id, self.pad_id = self._own.get(BOS), ids[names["pad_token"]]
        ends = json.loads(files.get(tokenizer_files.GENERATION_FILE, "{}")).get("eos_token_id", [])
        self.eos_ids = tuple(dict.fromkeys([*(self._own[end] for end in (EOS,) if end in self._own), *ends]))
        # Ids that no text may have: the unknown token alone is the model's own to give.
        unknown = data["model"].get("unk_id", ids.get(data["model"].get("unk_token") or ""))
        self._unspellable = set(ids.values()) - {unknown}
        before = [*steps(data.get("normalizer")), *steps(data.get("pre_tokenizer"))]
        schemes = [step.get("prepend_scheme", step.get("add_prefix_space")) for step in before]
        leading = "Prepend" in [step["type"] for step in before]
        self.leads_sections = leading or "always" in schemes or True in schemes
        self._decoders = {step["type"] for step in steps(data.get("decoder"))}
        # Where no piece of a SentencePiece model reaches from one word into the next, words' ids are kept.
        self._words_are_apart = bool(self.model) and not any(re.search("[^▁]▁", piece) for piece in vocab)
        self._known: dict[str, list[int]] = {}
        self._known_ids = 0
        content = [self.model.hex(), self.control_tokens] if self.model else self.files
        self.fingerprint = artifacts.digest(content)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is built: the library's objects forget in a pickle that special tokens stay text.
        return Tokenizer, (self.files, self.model, self.control_tokens)

    def control_id(self, token: str) -> int:
        """The id of a control token; `<s>` and `</s>` are whatever begins and ends a sequence here.

        Raises:
          TokenizerError: this tokenizer has none of that name.
        """
        known = self.control_ids | self._own
        if token not in known:
            raise TokenizerError(
                f"tokenizer has no control token {token!r}, only {', '.join(self.control_ids)}"
            )
        return known[token]

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text; only the first text of a sequence gets the tokenizer's leading space, if any.

        Raises:
          TokenizerError: the tokenizer's model itself takes a part of the text for a special token.
        """
        return self.encode_all([text], first=first)[0]

    def encode_all(self, texts: Sequence[str], *, first: bool) -> list[list[int]]:
        """Ids of each text, as `encode` gives them; faster than one by one."""
        if not self._words_are_apart:
            return self._encoded(self._first if first else self._continuing, texts)
        known = self._known
        words = [WORD.findall(f" {text}" if first and text else text) for text in texts]
        new = list({word for each in words for word in each if word not in known})
        ids = self._encoded(self._continuing, new)
        known.update(zip(new, ids))
        self._known_ids += sum(map(len, ids))
        if len(known) > KNOWN_WORDS or self._known_ids > KNOWN_IDS:
            self._known, self._known_ids = {}, 0  # another thread may be using the old ones
        return [[*itertools.chain.from_iterable(map(known.__getitem__, each))] for each in words]

    def _encoded(self, library: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        found = [one.ids for one in library.encode_batch_fast(list(texts), add_special_tokens=False)]
        for text, ids in zip(texts, found):
            if not self._unspellable.isdisjoint(ids):
                name = self.token_text(min(self._unspellable.intersection(ids)))
                raise TokenizerError(
                    f"the tokenizer's model makes special token {name!r} of the text {text[:60]!r}; it "
                    "cannot keep texts and control tokens apart"
                )
        return found

    def special_tokens(self, text: str) -> list[Special]:
        """Special tokens spelled in a text, leftmost and longest first, as the library finds them.

        They take the white space that their flags let them swallow.
        """
        found: list[Special] = []
        for match in re.finditer(self.special_pattern, text):
            start, end = match.span()
            floor, flags = found[-1].end if found else 0, self._special[match.group()]
            if flags["lstrip"]:
                start = floor + len(text[floor:start].rstrip(WHITE_SPACE))
            if flags["rstrip"]:
                end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
            found.append(Special(match.group(), start, end))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that continue a sequence; control tokens are left out."""
        kept = [int(i) for i in ids if 0 <= i < self.vocab_size and int(i) not in self._controls]
        text = str(self._continuing.decode(kept, skip_special_tokens=False))
        if TORN not in text or "ByteFallback" not in self._decoders:
            return text
        # Of a run of bytes that ends within a character the library would keep nothing.
        pieces = [str(self._continuing.id_to_token(i)) for i in kept]
        runs = itertools.groupby(pieces, key=lambda piece: bool(re.fullmatch(BYTE, piece)))
        spelled = [
            [bytes(int(piece[3:5], 16) for piece in run).decode(errors="replace")] if are_bytes else [*run]
            for are_bytes, run in runs
        ]
        return str(self._continuing.decoder.decode([*itertools.chain.from_iterable(spelled)]))

    def token_text(self, token_id: int) -> str:
        """How one id is shown to a person: its piece with spaces visible, or the control token's name."""
        piece = self._first.id_to_token(int(token_id))
        if piece is None:
            return f"<unused {token_id}>"
        # Pieces spelled in stand-ins for bytes are for no person to read.
        if "ByteLevel" not in self._decoders or token_id in self._controls:
            return str(piece)
        text = self.decode([token_id])
        return str(piece) if TORN in text else text.replace(" ", "▁").replace("\n", "<0x0A>")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that an id is within a text; none for control tokens and ids without a piece."""
        piece = None if token_id in self._controls else self._first.id_to_token(token_id)
        if piece is None:
            return b""
        if "ByteLevel" not in self._decoders:
            byte = re.fullmatch(BYTE, piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        known = all(letter in STAND_INS for letter in piece)  # an added token is spelled as it is
        return bytes(map(STAND_INS.__getitem__, piece)) if known else piece.encode()

    @functools.cached_property
    def chat_template(self) -> str | None:
        """As `tokenizer_files.chat_template` has it."""
        return tokenizer_files.chat_template(dict(self.files))

    def save(self, directory: str | os.PathLike[str]) -> None:
        files: Mapping[str, str | bytes] = dict(self.files)
        if self.model:
            files = {MODEL_FILE: self.model, CONTROL_FILE: json.dumps(self.control_tokens)}
        for name, content in files.items():
            with artifacts.atomic_write(Path(directory) / name, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())


def _without_prefix(step: dict[str, Any]) -> dict[str, Any] | None:
    """A step that puts nothing before a text, and takes nothing from before it when decoding."""
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Strip" and "start" in step:  # the decoder; the normalizer of that name has other keys
        return {**step, "start": 0}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never", "add_prefix_space": False}
    return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" else step


def _build(data: Mapping[str, Any], *, prefix: bool) -> tokenizers.Tokenizer:
    """The library's tokenizer, which takes no text for a special token and adds none."""
    changed = {**data, "post_processor": None, "truncation": None, "padding": None}
    for part in () if prefix else STEPS_OF:
        kept = [step for each in steps(data.get(part)) if (step := _without_prefix(each)) is not None]
        changed[part] = {"type": "Sequence", STEPS_OF[part]: kept} if kept else None
    # In a Unigram model special tokens are pieces: with scores that no text chooses.
    if data["model"]["type"] == "Unigram":
        special = {token["content"] for token in data["added_tokens"] if token["special"]}
        vocab = [[piece, -1e9 if piece in special else score] for piece, score in data["model"]["vocab"]]
        changed["model"] = {**data["model"], "vocab": vocab}
    built = tokenizers.Tokenizer.from_str(json.dumps(changed))
    built.encode_special_tokens = True
    return built


def load(path: str | os.PathLike[str], control_tokens: Sequence[str] | None = None) -> Tokenizer:
    """Reads a tokenizer's folder, or a bare SentencePiece file to which `control_tokens` are added.

    It may be in a bucket or on the hub. A folder is one of ours or a Hugging Face one; to the second, and to
    what a GGUF file holds, `control_tokens` that it lacks are added, `[[PAD]]` if it names no pad token.

    Raises:
      TokenizerError: nothing readable is there; names the file.
    """
    path = Path(storage.local(hub.tokenizer(str(path))))
    if is_hugging_face(path) or tokenizer_gguf.find(path):
        try:
            files = tokenizer_files.completed(folder_files(path), control_tokens or ())
            tokenizer = Tokenizer(tuple(sorted(files.items())))
            for name, token_id in tokenizer.control_ids.items():
                known = tokenizer._first.token_to_id(name)
                if known not in (None, token_id):
                    raise TokenizerError(
                        f"{TOKENIZER_FILE} gives {name!r} the id {token_id}, the library reads {known}"
                    )
        except Exception as error:  # the library raises plain Exceptions
            raise TokenizerError(f"{path} cannot be used as a tokenizer: {error!r}") from error
        return tokenizer
    model_path = path / MODEL_FILE if path.is_dir() else path
    if not model_path.is_file():
        raise TokenizerError(f"no SentencePiece model at {model_path}")
    if path.is_dir():
        if not (path / CONTROL_FILE).is_file():
            raise TokenizerError(
                f"{path} has no {CONTROL_FILE}; give the path of {MODEL_FILE} itself instead"
            )
        control_tokens = json.loads((path / CONTROL_FILE).read_text(encoding="utf-8"))
    try:
        return from_sentencepiece(model_path.read_bytes(), control_tokens or (PAD,))
    except Exception as error:  # protobuf has its own
        raise TokenizerError(f"{model_path} cannot be used as a SentencePiece model: {error}") from error


def is_hugging_face(path: Path) -> bool:
    """Whether a folder on this machine is a Hugging Face tokenizer's, and none of ours."""
    return not (path / CONTROL_FILE).is_file() and (path / TOKENIZER_FILE).is_file()


def folder_files(path: Path) -> dict[str, str]:
    """The files of a Hugging Face tokenizer's folder, or what a GGUF file has of them; empty: neither."""
    if is_hugging_face(path):
        return tokenizer_files.read_folder(path)
    file = tokenizer_gguf.find(path)
    return tokenizer_gguf.files(tokenizer_gguf.read(file).values) if file else {}


def from_sentencepiece(model: bytes, control_tokens: Sequence[str] = (PAD,)) -> Tokenizer:
    """The tokenizer of a SentencePiece model and of the control tokens whose ids follow its pieces.

    Raises:
      TokenizerError: the model is none whose ids the `tokenizers` library can give; says why.
    """
    files = tokenizer_files.from_sentencepiece(model, control_tokens)
    return Tokenizer(tuple(sorted(files.items())), model, tuple(control_tokens))


def of_words(texts: Iterable[str], vocab_size: int, control_tokens: Sequence[str] = (PAD,)) -> Tokenizer:
    """A tokenizer whose ids are the texts' whole words and line breaks; spaces are between them.

    Ids that no word takes have names of their own, so that students of several sets of words have one shape.
    A word that is none of the texts' is `<unk>`.

    Raises:
      TokenizerError: the texts have more words than that vocabulary holds.
    """
    special = [BOS, EOS, *control_tokens]  # outside the model, so that no text spells one
    words = sorted({word for text in texts for word in text.replace("\n", " ").split(" ") if word})
    names = ["<unk>", "\n", *words]
    unused = vocab_size - len(names) - len(special)
    if unused < 0:
        raise TokenizerError(
            f"the traces have {len(words)} words, which with control tokens make {vocab_size - unused} ids; "
            f"set student.vocab_size to at least that, not {vocab_size}"
        )
    names += [f"<unused {number}>" for number in range(unused)]
    made = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    split = [pre_tokenizers.Split(at, how) for at, how in (("\n", "isolated"), (" ", "removed"))]
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    breaks = [decoders.Replace(at, "\n") for at in (" \n", "\n ")]
    made.decoder = decoders.Sequence([decoders.WordPiece("<##>", cleanup=False), decoders.Fuse(), *breaks])
    made.add_special_tokens(["<unk>", *special])
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": "<unk>"}
    files = {TOKENIZER_FILE: made.to_str(), tokenizer_files.CONFIG_FILE: json.dumps(named)}
    return Tokenizer(tuple(sorted(tokenizer_files.completed(files, control_tokens).items())))


def train(texts: Iterable[str], vocab_size: int, control_tokens: Sequence[str] = (PAD,)) -> Tokenizer:
    """Trains BPE of LLaMA's kind: byte fallback, digits split singly, white space kept as it is.

    `vocab_size` counts the control tokens too. Lines are the unit, as SentencePiece reads them.

    Raises:
      TokenizerError: the texts cannot fill, or cannot fit, that vocabulary.
    """
    lines = (line for text in texts for line in text.split("\n") if line)
    sink = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=sink,
            model_type="bpe",
            vocab_size=vocab_size - len(control_tokens),
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"cannot train {vocab_size} ids, {len(control_tokens)} control tokens among them; "
            f"set student.vocab_size otherwise: {error}"
        ) from error
    return from_sentencepiece(sink.getvalue(), control_tokens)
