"""SentencePiece tokenizers, with control tokens that no text can spell.

A tokenizer is a folder: `tokenizer.model` (SentencePiece) and `control_tokens.json`, the names of the
ids that follow its pieces. The paper adds one pad token, which makes LLaMA's 32,000 ids 32,001
(section 3.2).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from orca_jax import artifacts, storage

PAD = "[[PAD]]"
BOS = "<s>"
EOS = "</s>"
MODEL_FILE = "tokenizer.model"
CONTROL_FILE = "control_tokens.json"
# ModelProto{normalizer_spec(3){add_dummy_prefix(3): false}}: protobuf merges messages set end to end.
# The library's Python messages would do it too, but need a newer protobuf than Apache Beam allows.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class TokenizerError(ValueError):
    """A tokenizer cannot be read or used; the message names the file or the token."""


class TokenizerLike(Protocol):
    """What `Tokenizer` and `hf_tokenizer.HuggingFaceTokenizer` both are."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def control_ids(self) -> dict[str, int]: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def control_id(self, token: str) -> int: ...

    def encode(self, text: str, *, first: bool) -> list[int]: ...

    def encode_all(self, texts: Sequence[str], *, first: bool) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_text(self, token_id: int) -> str: ...

    def save(self, directory: str | os.PathLike[str]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model and the control tokens whose ids follow its pieces.

    `encode` never yields a control id, whatever the text spells: control tokens come from layouts only.
    """

    model: bytes = dataclasses.field(repr=False)
    control_tokens: tuple[str, ...] = (PAD,)

    def __post_init__(self) -> None:
        if PAD not in self.control_tokens:
            raise TokenizerError(f"control tokens {self.control_tokens} lack the pad token {PAD}")
        for name, token_id in ((BOS, self._plain.bos_id()), (EOS, self._plain.eos_id())):
            if token_id < 0:
                raise TokenizerError(f"the SentencePiece model has no {name}; train one with bos and eos ids")

    @functools.cached_property
    def _plain(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        """The same pieces without the space that SentencePiece puts before a text."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.model + NO_DUMMY_PREFIX)

    @property
    def vocab_size(self) -> int:
        return self._plain.vocab_size() + len(self.control_tokens)

    @functools.cached_property
    def control_ids(self) -> dict[str, int]:
        """Ids of the control tokens, the model's own beginning and end of sequence among them."""
        start = self._plain.vocab_size()
        own = {BOS: self._plain.bos_id(), EOS: self._plain.eos_id()}
        return own | {token: start + i for i, token in enumerate(self.control_tokens)}

    @property
    def bos_id(self) -> int:
        return self.control_ids[BOS]

    @property
    def pad_id(self) -> int:
        return self.control_ids[PAD]

    def control_id(self, token: str) -> int:
        """The id of a control token.

        Raises:
          TokenizerError: this tokenizer was made without it.
        """
        if token not in self.control_ids:
            raise TokenizerError(
                f"tokenizer has no control token {token!r}, only {', '.join(self.control_ids)}"
            )
        return self.control_ids[token]

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text; only the first text of a sequence gets SentencePiece's leading space."""
        return (self._plain if first else self._continuing).encode(text)

    def encode_all(self, texts: Sequence[str], *, first: bool) -> list[list[int]]:
        """Ids of each text, as `encode` gives them; faster than one by one."""
        return (self._plain if first else self._continuing).encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that continue a sequence; control tokens are left out."""
        pieces = self._plain.vocab_size()
        return self._continuing.decode([int(i) for i in ids if 0 <= i < pieces])

    def token_text(self, token_id: int) -> str:
        """How one id is shown to a person: its piece, with spaces visible, or the control token's name."""
        pieces = self._plain.vocab_size()
        if token_id >= pieces:
            return self.control_tokens[token_id - pieces]
        return self._plain.id_to_piece(int(token_id))

    @property
    def fingerprint(self) -> str:
        return artifacts.digest([self.model.hex(), self.control_tokens])

    def save(self, directory: str | os.PathLike[str]) -> None:
        with artifacts.atomic_write(Path(directory) / MODEL_FILE, "wb") as file:
            file.write(self.model)
        with artifacts.atomic_write(Path(directory) / CONTROL_FILE) as file:
            json.dump(self.control_tokens, file)


def load(path: str | os.PathLike[str], control_tokens: Sequence[str] | None = None) -> TokenizerLike:
    """Reads a tokenizer's folder, or a bare SentencePiece file to which `control_tokens` are added.

    It may be in a bucket. A folder is one of ours or a Hugging Face one; to the second, `control_tokens` that
    it lacks are added.

    Raises:
      TokenizerError: nothing readable is there.
    """
    path = Path(storage.local(str(path)))
    if is_hugging_face(path):
        from orca_jax.data import hf_tokenizer  # which imports this module

        return hf_tokenizer.load(path, control_tokens or ())
    return _load_sentencepiece(path, control_tokens)


def is_hugging_face(path: Path) -> bool:
    """Whether a folder on this machine is a Hugging Face tokenizer's, and none of ours."""
    return not (path / CONTROL_FILE).is_file() and (path / "tokenizer.json").is_file()


def _load_sentencepiece(path: Path, control_tokens: Sequence[str] | None) -> Tokenizer:
    model_path = path / MODEL_FILE if path.is_dir() else path
    if not model_path.is_file():
        raise TokenizerError(f"no SentencePiece model at {model_path}")
    if path.is_dir():
        if not (path / CONTROL_FILE).is_file():
            raise TokenizerError(
                f"{path} has no {CONTROL_FILE}; give the path of {MODEL_FILE} itself instead"
            )
        control_tokens = json.loads((path / CONTROL_FILE).read_text(encoding="utf-8"))
    model = model_path.read_bytes()
    try:
        return Tokenizer(model, tuple(control_tokens or (PAD,)))
    except (RuntimeError, TokenizerError) as error:
        raise TokenizerError(f"{model_path} cannot be used as a SentencePiece model: {error}") from error


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
    return Tokenizer(sink.getvalue(), tuple(control_tokens))
