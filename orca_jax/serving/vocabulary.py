"""Text to ids and back for clients: raw prompts, control tokens by name, and a name for every id."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

from orca_jax.data import layouts, tokenizer_export
from orca_jax.data.tokenizer import BOS, Tokenizer
from orca_jax.data.tokenizer_files import SPACE
from orca_jax.records import Message
from orca_jax.serving.detokenizer import TORN

LONGEST_CHARACTER = 4  # bytes, so tokens that one character may be spread over
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """A student's tokenizer, and the beginning of sequence that its layout puts first, if it does."""

    def __init__(self, tokenizer: Tokenizer, layout: str):
        self.tokenizer, self.layout = tokenizer, layout
        first = int(layouts.encode([Message("user", "Hello")], layout, tokenizer).tokens[0])
        self.bos = first if tokenizer.control_ids.get(BOS) == first else None
        self._names = {token_id: name for name, token_id in tokenizer.control_ids.items()}
        names = sorted(tokenizer.control_ids, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, names)))
        self.name = functools.lru_cache(maxsize=tokenizer.vocab_size)(self._name)

    def begun(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """The ids behind the beginning of sequence, and whether (0 or 1) it was put there."""
        missing = self.bos is not None and (not ids or ids[0] != self.bos)
        return ([self.bos, *ids] if missing else [*ids]), int(missing)  # type: ignore[list-item]

    def plain(self, text: str) -> list[int]:
        """Ids of a text, in which no control token is recognised."""
        return self.tokenizer.encode(text, first=True) if text else []

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are recognised by name."""
        if not self.tokenizer.model:
            return self._rendered(text)
        ids: list[int] = []
        at, first = 0, True
        for found in [*self._controls.finditer(text), None]:
            between = text[at : found.start() if found else None]
            # Our chat templates write the space that encoding puts before a first text.
            spaced = between.startswith(SPACE)
            ids += self.tokenizer.encode(between, first=first and not spaced) if between else []
            first = first and not between
            if found:
                ids.append(self.tokenizer.control_ids[found.group()])
                at = found.end()
        return ids

    def _rendered(self, text: str) -> list[int]:
        """The ids that transformers gives."""
        found, position = list[int](), 0
        for name, start, end in [*self.tokenizer.special_tokens(text), ("", len(text), len(text))]:
            if part := text[position:start]:
                found += self.tokenizer.encode(part, first=not position or self.tokenizer.leads_sections)
            found += [self.tokenizer.control_ids[name]] if name else []
            position = end
        return found

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens by name; `tokenize` gives its own ids back."""
        runs = [list(run) for _, run in itertools.groupby(ids, self._names.__contains__)]
        texts = [self.decode(run) or "".join(self._names.get(token, "") for token in run) for run in runs]
        whole = "".join(texts)
        # Encoding puts a space before a sequence's first text, which may or may not have had one.
        first = next((n for n, run in enumerate(runs) if run[0] not in self._names), None)
        if first is None:
            return whole
        bare = "".join([*texts[:first], texts[first].removeprefix(" "), *texts[first + 1 :]])
        return bare if self.tokenize(bare) == list(ids) else whole

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens, and ids that the tokenizer does not have, are left out."""
        return self.tokenizer.decode(ids)

    def _name(self, token_id: int) -> str:
        """What one id is called: its text, or where that is none or part of a character, its piece."""
        if token_id in self._names:
            return self._names[token_id]
        if token_id >= self.tokenizer.vocab_size:
            return f"<unused {token_id}>"
        text, piece = self.decode([token_id]), self.tokenizer.token_text(token_id)
        return piece if not text or TORN in text or _BYTE.fullmatch(piece) else text

    def bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes that an id spells; None where they are not known."""
        name = self.name(token_id)
        byte = _BYTE.fullmatch(name)
        if byte and self.decode([token_id]) != name:
            return [int(byte[1], 16)]
        return list(name.encode()) if self.decode([token_id]) == name else None

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """Characters that each id adds to the text; a character's first token has all of it."""
        found: list[int] = []
        torn: list[int] = []
        for token_id in ids:
            torn.append(token_id)
            text = self.decode(torn)
            if TORN not in text or len(torn) == LONGEST_CHARACTER:
                found += [len(text)] + [0] * (len(torn) - 1)
                torn = []
        return found + [len(self.decode(torn))][: len(torn)] + [0] * (len(torn) - 1)

    @property
    def chat_template(self) -> str | None:
        """The template (jinja) that writes the layout."""
        written = tokenizer_export.CHAT_TEMPLATES.get(self.layout) if self.tokenizer.model else None
        return written or self.tokenizer.chat_template

    @property
    def special_names(self) -> dict[str, str | None]:
        """`bos_token`, `eos_token` and `pad_token` by name."""
        return {key: self.tokenizer.special_names.get(key) for key in ("bos_token", "eos_token", "pad_token")}
